"""What the report says in words: each sentence follows from the numbers of its table, and claims no more."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
from reports import experiment
from test_report import page, plain

from icprobe.analysis.binning import BORDER_COLUMNS
from icprobe.analysis.statistics import aggregate
from icprobe.attribution import METHODS
from icprobe.evaluation.win_rates import DIFFERENCE_COLUMNS
from icprobe.report import gains, label_sentences, sentences, verdicts
from icprobe.report.findings import Findings, ModelInputs
from icprobe.report.wording import compared


def model_of(tmp_path, **changes):
    """The findings of a made-up model with these tables."""
    made = experiment(tmp_path)
    inputs = dataclasses.replace(made["models"]["smollm2"], **changes)
    return Findings("smollm2", inputs, made["train"], ["planted"], {"planted": ["sound"]}, 3)


def aucs(**intervals):
    rows = [("planted", "others", method, *three, 81, 27) for method, three in intervals.items()]
    return pd.DataFrame(rows, columns=["label", "value", "method", "auc", "low", "high", "n_positive", "n_negative"])


def win_rates(**intervals):
    """Rows over all prompts: method -> (bin, rate, low, high)."""
    rows = [(m, b, "overall", "all", 24, rate, low, high) for m, (b, rate, low, high) in intervals.items()]
    return pd.DataFrame(rows, columns=["method", "bin", "subset", "seed", "n", "win_rate", "low", "high"])


def differences(*rows):
    return pd.DataFrame(rows, columns=DIFFERENCE_COLUMNS)


def test_every_method_says_what_it_asks():
    for name, method in METHODS.items():
        assert re.search(r"[.?]$", method.asks), name


def test_how_many_bad_examples_are_among_as_many_with_the_lowest_scores(tmp_path):
    ids = [f"e{i}" for i in range(6)]
    train = pd.DataFrame({"id": ids, "ok": ["no", "yes", "no", "yes", "yes", None]})
    scores = {
        "finds": [-2.0, 1.0, -1.0, 2.0, 3.0, -9.0],  # the lowest of all has no label
        "half": [-2.0, -1.0, 1.0, 2.0, 3.0, 0.0],
        "partly": [np.nan, -1.0, -2.0, 2.0, 3.0, 0.0],
        "good_only": [np.nan, 1.0, np.nan, 2.0, 3.0, 0.0],
    }
    tables = {name: pd.DataFrame({"id": ids, "score": of}) for name, of in scores.items()}
    model = Findings("m", ModelInputs(scores=tables), train, ["ok"], {"ok": ["yes"]}, 3)
    found = model.lowest("ok", ["yes"])
    assert found == {"finds": (2, 2, 5), "half": (1, 2, 5), "partly": (1, 1, 4)}
    assert label_sentences.among_the_lowest(found, "yes") == [
        "That is about whole rankings. At the lowest end alone: of the 2 examples that are not yes, finds has 2 among "
        "its 2 lowest scores and half 1; chance would give 0.8, and 0 to 2 in 95% of cases.",
        "That is about whole rankings. At the lowest end alone: of the 1 example that is not yes, partly has 1 among "
        "its 1 lowest scores; chance would give 0.2, and 0 to 1 in 95% of cases.",
    ]
    # Ids decide nothing: of equal scores each counts by the share of them that is among the lowest.
    for order in (ids, ids[::-1]):
        equal = {"id": order, "score": [1.0, 1.0, 1.0, 2.0, 1.0, 1.0]}
        tied = Findings("m", ModelInputs(scores={"equal": pd.DataFrame(equal)}), train.assign(id=order), ["ok"], {}, 3)
        assert tied.lowest("ok", ["yes"]) == {"equal": (1, 2, 5)}
    assert "equal has 1.3 among its 2 lowest" in label_sentences.among_the_lowest({"equal": (4 / 3, 2, 5)}, "yes")[0]
    (told,) = (finding for finding in sentences.found(model, {"ok": ["yes"]}) if "whose ok is yes" in finding.question)
    assert told.sentences[-2:] == label_sentences.among_the_lowest(found, "yes")


def test_labels_tell_what_is_beyond_chance_what_is_reversed_and_what_is_open():
    table = aucs(
        length=(0.7, 0.4, 0.9), icp=(0.7, 0.6, 0.8), influence=(0.8, 0.7, 0.9), one_step=(0.2, 0.1, 0.3),
        random=(0.5, np.nan, np.nan),
    )  # fmt: skip
    said = label_sentences.labels("planted", "sound", table)
    assert said[0] == "By the label planted, 81 examples are labelled sound and 27 are not."
    assert said[2:] == [
        "influence (0.80 [0.70, 0.90]) and icp (0.70 [0.60, 0.80]) rank sound examples above the others more often "
        "than chance would.",
        "one_step (0.20 [0.10, 0.30]) ranks the others above the sound ones more often than chance would.",
        "The interval of length (0.70 [0.40, 0.90]) includes 0.5: these examples do not show that it tells them "
        "apart better or worse than chance.",
        "There is no interval of random (0.50): there are too few examples, or all have the same score.",
    ]


def test_methods_that_tell_examples_apart_no_better_than_length_are_named():
    table = aucs(length=(0.2, 0.1, 0.3), icp=(0.7, 0.6, 0.8), influence=(0.9, 0.8, 1.0), random=(0.5, 0.4, 0.6))
    assert label_sentences.labels("planted", "sound", table)[-1].startswith(
        "The good ones are the shorter here: with the shortest first, length alone has an AUC of 0.80, and it is not "
        "shown that icp does better."
    )
    # A length that tells nothing, or less than each of the others, is no rival.
    for length in ((0.55, 0.4, 0.7), (0.65, 0.55, 0.7)):
        assert "length alone" not in " ".join(
            label_sentences.labels("planted", "sound", aucs(length=length, icp=(0.7, 0.6, 0.8)))
        )


def test_scores_that_are_called_length_are_not_told_as_the_length_of_the_response():
    given = {"length": (0.9, 0.8, 1.0), "icp": (0.7, 0.6, 0.8)}
    alone = " ".join(label_sentences.labels("planted", "sound", aucs(**given), baselines=["random"]))
    assert "length (0.90 [0.80, 1.00]) and icp" in alone
    assert "length of the response" not in alone
    beside = aucs(**given, **{"response tokens": (0.95, 0.9, 1.0)})
    assert label_sentences.labels("planted", "sound", beside, baselines=[])[-1].startswith(
        "The length of the response alone (number of response tokens) tells them apart, too, and it is not shown that "
        "length and icp do better"
    )


def test_few_prompts_are_said_to_decide_nothing():
    judged = win_rates(icp=(">0.8", 55, 40, 70), random=(">0.8", 45, 30, 60), all=("all", 60, 55, 65))
    said = " ".join(sentences.against_base(judged, 24))
    assert "Training on all data (60% [55, 65]) wins against the base model beyond chance." in said
    assert "The intervals of the other 2 models include 50%, so whether they are better or worse" in said
    untested = (">0.8", "icp", "length", 1, *[np.nan] * 5)
    open_ = differences((">0.8", "icp", "random", 24, 10.0, -8.0, 22.0, 0.2, 0.2), untested)
    said = " ".join(sentences.against_each_other(judged, open_, 24))
    assert "No difference is significant in 1 comparison of two methods on the same bin" in said
    assert "24 prompts cannot decide which method chooses the better bin" in said
    assert "about 15 points to either side" in said
    overlap = (
        "The intervals of both bins overlap (they share 40 to 60%), so they alone do not show that one bin is better"
    )
    assert overlap in said
    # Wider than the interval of a difference, they may overlap where the same prompts tell two apart.
    apart = differences((">0.8", "icp", "random", 24, 10.0, 4.0, 16.0, 0.004, 0.004))
    said = " ".join(sentences.against_each_other(judged, apart, 24))
    assert "these differ significantly (sign-flip test, Holm, 5%): icp against random" in said
    assert "cannot decide" not in said
    assert overlap in said


def repeated(*rows):
    return pd.DataFrame(rows, columns=["table", "also_in", "same", "n", "n_rows", "first_id"])


def test_whether_models_have_seen_what_they_are_held_against_is_told_as_it_was_counted():
    within = [("train", "train", same, 5, 108, "e1") for same in ("row", "prompt")]
    apart = [("train", name, same, 0, 108, None) for name in ("tasks", "eval") for same in ("row", "prompt")]
    between = [("tasks", "eval", same, 9, 12, "t1") for same in ("row", "prompt")]
    assert gains.seen(repeated(*within, *apart, *between)) == (
        "No training example asks what one of the tasks or eval prompts asks, white space aside."
    )
    assert gains.seen(repeated(*within, *apart[:2])).endswith("what one of the tasks asks, white space aside.")
    assert gains.seen(repeated(*within)) == gains.seen(None) == ""
    shared = [("train", "tasks", "row", 0, 108, None), ("train", "tasks", "prompt", 1, 108, "e1")]
    shared += [("train", "eval", "row", 2, 108, "e3"), ("train", "eval", "prompt", 4, 108, "e3")]
    said = gains.seen(repeated(*within, *shared))
    assert said.startswith(
        "The 108 training examples are not all apart from these answers: 1 of them asks what one of the tasks asks "
        "(none with the same answer, too) and 4 of them ask what one of the eval prompts asks (2 with the same answer, "
        "too)."
    )


def test_intervals_that_exclude_0_are_not_shown_to_begin_at_0():
    row = {"method_a": "icp", "method_b": "influence", "value": 0.2, "low": 0.003, "high": 0.4, "n": 96}
    rows = [row | {"statistic": name, "interval": "bootstrap"} for name in ("spearman", "spearman_partial_length")]
    said = " ".join(sentences.agreement(pd.DataFrame(rows)))
    assert said.count("(95% interval 0.0030 to 0.40") == 2
    assert "0.00 to" not in said


def test_too_few_prompts_and_examples_tell_nothing():
    sure = win_rates(icp=(">0.8", 90, 80, 100))
    assert "wins" in " ".join(sentences.against_base(sure, 6))
    assert sentences.against_base(sure, 5)[-1] == "5 prompts cannot tell better from worse."
    row = {"method": "icp", "value": 1.0, "low": 1.0, "high": 1.0}
    assert label_sentences.numbers("stars", pd.DataFrame([{**row, "n": 5}]))[-1] == "The interval of icp excludes 0."
    assert label_sentences.numbers("stars", pd.DataFrame([{**row, "n": 4}]))[-1].startswith("4 examples cannot tell")
    open_ = pd.DataFrame([{**row, "n": 60, "value": 0.1, "low": -0.1, "high": 0.3}])
    assert label_sentences.numbers("stars", open_) == [
        "Spearman correlation of each method's scores with stars over 60 examples, with its 95% interval: icp (0.10 "
        "[−0.10, 0.30]).",
        "Every interval includes 0: these examples show no correlation.",
    ]


def test_bins_that_ties_decide_are_named():
    rows = [("icp", "top 20%", 14, 0.75, 21, 7, 9), ("influence", "top 20%", 14, 3.1, 1, 1, 70)]
    table = pd.DataFrame(rows, columns=BORDER_COLUMNS)
    (said,) = sentences.coarse(table)
    assert said.startswith("Ties decide which examples are in icp top 20% (7 of its 14 share a score with 14 outside).")
    assert sentences.coarse(table[1:]) == sentences.coarse(None) == []


def test_a_method_whose_scores_are_those_of_one_task_is_named(tmp_path):
    model = model_of(tmp_path)
    question = "Does one task decide a method's scores?"
    assert question not in [one.question for one in sentences.found(model, {})]
    ids = experiment(tmp_path)["train"][["id"]]
    matrix = ids.assign(a=0.0, b=0.0, c=np.arange(float(len(ids))))
    model = model_of(tmp_path, attributions={"influence": matrix}, scores={"influence": aggregate(matrix, "mean")})
    (said,) = next(one.sentences for one in sentences.found(model, {}) if one.question == question)
    assert said.startswith("One of the 3 tasks, c, makes 100% of the variance of influence's scores")


def test_a_label_of_which_nothing_says_what_is_good_is_named(tmp_path):
    model = model_of(tmp_path)
    said = {
        one.question: one.sentences for one in sentences.found(model, {"planted": ["sound"]}, ["planted", "client"])
    }
    assert "write data: {sound_labels: {client: [a good value]}}" in said["What about client?"][0]
    assert not any("What about" in one.question for one in sentences.found(model, {"client": []}, ["client"]))


def test_a_significant_difference_is_named():
    judged = win_rates(icp=(">0.8", 75, 65, 85), random=(">0.8", 45, 30, 60))
    found = differences((">0.8", "icp", "random", 240, 30.0, 20.0, 40.0, 0.001, 0.002))
    said = " ".join(sentences.against_each_other(judged, found, 240))
    assert (
        "Of 1 comparison of two methods on the same bin, these differ significantly (sign-flip test, Holm, 5%): "
        "icp against random" in said
    )
    assert "The interval of icp >0.8 (75% [65, 85]) is wholly above that of random >0.8 (45% [30, 60])." in said
    assert "cannot decide" not in said


@pytest.mark.parametrize(("p", "bold"), [(0.01, ["75.0"]), (0.2, [])])
def test_a_win_rate_is_bold_only_where_it_is_significant(p, bold, tmp_path):
    judged = win_rates(icp=(">0.8", 75, 65, 85), random=(">0.8", 45, 30, 60), all=("all", 90, 85, 95))
    counts = dict.fromkeys(["standard_error", "discrete_win_rate", "n_wins", "n_wins_base", "n_draws"], 1)
    found = differences((">0.8", "icp", "random", 24, 30.0, 20.0, 40.0, p, p))
    made = experiment(tmp_path)
    inputs = ModelInputs(made["models"]["smollm2"].scores, win_rates=judged.assign(**counts), differences=found)
    text = page(tmp_path, models={"smollm2": inputs})
    section = text[text.index('<section id="win-rates"') :]
    assert re.findall(r"<strong>(\d+\.\d)</strong>", section[: section.index("<details>")]) == bold
    assert ("In bold:" in section) == bool(bold)


def test_equal_bins_are_shown_once(tmp_path):
    overlaps = experiment(tmp_path)["models"]["smollm2"].overlaps
    same = overlaps[overlaps["bin"] == ">0.8"].assign(bin=">0.85")
    rows = experiment(tmp_path)["models"]["smollm2"].win_rates
    again = rows[rows["bin"] == ">0.8"].assign(bin=">0.85")
    model = model_of(tmp_path, overlaps=pd.concat([overlaps, same]), win_rates=pd.concat([rows, again]))
    assert list(map(model.bin_names, model.overlap_bins())) == ["<=0.5", ">0.5", ">0.8, >0.85", ">0.9"]
    assert [model.bin_names(row.bin) for row in model.win_rate_rows(overall=True)] == [
        *["<=0.5", ">0.8, >0.85"] * 2,
        "all data",
    ]
    alone = model_of(tmp_path, overlaps=pd.concat([overlaps, same]), win_rates=again)
    assert [alone.bin_names(row.bin) for row in alone.win_rate_rows(overall=True)] == [">0.8, >0.85"] * 2
    assert list(model.explorer(np.arange(96), experiment(tmp_path)["tasks"])["bins"])[2] == ">0.8, >0.85"


def test_a_bin_is_explained_by_its_score_and_size(tmp_path):
    (size,) = {row.n for row in model_of(tmp_path).overlaps.query("bin == '>0.9'").itertuples()}
    text = plain(page(tmp_path, asked={"icp": ("Does it?", "share of tasks helped")}))
    assert "icp's bin &gt;0.5 holds the examples whose icp score (share of tasks helped) is above 0.5." in text.replace(
        "&#39;", "'"
    )
    assert f"The bin &gt;0.9 has {size} of the 96 examples." in text


def test_what_is_compared_is_called_what_it_is():
    of = {"bin": ["gt-0.50"], "selected": ["selected"], "both": ["gt-0.50", "selected"]}
    assert {name: compared(pd.DataFrame({"bin": bins})) for name, bins in of.items()} == {
        "bin": "two methods on the same bin",
        "selected": "two selections or baselines",
        "both": "two methods on the same bin or of two selections or baselines",
    }
    prompts, rows = 24, {"method_a": "best", "method_b": "best-random", "difference": 9.0, "low": 4.0, "high": 14.0}
    differences = pd.DataFrame([{**rows, "bin": "selected", "p_value_holm": 0.01}])
    judged = pd.DataFrame(columns=["bin", "low", "high"])
    (said,) = sentences.against_each_other(judged, differences, prompts)
    assert said.startswith("Of 1 comparison of two selections or baselines, these differ significantly")
    assert said.endswith("best against best-random (9.0 points).")


def test_a_correlation_over_fewer_examples_than_others_says_over_how_many():
    columns = ["method", "value", "low", "high", "n"]
    rows = pd.DataFrame([("influence", 0.1, -0.1, 0.3, 108), ("mine", 1.0, 1.0, 1.0, 4)], columns=columns)
    told = label_sentences.numbers("stars", rows)
    assert "mine (1.00 [1.00, 1.00] over 4)" in told[0]
    assert not any("excludes 0" in sentence for sentence in told)


def test_of_many_methods_those_are_named_that_are_not_told_apart():
    table = pd.DataFrame(
        {"method": ["best", "near", *"abcdefgh"], "lds": [0.9, 0.8, *[0.1] * 8], "n_subsets": 40, "n_seeds": 2}
    )
    pairs = pd.DataFrame({"method_a": "best", "method_b": table["method"][1:], "difference": 0.5})
    told = [verdicts.told_apart(table, pairs.assign(p_value_holm=[p, *[0.001] * 8])) for p in (0.3, 0.001)]
    assert told == [
        ["40 subsets × 2 seeds tell best apart from all others but near (Holm, 5%)."],
        ["40 subsets × 2 seeds tell best apart from all others (Holm, 5%)."],
    ]
