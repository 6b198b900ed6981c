"""Tables of scores that join by id: what has no ids is not taken to be in order."""

import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from test_external import attribution, read, section, tensor, torch_saved

from icprobe.attribution.external import rows
from icprobe.errors import DataError

ABC = ["a", "b", "c"]


def joined(path, orientation="scores", ids=ABC, tasks=(), **options):
    """With examples and tasks that came without ids."""
    numbers = {"train": range(len(ids)), "tasks": range(len(tasks))}
    return attribution("given", section(path, orientation, join="id", **options), ids, [*tasks], row_numbers=numbers)


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
    made, said = section(tmp_path / "m.csv", orientation, join="id"), "to join by, and '(example|task)' could be it"
    with pytest.raises(DataError, match=said):
        attribution("given", made, names, tasks, row_numbers=numbers)
    with pytest.raises(DataError, match=said):  # where the file itself names the tasks
        rows("given", made)


@pytest.mark.parametrize("beside", [{"label": ["good", "bad", "good"]}, {"n": [1, 1, 2]}, {"n": [1.5, 2.0, 3.0]}])
def test_what_repeats_or_is_no_whole_number_names_no_rows(beside, tmp_path):
    pd.DataFrame({"score": [0.1, 0.2, 0.3], **beside}).to_csv(tmp_path / "s.csv", index=False)
    made, numbers = section(tmp_path / "s.csv", "scores", join="id"), {"train": [2, 0, 1]}
    assert attribution("given", made, ["a", "b", "c"], [], row_numbers=numbers)["score"].tolist() == [0.3, 0.1, 0.2]
    pd.DataFrame({"t0": [0.1, 0.2, 0.3], "t1": [0.0, 0.0, 0.0]}).to_csv(tmp_path / "m.csv", index=False)
    made = section(tmp_path / "m.csv", "examples_by_tasks", join="id")
    found = attribution("given", made, ["a", "b", "c"], ["t0", "t1"], row_numbers=numbers)
    assert found["t0"].tolist() == pytest.approx([0.3, 0.1, 0.2])


@pytest.mark.parametrize(
    "ids",
    [
        [2, 1, 0, 0],
        [2, None, 0, 1],
        [2.0, None, 0.0, 1.0],
        ["c", None, "a", "b"],
        [Decimal(2), Decimal(1), Decimal(0), None],
        [2**60, 2**60 + 1, 2**60 + 2, 2**60 + 3],
    ],
)
def test_ids_with_a_gap_or_a_repetition_are_ids_by_which_nothing_joins(ids, tmp_path):
    frame = pd.DataFrame({"example": pd.Series(ids, dtype=object), "score": [0.4, 0.3, 0.2, 0.1]})
    frame["example"] = frame["example"].infer_objects()
    frame.to_parquet(tmp_path / "s.parquet")
    with pytest.raises(DataError, match=r"has no column 'id' to join by, but example, score"):
        joined(tmp_path / "s.parquet")
    if not isinstance(ids[0], str | Decimal):
        frame.rename(columns={"score": "t0"}).to_parquet(tmp_path / "m.parquet")
        with pytest.raises(DataError, match="no column 'id' to join by, and 'example' could be it"):
            joined(tmp_path / "m.parquet", "examples_by_tasks", tasks=["t0"])


@pytest.mark.parametrize("ids", [[2, 1, 0], ["c", None, "a"], ["c", "b", "a"]])
@pytest.mark.parametrize("suffix", ["npz", "npz of objects", "json", "pt"])
def test_ids_beside_an_array_are_not_left_out(ids, suffix, tmp_path):
    path, scores = tmp_path / f"s.{suffix[:4].strip()}", [0.3, 0.2, 0.1]
    if suffix == "json":
        path.write_text(json.dumps({"ids": ids, "scores": scores}))
    elif suffix == "pt":
        torch_saved({"ids": tensor(ids) if ids[0] == 2 else ids, "scores": tensor(scores)}, path)
    elif None in ids or suffix == "npz of objects":
        np.savez(path, ids=np.array(ids, dtype=object), scores=scores)
    else:
        np.savez(path, ids=ids, scores=scores)
    with pytest.raises(DataError, match="'ids' beside 'scores' could be ids to join by, which only tables have"):
        joined(path, key="scores")
    np.savez(tmp_path / "other.npz", n_tokens=[7, 7, 9], other=np.array([{}]), scores=scores)
    assert joined(tmp_path / "other.npz", key="scores")["score"].tolist() == scores
    np.savez(tmp_path / "large.npz", ids=np.arange(6).reshape(3, 2), scores=scores)  # of ids there is one for each
    assert joined(tmp_path / "large.npz", key="scores")["score"].tolist() == scores


@pytest.mark.parametrize("suffix", ["json", "pt"])
def test_what_is_absent_beside_an_array_is_no_ids(suffix, tmp_path):
    path, held = tmp_path / f"s.{suffix}", {"method": "x", "task": None, "index": None, "scores": [0.3, 0.2, 0.1]}
    if suffix == "json":
        path.write_text(json.dumps(held))
    else:
        torch_saved({**held, 7: None}, path)
    assert joined(path, key="scores")["score"].tolist() == held["scores"]


@pytest.mark.parametrize(
    ("text", "orientation", "options", "told", "tasks"),
    [
        ("2,.3\n1,.2\n0,.1\n", "scores", {"key": "f1"}, "but f0, f1", []),
        ("2,.3,.3\n1,.2,.2\n0,.1,.1\n", "examples_by_tasks", {}, "'f0' .counted from f0. could be them", ["x", "y"]),
        ("2,5,7\n1,5,6\n0,9,2\n", "examples_by_tasks", {}, "'f0' .counted from f0. could be them", ["x", "y"]),
    ],
)
def test_ids_in_a_file_without_a_header_are_not_left_out(text, orientation, options, told, tasks, tmp_path):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DataError, match=told):
        joined(tmp_path / "s.csv", orientation, tasks=tasks, header=False, **options)
    found = joined(tmp_path / "s.csv", orientation, tasks=tasks, header=False, id_column="f0", **options)
    assert found.iloc[0, 1] == pytest.approx(0.1 if text[2] == "." else 9)
    # All columns are asked for, so that none is of ids.
    if tasks:
        found = joined(tmp_path / "s.csv", orientation, tasks=["x", "y", "z"], header=False, **options)
        assert found["x"].tolist() == [2, 1, 0]


WHOLE = {"t0": [0, 1, 2], "t1": [2, 1, 0], "t2": [1, 0, 2]}


def test_a_matrix_of_ranks_joins_once_its_rows_are_numbered(tmp_path):
    """Of columns that nobody asks for, none is known to be a task."""
    path = tmp_path / "m.csv"
    pd.DataFrame(WHOLE).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"'t2' could be it; .*add a column 'id' of ids .of row numbers, from 0"):
        joined(path, "examples_by_tasks", tasks=["t0", "t1"])
    pd.DataFrame({"id": range(3), **WHOLE}).to_csv(path, index=False)
    assert joined(path, "examples_by_tasks", tasks=["t0", "t1"])["t1"].tolist() == [2, 1, 0]
    assert rows("given", section(path, join="id")) == (["0", "1", "2"], ["t0", "t1", "t2"])
    (tmp_path / "m.json").write_text(json.dumps(WHOLE))  # a mapping has no columns
    assert joined(tmp_path / "m.json", "tasks_by_examples", tasks=["t1"])["t1"].tolist() == [2, 1, 0]
    (tmp_path / "m.json").write_text(json.dumps({"example": [2, 1, 0], **WHOLE}))
    with pytest.raises(DataError, match="'example' could be ids to join by, which a mapping has no place for"):
        joined(tmp_path / "m.json", "tasks_by_examples", tasks=["t1"])


def test_the_values_of_one_task_are_no_ids(tmp_path):
    pd.DataFrame({"xa": [0.5], "xb": [0.0], "xc": [7.0]}).to_csv(tmp_path / "m.csv", index=False)
    found = joined(tmp_path / "m.csv", "tasks_by_examples", ids=["xa"], tasks=["t"])
    assert found["t"].tolist() == [0.5]


@pytest.mark.parametrize(
    "texts",
    [
        ("instruction", "output"),
        ("prompt", "completion"),
        ("question", "answer"),
        ("messages", "system"),
        ("context", "text"),
    ],
)
def test_rows_with_their_scores_beside_them_join_by_their_numbers(texts, tmp_path):
    """As when some are dropped."""
    lines = [{texts[0]: f"Ask {n}.", texts[1]: f"It is {n}.", "score": n / 10} for n in range(3)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = section(tmp_path / "s.jsonl", "scores", join="id")
    assert attribution("given", made, ["x", "z"], [], row_numbers={"train": [0, 2]})["score"].tolist() == [0, 0.2]


@pytest.mark.parametrize(
    ("names", "ids", "numbers"),
    [
        # One example is another's: each score would be one row off.
        (["b", "c", "z"], ABC, None),
        (["z", "a", "b"], ABC, None),
        # Row numbers, by score.
        ([2, 1, 0], ["xa", "xb", "xc"], [0, 1, 2]),
        ([7, 2, 4], ["xa", "xb", "xc"], [2, 4, 7]),
    ],
)
def test_names_that_say_another_place_do_not_join_by_order(names, ids, numbers, tmp_path):
    pd.DataFrame({"id": names, "score": [1.0, 2.0, 3.0]}).to_csv(tmp_path / "s.csv", index=False)
    made = section(tmp_path / "s.csv", "scores", join="order")
    with pytest.raises(DataError, match="in another order; set join: id"):
        attribution("given", made, ids, [], row_numbers={"train": numbers} if numbers else {})


@pytest.mark.parametrize(
    ("names", "ids", "numbers"),
    [
        ([0, 1, 2], ["xa", "xb", "xc"], [2, 4, 7]),  # places among the scores
        ([1, 2, 3], ["xa", "xb", "xc"], [0, 1, 2]),
        ([2, 4, 7], ["xa", "xb", "xc"], [2, 4, 7]),
        (["k", "l", "m"], ABC, None),
        (["a", "l", "c"], ABC, None),
        ([0, 1, 2], ["1", "2", "3"], None),  # as pandas calls columns and rows
    ],
)
def test_names_that_agree_with_the_order_or_mean_nothing_join_by_it(names, ids, numbers, tmp_path):
    pd.DataFrame({"id": names, "score": [1.0, 2.0, 3.0]}).to_csv(tmp_path / "s.csv", index=False)
    made = section(tmp_path / "s.csv", "scores", join="order")
    found = attribution("given", made, ids, [], row_numbers={"train": numbers} if numbers else {})
    assert found["score"].tolist() == [1.0, 2.0, 3.0]


def test_tasks_that_came_without_ids_do_not_join_by_order_where_their_numbers_stand_otherwise(tmp_path):
    pd.DataFrame([[1.0, 2.0, 3.0]] * 2, columns=["2", "0", "1"]).to_csv(tmp_path / "m.csv", index=False)
    made = section(tmp_path / "m.csv", join="order")
    with pytest.raises(DataError, match=r"tasks of data\.tasks: .* in another order; set join: id"):
        attribution("given", made, ["a", "b"], ["xa", "xb", "xc"], row_numbers={"tasks": [0, 1, 2]})


def test_row_numbers_that_are_counted_from_1_are_refused(tmp_path):
    pd.DataFrame({"id": range(1, 9), "score": np.arange(8.0)}).to_csv(tmp_path / "s.csv", index=False)
    made = section(tmp_path / "s.csv", "scores", join="id")
    with pytest.raises(DataError, match=r"call their rows 1 to 8, and row numbers are counted from 0; subtract 1 if"):
        attribution("given", made, ["xa", "xb", "xc"], [], row_numbers={"train": [2, 4, 7]})
    # Of a sample without row 0 they are these rows' own numbers.
    found = attribution("given", made, [*"abcdefgh"], [], row_numbers={"train": [*range(1, 9)]})
    assert found["score"].tolist() == [*range(8)]


def test_parts_of_which_some_have_no_ids_do_not_join_by_id(tmp_path):
    pd.DataFrame({"id": [2, 0], "score": [0.2, 0.0]}).to_csv(tmp_path / "1.csv", index=False)
    pd.DataFrame({"score": [0.1, 0.3]}).to_csv(tmp_path / "2.csv", index=False)
    with pytest.raises(
        DataError, match=r"2\.csv has none, where other parts have; name the rows of all parts or of none"
    ):
        joined([tmp_path / "1.csv", tmp_path / "2.csv"], ids=["x0", "x1", "x2", "x3"])


def test_an_empty_line_of_a_csv_with_one_column_is_a_row_without_a_value(tmp_path):
    (tmp_path / "s.csv").write_text("score\n0.0\n\n0.2\n0.3\n\n\n")
    found = joined(tmp_path / "s.csv", ids=["x0", "x1", "x2", "x3"], allow_missing=True)
    np.testing.assert_array_equal(found["score"], [0.0, np.nan, 0.2, 0.3])
    with pytest.raises(DataError, match="the files hold 4"):
        attribution("given", section(tmp_path / "s.csv", "scores", join="order"), ABC, [])
    (tmp_path / "s.csv").write_text("\n\nid,score\na,0.0\n\nb,0.2\nc,0.3\n\n")
    assert joined(tmp_path / "s.csv")["score"].tolist() == [0.0, 0.2, 0.3]


def test_a_sparse_tensor_is_refused_and_a_large_list_is_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    torch.save(torch.eye(3).to_sparse(), tmp_path / "m.pt")
    with pytest.raises(DataError, match=r"m\.pt: holds no plain tensor \(.*\); save it as dense float32\."):
        attribution("given", section(tmp_path / "m.pt", join="order"), ABC, ABC)
    rows_of = pa.array([[1.0, 2.0], [3.0, 4.0]], type=pa.large_list(pa.float64()))
    pq.write_table(pa.table({"id": ["a", "b"], "m": rows_of}), tmp_path / "m.parquet")
    found = attribution("given", section(tmp_path / "m.parquet", join="order", key="m"), ["a", "b"], ["s", "t"])
    assert found[["s", "t"]].to_numpy().tolist() == [[1, 2], [3, 4]]


def test_parts_of_different_widths_keep_their_decimals(tmp_path):
    np.save(tmp_path / "1.npy", np.float32([0.85, 0.1]))
    np.save(tmp_path / "2.npy", np.float64([0.3]))
    made = section([tmp_path / "1.npy", tmp_path / "2.npy"], "scores", join="order")
    assert attribution("given", made, ABC, [])["score"].tolist() == [0.85, 0.1, 0.3]
