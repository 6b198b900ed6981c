"""What the tasks lose without a method's best examples, against random removals."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from icprobe.analysis.removal import COLUMNS, against, removal
from icprobe.errors import DataError

TASKS = ["t0", "t1", "t2"]


def removed(per_task=False, controls=4, methods=("icp", "random")):
    """removals.parquet of these methods: ten examples each."""
    rows = [(f"control-{c}", None, None, f"e{i}") for c in range(controls) for i in range(10)]
    for method in methods:
        sets = [(f"{method}/{task}", task) for task in TASKS] if per_task else [(method, None)]
        rows += [(subset, method, task, f"e{i}") for subset, task in sets for i in range(10)]
    return pd.DataFrame(rows, columns=["subset", "method", "task", "id"])


def measured(sets, value, seeds=(0, 1)):
    """outcomes: value(subset, seed, task) -> log-likelihood."""
    rows = [
        (subset, seed, "tasks", task, value(subset, seed, task), 5)
        for subset in sets["subset"].unique()
        for seed in seeds
        for task in TASKS
    ]
    return pd.DataFrame(rows, columns=["subset", "seed", "set", "id", "log_likelihood", "n_tokens"])


def made(per_task=False, seed=0, **options):
    sets, rng = removed(per_task, **options), np.random.default_rng(seed)
    return sets, measured(sets, lambda subset, *_: rng.normal() - 5 * subset.startswith("icp"))


def test_the_loss_is_the_naive_loop():
    sets, outcomes = made()
    table = removal(sets, outcomes, {"odd": ["t1"]})
    assert list(table) == COLUMNS
    by = outcomes.set_index(["subset", "seed", "id"])["log_likelihood"]
    for domain, tasks in {"all": TASKS, "odd": ["t1"]}.items():  # noqa: B007 (pandas reads it)
        controls = [np.mean([by[f"control-{c}", s, t] for s in (0, 1) for t in tasks]) for c in range(4)]
        for method in ("icp", "random"):
            row = table.query("domain == @domain and method == @method").iloc[0]
            loss = np.mean(controls) - np.mean([by[method, s, t] for s in (0, 1) for t in tasks])
            half = student.ppf(0.975, 3) * np.std(controls, ddof=1) * np.sqrt(1 + 1 / 4)
            assert np.allclose([row.loss, row.low, row.high], [loss, loss - half, loss + half])
            assert (row.n_removed, row.n_tasks, row.n_seeds, row.n_controls) == (10, len(tasks), 2, 4)
            assert (row.p_value < 0.05) == (row.low > 0 or row.high < 0)
    rows = table.query("domain == 'all'").set_index("method")
    assert rows.loc["icp", "loss"] > 3, "to miss the best costs likelihood: the sign"
    assert np.isclose(rows.loc["icp", "p_value_holm"], min(1, 2 * rows.loc["icp", "p_value"]))


def test_task_by_task_each_answers_for_its_own_removal():
    sets = removed(per_task=True)

    def value(subset, seed, task):
        noise = {"control-0": 0.1, "control-1": -0.1}.get(subset, 0.0)
        return noise - 2.0 * (subset == f"icp/{task}") - 50.0 * (subset.startswith("random/") and task not in subset)

    rows = removal(sets.sample(frac=1, random_state=0), measured(sets, value), {}).set_index("method")
    assert np.isclose(rows.loc["icp", "loss"], 2)
    assert np.isclose(rows.loc["random", "loss"], 0)
    assert rows.loc["icp", "n_removed"] == 10


def test_one_control_has_no_interval_and_none_is_an_error():
    sets, outcomes = made(controls=1)
    row = removal(sets, outcomes, {}).iloc[0]
    assert row.loss > 0
    assert np.isnan([row.low, row.high, row.p_value, row.p_value_holm]).all()
    with pytest.raises(DataError, match="no random removals"):
        removal(*made(controls=0), {})


def test_a_task_without_its_removal_is_an_error():
    sets, outcomes = made(per_task=True)
    lost = "icp/t1"
    with pytest.raises(DataError, match="'t1'"):
        removal(sets[sets["subset"] != lost], outcomes[outcomes["subset"] != lost], {})


@pytest.mark.parametrize("controls", [4, 8])
def test_one_more_random_removal_is_seldom_significant(controls):
    """The noise of a removal, shared by its tasks and seeds, of each seed, and of each task."""
    rng, found = np.random.default_rng(controls), []
    for _ in range(1000):
        shape = (controls + 1, 2, 3)  # [models, seeds, tasks]
        values = rng.normal(size=(shape[0], 1, 1)) + rng.normal(size=(*shape[:2], 1)) + rng.normal(size=shape)
        *of_controls, without = values.mean(axis=(1, 2))
        found.append(against(np.array(of_controls), without))
    _, low, high, p_value = np.transpose(found)
    assert 0.035 <= np.mean(p_value < 0.05) <= 0.065
    assert np.allclose(p_value < 0.05, (low > 0) | (high < 0)), "the interval and the p-value say the same"
