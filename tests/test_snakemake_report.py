"""Snakemake's own report: built without a network, every figure and table in it with its caption."""

import json
import re
import zipfile

import dag
import pytest

from icprobe.artifacts import PACKAGE

FIGURES = {"distributions", "lengths", "heat_map", "overlaps", "win_rates", "icp--influence", "icp--one_step"}
FIGURES |= {"chain", "sweep"}
TABLES = {
    "correlations",
    "bins",
    "overlaps",
    "label_aucs",
    "label_auc_differences",
    "label_correlations",
    "win_rates",
    "differences",
    "chain",
}
TABLES |= {"held_out", "held_out_differences", "tail_patch"}
# What `all` asks for and the report does not rest upon.
BESIDE = ("all", "tabulate_scores")
# Every proxy refuses: what needs the network fails at once.
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path_factory.mktemp("report") / "copy")


@pytest.fixture(scope="module")
def report(project):
    ended = project.snakemake("all", "--report", "report.zip", environment=NO_NETWORK)
    assert ended.returncode == 0, ended.output[-3000:]
    with zipfile.ZipFile(project.path / "report.zip") as archive:
        archive.extractall(project.path / "unpacked")
    (page,) = (project.path / "unpacked").rglob("report.html")
    return page


def test_every_figure_and_table_is_there_with_its_caption(report):
    names = {path.stem for path in report.parent.rglob("data/raw/*/*")}
    assert names == FIGURES | TABLES
    text = " ".join(re.sub(r"<[^>]+>", "", report.read_text(encoding="utf-8").replace("\\n", " ")).split())
    # The synthetic check and retraining are targets of their own, and this experiment has no selections.
    of_others = ("synthetic_", "frontier", "lds_", "removal_", "leave_one_out_", "selections_")
    captions = [
        path for path in (PACKAGE / "figures" / "captions").glob("*.rst") if not path.stem.startswith(of_others)
    ]
    assert len(captions) == 21
    for path in captions:
        # Quotation marks and dashes are typeset; the first words are plain.
        first = " ".join(path.read_text(encoding="utf-8").split()[:4])
        assert first in text, path.name


def test_it_opens_in_a_browser_without_network(report):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        except playwright.Error:
            pytest.skip("/usr/bin/chromium is absent: apt-get install chromium")
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(10_000)
        complaints, requests = [], []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(report.as_uri())
        page.get_by_text("Results", exact=True).click()
        page.get_by_text("tiny-llama", exact=True).first.click()
        page.get_by_text("Agreement of the methods", exact=True).first.click()
        page.get_by_text("correlations", exact=True).first.wait_for()
        assert complaints == []
        assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
        browser.close()


@pytest.fixture(scope="module")
def planned(project):
    """All jobs of the experiment."""
    return project.snakemake("all", "-n", "--forceall").jobs


def test_the_picture_of_the_dag_in_our_report_is_whole(project, planned):
    text = project.read("results/tiny/report.html").decode()
    picture = json.loads(re.search(r'id="specifications">(.*?)</script>', text)[1])["dag"]
    rows = next(rows for rows in picture["datasets"].values() if "seconds" in rows[0])
    drawn = {row["rule"]: row for row in rows}
    assert {rule: row["jobs"] for rule, row in drawn.items()} == {r: n for r, n in planned.items() if r not in BESIDE}
    # The report itself was still being written.
    assert [rule for rule, row in drawn.items() if row["seconds"] is None] == ["report"]
    assert "{experiment," not in text


def test_what_an_earlier_configuration_left_is_no_part_of_the_record(project, planned):
    for name in dag.LEFT_BEHIND:
        assert (project.path / f"logs/tiny/{name}.environment.json").exists()
    text = project.read("results/tiny/report.html").decode()
    table = text[text.index("Versions, device and code") :]
    facts = dict(re.findall(r'<th scope="row">([^<]*)</th><td class="path">([^<]*)</td>', table))
    # Every job that the report rests on, and no other.
    assert int(facts["jobs"]) == planned.total() - planned["report"] - sum(planned[rule] for rule in BESIDE)
    assert facts["device.generate_base"] == "cpu"
    assert "left behind" not in text
