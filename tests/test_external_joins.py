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
