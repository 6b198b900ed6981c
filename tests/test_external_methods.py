"""Scores that somebody else computed as methods of an experiment, and the analysis of them without texts or a model."""

import re
from pathlib import Path

import dag
import numpy as np
import pandas as pd
import pytest
import yaml

from icprobe.analysis.labels import beside_length
from icprobe.attribution import METHODS, methods_of
from icprobe.config import load
from icprobe.errors import ConfigError
from icprobe.workflow.plan import Plan

ROOT = Path(__file__).parents[1]


def configuration(**sections):
    whole = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    for key, value in sections.items():
        whole[key] = {**whole[key], **value} if isinstance(whole.get(key), dict) else value
    return load(whole, METHODS)


GIVEN = {"path": "scores.npz", "orientation": "scores"}
NOTHING_TO_TUNE = {"methods": [], "all_data": False}


def test_external_scores_go_before_a_method_of_the_same_name_and_leave_the_others():
    methods = ["icp", "mine", "influence", "random"]
    config = configuration(attribution={"external": {"icp": GIVEN, "mine": GIVEN}, "methods": methods})
    found = methods_of(config)
    assert found["icp"].module == found["mine"].module == "icprobe.attribution.external"
    assert not found["icp"].needs_model
    assert {name: method for name, method in found.items() if name not in ("icp", "mine")} == {
        name: method for name, method in METHODS.items() if name != "icp"
    }


def test_external_shares_are_bins_without_an_aggregator():
    attribution_ = {"external": {"icp": GIVEN}, "methods": ["icp", "influence", "random"]}
    attribution_["aggregators"] = {"icp": "mean"}
    assert configuration(attribution=attribution_).bins
    with pytest.raises(ConfigError, match="bins"):
        configuration(attribution={**attribution_, "external": {}})


def test_a_method_of_one_score_counts_no_tasks():
    shares = {"icp": "fraction_positive", "influence_mean": "fraction_positive"}
    share = {"aggregators": shares, "methods": ["icp", "influence", "influence_mean", "random"]}
    with pytest.raises(ConfigError, match=r"aggregators: influence_mean has one score for each example"):
        methods_of(configuration(attribution=share))
    assert methods_of(configuration(attribution={**share, "aggregators": {**shares, "influence_mean": "mean"}}))
    # Nor do external scores, or what is computed of one score; only what icp and one_step do by default is no wish.
    theirs = {"external": {"mine": GIVEN, "icp": GIVEN}, "methods": ["icp", "mine", "influence", "random"]}
    assert methods_of(configuration(attribution=theirs))
    with pytest.raises(ConfigError, match=r"aggregators: mine has one score for each example"):
        methods_of(configuration(attribution={**theirs, "aggregators": {"mine": "fraction_positive"}}))


def test_external_scores_with_the_name_of_a_method_leave_the_jobs_of_others_as_they_are():
    matrix = {"path": "scores.npz", "orientation": "examples_by_tasks"}
    given = {"external": {"influence": matrix, "embedding": matrix}, "methods": ["icp", "influence", "influence_log"]}
    config = configuration(attribution={**given, "methods": [*given["methods"], "random"]})
    found, without = (Plan(one, methods_of(one)) for one in (config, configuration()))
    assert found.together == ["influence_log"]
    assert found.method_settings("influence_log")["dtype"] == without.method_settings("influence_log")["dtype"]
    assert found.embedding_settings == without.embedding_settings == without.method_settings("embedding")


def test_what_needs_texts_or_a_model_says_so_where_there_are_none():
    away = {
        "models": ["m"],
        "model_sources": {"m": {"source": "external"}},
        "finetune": NOTHING_TO_TUNE,
        "data": {"train": None, "tasks": None, "eval": None},
    }
    chosen = {"external": {"icp": GIVEN}, "methods": ["icp", "random"]}
    assert methods_of(configuration(**away, attribution=chosen))
    for method in ("influence", "length", "perplexity"):
        with pytest.raises(ConfigError, match=f"{method} reads texts"):
            methods_of(configuration(**away, attribution={**chosen, "methods": ["icp", method]}))
    with pytest.raises(ConfigError, match=r"bm25 needs data\.train, which is absent"):
        methods_of(configuration(**away, attribution={**chosen, "methods": ["icp", "bm25"]}))
    texts = {"train": {"path": "x"}, "tasks": {"path": "y"}, "eval": None}
    assert methods_of(configuration(**{**away, "data": texts}, attribution={"methods": ["bm25"]}, bins=["top 20%"]))
    here = {**away, "models": ["smollm2-135m-instruct"]}
    without_tasks = {**here, "data": {**texts, "tasks": None}}
    assert methods_of(configuration(**without_tasks, attribution={**chosen, "methods": ["icp", "ifd"]}))
    with pytest.raises(ConfigError, match=r"embedding needs data\.tasks, which is absent"):
        methods_of(configuration(**without_tasks, attribution={**chosen, "methods": ["icp", "embedding"]}))
    with pytest.raises(ConfigError, match=r"needs data\.train, which is absent"):
        methods_of(configuration(**here, attribution={**chosen, "methods": ["icp", "one_step"]}))
    with pytest.raises(ConfigError, match="fine-tuning and its evaluation need"):
        configuration(**{**away, "finetune": {"methods": ["icp"]}}, attribution=chosen)


def test_unknown_options_are_refused():
    with pytest.raises(ConfigError, match="unknown key"):
        configuration(attribution={"external": {"icp": {**GIVEN, "orientated": "scores"}}})
    with pytest.raises(ConfigError, match="orientation"):
        configuration(attribution={"external": {"icp": {"path": "scores.npz"}}})


# --- through the DAG


def test_the_analysis_runs_without_a_model_and_without_texts(tmp_path):
    rng = np.random.default_rng(3)
    shares = (rng.integers(20, 100, 60) / 100).astype(np.float32)
    effects = rng.normal(size=(60, 5)).astype(np.float32) + shares[:, None]
    project = dag.new(tmp_path / "project")
    np.savez(project.path / "given.npz", shares=shares, effects=effects.T)
    config = {
        **dag.OF_OTHERS,
        "attribution": {
            "methods": ["icp", "influence", "random"],
            "external": {
                "icp": {"path": "given.npz", "key": "shares", "orientation": "scores"},
                "influence": {"path": "given.npz", "key": "effects", "orientation": "tasks_by_examples"},
            },
        },
        "figures": {"scatter": []},
        "finetune": NOTHING_TO_TUNE,
    }
    tables = [f"results/given/theirs/tables/{name}.csv" for name in ("correlations", "overlaps")]
    ended = project.snakemake(*tables, "--cores", "2", config=config)
    assert ended.returncode == 0, ended.output
    assert not (project.path / "resources/models").exists()

    train = pd.read_parquet(project.path / "results/given/data/train.parquet")
    assert train["id"].tolist() == [f"{row:02d}" for row in range(60)]
    lengths = pd.read_parquet(project.path / "results/given/theirs/data/lengths.parquet")
    assert lengths[["n_query", "n_target"]].isna().all(axis=None)
    found, bins = (pd.read_csv(project.path / table) for table in tables)
    assert set(found["statistic"]) == {"spearman", "pearson", "kendall"}
    decimals = pd.Series([float(f"{share:.2f}") for share in shares])
    naive = decimals.corr(pd.Series(effects.mean(axis=1, dtype=np.float64)), method="spearman")
    value = found[(found["statistic"] == "spearman") & (found["method_b"] == "influence")]["value"].item()
    assert value == pytest.approx(naive, abs=1e-12)
    sizes = bins[bins["method"] == "influence"].set_index("bin")["n"]
    assert sizes["<=0.5"] == sum(round(100 * float(share)) <= 50 for share in shares)
    assert sizes[">0.85"] == sum(round(100 * float(share)) > 85 for share in shares)

    np.savez(project.path / "given.npz", shares=shares, effects=effects.T + 1)
    planned = project.snakemake("analysis", "-n", config=config)
    assert planned.jobs["read_external"] == 2
    assert planned.jobs["plot_scores"] == 1
    assert not planned.jobs.keys() & {"prepare_model", "prepare_train", "select_tasks", "chain", "plot_sweep"}
    assert not {"figures/lengths.svg", "figures/chain.svg"} & {*re.findall(r"figures/\w+\.svg", planned.output)}


def test_external_scores_that_are_called_length_or_random_are_no_baselines():
    methods = ["icp", "influence", "length", "random"]

    def baselines(**external):
        config = configuration(attribution={"external": external, "methods": methods})
        return Plan(config, methods_of(config)).baselines

    assert baselines() == ["length", "random"]
    assert baselines(length=GIVEN) == ["random"]
    assert baselines(random=GIVEN, icp=GIVEN) == ["length"]
    scores = {"length": pd.Series([0.5, 0.1]), "icp": pd.Series([1.0, 0.0])}
    assert [*beside_length(scores, pd.Series([3, 4]), ["length"])] == ["length", "icp"]
    assert [*beside_length(scores, pd.Series([3, 4]), [])] == ["length", "icp", "response tokens"]
