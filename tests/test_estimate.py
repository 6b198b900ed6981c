"""`snakemake estimate`: a table of what is still to be done, from counted sizes, counted work and measured rates."""

import json
import math
from dataclasses import replace
from pathlib import Path

import dag
import pandas as pd
import pytest

from icprobe import artifacts, config, paths
from icprobe.analysis import frontier
from icprobe.attribution import METHODS
from icprobe.config.estimate import Prices
from icprobe.config.sections import IcpReverse
from icprobe.errors import ConfigError
from icprobe.workflow import estimating
from icprobe.workflow.measured import Measured
from icprobe.workflow.plan import Plan
from icprobe.workflow.resources import HEAVY_SECONDS, Sizes

RATES = dag.RESULTS / "data/rates.json"
ESTIMATE = "results/tiny/estimate.csv"


@pytest.fixture
def project(tmp_path, tmp_path_factory):
    return dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path / "copy")


def estimated(project, **estimate):
    ended = project.snakemake("estimate", "--cores", "2", config={"estimate": estimate})
    assert ended.returncode == 0, ended.output[-3000:]
    return ended.output, pd.read_csv(project.path / ESTIMATE)


def remove(project, *methods):
    """Takes away what was made of these methods, and a table that has their scores, so that it is to be made again."""
    made = ("attributions/{}.parquet", "attributions/{}/*.parquet", "scores/{}.parquet")
    for pattern in ["tables/scores.parquet", *(path.format(method) for method in methods for path in made)]:
        found = [*(project.path / dag.RESULTS).glob(pattern)]
        assert found, pattern
        for path in found:
            path.unlink()


# --- in the workflow --------------------------------------------------------------------------------------------


def test_an_estimate_is_of_the_jobs_that_a_run_would_do_and_does_none_of_them(project):
    remove(project, "icp", "one_step")
    planned = project.snakemake("all", "-n", "--cores", "2").jobs
    said, table = estimated(project)
    rules = table.set_index("rule")
    assert planned["attribute"] == 4
    assert dict(rules["jobs"].drop("total")) == {rule: n for rule, n in planned.items() if rule != "all"}
    assert rules["jobs"]["total"] == rules["jobs"].drop("total").sum()
    assert f"in {rules['jobs']['total']:,} jobs, one after another, for all" in said
    assert not (project.path / dag.RESULTS / "attributions/icp.parquet").exists()
    told = artifacts.read_json(project.path / RATES)
    assert {"read", "gradients", "products", "steps", "train", "ask", "decode"} == set(told["rates"])
    assert all(math.isfinite(rate) and rate > 0 for rate in told["rates"].values())
    assert 0 < told["start"]["light"] < told["start"]["heavy"]
    # Of the tables themselves, not of the bytes of files.
    lengths = pd.read_parquet(project.path / dag.RESULTS / "data/lengths.parquet")
    assert told["row_tokens"]["train"] == pytest.approx((lengths["n_query"] + lengths["n_target"]).mean())
    # A run of what is left does the rest as ever.
    assert project.snakemake("all", "-n", "--cores", "2").jobs == planned


def test_a_finished_experiment_has_nothing_left_and_is_as_finished_as_before(project):
    said, table = estimated(project, rate=1e9)
    assert table.empty
    assert "Nothing is left to be done for all." in said
    assert "Nothing to be done" in project.snakemake("all", "-n", "--cores", "2").output


def test_a_rate_that_is_given_is_taken_and_nothing_is_measured(project):
    remove(project, "one_step")
    seconds = {}
    for rate in (1e6, 2e6):
        said, table = estimated(project, rate=rate, prices={"cpu_hour": 2.0})
        rows = table.set_index("rule")
        seconds[rate] = 3600 * rows["hours"]["attribute"] - rows["jobs"]["attribute"] * HEAVY_SECONDS
        assert rows["money"]["total"] == pytest.approx(2 * rows["cpu_hours"]["total"])
        assert f"{rate:.3g} operations a second (estimate.rate)" in said
        assert "timed in" not in project.log("tiny/measure_rates/tiny-llama.log")
    assert seconds[1e6] == pytest.approx(2 * seconds[2e6], rel=0.01)
    # By the count that the frontier has of the method.
    train, tasks = (pd.read_parquet(project.path / f"results/tiny/data/{name}.parquet") for name in ("train", "tasks"))
    told = artifacts.read_json(project.path / RATES)["row_tokens"]
    parameters = artifacts.read_manifest(project.path / dag.MODEL)["parameters"]
    tokens = [len(train) * told["train"], len(tasks), len(tasks) * told["tasks"], 0.0]
    assert seconds[1e6] == pytest.approx(
        frontier.operations("one_step", parameters, len(train), *tokens) / 1e6, rel=0.01
    )


def test_targets_and_threads_are_those_that_were_asked_for(project):
    remove(project, "icp")
    arguments = ("estimate", "--cores", "2", "--set-threads", "attribute=2", "gather_attributions=2")
    ended = project.snakemake(*arguments, config={"estimate": {"rate": 1e9, "targets": ["attributions"]}})
    assert ended.returncode == 0, ended.output[-3000:]
    rows = pd.read_csv(project.path / ESTIMATE).set_index("rule")
    assert set(rows.index) == {"attribute", "gather_attributions", "total"}
    assert rows["cpu_hours"]["total"] == pytest.approx(2 * rows["hours"]["total"])


# --- sizes and rates --------------------------------------------------------------------------------------------


def measured(project, monkeypatch, device="cpu", **sections):
    """The measured sizes of the finished tiny experiment, with rates of 1e6 a second."""
    monkeypatch.chdir(project.path)
    told = {"rates": dict.fromkeys(("read", "train"), 1e6), "row_tokens": {"train": 50.0, "tasks": 20.0, "eval": 10.0}}
    artifacts.write_json(RATES, told | {"start": {"light": 1.0, "heavy": 7.0}, "device": device})
    raw = json.loads(json.dumps(dag.configuration("config.yaml", "configs/tiny.yaml").model_dump(mode="json")))
    return Measured.of(config.load(raw | sections, METHODS))


def test_an_experiment_without_prompts_has_no_tokens_of_them(project, monkeypatch):
    found = measured(project, monkeypatch)
    told = found.told["tiny-llama"]
    tokens = {name: count for name, count in told["row_tokens"].items() if name != "eval"}
    without = replace(found, prompts=0, told={"tiny-llama": {**told, "row_tokens": tokens}})
    assert 0 < without.measure_outcomes("tiny-llama", 1).seconds < found.measure_outcomes("tiny-llama", 1).seconds


def test_rows_are_counted_and_jobs_are_cut_as_they_were_planned(project, monkeypatch):
    found = measured(project, monkeypatch)
    planned = Sizes.of(found.config)
    assert found.prompts == len(pd.read_parquet(paths.EVAL.format(experiment="tiny"))) != planned.prompts
    assert found.shards == planned.shards
    for part, sets in (("subsets", 64), ("removals", 9)):
        assert found.retraining_chunks("tiny-llama", part, sets) == planned.retraining_chunks("tiny-llama", part, sets)
    assert found.fisher_parts("tiny-llama") == planned.fisher_parts("tiny-llama")
    size = found.parameters("tiny-llama")
    epochs = found.config.finetune.epochs
    assert found.fine_tune("tiny-llama", 10).seconds == pytest.approx(6 * size * 10 * 50 * epochs / 1e6)


def test_bins_hold_what_they_will_hold_as_far_as_it_can_be_known(project, monkeypatch):
    found = measured(project, monkeypatch)
    scores = pd.read_parquet(paths.scores("icp").format(experiment="tiny", model="tiny-llama"))
    n, above = len(scores), int((scores["score"] > 0.8).sum())
    written = [*Path("results/tiny/tiny-llama/subsets/icp").glob("gt-0.80.jsonl")]
    assert found.subset("tiny-llama", "icp", "gt-0.80") == len(written[0].read_text().splitlines()) == above
    for path in Path("results/tiny/tiny-llama/subsets").rglob("*.jsonl"):
        path.unlink()
    assert found.subset("tiny-llama", "influence", "gt-0.80") == above, "by the scores"
    assert found.subset("tiny-llama", "icp", "top-25pct") == round(n / 4)
    assert found.subset("tiny-llama", "all", "all") == n
    Path(paths.scores("icp").format(experiment="tiny", model="tiny-llama")).unlink()
    assert found.subset("tiny-llama", "icp", "gt-0.80") == pytest.approx(0.2 * n), "spread evenly"
    assert found.subset("tiny-llama", "icp", "le-0.50") == pytest.approx(0.5 * n)


def test_selections_hold_what_they_ask_for(project, monkeypatch):
    selections = {
        "best": {"method": "influence", "top": "25%", "baselines": ["random"]},
        "budget": {"method": "influence", "tokens": 100},
    }
    found = measured(project, monkeypatch, selections=selections)
    lengths = pd.read_parquet(paths.LENGTHS.format(experiment="tiny", model="tiny-llama"))
    for name in ("best", "best-random"):
        assert found.subset("tiny-llama", name, "selected") == round(len(lengths) / 4)
    assert found.subset("tiny-llama", "budget", "selected") == pytest.approx(100 / lengths["n_target"].mean())


def test_the_table_adds_up_starts_work_memory_disk_gpus_and_money(project, monkeypatch):
    job = {"rule": "attribute", "model": "tiny-llama", "threads": 2, "mem_mb": 2000, "heavy": True}
    job |= {"gpus": 0, "gpus_if_any": 1, "seconds": 3593.0, "disk": 5e8}
    light = {**job, "rule": "score", "model": None, "threads": 1, "heavy": False, "gpus_if_any": 0, "seconds": 0.0}
    for device, gpu_hours in (("cpu", 0.0), ("cuda", 2.0)):
        sizes = measured(project, monkeypatch, device)
        found = estimating.table([job, {**job, "mem_mb": 3000}, light], sizes, Prices(cpu_hour=0.5, gpu_hour=3))
        rows = found.set_index("rule")
        assert [*found["rule"]] == ["attribute", "score", "total"]
        assert rows.loc["attribute", ["jobs", "hours", "mem_mb", "disk_gb"]].tolist() == [2, 2.0, 3000, 1.0]
        assert rows["hours"]["score"] == pytest.approx(1 / 3600)
        assert rows["cpu_hours"]["total"] == pytest.approx(4 + 1 / 3600)
        assert rows["gpu_hours"]["total"] == gpu_hours
        assert rows["money"]["total"] == pytest.approx(0.5 * (4 + 1 / 3600) + 3 * gpu_hours)
    assert "money" not in estimating.table([job], sizes, Prices())


def test_what_the_sentences_say_was_done(project, monkeypatch):
    def grounds(rates, **sections):
        sizes = measured(project, monkeypatch, **sections)
        artifacts.write_json(RATES, artifacts.read_json(RATES) | {"rates": rates})
        sizes = Measured.of(sizes.config)
        return " ".join(estimating._grounds(sizes.config, Plan(sizes.config, METHODS), sizes))

    assert "Rates are measured" in grounds({"read": 1e6})
    assert "Rates are measured" not in grounds({}), "there was nothing to measure"
    priced = {"estimate": {"rate": 1e9, "prices": {"gpu_hour": 2}}}
    assert "whether device: auto finds a GPU nobody has looked" in grounds({}, **priced)
    unpriced = {"estimate": {"rate": 1e9, "prices": {"cpu_hour": 2}}}
    assert "device: auto" not in grounds({}, **unpriced)


def test_products_are_timed_as_the_methods_form_them(project, monkeypatch):
    """Influence alone takes Gram matrices of short sequences, which cost less than the gradients of others."""
    from icprobe import measuring
    from icprobe.texts.chat import prompts_of

    monkeypatch.chdir(project.path)
    plan = Plan(dag.configuration("config.yaml", "configs/tiny.yaml"), METHODS)
    train, tasks, prompts = (
        pd.read_parquet(f"results/tiny/data/{name}.parquet") for name in ("train", "tasks", "eval")
    )
    lengths = pd.read_parquet(paths.LENGTHS.format(experiment="tiny", model="tiny-llama"))
    tables = [train, tasks.assign(instruction="a", input="", output="b"), prompts]
    called = set()
    for name in ("grams", "contract"):
        real = getattr(measuring, name)
        monkeypatch.setattr(measuring, name, lambda *of, name=name, real=real: called.add(name) or real(*of))
    for contractions, taken in ((["influence"], {"grams"}), (["influence", "influence_log"], {"contract"})):
        called.clear()
        settings = estimating.settings(plan) | {"influence": {"contractions": contractions}}
        settings["attribution"] |= {"batch_tokens": 128}
        texts = prompts_of(plan.text_settings())
        sample = measuring.Sample(str(dag.MODEL), *tables, lengths.assign(n_query=2, n_target=2), texts, settings)
        (rate,) = measuring.rates(["products"], sample).values()
        assert math.isfinite(rate)
        assert rate > 0
        assert called == taken


def test_a_dry_run_counts_a_training_on_its_bin_or_selection():
    raw = dag.configuration("config.yaml").model_dump(mode="json", exclude_unset=True)
    picks = {"few": {"method": "influence", "top": 9}, "words": {"method": "influence", "tokens": 550}}
    sections = {
        "experiment": "not_begun",
        "selections": picks,
        "bins": ["top 10%", "bottom 7", ">0.8"],
        "finetune": None,
    }
    found = Sizes.of(config.load(raw | sections, METHODS))
    n = found.examples
    held = [found.subset("smollm2-135m-instruct", "influence", bin) for bin in ("top-10pct", "bottom-7", "gt-0.80")]
    assert held == pytest.approx([int(n / 10 + 0.5), 7, 0.2 * int(n)])
    held = [
        found.subset("smollm2-135m-instruct", *of)
        for of in (("few", "selected"), ("words", "selected"), ("all", "all"))
    ]
    assert held == pytest.approx([9, 10, n])


def test_icp_reverse_is_counted_by_its_contexts(project, monkeypatch):
    found = measured(project, monkeypatch)

    def read(wanted="all", limit=None):
        settings = found.config.attribution.model_copy(update={"icp_reverse": IcpReverse(tasks=wanted)})
        told = artifacts.read_manifest(dag.MODEL) | {"max_positions": limit}
        monkeypatch.setattr(artifacts, "read_manifest", lambda path: told)
        artifacts._manifest_of.cache_clear()
        of = replace(found, config=found.config.model_copy(update={"attribution": settings}))
        return of.attribute("tiny-llama", "icp_reverse", "1-of-1").seconds

    tokens, size = found.shard("tiny-llama", "1-of-1")[1], found.parameters("tiny-llama")
    of_tasks = 20.0 * found.tasks  # of 50 tokens an example, and the longest of four times that
    for keys, contexts, share in (
        ({}, 1, 1.0),
        ({"limit": 200 + of_tasks}, 1, 1.0),
        ({"limit": 200 + of_tasks / 2}, 2, 1.0),
        ({"wanted": 1, "limit": 200 + of_tasks / 2}, 1, 1 / found.tasks),
        ({"limit": 10}, found.tasks, 1.0),
    ):
        assert read(**keys) == pytest.approx(2 * size * ((1 + contexts) * tokens + share * of_tasks) / 1e6), keys
    checked = paths.CONTEXTS_CHECKED.format(experiment="tiny", model="tiny-llama", method="icp_reverse")
    artifacts.write_json(checked, {"contexts": 3, "tokens": 1})
    assert read() == pytest.approx(2 * size * (4 * tokens + of_tasks) / 1e6), "as it has counted them"


# --- the configuration ------------------------------------------------------------------------------------------


def test_only_the_work_that_an_experiment_has_is_measured():
    def of(**sections):
        raw = dag.configuration("config.yaml", "configs/tiny.yaml").model_dump(mode="json")
        loaded = config.load(raw | sections, METHODS)
        return estimating.kinds(Plan(loaded, METHODS))

    none = {"finetune": None, "evaluation": None, "bins": ["top 20%"], "figures": None}

    def methods(*names):
        return {"attribution": {"methods": [*names]}, **none}

    assert of(**methods("length", "random")) == []
    assert of(**methods("icp", "perplexity")) == ["read"]
    assert of(**methods("self_influence")) == ["gradients"]
    assert set(of(**methods("influence", "one_step"))) == {"gradients", "products", "steps"}
    assert set(of(**methods("influence_ekfac", "icp_k_shot"))) == {"gradients", "products", "read"}


@pytest.mark.parametrize(
    ("estimate", "said"),
    [
        ({"targets": ["al"]}, "config: estimate.targets.0: Input should be 'all'"),
        ({"targets": ["truth"]}, "estimate.targets: truth trains nothing yet; write truth: {subsets: 64}"),
        ({"rate": 0}, "config: estimate.rate: Input should be greater than 0"),
        ({"prices": {"cpu_hour": -1}}, "config: estimate.prices.cpu_hour: Input should be greater than or equal to 0"),
        ({"prices": {"gpu": 1}}, "config: estimate.prices.gpu: unknown key"),
    ],
)
def test_an_estimate_that_cannot_be_made_is_refused(estimate, said):
    raw = dag.configuration("config.yaml").model_dump(mode="json") | {"estimate": estimate}
    with pytest.raises(ConfigError) as refused:
        config.load(raw, METHODS)
    assert said in str(refused.value)
