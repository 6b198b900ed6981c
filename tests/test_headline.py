"""The headline is made once: W&B's runs, the terminal and the report show the rows over all tasks, and no others."""

import json
import subprocess

import dag
import numpy as np
import pandas as pd
import pytest
import torch
from wandb.util import get_core_path

from icprobe.analysis import headline
from icprobe.formatting import estimate, fixed
from icprobe.report import terminal_summary
from icprobe.report.findings import Findings, ModelInputs
from icprobe.report.sentences import agreement
from icprobe.tracking import runs
from icprobe.tracking.lineage import scalar

TABLES = dag.RESULTS / "tables"
# Rules whose numbers come from a table, and some whose numbers come from a file of one job.
OF_TABLES = {
    "correlate": TABLES / "correlations.csv",
    "compare_bins": TABLES / "overlaps.csv",
    "tell_labels": TABLES / "label_aucs.csv",
    "chain": TABLES / "chain.csv",
    "tabulate_held_out": TABLES / "held_out.csv",
    "tabulate_win_rates": TABLES / "win_rates.csv",
}
WITHOUT_DOMAINS = {"tabulate_held_out", "tabulate_win_rates"}
OF_FILES = {
    "gather_attributions": dag.RESULTS / "attributions/random.parquet",
    "score": dag.RESULTS / "scores/random.parquet",
    "subset": dag.RESULTS / "subsets/random/le-0.50.jsonl",
    "judge": dag.RESULTS / "judgements/icp/le-0.50/seed-0.jsonl",
}
# What W&B and the job itself add to every run.
OF_EVERY_RUN = {"seconds", "peak_memory_gb"}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """The finished tiny experiment, its tables and some files made again with W&B offline; rule -> its summary."""
    finished = dag.finished(tmp_path_factory.getbasetemp())
    project = finished.copy(tmp_path_factory.mktemp("tracked") / "copy")
    # Of these rules alone: what lies between the files, such as fine-tuning, need not be repeated.
    rule_of = {str(path): rule for rule, path in (OF_TABLES | OF_FILES).items()}
    rules = ["--force", "--cores", "2", "--allowed-rules", *rule_of.values()]
    ended = project.snakemake(*rule_of, *rules, config={"wandb": {"mode": "offline"}})
    assert ended.returncode == 0, ended.output[-3000:]
    summaries = {}
    for log in sorted((project.path / "results/tiny/wandb").glob("*run-*/run-*.wandb")):
        command = [get_core_path(), "leet", "inspect", "-json", "-summary", "-run-file", str(log)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        made = [output["name"] for output in found["config"].get("outputs", [])]
        summaries |= {rule_of[path]: found["summary"] for path in made if path in rule_of}
    return project, summaries


def numbers(summary):
    """What a script logged as a number or a word; tables and figures are mappings."""
    kept = {name: value for name, value in summary.items() if not isinstance(value, dict) and name[0] != "_"}
    return {name: value for name, value in kept.items() if name not in OF_EVERY_RUN}


def by_keys(rows, prefix, keys, value):
    """{prefix/key/key: value} of a table's rows; undefined values are no numbers."""
    rows = rows.dropna(subset=value)
    return {"/".join([prefix, *map(str, row[keys])]): row[value] for _, row in rows.iterrows()}


def expected(project):
    """Rule -> the numbers of its run, from the tables and files on disk."""
    tables = {rule: pd.read_csv(project.path / path) for rule, path in OF_TABLES.items()}
    assert all(len(set(table["domain"])) == 3 for rule, table in tables.items() if rule not in WITHOUT_DOMAINS)
    over_all = {rule: table[table["domain"] == "all"] for rule, table in tables.items()}

    spearman = over_all["correlate"].query("statistic == 'spearman'")
    spearman = spearman.assign(pair=spearman["method_a"] + "~" + spearman["method_b"])
    correlate = by_keys(spearman, "spearman", ["pair"], "value")
    for statistic, name in (("spearman", "spearman"), ("spearman_partial_length", "spearman_given_length")):
        (row,) = (
            over_all["correlate"]
            .query(f"method_a == 'icp' and method_b == 'influence' and statistic == '{statistic}'")
            .to_dict("records")
        )
        correlate |= {name: row["value"], f"{name}_low": row["low"], f"{name}_high": row["high"]}

    aucs = over_all["tell_labels"]
    others = aucs[aucs["value"] == "others"]
    links = over_all["chain"].query("level == 'element' and statistic == 'spearman'")
    ends, links = links[links["learning_rate"].isna()], links[links["learning_rate"].notna()]
    rates = over_all["tabulate_win_rates"].query("subset == 'overall' and seed == 'all'")
    gains = over_all["tabulate_held_out"].query("subset == 'overall' and seed == 'all'")
    judged = [
        json.loads(line)
        for path in (project.path / dag.RESULTS / "judgements").rglob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    one = [json.loads(line)["preference"] for line in project.read(OF_FILES["judge"]).decode().splitlines()]
    score = pd.read_parquet(project.path / OF_FILES["score"])["score"]
    matrix = pd.read_parquet(project.path / OF_FILES["gather_attributions"])
    members, of_icp = (
        {json.loads(line)["id"] for line in project.read(dag.RESULTS / f"subsets/{m}/le-0.50.jsonl").splitlines()}
        for m in ("random", "icp")
    )
    return {
        "correlate": correlate,
        "compare_bins": by_keys(over_all["compare_bins"], "overlap", ["method", "bin"], "overlap"),
        "tell_labels": by_keys(others, "auc", ["label", "method"], "auc"),
        "chain": by_keys(links, "chain", ["link", "learning_rate"], "value")
        | by_keys(ends, "chain", ["link"], "value")
        | {"weak_link": project.read(TABLES / "weak_link.txt").decode().strip()},
        "tabulate_held_out": by_keys(gains, "held_out_gain", ["set", "method", "bin"], "gain"),
        "tabulate_win_rates": by_keys(rates, "win_rate", ["method", "bin"], "win_rate")
        | {"judgements": len(judged), "unreadable": sum(row["preference"] is None for row in judged)},
        "gather_attributions": {"examples": len(matrix), "columns": matrix.shape[1] - 1},
        "score": {
            "examples": len(score),
            "minimum": score.min(),
            "median": score.median(),
            "maximum": score.max(),
        },
        "subset": {"examples": len(members), "of": len(matrix), "overlap": len(members & of_icp) / len(members)},
        "judge": {"judgements": len(one), "unreadable": 0, "win_rate": 100 * (np.mean(one) - 1)},
    }


@pytest.mark.timeout(1800)
def test_every_number_of_a_run_is_that_of_its_tables_over_all_tasks(tracked):
    project, summaries = tracked
    wanted = expected(project)
    assert summaries.keys() == wanted.keys()
    for rule, summary in summaries.items():
        assert numbers(summary) == pytest.approx(wanted[rule]), rule


@pytest.mark.timeout(1800)
def test_no_rule_loses_a_number_of_its_summary(tracked):
    project, _ = tracked
    logs = {path: path.read_text(encoding="utf-8") for path in (project.path / "logs/tiny").rglob("*.log")}
    assert len(logs) >= 60
    mode = "W&B: offline ("
    said = [
        f"{path}: {line}"
        for path, log in logs.items()
        for line in log.splitlines()
        if " W&B: " in line and mode not in line
    ]
    assert said == []


@pytest.mark.timeout(1800)
def test_terminal_and_report_show_the_numbers_of_the_runs(tracked, monkeypatch):
    project, summaries = tracked
    monkeypatch.chdir(project.path)
    found = {name: fixed(value) for name, value in numbers(summaries["correlate"]).items()}
    said = " ".join(terminal_summary.summary("tiny", ["tiny-llama"], tracked=False).split())
    for name, words in (("spearman", "icp and influence"), ("spearman_given_length", "response length")):
        assert f"{words}: {found[name]} [{found[f'{name}_low']}, {found[f'{name}_high']}]" in said
    for name, value in numbers(summaries["tell_labels"]).items():
        _, label, method = name.split("/")
        assert f"AUC of {label}, " in said
        assert f"{method} {fixed(value)} [" in said

    tables = {path.stem: path for path in (project.path / TABLES).glob("*.csv") if path.stem != "scores"}
    inputs = ModelInputs({"icp": dag.RESULTS / "scores/icp.parquet"}, **tables)
    page = Findings("tiny-llama", inputs, pd.read_parquet("results/tiny/data/train.parquet"), ["planted"], {}, 1)
    text = " ".join(agreement(page.correlations))
    for name in ("spearman", "spearman_given_length"):
        assert f"{found[name]} (95% interval {found[f'{name}_low']} to {found[f'{name}_high']}" in text


# --- one number each --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        pd.Series([0.5]),
        pd.Series([0.5, 0.6]),
        pd.DataFrame({"a": [1]}),
        np.array([1.0]),
        torch.ones(1),
        [0.5],
        {"a": 1},
    ],
)
def test_what_holds_several_values_is_no_number_and_is_said(value, caplog):
    with pytest.raises(TypeError, match="no single value"):
        scalar(value)
    runs.Run().summary(spearman=0.7, spearman_low=value)
    (said,) = caplog.messages
    assert "spearman_low is left out" in said


@pytest.mark.parametrize(
    ("value", "plain"), [(np.float64(0.5), 0.5), (np.int32(3), 3), (torch.tensor(2.0), 2.0), ("a", "a"), (None, None)]
)
def test_a_single_value_of_any_library_is_a_number_or_a_word(value, plain, caplog):
    assert scalar(value) == plain
    runs.Run().summary(value=value)
    assert not caplog.messages


def overlap_rows(bins):
    rows = [(d, m, b, n, 0.5) for d in ("all", "law") for m in ("influence", "length") for b, n in bins]
    return pd.DataFrame(rows, columns=["domain", "method", "bin", "n", "overlap"])


@pytest.mark.parametrize("order", [1, -1])
def test_the_strictest_bin_is_that_of_the_highest_threshold_however_the_list_goes(order):
    bins = [("<=0.5", 40), (">0.85", 12), (">0.9", 0), (">0.5", 30)][::order]
    rows = headline.strictest_bin(overlap_rows(bins))
    assert rows["bin"].tolist() == [">0.85", ">0.85"]
    assert set(rows["domain"]) == {"all"}
    assert headline.strictest_bin(overlap_rows([("<=0.5", 40), (">0.9", 0)])).empty


@pytest.mark.parametrize("order", [1, -1])
def test_the_strictest_bin_is_the_smallest_of_best_examples(order):
    bins = [("bottom 5%", 5), ("top 20%", 20), ("top 10", 10), (">0.5", 30)][::order]
    assert set(headline.strictest_bin(overlap_rows(bins))["bin"]) == {"top 10"}
    equal = [(">0.8", 7), (">0.9", 7), ("top 20%", 20)][::order]
    assert set(headline.strictest_bin(overlap_rows(equal))["bin"]) == {">0.9"}


def test_the_order_of_two_methods_does_not_hide_their_headline():
    rows = [
        (domain, "influence", "icp", statistic, value, 0.1, 0.9)
        for domain, value in (("all", 0.31), ("law", 0.2))
        for statistic in ("spearman", "spearman_partial_length")
    ]
    columns = ["domain", "method_a", "method_b", "statistic", "value", "low", "high"]
    found = headline.of_correlations(pd.DataFrame(rows, columns=columns))
    assert found == {
        "spearman/influence~icp": 0.31,
        "spearman": 0.31,
        "spearman_low": 0.1,
        "spearman_high": 0.9,
        "spearman_given_length": 0.31,
        "spearman_given_length_low": 0.1,
        "spearman_given_length_high": 0.9,
    }


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.0038, 0.52, "0.26 [−0.0038, 0.52]"),
        (0.004, 0.52, "0.26 [0.0040, 0.52]"),
        (-0.2, -0.0001, "0.26 [−0.20, −0.0001]"),
        (0.0, 1.0, "0.26 [0.00, 1.00]"),
    ],
)
def test_an_interval_shows_on_which_side_of_0_it_ends(low, high, said):
    assert estimate(0.26, low, high) == said
