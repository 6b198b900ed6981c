"""The report in a real browser: sorted, filtered, brushed, clicked; fluid at 5,000 examples; without a complaint."""

import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reports import HOSTILE, IMAGE, SCRIPT, experiment, with_texts

from icprobe.report.build import build
from icprobe.report.findings import ModelInputs
from icprobe.report.page import visible

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is absent: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(
            executable_path=str(CHROMIUM),
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        yield running
        running.close()


class Opened:
    """A report in a page of its own, and what the browser complained of or asked for."""

    def __init__(self, browser, path, width=1280):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.complaints = []
        self.requests = []
        self.page.set_default_timeout(20_000)  # on a machine that is busy
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        start = time.perf_counter()
        self.page.goto(path.as_uri())
        try:
            self.page.locator("html[data-ready=yes]").wait_for(state="attached")
            self.page.locator("#scatter canvas").wait_for()
        except Exception:
            assert self.complaints == []
            raise
        self.load_seconds = time.perf_counter() - start

    def count(self):
        return self.page.locator("#count").inner_text()

    def wait_for_count(self, pattern):
        self.page.locator("#count").filter(has_text=re.compile(pattern)).wait_for()
        return int(re.match(r"\d+|All", self.count())[0].replace("All", "-1"))

    def first_ids(self):
        return self.page.locator("#example-table tbody button").all_inner_texts()

    def wait_for_ids(self, expected):
        """The first page of the table; DataTables sorts after the click has returned."""
        for _ in range(60):
            if self.first_ids() == expected:
                return
            self.page.wait_for_timeout(50)
        assert self.first_ids() == expected

    def search_milliseconds(self, text):
        """From a key in the search field to the table of what was found, the pause for further keys included."""
        return self.page.evaluate(
            """(text) => new Promise((resolve) => {
                const begin = performance.now();
                new MutationObserver((_, watcher) => { watcher.disconnect(); resolve(performance.now() - begin); })
                    .observe(document.getElementById("count"), { childList: true });
                const field = document.getElementById("search");
                field.value = text;
                field.dispatchEvent(new Event("input", { bubbles: true }));
            })""",
            text,
        )

    def drag(self, left, top, right, bottom):
        """A drag over the plot, in shares of its width and height."""
        self.page.evaluate(
            "document.getElementById('scatter').scrollIntoView({ behavior: 'instant', block: 'center' })"
        )
        box = self.page.locator("#scatter canvas").bounding_box()
        self.page.mouse.move(box["x"] + left * box["width"], box["y"] + top * box["height"])
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + right * box["width"], box["y"] + bottom * box["height"], steps=6)
        self.page.mouse.up()

    def close(self):
        self.page.close()


@pytest.fixture
def opened(browser, tmp_path):
    build(tmp_path / "report.html", **experiment(tmp_path, models=("smollm2", "pythia")))
    report = Opened(browser, tmp_path / "report.html")
    yield report
    assert report.complaints == []
    assert [address for address in report.requests if not address.startswith(("file:", "data:"))] == []
    report.close()


def test_the_explorer_sorts_filters_shows_brushes_and_switches(opened, tmp_path):
    view = opened.page
    arguments = experiment(tmp_path, models=("smollm2", "pythia"))
    train = arguments["train"]
    scores = {
        (model, method): pd.read_parquet(path).set_index("id")["score"]
        for model, inputs in arguments["models"].items()
        for method, path in inputs.scores.items()
    }
    assert opened.count() == "All 96 examples"

    # sort: by icp at first, by influence on a click at its heading
    icp, influence = scores["smollm2", "icp"], scores["smollm2", "influence"]
    assert list(icp[opened.first_ids()]) == sorted(icp, reverse=True)[:10]
    heading = view.locator("#example-table thead th", has_text="influence")
    heading.click()
    opened.wait_for_ids(list(scores["smollm2", "influence"].sort_values().index[:10]))

    # filter: by text, by label, by bin, by limits
    view.fill("#search", "demo-00007")
    assert opened.wait_for_count("^1 of") == 1
    opened.wait_for_ids(["demo-00007"])
    view.fill("#search", "")
    view.select_option("#label-0", "=truncated")
    assert opened.wait_for_count("^\\d+ of") == (train["planted"] == "truncated").sum()
    view.select_option("#label-0", "")
    view.select_option("#bin", ">0.8")
    assert opened.wait_for_count("^\\d+ of") == (scores["smollm2", "icp"] > 0.8).sum()
    view.click("#clear")
    opened.wait_for_count("^All")
    view.fill("#b-from", "0")
    view.press("#b-from", "Tab")
    assert opened.wait_for_count("^\\d+ of") == (scores["smollm2", "influence"] >= 0).sum()
    view.click("#clear")
    opened.wait_for_count("^All")

    # an example: by key and by mouse
    view.locator("#example-table tbody button").first.focus()
    view.keyboard.press("Enter")
    first = opened.first_ids()[0]
    assert view.locator("#detail-title").inner_text() == first
    assert view.evaluate("document.activeElement.id") == "detail-title"
    assert train.set_index("id").loc[first, "output"] in view.locator("#detail .texts").inner_text()
    view.locator("#effects svg").wait_for()
    view.locator("#example-table tbody tr").nth(3).locator("td").nth(1).click()
    third = opened.first_ids()[3]
    assert view.locator("#detail-title").inner_text() == third
    matrices = [
        pd.read_parquet(arguments["models"]["smollm2"].attributions[method]).set_index("id").loc[third]
        for method in ("icp", "influence")
    ]
    view.locator("#detail details summary").click()
    rows = view.locator("#detail details tbody tr").all()
    order = matrices[0].sort_values(ascending=False).index
    assert [row.locator("th").inner_text().split()[0] for row in rows] == list(order)
    shown = [[float(cell.replace("−", "-")) for cell in row.locator("td").all_inner_texts()] for row in rows]
    np.testing.assert_allclose(shown, np.stack([matrix[order] for matrix in matrices], 1), rtol=6e-3)

    # brush: the upper half of the plot
    opened.drag(0.1, 0.1, 0.95, 0.5)
    opened.wait_for_count("^[1-9].* limited by the plot")
    view.wait_for_timeout(500)  # the brush's last moves, on a machine that is busy
    listed = opened.wait_for_count("limited by the plot")
    low, high = (float(view.input_value(name)) for name in ("#b-from", "#b-to"))
    left, right = (float(view.input_value(name)) for name in ("#a-from", "#a-to"))
    assert listed == (icp.between(left, right) & influence.between(low, high)).sum()
    assert 0 < listed < 96

    # switch method, axes and model
    view.select_option("#method-b", "length")
    opened.wait_for_count("^All")
    assert view.locator("#limit-b").inner_text() == "length, score: from – to"
    assert "length has one score for an example" in view.locator("#detail").inner_text()
    view.select_option("#axes", "ranks")
    view.fill("#b-to", "10")
    view.press("#b-to", "Tab")
    assert opened.wait_for_count("^\\d+ of") == 10
    view.click("#clear")
    view.select_option("#model", "pythia")
    view.select_option("#method-a", "influence")
    view.locator("#example-table thead th.score").first.click()
    opened.wait_for_ids(list(scores["pythia", "influence"].sort_values().index[:10]))
    for chart in ("#heat-map-0 svg", "#heat-map-1 svg", "#win-rates-0 svg", "#dag svg"):
        view.locator(chart).wait_for()


def test_equal_scores_stand_by_their_mean_effect_and_rows_without_ids_by_their_place(browser, tmp_path):
    arguments = experiment(tmp_path, methods_with_mean_effects=("icp",))
    for name in ("train", "tasks"):
        arguments[name]["row_number"] = np.arange(len(arguments[name]))
    build(tmp_path / "report.html", **arguments)
    scores = pd.read_parquet(arguments["models"]["smollm2"].scores["icp"])
    ranked = scores.sort_values(["score", "mean_effect"], ascending=False)
    assert ranked["score"].nunique() < len(ranked) / 2
    opened = Opened(browser, tmp_path / "report.html")
    view = opened.page
    assert opened.first_ids() == list(ranked["id"][:10])
    view.locator("#example-table thead th.score").first.click()
    opened.wait_for_ids(list(ranked["id"][:-11:-1]))
    view.locator("#example-table tbody tr").first.locator("td").nth(1).click()
    last = ranked.iloc[-1]
    assert view.locator("#detail .facts").inner_text().startswith(f"row_number {last.name}; ")
    cells = view.locator("#detail tbody tr", has=view.locator("th", has_text=re.compile("^icp$"))).locator("td")
    assert float(cells.nth(2).inner_text().replace("−", "-")) == pytest.approx(last["mean_effect"], rel=6e-3)
    tasks = arguments["tasks"]["instruction"]
    helped = re.search(r"most: “task (\d+), (.*?)…?” \(", view.locator("#detail").inner_text())
    assert tasks[int(helped[1])].startswith(helped[2])
    card = view.locator(f".card[data-example='{ranked['id'].iloc[0]}'] .facts").first.inner_text()
    assert card.startswith(f"row_number {ranked.index[0]}, rank 1,")
    assert opened.complaints == []
    opened.close()


def test_hostile_texts_are_inert_and_shown_as_they_are(browser, tmp_path):
    arguments = with_texts(experiment(tmp_path), HOSTILE)
    tasks = arguments["tasks"].astype({"instruction": object})
    tasks.loc[: len(HOSTILE) - 1, "instruction"] = HOSTILE
    build(
        tmp_path / "report.html", **arguments | {"tasks": tasks, "config_text": SCRIPT, "environment": {SCRIPT: IMAGE}}
    )
    report = Opened(browser, tmp_path / "report.html")
    report.page.fill("#search", '"window.attacked = 1"')
    assert report.wait_for_count("^\\d+ of") == 1
    report.page.fill("#search", "window.attacked")
    assert report.wait_for_count("^2 of") == 2
    report.page.fill("#search", "")
    report.wait_for_count("^All")
    report.page.click("#example-table thead th.id")
    for i, text in enumerate(HOSTILE):
        report.page.locator(f"#example-table button[data-row='{i}']").click()
        assert report.page.locator("#detail dd").nth(0).evaluate("(node) => node.textContent") == visible(text)
        assert report.page.locator("#detail dd").nth(2).evaluate("(node) => node.textContent") == visible(text)
    report.page.locator("#effects svg").wait_for()
    report.page.locator("#effects svg path[aria-label]").first.hover()
    report.page.locator("#vg-tooltip-element").wait_for()
    assert report.page.evaluate("window.attacked") is None
    assert report.page.locator("img[src=x]").count() == 0
    assert report.complaints == []
    report.close()


def test_a_bare_report_opens_without_complaint(browser, tmp_path):
    arguments = experiment(tmp_path)
    inputs = arguments["models"]["smollm2"]
    scores = pd.read_parquet(inputs.scores["icp"])
    scores.loc[3:20, "score"] = np.nan
    bare = ModelInputs(scores={"budgeted": scores})
    build(tmp_path / "report.html", **arguments | {"models": {"smollm2": bare}, "labels": [], "dag": None})
    report = Opened(browser, tmp_path / "report.html", width=400)
    assert report.page.evaluate("document.documentElement.scrollWidth") <= 400
    report.page.locator("#example-table tbody button").last.click()
    assert "none per task" in report.page.locator("#detail").inner_text()
    assert report.complaints == []
    report.close()


def test_titles_and_heat_maps_are_whole_on_a_narrow_screen(browser, tmp_path):
    build(tmp_path / "report.html", **experiment(tmp_path))
    report = Opened(browser, tmp_path / "report.html", width=400)
    report.page.locator("#heat-map-0 svg").wait_for()
    assert report.page.evaluate("document.documentElement.scrollWidth") <= 400
    reach = "(node) => node.getBoundingClientRect().right"
    titles = "section:not(#explorer) caption > span"
    for place in ("#heat-map-0 svg", "#win-rates-0 svg", "h2", ".finding", titles):
        shown = [node.evaluate(reach) for node in report.page.locator(place).all()]
        assert 0 < max(shown) <= 400, place
    report.close()


def test_a_method_alone_is_shown_against_the_length_of_the_response(browser, tmp_path):
    arguments = experiment(tmp_path)
    inputs = arguments["models"]["smollm2"]
    only = ModelInputs({"influence": inputs.scores["influence"]}, lengths=inputs.lengths)
    build(tmp_path / "report.html", **arguments | {"models": {"smollm2": only}})
    report = Opened(browser, tmp_path / "report.html")
    assert report.page.locator("#method-b").input_value() == "response tokens"
    headings = report.page.locator("#example-table thead th").all_inner_texts()
    assert sum(heading.lower() == "response tokens" for heading in headings) == 1
    assert sum(heading == "influence" for heading in headings) == 1
    report.page.locator("#example-table tbody button").first.click()
    assert report.complaints == []
    report.close()


@pytest.mark.parametrize("labels", [0, 1, 3, 6])
def test_instructions_can_be_read_in_the_explorer_however_many_labels_there_are(labels, browser, tmp_path):
    arguments = experiment(tmp_path)
    names = [f"label-{n}" for n in range(labels)]
    train = arguments["train"].assign(**dict.fromkeys(names, "some value"))
    build(tmp_path / "report.html", **arguments | {"train": train, "labels": names})
    report = Opened(browser, tmp_path / "report.html")
    width = report.page.locator("#example-table td.long").first.evaluate("(cell) => cell.getBoundingClientRect().width")
    assert width > 150
    assert report.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    for heading in report.page.locator("#example-table thead th.label").all():
        assert heading.evaluate("(cell) => cell.getBoundingClientRect().width") > 80
    assert report.complaints == []
    report.close()


def test_five_thousand_examples_times_a_hundred_tasks_stay_fluid(browser, tmp_path):
    build(tmp_path / "report.html", **experiment(tmp_path, n=5000, m=100, words=80))
    megabytes = (tmp_path / "report.html").stat().st_size / 1e6
    assert megabytes < 25, f"{megabytes:.1f} MB"
    first, report = (Opened(browser, tmp_path / "report.html") for _ in range(2))
    first.close()
    # Two to three seconds on a quiet machine. The bound is for what would be slower in kind: clocks of machines that
    # others use too tell no more.
    seconds = min(first.load_seconds, report.load_seconds)
    assert seconds < 12, f"{seconds:.2f} s"
    searches = ("harbour river", "demo-01", "")
    times = dict.fromkeys(searches, float("inf"))
    for text in searches * 3:
        report.page.wait_for_timeout(400)  # the plot follows
        # The least of three: another process may take the core meanwhile.
        times[text] = min(times[text], round(report.search_milliseconds(text)))
    assert max(times.values()) < 800, times
    report.page.locator("#example-table tbody button").first.click()
    report.page.locator("#effects svg").wait_for()
    assert report.complaints == []
    report.close()
