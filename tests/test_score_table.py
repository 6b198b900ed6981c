"""The one table of all examples: everything in it, nothing changed, opened in one line."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from icprobe.analysis import score_table
from icprobe.errors import ScoreError
from icprobe.tables.parquet import write_parquet

IDS = ["b", "a", "c", "x12"]
TEXTS = {
    "instruction": ['Say "hi",\nplease.', "ترجم", "a,b;c", "N/A"],
    "input": ["", "🙂", "line\r\nbreak\rs", " "],
    "output": ["=1+1", "\u2028", "''", "b"],
}
LABELS = {"planted": ["sound", None, "007", "NA"], "stars": ["1", "2.5", None, "4"]}
SCORES = {
    "icp": pd.DataFrame({"id": IDS, "score": [0.5, 1.0, 1.0, 1 / 3]}),
    # In another order, and evaluated in part.
    "icp_budget": pd.DataFrame({"id": ["x12", "c", "b", "a"], "score": [0.25, np.nan, 0.1, 1e-300]}),
}


def tabulated(folder, train=None, scores=SCORES, lengths=None):
    train = pd.DataFrame({"id": IDS, **TEXTS, **LABELS}) if train is None else train
    lengths = pd.DataFrame({"id": train["id"], "n_query": 3, "n_target": 7}) if lengths is None else lengths
    write_parquet(train, folder / "train.parquet")
    write_parquet(lengths.astype({"n_query": "Int32", "n_target": "Int32"}), folder / "lengths.parquet")
    for method, table in scores.items():
        write_parquet(table, folder / f"{method}.parquet")
    files = {method: folder / f"{method}.parquet" for method in scores}
    names = folder / "scores.parquet", folder / "scores.csv"
    return score_table.write(folder / "train.parquet", folder / "lengths.parquet", files, *names), *names


def test_the_table_holds_every_example_with_texts_labels_lengths_scores_and_ranks(tmp_path):
    _, parquet, _ = tabulated(tmp_path)
    table = pd.read_parquet(parquet)
    assert list(table) == [
        *("id", "instruction", "input", "output", "planted", "stars", "n_query", "n_target"),
        *("score_icp", "rank_icp", "score_icp_budget", "rank_icp_budget"),
    ]
    assert table["id"].tolist() == IDS
    assert {name: table[name].tolist() for name in TEXTS} == TEXTS
    assert [None if pd.isna(value) else value for value in table["planted"]] == LABELS["planted"]
    assert table["stars"].fillna(-1).tolist() == [1, 2.5, -1, 4]
    assert table["score_icp"].tolist() == [0.5, 1.0, 1.0, 1 / 3]
    assert table["rank_icp"].tolist() == [3, 1, 1, 4], "ties share a rank"
    assert table["score_icp_budget"].fillna(-1).tolist() == [0.1, 1e-300, -1, 0.25]
    assert table["rank_icp_budget"].fillna(-1).tolist() == [2, 3, -1, 1]


def test_one_line_opens_the_csv_and_it_says_the_same(tmp_path):
    _, parquet, csv = tabulated(tmp_path)
    expected = pd.read_parquet(parquet)
    found = pd.read_csv(csv, keep_default_na=False, na_values={name: [""] for name in expected if name not in TEXTS})
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert pd.read_csv(csv)["score_icp"].tolist() == SCORES["icp"]["score"].tolist()


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_files_do_not_depend_on_how_many_texts_are_read_at_a_time(rows, tmp_path, monkeypatch):
    _, parquet, csv = tabulated(tmp_path)
    whole, text = pd.read_parquet(parquet), csv.read_bytes()
    monkeypatch.setattr(score_table, "ROWS_AT_ONCE", rows)
    tabulated(tmp_path)
    pd.testing.assert_frame_equal(pd.read_parquet(parquet), whole)
    assert csv.read_bytes() == text
    assert pq.ParquetFile(parquet).num_row_groups == -(-4 // rows)


def test_labels_that_only_look_like_numbers_keep_their_spelling(tmp_path):
    labels = {
        "source": ["007", "012", None, "007"],
        "version": ["1.1", "1.10", "2.0", None],
        "grade": ["1", "10", "-0.5", "0"],
        "number": ["1729384756102938475", "3", "4", "5"],  # more digits than floats have
    }
    _, parquet, _ = tabulated(tmp_path, pd.DataFrame({"id": IDS, **TEXTS, **labels}))
    table = pd.read_parquet(parquet)
    for name in ("source", "version", "number"):
        assert [None if pd.isna(value) else value for value in table[name]] == labels[name]
    assert table["grade"].tolist() == [1, 10, -0.5, 0]


def test_what_is_returned_has_no_texts(tmp_path):
    table, *_ = tabulated(tmp_path)
    assert not set(TEXTS) & set(table)
    assert table["id"].tolist() == IDS


def test_row_numbers_stand_beside_made_ids_and_unknown_lengths_are_empty(tmp_path):
    train = pd.DataFrame({"id": IDS, **TEXTS, "row_number": [4, 2, 1, 0]})
    unknown = pd.DataFrame(
        {"id": IDS, "n_query": pd.array([pd.NA] * 4, "Int32"), "n_target": pd.array([pd.NA] * 4, "Int32")}
    )
    _, parquet, _ = tabulated(tmp_path, train, lengths=unknown)
    table = pd.read_parquet(parquet)
    assert list(table)[:2] == ["id", "row_number"]
    assert table["row_number"].tolist() == [4, 2, 1, 0]
    assert table["n_target"].isna().all()


def test_scores_of_other_examples_are_refused(tmp_path):
    other = pd.DataFrame({"id": ["b", "a", "c", "d"], "score": 0.5})
    with pytest.raises(ScoreError, match="of the same examples"):
        tabulated(tmp_path, scores={"icp": other})
    assert not (tmp_path / "scores.csv").exists()
