"""Tables of scores that join by id: what has no ids is not taken to be in order."""

import pandas as pd
import pytest
from test_external import attribution, read, section

from icprobe.errors import DataError


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"example": ["xb", "xa"], "score": [2.0, 1.0]}, {}),
        ({"example": [1, 0], "score": [2.0, 1.0]}, {}),
        ({"example": [1.0, 0.0], "score": [2.0, 1.0]}, {}),
        ({"score": [2.0, 1.0]}, {"id_column": "exampel"}),
    ],
)
def test_a_table_without_the_ids_by_which_it_joins_is_refused(columns, options, tmp_path):
    """Its rows could be in any order: they are not taken to be numbered."""
    pd.DataFrame(columns).to_csv(tmp_path / "s.csv", index=False)
    made = section(tmp_path / "s.csv", "scores", join="id", **options)
    with pytest.raises(
        DataError, match=r"s\.csv: has no column 'e?x?i?a?m?p?e?l?d?' to join by, but .*set join: order"
    ):
        attribution("given", made, ["xa", "xb"], [], row_numbers={"train": [0, 1]})
    pd.DataFrame({"score": [2.0, 1.0]}).to_csv(tmp_path / "s.csv", index=False)
    alone = attribution(
        "given", section(tmp_path / "s.csv", "scores", join="id"), ["xa", "xb"], [], row_numbers={"train": [0, 1]}
    )
    assert alone["score"].tolist() == [2.0, 1.0]


def test_ids_may_be_categories(tmp_path):
    pd.DataFrame({"id": pd.Categorical(["b", "a"]), "s": [1.0, 2.0]}).to_parquet(tmp_path / "s.parquet")
    assert read(tmp_path / "s.parquet", "scores", ids=["a", "b"], join="id")["score"].tolist() == [2.0, 1.0]


def test_a_matrix_of_whole_numbers_has_no_names_among_them(tmp_path):
    pd.DataFrame({"xb": [5, 1], "xa": [7, 2]}).to_csv(tmp_path / "m.csv", index=False)
    made = section(tmp_path / "m.csv", "tasks_by_examples", join="id")
    found = attribution("given", made, ["xa", "xb"], ["t0", "t1"], row_numbers={"train": [0, 1], "tasks": [0, 1]})
    assert found[["t0", "t1"]].to_numpy().tolist() == [[7, 2], [5, 1]]


@pytest.mark.parametrize(
    ("orientation", "columns"),
    [
        ("examples_by_tasks", {"example": [2, 1, 0], "t0": [5, 7, 9]}),
        ("tasks_by_examples", {"task": [1, 0], "a": [5, 7], "b": [1, 2]}),
    ],
)
def test_a_column_of_a_matrix_that_could_be_ids_is_not_left_out(orientation, columns, tmp_path):
    pd.DataFrame(columns).to_csv(tmp_path / "m.csv", index=False)
    names = ["a", "b", "c"] if orientation == "examples_by_tasks" else ["a", "b"]
    tasks = ["t0"] if orientation == "examples_by_tasks" else ["t0", "t1"]
    numbers = {"train": range(len(names)), "tasks": range(len(tasks))}
    with pytest.raises(DataError, match=r"there is no column 'id' to join by, and '(example|task)' could be it"):
        attribution("given", section(tmp_path / "m.csv", orientation, join="id"), names, tasks, row_numbers=numbers)


@pytest.mark.parametrize("beside", [{"label": ["good", "bad", "good"]}, {"n": [1, 1, 2]}, {"n": [1.5, 2.0, 3.0]}])
def test_what_repeats_or_is_no_whole_number_names_no_rows(beside, tmp_path):
    pd.DataFrame({"score": [0.1, 0.2, 0.3], **beside}).to_csv(tmp_path / "s.csv", index=False)
    made, numbers = section(tmp_path / "s.csv", "scores", join="id"), {"train": [2, 0, 1]}
    assert attribution("given", made, ["a", "b", "c"], [], row_numbers=numbers)["score"].tolist() == [0.3, 0.1, 0.2]
    pd.DataFrame({"t0": [0.1, 0.2, 0.3], "t1": [0.0, 0.0, 0.0]}).to_csv(tmp_path / "m.csv", index=False)
    made = section(tmp_path / "m.csv", "examples_by_tasks", join="id")
    found = attribution("given", made, ["a", "b", "c"], ["t0", "t1"], row_numbers=numbers)
    assert found["t0"].tolist() == pytest.approx([0.3, 0.1, 0.2])
