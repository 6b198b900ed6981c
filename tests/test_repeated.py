"""Rows that stand in the data more than once are counted, within the examples and across tables."""

import pandas as pd

from icprobe.tables.parquet import write_parquet
from icprobe.tables.repeated import remarks, repeated


def table(*rows):
    frame = pd.DataFrame(rows, columns=["instruction", "input", "output"])
    frame.insert(0, "id", [f"r{n}" for n in range(len(frame))])
    return frame


def counted(folder, **tables):
    for name, frame in tables.items():
        write_parquet(frame, folder / f"{name}.parquet")
    return repeated({name: folder / f"{name}.parquet" for name in tables})


TRAIN = table(("Add.", "1 2", "3"), ("Add.", "1  2 ", "3\n"), ("Add.", "1 2", "three"), ("Add. 1", "2", "3"))
TASKS = table(("Name it.", "", "It."), ("Add.", "1 2", "4"))
EVAL = table(("Name  it.", "", ""), ("Add.", "1 2", "3"), ("Other.", "", ""))


def test_rows_are_the_same_but_for_white_space_whole_or_by_their_prompt(tmp_path):
    found = counted(tmp_path, train=TRAIN, tasks=TASKS, eval=EVAL).set_index(["table", "also_in", "same"])
    assert found["n"].to_dict() == {
        ("train", "train", "row"): 1,
        ("train", "train", "prompt"): 2,
        ("train", "tasks", "row"): 0,
        ("train", "tasks", "prompt"): 3,
        ("train", "eval", "row"): 2,
        ("train", "eval", "prompt"): 3,
        ("tasks", "eval", "row"): 0,
        ("tasks", "eval", "prompt"): 2,
    }
    assert found.loc[("train", "train", "row"), "first_id"] == "r1"
    assert found.loc[("train", "train", "row"), "n_rows"] == 4
    assert pd.isna(found.loc[("train", "tasks", "row"), "first_id"])


def test_a_sentence_tells_each_pair_of_tables_that_share_rows(tmp_path):
    told = remarks(counted(tmp_path, train=TRAIN, tasks=TASKS, eval=EVAL))
    assert [sentence.split(":")[0] for sentence in told] == ["data.train"] * 3 + ["data.tasks"]
    assert "1 of 4 training examples repeat an earlier one, first 'r1'" in told[0]
    assert "3 of 4 training examples share their prompt with eval prompts (2 the output, too)" in told[2]
    assert remarks(counted(tmp_path, train=TRAIN[3:], tasks=TASKS[:1])) == []
