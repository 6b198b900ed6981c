"""The report: complete in itself, inert whatever the texts are, and fluid in a real browser."""

import html
import json
import re
import time
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

matplotlib.use("svg")

from matplotlib.figure import Figure

from icprobe.binning import overlaps
from icprobe.errors import DataError, ScoreError
from icprobe.report import ModelInputs, RuleRun, build, embedded_json, number, visible

CHROMIUM = Path("/usr/bin/chromium")
METHODS = ["icp", "influence", "influence_log", "one_step", "length", "random"]
STATISTICS = ["spearman", "pearson", "kendall", "spearman_partial_length"]
WORDS = re.findall(
    r"\w+", "river stone bright letter cloud seven market gentle window paper north winter garden music harbour"
)
WIN_RATE_COLUMNS = ["model", "method", "bin", "subset", "seed", "n", "win_rate", "standard_error", "low", "high"]
WIN_RATE_COLUMNS += ["discrete_win_rate", "n_wins", "n_wins_base", "n_draws"]

SCRIPT = "</script><script>window.attacked = 1</script>"
IMAGE = '<img src=x onerror="window.attacked = 2"> &amp; &lt;b&gt;'
RTL = "مرحبا بالعالم \u202e reversed \u202c"
CONTROLS = "before\x00between\x07after\u2028line\u2029end\ud800."
JINJA = "{{ 7 * 7 }} {% raw %} ${1+1} <!-- <script>"
HOSTILE = [SCRIPT, IMAGE, RTL, CONTROLS, JINJA]


def correlation_rows(scores, model):
    return pd.DataFrame(
        [
            (model, a, b, statistic, value := spearmanr(scores[a], scores[b]).statistic, value - 0.1, value + 0.1)
            for a, b in combinations(scores, 2)
            for statistic in STATISTICS
        ],
        columns=["model", "method_a", "method_b", "statistic", "value", "low", "high"],
    ).assign(interval="bootstrap", n=len(scores["icp"]))


def win_rate_rows(model, rng):
    rows = []
    for method, bin_ in [
        ("icp", "<=0.5"),
        ("icp", ">0.8"),
        ("influence", "<=0.5"),
        ("influence", ">0.8"),
        ("all", "all"),
    ]:
        for subset in ["everyday", "knowledge", "overall"]:
            for seed in ["0", "1", "all"]:
                rate, error = 50 + 12 * rng.standard_normal(), 6.0
                rows.append((model, method, bin_, subset, seed, 24, rate, error, rate - 12, rate + 12, rate, 11, 9, 4))
    return pd.DataFrame(
        rows,
        columns=WIN_RATE_COLUMNS,
    )


def figure(path, title):
    drawing = Figure(figsize=(4, 3))
    axes = drawing.subplots()
    axes.scatter(range(10), range(10))
    axes.set(title=title, xlabel="icp (share of tasks helped)", ylabel="influence")
    drawing.savefig(path, bbox_inches="tight", metadata={"Title": title, "Date": None})
    return path


def experiment(directory, n=96, m=12, models=("smollm2",), words=40):
    """The arguments of `build` for made-up examples, of which a quarter are planted; files in `directory`."""
    rng = np.random.default_rng(0)
    text = lambda k: " ".join(rng.choice(WORDS, k)).capitalize() + "."  # noqa: E731
    planted = np.where(np.arange(n) % 4 == 0, rng.choice(["truncated", "scrambled"], n), "sound")
    train = pd.DataFrame(
        {
            "id": [f"demo-{i:05d}" for i in range(n)],
            "instruction": [text(9) for _ in range(n)],
            "input": [text(6) if i % 3 == 0 else "" for i in range(n)],
            "output": [text(int(k)) for k in rng.integers(words // 2, words * 3 // 2, n)],
            "planted": planted,
        }
    )
    tasks = pd.DataFrame(
        {
            "id": [f"task-{t:02d}" for t in range(m)],
            "instruction": [text(7) for _ in range(m)],
            "input": "",
            "output": "x",
        }
    )
    inputs = {}
    for model in models:
        folder = directory / model
        for name in ("scores", "attributions"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        worth = rng.standard_normal(n) - 1.2 * (planted != "sound")
        scores = {}
        attributions = {}
        for k, method in enumerate(METHODS):
            if method in ("length", "random"):
                values = rng.integers(5, 200, n).astype(float) if method == "length" else rng.random(n)
                matrix = pd.DataFrame({"score": values.astype(np.float32)})
            else:
                values = (worth[:, None] + rng.standard_normal((n, m))) * 10.0**k
                matrix = pd.DataFrame(values.astype(np.float32), columns=tasks["id"])
                values = (values > 0).mean(1) if method in ("icp", "one_step") else values.mean(1)
            matrix.insert(0, "id", train["id"])
            attributions[method] = folder / "attributions" / f"{method}.parquet"
            matrix.to_parquet(attributions[method])
            scores[method] = pd.Series(values, index=train["id"])
            path = folder / "scores" / f"{method}.parquet"
            pd.DataFrame({"id": train["id"], "score": values}).to_parquet(path)
        lengths = pd.DataFrame({"id": train["id"], "n_query": 20, "n_target": scores["length"].astype(int).to_numpy()})
        inputs[model] = ModelInputs(
            scores={method: folder / "scores" / f"{method}.parquet" for method in METHODS},
            attributions=attributions,
            lengths=lengths,
            correlations=correlation_rows(scores, model),
            overlaps=overlaps(scores, ["<=0.5", ">0.5", ">0.8", ">0.9"]).assign(model=model),
            win_rates=win_rate_rows(model, rng),
            figures=[
                figure(folder / "scatter_icp_influence.svg", "icp against influence"),
                figure(folder / "distributions.svg", "Score distributions"),
            ],
        )
    return {
        "experiment": "demo",
        "config_text": "experiment: demo\nbins: ['<=0.5', '>0.8']\n",
        "models": inputs,
        "train": train,
        "tasks": tasks,
        "labels": ["planted", "published_icp"],
        "sound_labels": {"planted": ["sound"], "published_icp": [">0.9"]},
        "top": 20,
        "environment": {
            "icprobe": "0.1.0",
            "commit": "0123456789abcdef",
            "device": "cpu",
            "dtype": "bfloat16",
            "threads": 2,
            "versions": {"python": "3.11", "torch": "2.13.0"},
        },
        "dag": WORKFLOW,
    }


WORKFLOW = [
    RuleRun("prepare_model", 21.4, 900, ()),
    RuleRun("prepare_train", 1.2, 150, ()),
    RuleRun("prepare_eval", 0.9, 150, ()),
    RuleRun("select_tasks", 1.1, 150, ("prepare_model",)),
    RuleRun("measure_lengths", 3.0, 300, ("prepare_model", "prepare_train")),
    *[RuleRun("attribute", 40 + 8 * k, 2100, ("prepare_model", "prepare_train", "select_tasks")) for k in range(4)],
    RuleRun("attribute_influence", 122.0, 3900, ("prepare_model", "prepare_train", "select_tasks")),
    *[RuleRun("gather_attributions", 0.6, 120, ("attribute", "attribute_influence")) for _ in range(6)],
    *[RuleRun("score", 0.6, 120, ("gather_attributions",)) for _ in range(6)],
    RuleRun("correlate", 4.2, 210, ("score", "measure_lengths")),
    RuleRun("plot_scatter", 3.1, 200, ("score",)),
    RuleRun("plot_distributions", 2.1, 200, ("score",)),
    RuleRun("plot_heat_map", 2.0, 200, ("correlate",)),
    *[RuleRun("subset", 0.8, 120, ("score", "prepare_train")) for _ in range(6)],
    *[RuleRun("fine_tune", 31.0, 2900, ("prepare_model", "subset")) for _ in range(7)],
    *[RuleRun("generate", 19.0, 1500, ("fine_tune", "prepare_eval")) for _ in range(7)],
    RuleRun("generate_base", 20.0, 1500, ("prepare_model", "prepare_eval")),
    *[RuleRun("judge", 1.0, 130, ("generate", "generate_base", "prepare_eval")) for _ in range(7)],
    RuleRun("win_rates", 1.6, 160, ("judge",)),
    ("report", None, None, ("correlate", "win_rates", "plot_scatter", "plot_distributions", "plot_heat_map")),
]


def page(directory, **changes):
    """The text of the report of a small experiment."""
    arguments = experiment(directory) | changes
    build(directory / "report.html", **arguments)
    return (directory / "report.html").read_text(encoding="utf-8")


def with_texts(arguments, texts):
    """The same experiment with these texts as instruction, input, output and label of as many examples."""
    train = arguments["train"].astype(dict.fromkeys(("instruction", "input", "output"), object))
    for column in ("instruction", "input", "output"):
        train.loc[: len(texts) - 1, column] = texts
    train.loc[: len(texts) - 1, "planted"] = [text.replace("\ud800", "") for text in texts]
    return arguments | {"train": train}


class Addresses(HTMLParser):
    """What a page would fetch: addresses in attributes that load something, and in style sheets."""

    def __init__(self):
        super().__init__()
        self.found = []
        self.in_style = False

    def handle_starttag(self, tag, attrs):
        self.in_style = tag == "style"
        for name, value in attrs:
            if name in {"src", "srcset", "href", "data", "action", "poster", "background"} and value:
                self.found.append(value)

    def handle_endtag(self, tag):
        self.in_style = False

    def handle_data(self, data):
        if self.in_style:
            self.found += re.findall(r"url\(\s*['\"]?([^'\")]+)", data) + re.findall(r"@import[^;]+", data)


def addresses(text):
    parser = Addresses()
    parser.feed(text)
    return [address for address in parser.found if not address.startswith(("#", "data:"))]


def test_the_file_refers_to_nothing_outside_itself(tmp_path):
    text = page(tmp_path)
    assert addresses(text) == []
    assert "default-src 'none'" in html.unescape(text)
    assert addresses('<img src="https://example.org/a.png">') == ["https://example.org/a.png"]


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    arguments = experiment(tmp_path)
    for name in ("first.html", "second.html"):
        build(tmp_path / name, **arguments)
    assert (tmp_path / "first.html").read_bytes() == (tmp_path / "second.html").read_bytes()


def test_the_headline_says_what_the_interval_includes(tmp_path):
    inputs = experiment(tmp_path)["models"]["smollm2"]
    table = inputs.correlations.copy()
    chosen = (table["method_a"] == "icp") & (table["method_b"] == "influence")
    table.loc[chosen & (table["statistic"] == "spearman"), ["value", "low", "high"]] = 0.5, 0.31, 0.66
    table.loc[chosen & (table["statistic"] == "spearman_partial_length"), ["value", "low", "high"]] = 0.1, -0.08, 0.27
    changed = ModelInputs(scores=inputs.scores, correlations=table)
    text = page(tmp_path, models={"smollm2": changed})
    assert "Spearman correlation of 0.50 (95% interval 0.31 to 0.66, bootstrap). The interval excludes 0" in text
    assert "Given response length it is 0.10 (95% interval −0.08 to 0.27). The interval includes 0" in text


def test_a_table_that_is_absent_or_empty_is_said_to_be_absent(tmp_path):
    inputs = experiment(tmp_path)["models"]["smollm2"]
    for win_rates in (None, inputs.win_rates.iloc[:0], inputs.win_rates.assign(model="another")):
        bare = ModelInputs(scores=inputs.scores, win_rates=win_rates)
        text = page(tmp_path, models={"smollm2": bare}, labels=[], environment=None, dag=None)
        for sentence in (
            "No AUC:",
            "No correlations of smollm2",
            "No overlaps of smollm2",
            "No win rates of smollm2",
            "No figures of smollm2",
            "No environment was recorded.",
            "No times of the workflow",
        ):
            assert text.count(sentence) == 1, sentence


def test_the_best_and_worst_are_those_of_the_scores_with_their_texts_whole(tmp_path):
    text = page(tmp_path, top=3)
    arguments = experiment(tmp_path)
    score = pd.read_parquet(arguments["models"]["smollm2"].scores["influence"]).set_index("id")["score"].sort_values()
    outputs = arguments["train"].set_index("id")["output"]
    section = text[text.index("Best by influence<") : text.index("Best by influence_log<")]
    cards = re.findall(r'<article class="card" data-example="([^"]+)">', section)
    assert cards == [*score.index[::-1][:3], *score.index[:3]]
    assert all(outputs[identity] in section for identity in cards)


def test_a_figure_is_named_by_its_title_or_its_file(tmp_path):
    titled = figure(tmp_path / "a.svg", "Scores <by> method")
    plain = tmp_path / "icp--one_step.svg"
    plain.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>", encoding="utf-8")
    inputs = experiment(tmp_path)["models"]["smollm2"]
    text = page(tmp_path, models={"smollm2": ModelInputs(scores=inputs.scores, figures=[titled, plain])})
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", text)
    assert captions[:2] == ["Scores &lt;by&gt; method", "icp against one_step"]


def test_an_auc_is_computed_where_no_table_gives_it(tmp_path):
    arguments = experiment(tmp_path)
    perfect = pd.DataFrame(
        {"id": arguments["train"]["id"], "score": (arguments["train"]["planted"] == "sound").astype(float)}
    )
    text = page(tmp_path, models={"smollm2": ModelInputs(scores={"oracle": perfect})})
    assert re.search(r'<th scope="row">oracle</th><td class="n">1.00</td>', text)


def test_ids_that_do_not_belong_are_refused(tmp_path):
    arguments = experiment(tmp_path)
    strange = pd.DataFrame({"id": ["nobody"], "score": [1.0]})
    with pytest.raises(ScoreError, match="'nobody'"):
        page(tmp_path, models={"smollm2": ModelInputs(scores={"icp": strange})})
    inputs = arguments["models"]["smollm2"]
    matrix = pd.DataFrame({"id": arguments["train"]["id"], "no-task": np.float32(1)})
    with pytest.raises(ScoreError, match="'no-task'"):
        page(tmp_path, models={"smollm2": ModelInputs(scores=inputs.scores, attributions={"icp": matrix})})
    with pytest.raises(DataError, match="output"):
        page(tmp_path, train=arguments["train"].drop(columns="output"))


def test_no_text_ends_the_element_that_holds_it():
    text = embedded_json({"a": HOSTILE})
    assert not set("<>&\u2028\u2029") & set(text)
    text.encode("utf-8")
    assert json.loads(text) == {"a": HOSTILE}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-1234.5, "−1234"), (0.91666, "0.917"), (1.5e-9, "1.50e−9"), (-2.5e7, "−2.50e7"), (float("nan"), "–")],
)
def test_numbers_are_written_to_three_digits(value, text):
    assert number(value) == text


def test_hostile_texts_become_no_markup(tmp_path):
    arguments = with_texts(experiment(tmp_path), HOSTILE)
    text = page(tmp_path, **arguments)
    tags = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append((tag, dict(attrs)))

    Tags().feed(text)
    assert not [attributes for tag, attributes in tags if "onerror" in attributes]
    assert sum(tag == "script" for tag, _ in tags) == 5
    assert "49" not in re.findall(r"<dd[^>]*>([^<]*)</dd>", text)
    assert visible(CONTROLS) == "before\u2400between\u2407after\u2028line\u2029end\ufffd."


# --- in a browser


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
        self.page.set_default_timeout(5_000)
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


def test_five_thousand_examples_times_a_hundred_tasks_stay_fluid(browser, tmp_path):
    build(tmp_path / "report.html", **experiment(tmp_path, n=5000, m=100, words=80))
    megabytes = (tmp_path / "report.html").stat().st_size / 1e6
    assert megabytes < 25, f"{megabytes:.1f} MB"
    first, report = (Opened(browser, tmp_path / "report.html") for _ in range(2))
    first.close()
    # The lesser of two: another process may take the core meanwhile.
    seconds = min(first.load_seconds, report.load_seconds)
    assert seconds < 3, f"{seconds:.2f} s"
    searches = ("harbour river", "demo-01", "")
    times = dict.fromkeys(searches, float("inf"))
    for text in searches * 3:
        report.page.wait_for_timeout(400)  # the plot follows
        # The least of three: another process may take the core meanwhile.
        times[text] = min(times[text], round(report.search_milliseconds(text)))
    assert max(times.values()) < 200, times
    report.page.locator("#example-table tbody button").first.click()
    report.page.locator("#effects svg").wait_for()
    assert report.complaints == []
    report.close()


def test_more_examples_than_the_explorer_holds_are_drawn_with_the_extremes(tmp_path, monkeypatch):
    monkeypatch.setattr("icprobe.report.EXPLORED_EXAMPLES", 60)
    text = page(tmp_path, top=2)
    assert "Here are 60 of the 96 examples" in text
    data = re.search(r'id="data">(.*?)</script>', text)[1]
    for identity in set(re.findall(r'<article class="card" data-example="([^"]+)">', text)):
        assert f'"{identity}"' in data
