"""The last words on the terminal: what was found and where it is, or what failed and why."""

import json
import os
import re

import dag
import pandas as pd
import pytest
import truths

from icprobe import paths
from icprobe.config.selections import Chosen
from icprobe.report import terminal_summary

CORRELATIONS = pd.DataFrame(
    [
        ("m", "icp", "influence", "spearman", 0.6234, 0.48, 0.731, "bootstrap", 108),
        ("m", "icp", "influence", "spearman_partial_length", 0.41, 0.22, 0.57, "bootstrap", 108),
        ("m", "icp", "random", "spearman", 0.01, -0.2, 0.2, "bootstrap", 108),
    ],
    columns=["model", "method_a", "method_b", "statistic", "value", "low", "high", "interval", "n"],
)
OVERLAPS = pd.DataFrame(
    [
        ("m", "influence", ">0.9", 0, 0, float("nan"), 0.0, float("nan"), float("nan")),
        ("m", "influence", ">0.8", 30, 20, 2 / 3, 0.28, 0.488, 0.808),
        ("m", "influence", ">0.5", 60, 50, 5 / 6, 0.56, 0.72, 0.907),
    ],
    columns=["model", "method", "bin", "n", "n_overlap", "overlap", "chance", "low", "high"],
)
LABEL_AUCS = pd.DataFrame(
    [
        ("m", "planted", "others", "icp", 0.74, 0.513, 0.886, 81, 27),
        ("m", "planted", "others", "random", float("nan"), float("nan"), float("nan"), 81, 27),
        ("m", "planted", "cut", "icp", 0.99, 0.98, 1.0, 81, 7),
    ],
    columns=["model", "label", "value", "method", "auc", "low", "high", "n_positive", "n_negative"],
)
WIN_RATES = pd.DataFrame(
    [
        ("m", "icp", ">0.8", "overall", "all", 24, 61.2, 4.0, 53.1, 69.3, 60.0, 12, 7, 5),
        ("m", "icp", ">0.8", "overall", "0", 24, 99.9, 4.0, 53.1, 69.3, 60.0, 12, 7, 5),
        ("m", "all", "all", "overall", "all", 24, 55.0, 4.0, 47.0, 63.0, 60.0, 12, 7, 5),
        ("m", "random", ">0.8", "overall", "all", 0, *[float("nan")] * 5, 0, 0, 0),
    ],
    columns=[
        *["model", "method", "bin", "subset", "seed", "n", "win_rate", "standard_error", "low", "high"],
        *["discrete_win_rate", "n_wins", "n_wins_base", "n_draws"],
    ],
)
HELD_OUT = pd.DataFrame(
    [
        (method, bin_, name, subset, seed, n, 3.2, 3.2 + gain, gain, gain - 0.05, gain + 0.05)
        for method, bin_, n, gains in (("icp", ">0.8", 24, (0.1234, -0.0421)), ("all", "all", 24, (0.25, 0.5)))
        for name, gain in zip(("tasks", "eval"), gains, strict=True)
        for subset, seed, gain in (("law", "all", 0.9999), ("overall", "0", 0.9999), ("overall", "all", gain))
    ]
    + [("random", ">0.8", name, "overall", "all", 0, *[float("nan")] * 5) for name in ("tasks", "eval")],
    columns=["method", "bin", "set", "subset", "seed", "n", "nll", "nll_base", "gain", "low", "high"],
)


@pytest.fixture
def finished(tmp_path, monkeypatch):
    folder = tmp_path / "results/mine/m/tables"
    folder.mkdir(parents=True)
    tables = {"correlations": CORRELATIONS, "overlaps": OVERLAPS, "label_aucs": LABEL_AUCS, "win_rates": WIN_RATES}
    for name, table in tables.items():
        # A domain's own rows, which must not stand for those over all tasks.
        law = table.assign(**{column: 0.07 for column in ("value", "overlap", "auc", "win_rate") if column in table})
        whole = pd.concat([table.assign(domain="all"), law.assign(domain="law")])
        whole.to_csv(folder / f"{name}.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_summary_tells_headline_win_rates_report_and_upload(finished):
    waiting = finished / "results/mine/wandb/offline-run-1/run-1.wandb"
    waiting.parent.mkdir(parents=True)
    waiting.touch()
    said = terminal_summary.summary("mine", ["m"], tracked=True, width=100)
    assert "Spearman of icp and influence: 0.62 [0.48, 0.73] over 108 examples" in said
    assert "Given response length: 0.41 [0.22, 0.57]" in said
    shared = (
        "Of the 30 examples in icp's bin >0.8, the share that another method's bin holds, too: 0.67 [0.49, 0.81] for"
    )
    assert f"{shared} influence, and 0.28 by chance" in " ".join(said.split())
    assert "AUC of planted, 81 sound examples against 27 others: icp 0.74 [0.51, 0.89], random undefined" in said
    rows = [line.split() for line in said.splitlines()]
    assert ["icp", ">0.8", "61.2", "53.1", "to", "69.3", "24", "12", "5", "7"] in rows
    assert "99.9" not in said
    assert "0.07" not in said
    assert said.count("for influence") == 1
    assert "0.99" not in said
    assert "Report: results/mine/report.html (with the texts of the examples)" in said
    assert "W&B: 1 run kept here and not sent; to upload, run make sync EXPERIMENT=mine" in said
    # The workflow's own run is being sent while this is said; kept here, it counts.
    for folder, n in (("run-2", 1), ("offline-run-2", 2)):
        own = finished / "results/mine/wandb" / folder / "run-workflow-2.wandb"
        own.parent.mkdir()
        own.touch()
        said = terminal_summary.summary("mine", ["m"], tracked=True, width=100, own_run="workflow-2")
        assert f"W&B: {n} run{'s' if n > 1 else ''} kept here" in said
    untracked = terminal_summary.summary("mine", ["m"], tracked=False, width=100)
    assert untracked.endswith("W&B: disabled, no runs were made, nothing was sent to it")


def test_a_bin_of_few_examples_is_not_compared(finished):
    bins = pd.DataFrame({"method": ["icp", "influence"], "bin": [">0.8"] * 2, "n": [1, 30]})
    bins.to_csv(finished / "results/mine/m/tables/bins.csv", index=False)
    said = " ".join(terminal_summary.summary("mine", ["m"], tracked=True, width=100).split())
    assert "icp's bin >0.8 holds 1 example, too few to compare bins by (see overlaps.csv)" in said
    assert "0.67" not in said


def test_the_size_of_icps_bin_is_its_own_where_every_other_has_fewer(finished):
    bins = pd.DataFrame({"method": ["icp", "influence"], "bin": [">0.8"] * 2, "n": [33, 30]})
    bins.to_csv(finished / "results/mine/m/tables/bins.csv", index=False)
    said = " ".join(terminal_summary.summary("mine", ["m"], tracked=True, width=100).split())
    assert "Of the 33 examples in icp's bin >0.8, the share that another method's bin holds, too: 0.67" in said
    assert "0.67 [0.49, 0.81] of its 30 influence" in said


def test_tables_of_an_earlier_configuration_are_not_told(finished):
    said = terminal_summary.summary(
        "mine", ["m"], tracked=False, width=100, made=["results/mine/m/tables/label_aucs.csv"]
    )
    assert "AUC of planted" in said
    assert "Spearman" not in said
    assert "61.2" not in said


def test_a_report_of_earlier_scores_is_told_of_beside_a_page_of_newer_ones(finished):
    older, newer = finished / "results/mine/report.html", finished / "results/mine/m/scores/icp.parquet"
    words = "results/mine/report.html is of earlier scores"
    newer.parent.mkdir()
    for path in (older, newer):
        path.touch()
    os.utime(older, (0, 0))
    said = terminal_summary.summary("mine", ["m"], tracked=False, width=100, reports=[paths.SCORES_REPORT])
    assert words in said
    assert words not in terminal_summary.summary("mine", ["m"], tracked=False, width=100)
    os.utime(newer, (0, 0))
    assert words not in terminal_summary.summary("mine", ["m"], tracked=False, width=100, reports=[paths.SCORES_REPORT])


def test_where_scores_and_subsets_are_is_told_where_they_are(finished):
    (finished / "results/mine/m/tables/scores.csv").touch()
    subsets = finished / "results/mine/m/subsets"
    written = ("icp/top-20pct", "icp/bottom-5pct", "influence/bottom-5pct", "influence/bottom-5pct.messages")
    written += ("influence/bottom-5pct.scores",)
    for name in ("all/all", *written):
        (subsets / f"{name}.jsonl").parent.mkdir(parents=True, exist_ok=True)
        (subsets / f"{name}.jsonl").touch()
    said = terminal_summary.summary("mine", ["m"], tracked=False, width=100)
    first = "results/mine/m/subsets/icp/top-20pct.jsonl, bottom-5pct.jsonl and 1 more in results/mine/m/subsets"
    assert f"Scores: results/mine/m/tables/scores.csv\nSubsets: {first}\nReport: " in said
    # Others are of an earlier configuration, or of earlier scores.
    made = ["results/mine/m/subsets/icp/bottom-5pct.jsonl"]
    lines = terminal_summary.summary("mine", ["m"], tracked=False, width=100, made=made).splitlines()
    assert f"Subsets: {made[0]}" in lines
    for name in ("top-20pct", "bottom-5pct"):
        (subsets / f"icp/{name}.jsonl").unlink()
    assert "influence/bottom-5pct.jsonl\nReport: " in terminal_summary.summary("mine", ["m"], tracked=False)


@pytest.mark.parametrize("width", [40, 50, 80, 100])
def test_the_summary_fits_the_terminal(finished, width):
    said = terminal_summary.summary("mine", ["m"], tracked=True, width=width)
    # A path stays whole, to be copied.
    assert max(len(line) for line in said.splitlines() if "report.html" not in line) <= width
    assert "61.2" in said


def test_held_out_gains_stand_before_the_win_rates(finished):
    HELD_OUT.assign(model="m", domain="all").to_csv(finished / "results/mine/m/tables/held_out.csv", index=False)
    said = terminal_summary.summary("mine", ["m"], tracked=False, width=100)
    assert said.index("Held-out gain") < said.index("Win rates")
    rows = [line.split() for line in said.splitlines()]
    assert [*["icp", ">0.8", "0.1234", "0.0734", "to", "0.1734", "−0.0421", "−0.0921", "to", "0.0079"]] in rows
    assert ["random", ">0.8", *"––––"] in rows
    assert "0.9999" not in said
    for width in (40, 60, 80):
        said = terminal_summary.summary("mine", ["m"], tracked=False, width=width)
        assert max(len(line) for line in said.splitlines() if "report.html" not in line) <= width
        assert "0.1234" in said


def test_what_was_not_computed_is_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = terminal_summary.summary("mine", ["m"], tracked=True, width=80)
    assert said == "mine: finished\n\nReport: results/mine/report.html (with the texts of the examples)"


def test_snakemake_ends_with_these_words(tmp_path, tmp_path_factory):
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path / "copy")
    ended = project.snakemake("all", "--cores", "2", "--forcerun", "compare_bins")
    assert ended.returncode == 0, ended.output[-3000:]
    assert "tiny: finished\n\nSpearman of icp and influence: " in ended.output
    assert "Report: results/tiny/report.html" in ended.output
    assert "W&B: disabled, no runs were made" in ended.output.split("tiny: finished")[1]
    assert "Results: results/tiny; W&B: disabled" in ended.output
    for quiet in (["-n", "all"], ["all"], ["results/tiny/data/tasks.parquet", "--forcerun", "select_tasks"]):
        assert "tiny: finished" not in project.snakemake(*quiet, "--cores", "2").output

    # A broken row, and two jobs that read it.
    project.edit("train.jsonl", "{", "[")
    ended = project.snakemake("all", "--cores", "2")
    assert ended.returncode == 1
    assert "prepare_train failed (experiment=tiny): train.jsonl, line 1: broken JSON" in " ".join(ended.output.split())
    assert "log: logs/tiny/prepare_train.log" in ended.output
    assert "To resume, run the same command again" in ended.output


def test_what_failed_earlier_is_not_told_of_jobs_that_never_began(tmp_path, tmp_path_factory):
    """A batch system that takes no job: their logs are those of the last time."""
    pytest.importorskip("snakemake_executor_plugin_cluster_generic")
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path / "copy")
    log = project.path / "logs/tiny/select_tasks.log"
    log.write_text("2026-01-01 10:00:00 error: tasks.jsonl, line 3: broken.\n")
    os.utime(log, (0, 0))
    ended = project.snakemake(
        *("results/tiny/data/tasks.parquet", "--forcerun", "select_tasks", "--groups", "select_tasks=tables"),
        *("--executor", "cluster-generic", "--jobs", "1", "--cluster-generic-submit-cmd", "false"),
    )
    assert ended.returncode == 1
    # Before them Snakemake shows that log itself.
    said = ended.output[ended.output.index("select_tasks failed") :]
    assert "it ended without a message" in " ".join(said.split())
    assert "line 3: broken" not in said
    assert "log: " not in said.split("To resume")[0]


# --- what to do ---------------------------------------------------------------------------------------------------

DIFFERENCES = ["set", "bin", "method_a", "method_b", "n", "difference", "low", "high", "p_value", "p_value_holm"]


def advised(folder, gains, differences=(), data_sets=None, baselines=("length", "random"), of_tasks=9.0, **tables):
    """The last words of an experiment of these held-out gains {(method, bin): gain of eval prompts}."""
    rows = [
        (method, bin_, name, "overall", "all", 24, 3.2, 3.2 + gain, gain, gain - 0.05, gain + 0.05)
        for (method, bin_), gain in gains.items()
        for name, gain in (("tasks", of_tasks), ("eval", gain))
    ]
    tables["held_out"] = pd.DataFrame(rows, columns=HELD_OUT.columns)
    tables["held_out_differences"] = pd.DataFrame([("eval", *row) for row in differences], columns=DIFFERENCES)
    (folder / "results/mine/m/tables/scores.csv").touch()
    for name, table in tables.items():
        table.assign(model="m", domain="all").to_csv(folder / f"results/mine/m/tables/{name}.csv", index=False)
    given = {"data_sets": data_sets or {}, "baselines": baselines}
    said = terminal_summary.summary("mine", ["m"], tracked=False, width=100, **given)
    return " ".join(said.split())


GAINS = {("icp", "<=0.5"): 0.9, ("icp", ">0.8"): 0.1, ("influence", ">0.8"): 0.2, ("random", ">0.8"): 0.15}


@pytest.mark.parametrize(("p_value", "why"), [(0.01, "significant"), (0.2, "not significant")])
def test_the_data_set_of_the_largest_gain_is_advised_with_its_difference_to_chance(finished, p_value, why):
    row = (">0.8", "random", "influence", 24, -0.05, -0.08, -0.02, p_value, p_value)
    said = advised(finished, GAINS | {("all", "all"): 0.3}, [row])
    assert "Take influence >0.8: it gains 0.2000 nats per token on the answers of 24 eval prompts, 0.0500" in said
    assert f"0.0500 [0.0200, 0.0800] more than random ({why}: Holm, 5%); all data gain 0.3000." in said
    told = "By held-out answers the best examples of influence gain most over random ones: bin >0.8 gains 0.0500 ["
    assert (told in said) == (p_value < 0.05)
    assert ("Which method predicts training best is not told here" in said) == (p_value > 0.05)
    assert "all data gain" not in advised(finished, GAINS | {("all", "all"): 0.1}, [row])


def test_what_was_not_compared_is_not_said_to_be_no_better_than_chance(finished):
    """As where only selections are trained on, each beside a random data set of its own."""
    row = ("selected", "best", "best-random", 24, 0.05, 0.02, 0.08, 0.01, 0.01)
    data_sets = {"best": Chosen("best", ""), "best-random": Chosen("best", "random")}
    gains = {("best", "selected"): 0.2, ("best-random", "selected"): 0.15}
    said = advised(finished, gains, [row], data_sets)
    assert "no method's best examples were compared with random ones in a bin" in said
    assert "more than best-random (significant: Holm, 5%)" in said


def test_external_scores_that_are_called_random_are_a_method_as_others(finished):
    row = (">0.8", "random", "influence", 24, -0.05, -0.08, -0.02, 0.01, 0.01)
    said = advised(finished, GAINS, [row], baselines=["length"])
    assert "more than random (" not in said
    assert "with no random data set of its size to compare" in said
    said = advised(finished, GAINS | {("random", ">0.8"): 0.5}, [row], baselines=["length"])
    assert "Take random >0.8: it gains 0.5000" in said


def test_a_selection_is_held_against_its_own_baseline_and_a_baseline_is_never_advised(finished):
    subset = finished / "results/mine/m/subsets/best/selected.jsonl"
    for path in (subset, finished / "results/mine/m/subsets/influence/gt-0.80.jsonl"):
        path.parent.mkdir(parents=True)
        path.touch()
    data_sets = {"best": Chosen("best", ""), "best-random": Chosen("best", "random")}
    gains = GAINS | {("best", "selected"): 0.4, ("best-random", "selected"): 0.5}
    row = ("selected", "best", "best-random", 24, -0.1, -0.2, -0.01, 0.01, 0.01)
    said = advised(finished, gains, [row], data_sets)
    assert "Take no data set of these: best, the best, gains 0.4000" in said
    assert "0.1000 [0.0100, 0.2000] less than best-random (significant: Holm, 5%)" in said
    assert f"Subsets: {subset.relative_to(finished)} and 1 more" in said
    said = advised(finished, gains, [], data_sets)
    assert "Take best: it gains 0.4000" in said
    assert "with no random data set of its size to compare" in said


def test_a_data_set_that_makes_the_model_worse_is_not_to_be_taken(finished):
    worse = {("icp", ">0.8"): -0.4, ("influence", ">0.8"): -0.2, ("random", ">0.8"): -0.3}
    said = advised(finished, worse)
    assert "Take no data set of these: influence >0.8, the best, gains −0.2000 nats per token on the answers" in said
    assert "Take influence" not in said
    row = (">0.8", "influence", "random", 24, 0.1, 0.05, 0.15, 0.01, 0.01)
    said = advised(finished, worse, [row])
    assert "Take no data set of these: influence >0.8, the best, gains −0.2000" in said
    assert "0.1000 [0.0500, 0.1500] more than random (significant: Holm, 5%)." in said


def test_a_gain_that_is_no_number_is_no_advice(finished):
    said = advised(finished, {("icp", ">0.8"): float("nan"), ("influence", ">0.8"): 0.2})
    assert "Take influence >0.8: it gains 0.2000" in said


def test_where_the_lds_tells_of_the_method_the_held_out_comparison_does_not(finished):
    columns = ["method", "set", "lds", "low", "high", "ceiling", "ceiling_low", "ceiling_high", "n_subsets", "n_seeds"]
    row = ("influence", "tasks", 0.6, 0.4, 0.7, 0.9, 0.8, 1.0, 64, 2, 0.7)
    lds = pd.DataFrame([row], columns=[*columns, "spread"])
    said = advised(finished, GAINS, lds=lds)
    assert "LDS: influence predicts retraining best: 0.60 [0.40, 0.70] of a ceiling of 0.90" in said
    assert "Take influence >0.8" in said
    assert "By held-out answers" not in said
    assert "is not told here" not in said


def test_trainings_that_taught_nothing_are_called_so(finished):
    told = "No gain or loss is above 4.00e−4 nats per token: these trainings hardly changed the model"
    gains = {("icp", ">0.8"): 0.0004, ("random", ">0.8"): -0.0002}
    assert told in advised(finished, gains, of_tasks=0.0001)
    of_all = advised(finished, {**gains, ("all", "all"): 0.2}, of_tasks=0.0001)
    assert told.replace("loss is", "loss but that of all data is") in of_all
    assert "hardly changed" not in advised(finished, gains, of_tasks=-0.02)


def test_that_nothing_tells_is_said_where_nothing_was_trained(finished):
    assert "Nothing here tells which method predicts training best" not in terminal_summary.summary(
        "mine", ["m"], False
    )
    (finished / "results/mine/m/tables/win_rates.csv").unlink()
    said = advised(finished, {})
    assert "Nothing here tells which method predicts training best, nor which data set to train on: that takes" in said
    only_worst = advised(finished, {("icp", "<=0.5"): 0.9, ("random", ">0.8"): 0.3})
    assert "Which data set to take is not told: no model was trained on the best of a method." in only_worst


def test_what_win_rates_or_retraining_tell_is_not_denied(finished):
    tables = finished / "results/mine/m/tables"
    (tables / "scores.csv").touch()
    (tables / "lds.csv").unlink(missing_ok=True)
    for name, table in {"removal": truths.removal(), "leave_one_out": truths.leave_one_out()}.items():
        table.assign(model="m").to_csv(tables / f"{name}.csv", index=False)

    def told(*names: str) -> str:
        made = [f"results/mine/m/tables/{name}.csv" for name in names]
        return " ".join(terminal_summary.summary("mine", ["m"], tracked=False, width=100, made=made).split())

    assert "Nothing here tells which method predicts training best, nor" in told("label_aucs")
    judged = told("win_rates")
    assert "Which method predicts training best is not told here: Retraining would measure it" in judged
    assert "Nothing here tells" not in judged
    without = "Nothing here tells which data set to train on: that takes trainings (finetune)."
    assert without in (said := told("removal"))
    assert "Leaving out the best 11 examples of influence" in said
    assert without in (said := told("leave_one_out"))
    assert re.search(r"Of \d+ examples left out of training one at a time, \w+ predicts best what that does: 0\.", said)


@pytest.mark.parametrize(
    ("completion", "message", "said"),
    [
        (
            " def f(x): return x",
            "def f(x):\n    return x",
            "made spaces of line breaks in 1 response of top-20pct.jsonl; top-20pct.messages.jsonl",
        ),
        (" def f(x):\n    return x", "def f(x):\n    return x", ""),
        (
            [{"role": "assistant", "content": "Yes."}],
            "Yes.",
            "learns its last answers; of all turns, from top-20pct.messages.jsonl",
        ),
    ],
)
def test_what_a_trainer_does_not_learn_from_a_file_is_said_beside_it(completion, message, said, finished):
    (finished / "results/mine/m/tables/scores.csv").touch()
    subset = finished / "results/mine/m/subsets/icp/top-20pct.jsonl"
    subset.parent.mkdir(parents=True)
    talk = {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": message}]}
    subset.write_text(json.dumps({"prompt": "What?", "completion": completion}) + "\n")
    subset.with_suffix(".messages.jsonl").write_text(json.dumps(talk) + "\n")
    lines = terminal_summary.summary("mine", ["m"], tracked=False).splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith("Subsets: ")]
    assert said in lines[place + 1]
    assert bool(said) == lines[place + 1].startswith("  ")
