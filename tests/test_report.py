"""The report: complete in itself, and inert whatever the texts are."""

import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from reports import CONTROLS, HOSTILE, experiment, figure, with_texts

from icprobe.analysis.selecting import tabulate
from icprobe.errors import DataError, ScoreError
from icprobe.figures.drawing import caption, save
from icprobe.figures.overlaps import overlap_curve
from icprobe.formatting import number
from icprobe.report.build import build
from icprobe.report.findings import Findings, ModelInputs
from icprobe.report.page import embedded_json, visible
from icprobe.report.provenance import HOW, RuleRun, artifacts, behind, rule_runs
from icprobe.tracking.environment import measured


def page(directory, **changes):
    """The text of the report of a small experiment."""
    arguments = experiment(directory) | changes
    build(directory / "report.html", **arguments)
    return (directory / "report.html").read_text(encoding="utf-8")


def plain(text):
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


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


def sections(text):
    return re.findall(r'<section id="([^"]+)"', text)


def test_the_page_explains_before_it_shows_and_its_links_follow_it(tmp_path):
    text = page(tmp_path, asked={"icp": ("By how many nats?", "share of tasks helped")})
    assert sections(text) == [
        *(
            "asked",
            "found",
            "examples",
            "explorer",
            "correlations",
            "overlaps",
            "labels",
            "win-rates",
            "figures",
        ),
        "making",
    ]
    links = re.findall(r'<a href="#([^"]+)">', text[text.index("<nav") : text.index("</nav>")])
    assert links == sections(text)
    assert "By how many nats? Score: share of tasks helped. A nat is" in plain(text)


def test_the_loss_and_the_likelihood_are_said_where_the_methods_are_explained(tmp_path):
    asked = {"icp": ("By how many nats per token?", "mean over tasks, nats per token")}
    text = plain(page(tmp_path, asked=asked, objective=["The loss is the sum.", "Fine-tuning minimises the mean."]))
    assert "Which loss, which likelihood The loss is the sum. Fine-tuning minimises the mean." in text
    assert "Which loss" not in plain(page(tmp_path, asked=asked))


def test_selections_stand_beside_what_was_asked_for(tmp_path):
    inputs = experiment(tmp_path)["models"]["smollm2"]
    lengths = pd.Series([1.0, 2.0, 6.0], index=["a", "b", "c"])
    chosen = {"best": ("best", "", ["c"]), "best-random_length": ("best", "random_length", ["b"])}
    model = replace(inputs, selections=tabulate(chosen, lengths, "selected").assign(model="smollm2"))
    text = plain(page(tmp_path, models={"smollm2": model}, selections={"best": "the best 1 by icp"}))
    assert "best the best 1 by icp 1 6" in text
    assert "same lengths" not in text


def test_a_table_that_is_absent_or_empty_leaves_no_section(tmp_path):
    inputs = experiment(tmp_path)["models"]["smollm2"]
    for win_rates in (None, inputs.win_rates.iloc[:0], inputs.win_rates.assign(model="another")):
        bare = ModelInputs(scores={"icp": inputs.scores["icp"]}, win_rates=win_rates)
        text = page(tmp_path, models={"smollm2": bare}, labels=[], environment=None, dag=None)
        assert sections(text) == ["found", "examples", "explorer", "making"]
        assert "Nothing here holds the scores against labels" in text
        assert "<h3>Environment" not in text


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
    captions = re.findall(r"<figcaption><strong>([^<]*)</strong>", text)
    assert captions[:2] == ["Scores &lt;by&gt; method", "icp against one_step"]


def test_a_figure_that_was_saved_brings_its_caption(tmp_path):
    table = pd.DataFrame({"bin": [">0.8"], "method": ["influence"], "n": [3], "overlap": [0.5], "chance": [0.2]})
    table = table.assign(low=0.1, high=0.9)
    save(overlap_curve(table), tmp_path / "o.svg", table, "Overlap & chance", "overlaps")
    inputs = experiment(tmp_path)["models"]["smollm2"]
    text = page(tmp_path, models={"smollm2": ModelInputs(scores=inputs.scores, figures=[tmp_path / "o.svg"])})
    said = html.unescape(re.search(r"<figcaption>(.*?)</figcaption>", text)[1])
    assert said == f"<strong>Overlap & chance</strong>. {caption('overlaps')}"


def test_a_job_is_timed_by_the_file_beside_its_log(tmp_path):
    for name, seconds in {"seed-0": 1.5, "seed-1": "-"}.items():
        file = tmp_path / f"{name}.benchmark.tsv"
        file.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:01\t200.5\n")
    assert measured(tmp_path / "seed-0.log") == (1.5, 200.5)
    assert np.isnan(measured(tmp_path / "seed-1.log")[0])
    assert np.isnan(measured(tmp_path / "seed-2.log")).all()


def test_a_rule_without_a_sentence_of_its_own_is_told_by_its_message(tmp_path):
    drawn = RuleRun(
        "plot_odd", makes="results/{experiment}/{model}/figures/odd.svg", message="Drawing {wildcards.model} oddly"
    )
    (row,) = artifacts(rule_runs([drawn]), "demo")
    assert (row["makes"], row["how"]) == ("{model}/figures/odd.svg", "Drawing {model} oddly")
    assert artifacts(rule_runs([RuleRun("score")]), "demo")[0]["how"] == HOW["score"]


def test_of_every_rule_that_makes_something_the_report_says_how():
    """Its message alone would name wildcards. An estimate, rates and an upload are no part of a report."""
    rules = {}
    for path in (Path(__file__).parents[1] / "rules").glob("*.smk"):
        blocks = re.split(r"^ *(?=(?:use )?rule )", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for block in blocks[1:]:
            name = re.match(r"use rule \w+ as (\w+) with:|rule (\w+):", block)
            rules[name[1] or name[2]] = bool(name[1]) or "output:" in block
    assert len(rules) > 50
    made = {name for name, makes in rules.items() if makes} - {"estimate", "measure_rates", "publish"}
    assert made - {*HOW} == set()
    assert {*HOW} - {*rules} == set()


@pytest.mark.parametrize("makes", ["results/{experiment}/report.html", "results/demo/report.html"])
def test_what_a_rule_makes_is_told_below_the_experiments_folder(makes, tmp_path):
    text = page(tmp_path, experiment="demo", dag=[RuleRun("report", makes=makes)])
    assert re.findall(r'<code>report</code></th><td class="path">([^<]*)<', text) == ["report.html"]


def test_the_report_rests_on_the_jobs_of_the_present_dag_alone():
    names = ["report", "score", "fine_tune", "prepare"]
    rules = {name: SimpleNamespace(name=name, message=f"{name}!", output=[f"{name}/{{seed,\\d+}}"]) for name in names}

    class Job:
        def __init__(self, name, number):
            self.rule, self.log = rules[name], [f"{name}/{number}.log"]

    report, one, two, aside, start = (
        Job(*of) for of in (("report", 0), ("score", 1), ("score", 2), ("fine_tune", 0), ("prepare", 0))
    )
    needs = {report: [two, one], one: [start], two: [start], aside: [start], start: []}
    dag = SimpleNamespace(jobs=list(needs), dependencies=needs, workflow=SimpleNamespace(rules=[*rules.values()]))
    assert behind("report", dag) == {
        "report": {"needs": ["score"], "message": "report!", "makes": "report/{seed}", "logs": []},
        "score": {
            "needs": ["prepare"],
            "message": "score!",
            "makes": "score/{seed}",
            "logs": ["score/1.log", "score/2.log"],
        },
        "prepare": {"needs": [], "message": "prepare!", "makes": "prepare/{seed}", "logs": ["prepare/0.log"]},
    }


def test_an_auc_is_computed_where_no_table_gives_it(tmp_path):
    arguments = experiment(tmp_path)
    perfect = pd.DataFrame(
        {"id": arguments["train"]["id"], "score": (arguments["train"]["planted"] == "sound").astype(float)}
    )
    text = page(tmp_path, models={"smollm2": ModelInputs(scores={"oracle": perfect})})
    assert re.search(r'<th scope="row">oracle</th><td class="n">1.00 <span class="interval">\[0.9\d, 1.00\]', text)


def test_examples_of_one_score_share_a_rank_and_stand_by_their_mean_effect():
    train = pd.DataFrame({"id": list("abcde"), **dict.fromkeys(("instruction", "input", "output"), "text")})
    scores = pd.DataFrame(
        {"id": list("edcba"), "score": [1.0, 1.0, 1.0, 0.5, np.nan], "mean_effect": [2, 7, 7, 9, np.nan]}
    )
    bins = pd.DataFrame({"method": ["icp"], "bin": ["top 40%"]})
    found = Findings("m", ModelInputs(scores={"icp": scores}, bins=bins), train, [], {}, top=3)
    # Of four that are scored one and one, not three and three: what stands in the middle is neither.
    assert found.best["icp"] == [2]
    assert found.worst["icp"] == [1]
    assert [found.example(row, "icp")["rank"] for row in (2, 3, 4, 1)] == [1, 1, 1, 4]
    explorer = found.explorer(np.arange(5), pd.DataFrame({"id": []}))
    assert explorer["order"] == {"icp": [None, 3, 0, 1, 2]}
    assert explorer["mean_effects"] == {"icp": [None, 9, 7, 7, 2]}
    whole = Findings("m", ModelInputs(scores={"icp": scores.fillna(0)}, bins=bins), train, [], {}, top=3)
    assert whole.explorer(np.arange(5), pd.DataFrame({"id": []}))["bins"] == {"top 40%": {"icp": [2, 3]}}


def test_overlaps_and_aucs_stand_with_their_intervals(tmp_path):
    inputs = experiment(tmp_path)["models"]["smollm2"]
    where = {"model": "smollm2", "domain": "all", "method": "influence"}
    shares = pd.DataFrame([where | {"bin": ">0.8", "n": 30, "n_overlap": 20, "overlap": 2 / 3, "chance": 0.3}])
    aucs = pd.DataFrame(
        [where | {"label": "planted", "value": "others", "auc": 0.74, "n_positive": 81, "n_negative": 7}]
    )
    changed = ModelInputs(
        scores=inputs.scores,
        overlaps=shares.assign(low=0.48, high=0.81),
        label_aucs=aucs.assign(low=0.51, high=0.89),
    )
    text = plain(page(tmp_path, models={"smollm2": changed}))
    assert "influence 67% [48, 81] 20 of 30" in text
    assert "others 81 against 7 influence 0.74 [0.51, 0.89]" in text


def test_the_charts_have_the_colours_of_the_configuration(tmp_path):
    text = page(tmp_path, colors=["#112233", "#445566"])
    charts = json.loads(re.search(r'id="specifications">(.*?)</script>', text)[1])
    ours = {name: json.dumps(chart) for name, chart in charts.items() if name.startswith(("scatter", "win"))}
    assert len(ours) == 2
    for name, chart in ours.items():
        assert "#112233" in chart, name
        assert "#0072B2" not in chart, name


def test_a_continuous_label_neither_fills_the_report_nor_colours_its_plot(tmp_path):
    train = experiment(tmp_path)["train"].assign(quality=np.linspace(0, 1, 96))
    text = page(tmp_path, train=train, labels=["quality", "planted"], sound_labels={"quality": ["0.0", "1.0"]})
    section = text[text.index('<section id="labels"') :]
    section = section[: section.index("</section>")]
    assert re.findall(r"AUC by <em>(\w+)</em>", section) == ["quality"]
    assert section.count("against 94") == 1
    assert json.loads(re.search(r'id="data">(.*?)</script>', text)[1])["kinds"] == "planted"
    assert re.findall(r'data-label="(\w+)"', text) == ["planted"], "no one chooses one number out of 96"


def test_few_numbers_and_many_words_are_chosen_among(tmp_path):
    train = experiment(tmp_path)["train"]
    train = train.assign(stars=np.arange(96) % 5, source=[f"site-{n % 20}" for n in range(96)])
    text = page(tmp_path, train=train, labels=["stars", "source"])
    assert re.findall(r'data-label="(\w+)"', text) == ["stars", "source"]


def test_a_method_that_tells_how_many_tasks_it_tried_has_its_place_in_the_report(tmp_path):
    arguments = experiment(tmp_path)
    tried = pd.DataFrame({"id": arguments["train"]["id"], "score": np.float32(0.5), "n_tasks": 10})
    inputs = ModelInputs(scores={"icp_budget": tried}, attributions={"icp_budget": tried})
    text = page(tmp_path, models={"smollm2": inputs})
    assert "Best by icp_budget" in text
    model = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])["models"]["smollm2"]
    assert (set(model["scores"]), model["matrices"]) == ({"icp_budget"}, {})


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


def test_more_examples_than_the_explorer_holds_are_drawn_with_the_extremes(tmp_path, monkeypatch):
    monkeypatch.setattr("icprobe.report.build.EXPLORED_EXAMPLES", 60)
    text = page(tmp_path, top=2)
    assert "Here are 60 of the 96 examples" in text
    data = re.search(r'id="data">(.*?)</script>', text)[1]
    for identity in set(re.findall(r'<article class="card" data-example="([^"]+)">', text)):
        assert f'"{identity}"' in data
