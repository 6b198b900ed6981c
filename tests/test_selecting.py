"""Choosing rows: samples and strata of examples, tasks by id or k-means, and the rows of a subset."""

import json

import numpy as np
import pandas as pd
import pytest

from icprobe.errors import DataError
from icprobe.tables import selecting
from icprobe.texts.chat import prompts_of
from icprobe.training import subsets


def frame(n=30):
    kinds = ["good", "bad", None]
    return pd.DataFrame({"id": [f"{i:02d}" for i in range(n)], "kind": [kinds[i % 3] for i in range(n)]})


def test_a_sample_is_in_file_order_of_the_asked_size_and_depends_on_the_seed_alone():
    one, two, other = (selecting.sample(frame(), 10, seed=seed)["id"].tolist() for seed in (1, 1, 2))
    assert one == two == sorted(one)
    assert len(set(one)) == 10
    assert one != other


def test_strata_are_drawn_equally_and_rows_without_a_value_never():
    drawn = selecting.sample(frame(), 7, stratify="kind", seed=0)
    assert drawn["kind"].value_counts().to_dict() == {"bad": 4, "good": 3}
    with pytest.raises(DataError, match="11 of the rows of 'bad' are wanted, but there are only 10"):
        selecting.sample(frame(), 21, stratify="kind")
    with pytest.raises(DataError, match="no column 'x'"):
        selecting.sample(frame(), 2, stratify="x")
    with pytest.raises(DataError, match="no row has a value"):
        selecting.sample(frame().assign(kind=None), 2, stratify="kind")


def test_every_row_is_as_likely_to_be_sampled():
    counts = np.zeros(30)
    for seed in range(600):
        counts[selecting.sample(frame(), 10, seed=seed)["id"].astype(int)] += 1
    # 200 expected, standard deviation 11.5
    assert abs(counts - 200).max() < 60, counts


def test_tasks_are_selected_as_the_configuration_says():
    table = frame(12)
    assert selecting.select_tasks(table, "all", 0)["id"].tolist() == table["id"].tolist()
    assert selecting.select_tasks(table, "first:3", 0)["id"].tolist() == ["00", "01", "02"]
    assert selecting.select_tasks(table, ["07", "02"], 0)["id"].tolist() == ["07", "02"]
    drawn = selecting.select_tasks(table, "random:5", 3)["id"].tolist()
    assert drawn == sorted(drawn)
    assert drawn == selecting.select_tasks(table, "random:5", 3)["id"].tolist() != table["id"].tolist()[:5]
    for select, said in (
        (["x"], "no task 'x'"),
        (["01", "01"], "a task appears twice"),
        ("first:13", "13 tasks are wanted, but there are 12"),
    ):
        with pytest.raises(DataError, match=said):
            selecting.select_tasks(table, select, 0)


@pytest.mark.parametrize("name", ["id", "score"])
def test_a_task_called_as_another_column_of_the_matrices_is_refused(name):
    # The one task "score" of a domain would be taken for scores, and not be aggregated.
    with pytest.raises(DataError, match=f'a task must not be called "{name}"'):
        selecting.select_tasks(pd.DataFrame({"id": ["a", name]}), "all", 0)


def test_kmeans_takes_the_row_nearest_to_each_centre():
    centres = np.array([[0.0, 0], [10, 0], [0, 10]])
    noise = np.random.default_rng(0).normal(size=(12, 2))
    points = np.repeat(centres, 4, axis=0) + noise
    chosen = selecting.select_tasks(frame(12), "kmeans:3", 0, lambda: points)["id"].astype(int).tolist()
    expected = []
    for k in range(3):
        group = points[4 * k : 4 * k + 4]
        expected.append(4 * k + int(((group - group.mean(axis=0)) ** 2).sum(axis=1).argmin()))
    assert chosen == expected


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_kmeans_gives_as_many_rows_as_asked_even_where_rows_coincide():
    chosen = selecting.select_tasks(frame(6), "kmeans:4", 0, lambda: np.repeat([[0.0], [1.0], [2.0], [3.0]], 2, 0)[:6])
    assert chosen["id"].is_unique
    assert len(chosen) == 4


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_a_subset_has_its_rows_in_order_however_many_are_written_at_a_time(at_once, tmp_path):
    texts = {"instruction": ["A", "B", "C"], "input": ["", "x", ""], "output": ["é", "b", "ç"]}
    table = pd.DataFrame({"id": ["a", "b", "c"], **texts, "label": "l"}).set_index("id", drop=False)
    prompts = prompts_of({"query": "{{ instruction }}:", "target": " {{ output }}"})
    files = [tmp_path / "s.jsonl", tmp_path / "s.messages.jsonl"]
    subsets.write_subset(table, ["c", "b"], {"c": 0.5}, prompts, *files, at_once)
    rows, chats = ([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in files)
    assert rows == [
        {"id": "c", "instruction": "C", "input": "", "output": "ç", "score": 0.5, "prompt": "C:", "completion": " ç"},
        {"id": "b", "instruction": "B", "input": "x", "output": "b", "score": None, "prompt": "B:", "completion": " b"},
    ]
    assert [chat["messages"] for chat in chats] == [
        [{"role": "user", "content": "C"}, {"role": "assistant", "content": "ç"}],
        [{"role": "user", "content": "B\n\nx"}, {"role": "assistant", "content": "b"}],
    ]
    assert [(chat["id"], chat["score"]) for chat in chats] == [("c", 0.5), ("b", None)]
