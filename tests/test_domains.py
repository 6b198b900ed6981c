"""Tables by domain of task: the scores over a domain's tasks alone, whatever the other tasks are."""

import numpy as np
import pandas as pd
import pytest

from icprobe.analysis.correlations import correlations
from icprobe.analysis.domains import ALL, by_domain, score_sets, sweep_table, task_domains
from icprobe.errors import DataError
from icprobe.tables.checking import read_table

TASKS = pd.DataFrame({"id": ["a", "b", "c", "d"], "domain": ["code", "law", "code", None]})
AGGREGATORS = {"icp": "fraction_positive", "influence": "mean"}


@pytest.fixture
def written(tmp_path):
    """Arguments of `score_sets`: matrices of icp and influence, scores of these and of three one-column methods."""
    rng = np.random.default_rng(0)
    ids = [f"e{i}" for i in range(30)]
    matrices = {}
    for method in AGGREGATORS:
        values = rng.standard_normal((30, 4)).astype(np.float32)
        matrices[method] = pd.DataFrame(values, columns=TASKS["id"]).assign(id=ids)[["id", *TASKS["id"]]]
    scores = {m: pd.DataFrame({"id": ids, "score": rng.random(30)}) for m in [*AGGREGATORS, "length", "influence_mean"]}
    for kind, tables in (("scores", scores), ("matrices", matrices)):
        for method, table in tables.items():
            table.to_parquet(tmp_path / f"{kind}-{method}.parquet", index=False)
    TASKS.to_parquet(tmp_path / "tasks.parquet", index=False)
    files = {
        kind: [tmp_path / f"{kind}-{m}.parquet" for m in of]
        for kind, of in (("scores", scores), ("matrices", matrices))
    }
    arguments = (list(scores), files["scores"], files["matrices"], tmp_path / "tasks.parquet", AGGREGATORS, ["length"])
    return arguments, scores, matrices


def test_scores_of_a_domain_are_those_of_its_tasks_alone(written):
    arguments, scores, matrices = written
    sets = dict(score_sets(*arguments))
    assert list(sets) == [ALL, "code", "law"]
    code = matrices["icp"][["a", "c"]].to_numpy()
    assert np.array_equal(sets["code"]["icp"].to_numpy(), (code > 0).mean(axis=1))
    assert np.array_equal(sets["law"]["influence"].to_numpy(), matrices["influence"]["b"].astype(float))
    for found in sets.values():
        assert np.array_equal(found["length"].to_numpy(), scores["length"]["score"])
    # What was summed over all tasks cannot be taken apart.
    assert "influence_mean" in sets[ALL]
    assert "influence_mean" not in sets["code"]


def test_a_domains_rows_do_not_depend_on_the_tasks_of_others(written, tmp_path):
    arguments, _, matrices = written

    def table():
        return by_domain("m", score_sets(*arguments), lambda found: correlations(found, None, resamples=20))

    before = table()
    matrices["icp"].assign(b=-1.0, d=np.nan_to_num(matrices["icp"]["d"]) + 9).to_parquet(arguments[2][0], index=False)
    after = table()
    assert list(before.columns[:4]) == ["model", "domain", "method_a", "method_b"]
    code = before["domain"] == "code"
    assert code.any()
    pd.testing.assert_frame_equal(before[code], after[code])
    assert not before[before["domain"] == "law"].equals(after[after["domain"] == "law"])


@pytest.mark.parametrize("domain", [["x"] * 4, [None] * 4, None])
def test_one_domain_or_none_adds_no_rows(domain):
    tasks = TASKS.drop(columns="domain") if domain is None else TASKS.assign(domain=domain)
    assert task_domains(tasks) == {}


def test_one_domain_and_tasks_of_none_are_told_apart():
    assert task_domains(TASKS.assign(domain=["x", "x", None, None])) == {"x": ["a", "b"]}


def test_a_domain_called_all_is_refused(tmp_path):
    path = tmp_path / "tasks.csv"
    path.write_text("instruction,output,domain\na,b,all\n")
    with pytest.raises(DataError, match=r'tasks\.csv, line 2: a domain must not be called "all"'):
        read_table({"path": str(path)}, extra=["domain"])


def sweep(train, in_domain=None):
    rows = [
        (model, domain, *pair, statistic, value, 0.1, 0.9, "bootstrap", 30)
        for model in ("large", "base")
        for domain, value in ((ALL, 0.7), ("code", 0.6), ("law", 0.5))
        for pair in (("icp", "influence"), ("icp", "length"))
        for statistic in ("spearman", "pearson")
    ]
    names = ["model", "domain", "method_a", "method_b", "statistic", "value", "low", "high", "interval", "n"]
    return sweep_table(pd.DataFrame(rows, columns=names), TASKS, train, in_domain)


def test_a_sweep_holds_icp_against_influence_of_every_model_in_domain_first():
    table = sweep(pd.DataFrame({"id": ["x", "y"], "domain": ["law", None]}))
    assert table["model"].tolist() == ["large"] * 3 + ["base"] * 3
    assert table["domain"].tolist() == [ALL, "law", "code"] * 2
    assert table["kind"].tolist() == ["all", "in-domain", "out-of-domain"] * 2
    assert table["n_tasks"].tolist() == [4, 1, 2] * 2
    assert table["value"].tolist() == [0.7, 0.5, 0.6] * 2


def test_what_is_in_domain_is_configured_or_else_said_by_the_examples_or_unknown():
    said = pd.DataFrame({"id": ["x"], "domain": ["law"]})
    assert sweep(said, ["code"])["kind"].tolist()[:3] == ["all", "in-domain", "out-of-domain"]
    assert sweep(said, ["code"])["domain"].tolist()[:3] == [ALL, "code", "law"]
    assert sweep(said.drop(columns="domain"))["kind"].tolist()[:3] == ["all", "", ""]
    assert sweep(said.assign(domain=None))["kind"].tolist()[:3] == ["all", "", ""]
    assert sweep(said, [])["kind"].tolist()[:3] == ["all", "out-of-domain", "out-of-domain"]


def test_a_domain_that_no_task_and_no_example_is_of_is_told(caplog):
    said = pd.DataFrame({"id": ["x"], "domain": ["poetry"]})
    assert sweep(said, ["poetry"])["kind"].tolist()[1] == "out-of-domain"
    assert not caplog.records
    sweep(said, ["poetry", "cod"])
    assert caplog.messages == ["data.in_domain: no task and no example here is of cod"]
