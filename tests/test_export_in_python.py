"""`icprobe.export` writes each row once and whole, however pandas holds it, or says what is wrong with it."""

import json

import numpy as np
import pandas as pd
import pytest
from test_from_python import TRAIN

import icprobe
from icprobe.errors import ConfigError, ScoreError

TEXTS = ["id", "instruction", "input", "output"]
ROWS = pd.DataFrame(TRAIN)[TEXTS].assign(
    score_icp=[1.0, 0.5, np.nan, 0.2, 0.9, 0.1, 0.0], score_influence=np.arange(7.0), n_target=np.arange(7) ** 2
)


def written(rows, folder, method=None):
    """What `export` writes of rows: (prompts and completions, messages)."""
    return tuple(
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in icprobe.export(rows, folder / "rows.jsonl", method)
    )


@pytest.mark.parametrize("call", ["export", "correlate"])
def test_rows_that_appear_twice_are_refused(call, tmp_path):
    both = pd.concat([icprobe.select(ROWS, "icp", "top 3"), icprobe.select(ROWS, "influence", "top 5")])
    doubled = both["id"][both["id"].duplicated()].iloc[0]
    with pytest.raises(ScoreError, match=rf"The id '{doubled}' appears twice"):
        icprobe.export(both, tmp_path / "u.jsonl") if call == "export" else icprobe.correlate(both)
    assert not [*tmp_path.iterdir()]
    with pytest.raises(ScoreError, match="The id '1' appears twice"):
        icprobe.export(ROWS.assign(id=[1, "1", 2, 3, 4, 5, 6]), tmp_path / "u.jsonl")
    assert len(written(both.drop_duplicates("id"), tmp_path)[0]) == both["id"].nunique()


@pytest.mark.parametrize("none", [np.nan, None])
def test_a_row_without_a_score_has_null(none, tmp_path):
    rows = ROWS.assign(score_icp=ROWS["score_icp"].astype(object).where(ROWS["score_icp"].notna(), none))
    expected = [None if pd.isna(score) else score for score in ROWS["score_icp"]]
    for rows_of in written(rows, tmp_path, "icp"):
        assert [row["score"] for row in rows_of] == expected


def test_a_table_that_pandas_has_read_back_is_exported_as_it_was(tmp_path):
    assert (ROWS["input"] == "").any()
    expected = written(ROWS, tmp_path, "influence")
    ROWS.to_csv(tmp_path / "rows.csv", index=False)
    read = pd.read_csv(tmp_path / "rows.csv")
    texts = pd.read_csv(tmp_path / "rows.csv", dtype=str, keep_default_na=False)
    for rows in (read, read.set_index("id"), ROWS.convert_dtypes(), texts):
        assert written(rows, tmp_path, "influence") == expected
    without = written(ROWS.assign(input=""), tmp_path, "influence")
    assert written(ROWS.drop(columns="input"), tmp_path, "influence") == without


def test_ids_that_are_numbers_are_texts_and_keep_their_scores(tmp_path):
    for rows in written(ROWS.assign(id=range(7)), tmp_path, "influence"):
        assert [(row["id"], row["score"]) for row in rows] == [(str(n), float(n)) for n in range(7)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (TRAIN, "A table .* is needed, as icprobe.value gives it, not a list"),
        (ROWS.drop(columns="id"), "has no column id"),
        (ROWS.assign(id=[None, *ROWS["id"][1:]]), "a row without an id"),
        (ROWS.drop(columns="output"), "has no column output"),
        (ROWS.assign(score_icp="good"), "The scores of icp are not all numbers"),
        (ROWS.assign(score_icp=np.inf), "The scores of icp are infinite in 7 rows"),
        (ROWS.assign(output=7), "The column output holds '7' .*dtype=str, keep_default_na=False"),
        (ROWS.assign(instruction=np.nan), "The column instruction holds 'nan'"),
    ],
)
def test_rows_that_cannot_be_exported_are_refused_in_a_sentence(rows, said, tmp_path):
    with pytest.raises(ScoreError, match=said):
        icprobe.export(rows, tmp_path / "rows.jsonl", "icp")


@pytest.mark.parametrize("methods", [3, 1.5])
def test_methods_to_correlate_that_are_no_names_are_refused_in_a_sentence(methods):
    with pytest.raises(ConfigError, match="methods: a list of names is needed"):
        icprobe.correlate(ROWS, methods)


def test_a_home_directory_may_be_named_as_a_shell_does(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert icprobe.export(ROWS, "~/rows.jsonl")[0] == tmp_path / "rows.jsonl"
