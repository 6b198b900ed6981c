"""Held-out gains: likelihoods as plain transformers and peft give them, tables as pandas does, what a kill repeats."""

import dag
import numpy as np
import pandas as pd
import pytest

from icprobe.errors import DataError
from icprobe.evaluation.held_out import tabulate
from icprobe.workflow.plan import bin_folder

SETS = {"tasks": "domain", "eval": "subset"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return dag.finished(tmp_path_factory.getbasetemp()).path


def rows_of(finished, name):
    return pd.read_parquet(finished / f"results/tiny/data/{name}.parquet")


def outcomes_of(finished, condition=None):
    method, bin_, seed = condition or ("", "", 0)
    name = f"{method}/{bin_folder(bin_)}/seed-{seed}" if condition else "base"
    return pd.read_parquet(finished / dag.RESULTS / f"outcomes/{name}.parquet")


CONDITIONS = [(m, b, 0) for m in ("icp", "random") for b in ("<=0.5", ">0.8")] + [("all", "all", 0)]


# --- likelihoods ------------------------------------------------------------------------------------------------


def test_outcomes_are_those_of_plain_transformers_and_peft(finished):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(finished / dag.MODEL)
    trained = 0
    for condition in [None, *CONDITIONS]:
        table = outcomes_of(finished, condition)
        model = AutoModelForCausalLM.from_pretrained(finished / dag.MODEL, dtype=torch.float32)
        if condition:
            method, bin_, seed = condition
            checkpoint = finished / dag.RESULTS / f"checkpoints/{method}/{bin_folder(bin_)}/seed-{seed}"
            if not (checkpoint / "adapter_config.json").exists():
                assert table.empty, "a model that was not trained has no outcomes"
                continue
            model = PeftModel.from_pretrained(model, checkpoint)
            trained += 1
        expected = []
        for name in SETS:
            for row in rows_of(finished, name).to_dict("records"):
                query = f"Instruction: {' '.join(row['instruction'].split())}"
                query += f" Input: {' '.join(row['input'].split())}" if row["input"].strip() else ""
                query += " Response:"
                whole = tokenizer(f"{query} {' '.join(row['output'].split())}", add_special_tokens=False).input_ids
                n = len(tokenizer(query, add_special_tokens=False).input_ids)
                with torch.no_grad():
                    logits = model.eval()(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
                targets = torch.tensor(whole[n:])
                value = logits[n - 1 : -1].gather(1, targets[:, None]).sum().item()
                expected.append((row["id"], name, value, len(targets)))
        expected = pd.DataFrame(expected, columns=list(table.columns))
        assert table[["id", "set", "n_tokens"]].values.tolist() == expected[["id", "set", "n_tokens"]].values.tolist()
        largest = np.abs(table["log_likelihood"] - expected["log_likelihood"]).max()
        assert largest < 1e-4, f"{condition}: {largest}"
    assert trained >= 3


def test_fine_tuned_models_differ_from_their_base(finished):
    """Were adapters left out, every gain would be 0, and the test above would compare the base with itself."""
    base, tuned = outcomes_of(finished), outcomes_of(finished, ("all", "all", 0))
    assert np.abs(base["log_likelihood"] - tuned["log_likelihood"]).max() > 1e-3


# --- tables -----------------------------------------------------------------------------------------------------


def test_the_table_is_what_pandas_makes_of_the_outcomes(finished):
    table = pd.read_csv(finished / dag.RESULTS / "tables/held_out.csv", dtype={"seed": str})
    assert list(table.columns) == [
        *("model", "domain", "method", "bin", "set", "subset", "seed", "n", "nll", "nll_base", "gain", "low", "high")
    ]
    base = outcomes_of(finished)
    seen = 0
    for name, group in SETS.items():
        rows = rows_of(finished, name)
        group = rows[group] if group in rows else pd.Series([None] * len(rows))
        for condition in CONDITIONS:
            tuned = outcomes_of(finished, condition)
            for subset in ["overall", *group.dropna().unique()]:
                ids = set(rows["id"][(group == subset) | (subset == "overall")])
                before, after = (t[(t["set"] == name) & t["id"].isin(ids)] for t in (base, tuned))
                found = table.query("method == @condition[0] and bin == @condition[1] and set == @name")
                found = found[found["subset"] == subset].set_index("seed")
                assert list(found.index) == ["0", "all"]
                for row in found.itertuples():
                    assert row.n == len(after)
                    if row.n:
                        nll = -after["log_likelihood"].sum() / after["n_tokens"].sum()
                        nll_base = -before["log_likelihood"].sum() / before["n_tokens"].sum()
                        assert np.allclose(
                            [row.nll, row.nll_base, row.gain], [nll, nll_base, nll_base - nll], atol=1e-12
                        )
                        assert row.n < 2 or row.low <= row.gain <= row.high
                    else:
                        assert np.isnan(row.gain)
                    seen += 1
    assert seen == len(table)


def made(seeds=1, prompts=40, methods=("a", "b"), effect=None, seed=0, spread=1.0):
    """Outcomes of a base and of models: log-likelihoods raised by `effect` nats a token on average."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 60, prompts)
    base = pd.DataFrame({"id": [f"p{i}" for i in range(prompts)], "set": "eval", "log_likelihood": -3.0 * tokens})
    base["n_tokens"] = tokens
    tuned = {}
    for method in methods:
        own = rng.normal(0, spread, prompts)  # of the method, in each of its seeds
        for s in range(seeds):
            raised = (effect or {}).get(method, 0.0) * tokens + own + rng.normal(0, 0.1, prompts)
            tuned[method, ">0.8", s] = base.assign(log_likelihood=base["log_likelihood"] + raised)
    return base, tuned


def test_over_seeds_a_gain_is_their_mean_with_a_wider_interval():
    base, tuned = made(seeds=3, effect={"a": 0.1})
    table, _ = tabulate(base, tuned, {})
    rows = table.query("method == 'a' and subset == 'overall'").set_index("seed")
    assert list(rows.index) == ["0", "1", "2", "all"]
    assert np.isclose(rows.loc["all", "gain"], rows.loc[["0", "1", "2"], "gain"].mean())
    assert rows.loc["all", "low"] < rows.loc["all", "gain"] < rows.loc["all", "high"]
    assert rows.loc["all", "n"] == 40
    # Seeds that agree add next to nothing; Student's t, and mean squares that are not taken apart, do not shorten it.
    assert rows.loc["all", "high"] - rows.loc["all", "low"] > 0.9 * (rows.loc["0", "high"] - rows.loc["0", "low"])


def test_intervals_hold_the_truth_as_often_as_they_say():
    truth, inside, trials = 0.05, {"0": 0, "all": 0}, 200
    for trial in range(trials):
        base, tuned = made(seeds=2, methods=("a",), effect={"a": truth}, seed=trial)
        table, _ = tabulate(base, tuned, {}, resamples=500)
        for seed in inside:
            row = table[table["seed"] == seed].iloc[0]
            inside[seed] += row.low <= truth <= row.high
    assert all(0.89 <= count / trials <= 1.0 for count in inside.values()), inside


def test_differences_are_paired_tested_and_corrected():
    base, tuned = made(methods=("a", "b", "c"), effect={"a": 0.2}, spread=0.5)
    _, found = tabulate(base, tuned, {})
    rows = found.set_index(["method_a", "method_b"])
    a, b = (tuned[m, ">0.8", 0]["log_likelihood"] for m in "ab")
    assert np.isclose(rows.loc[("a", "b"), "difference"], (a - b).sum() / base["n_tokens"].sum())
    assert rows.loc[("a", "b"), "p_value_holm"] < 0.05 < rows.loc[("b", "c"), "p_value_holm"]
    assert rows.loc[("a", "b"), "low"] > 0
    assert (found["p_value_holm"] >= found["p_value"]).all()
    assert rows.loc[("b", "c"), "low"] < 0 < rows.loc[("b", "c"), "high"]


def test_without_an_effect_few_differences_are_significant():
    p_values = [
        tabulate(*made(seeds=seeds, prompts=20, seed=trial), {}, resamples=200)[1]["p_value"].iloc[0]
        for seeds in (1, 2)
        for trial in range(40)
    ]
    assert np.mean(np.array(p_values) < 0.05) <= 0.1


def test_few_answers_and_empty_bins_say_so():
    base, tuned = made(prompts=5, effect={"a": 1.0})
    tuned["c", ">0.8", 0] = base.iloc[:0]
    table, differences = tabulate(base, tuned, {})
    rows = table[table["seed"] == "all"].set_index("method")
    assert rows.loc["a", "low"] <= 0 < rows.loc["a", "gain"], "five answers tell nothing for certain"
    assert rows.loc["c", "n"] == 0
    assert rows.loc["c", ["nll", "gain", "low", "high"]].isna().all()
    assert set(differences["method_a"]) | set(differences["method_b"]) == {"a", "b"}
    one = tabulate(base.iloc[:1], {key: t.iloc[:1] for key, t in tuned.items()}, {})
    assert one[0]["low"].isna().all()
    assert one[1]["p_value"].isna().all()


def test_models_that_were_asked_other_answers_are_refused():
    base, tuned = made()
    tuned["a", ">0.8", 0] = tuned["a", ">0.8", 0].iloc[1:]
    with pytest.raises(DataError, match="were asked other answers"):
        tabulate(base, tuned, {})


# --- a killed job -----------------------------------------------------------------------------------------------


def test_a_killed_job_measures_no_answer_twice_and_ends_in_the_same_bits(finished, tmp_path, monkeypatch):
    from icprobe.evaluation import outcomes
    from icprobe.texts.prompts import Prompts
    from icprobe.texts.tokenizing import load_tokenizer

    templates = {"query": "Q: {{ instruction }}\n", "target": "A: {{ output }}", "one_shot_prefix": "", "separator": ""}
    tables = {name: rows_of(finished, name) for name in SETS}
    answers = outcomes.held_out_answers(tables, Prompts(templates), load_tokenizer(finished / dag.MODEL), None)
    monkeypatch.setattr(outcomes, "ROW_TOKENS", 200)
    original, asked = outcomes._of_part, []

    def limited(most):
        def of_part(network, answers):
            if len(asked) == most:
                raise KeyboardInterrupt
            asked.append(len(answers))
            return original(network, answers)

        return of_part

    def measure(journal, most):
        monkeypatch.setattr(outcomes, "_of_part", limited(most))
        return outcomes.outcomes(finished / dag.MODEL, None, answers, "cpu", journal)

    undisturbed = measure(tmp_path / "undisturbed.jsonl", 10**6)
    whole = len(asked)
    assert whole > 3
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "killed.jsonl", 2)
    resumed = measure(tmp_path / "killed.jsonl", 10**6)
    assert len(asked) == whole
    pd.testing.assert_frame_equal(resumed, undisturbed, check_exact=True)


def test_answers_that_cannot_be_measured_are_left_out_and_told(tokenizer, prompts, caplog):
    from icprobe.evaluation.outcomes import held_out_answers

    rows = pd.DataFrame(
        {"id": list("abc"), "instruction": "Say it.", "input": "", "output": ["Yes.", " ", "No. " * 90]}
    )
    found = held_out_answers({"eval": rows}, prompts, tokenizer, 60)
    assert [answer.id for answer in found] == ["a"]
    assert "1 answer left out, without a token or beyond the context's 60: c" in caplog.text
