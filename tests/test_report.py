"""The report: complete in itself, and inert whatever the texts are."""

import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from reports import CONTROLS, HOSTILE, experiment, figure, with_texts

from icprobe.errors import DataError, ScoreError
from icprobe.findings import ModelInputs
from icprobe.page import embedded_json, visible
from icprobe.report import build
from icprobe.wording import number


def page(directory, **changes):
    """The text of the report of a small experiment."""
    arguments = experiment(directory) | changes
    build(directory / "report.html", **arguments)
    return (directory / "report.html").read_text(encoding="utf-8")


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
    captions = re.findall(r"<figcaption><strong>([^<]*)</strong>", text)
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


def test_more_examples_than_the_explorer_holds_are_drawn_with_the_extremes(tmp_path, monkeypatch):
    monkeypatch.setattr("icprobe.report.EXPLORED_EXAMPLES", 60)
    text = page(tmp_path, top=2)
    assert "Here are 60 of the 96 examples" in text
    data = re.search(r'id="data">(.*?)</script>', text)[1]
    for identity in set(re.findall(r'<article class="card" data-example="([^"]+)">', text)):
        assert f'"{identity}"' in data
