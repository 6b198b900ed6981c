"""Scores that somebody else computed: every file says the same, and nothing in it is run."""

import json
import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from icprobe.analysis.binning import overlaps
from icprobe.analysis.correlations import correlations
from icprobe.analysis.statistics import aggregate
from icprobe.attribution.external import attribution, rows
from icprobe.config.sections import ExternalScores
from icprobe.errors import DataError, IcprobeError

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "../shared/data/published/scores_part.npz"

N, M = 12, 4
MATRIX = np.random.default_rng(0).normal(size=(N, M)).astype(np.float32)
IDS, TASKS = [f"{row:02d}" for row in range(N)], [str(column) for column in range(M)]


def section(path, orientation="examples_by_tasks", **others):
    path = [str(part) for part in path] if isinstance(path, list) else str(path)
    return ExternalScores(path=path, orientation=orientation, **others).model_dump(mode="json")


def read(path, orientation="examples_by_tasks", ids=IDS, tasks=TASKS, **others):
    return attribution("given", section(path, orientation, **others), ids, tasks)


def refusal(path, *arguments, **others):
    with pytest.raises(IcprobeError) as caught:
        read(path, *arguments, **others)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def torch_saved(value, path):
    import torch

    torch.save(value, path)


def tensor(values):
    import torch

    return torch.from_numpy(np.ascontiguousarray(values))


# Format: (suffix, options, writes values [rows, columns] and the names of both).
FORMATS = {
    "parquet": (".parquet", {}, lambda v, r, c, p: pd.DataFrame(v, columns=c).assign(id=r).to_parquet(p)),
    "csv": (".csv", {}, lambda v, r, c, p: pd.DataFrame(v, index=pd.Index(r, name="id"), columns=c).to_csv(p)),
    "csv without a header": (".csv", {"header": False}, lambda v, r, c, p: np.savetxt(p, v, "%.9g", delimiter=",")),
    "jsonl": (".jsonl", {}, lambda v, r, c, p: p.write_text(json_lines(v, r, c))),
    "npy": (".npy", {}, lambda v, r, c, p: np.save(p, v)),
    "npz": (".npz", {"key": "scores"}, lambda v, r, c, p: np.savez(p, scores=v, other=v[:2])),
    "npz of one array": (".npz", {}, lambda v, r, c, p: np.savez_compressed(p, anything=v)),
    "pt": (".pt", {}, lambda v, r, c, p: torch_saved(tensor(v), p)),
    "pt with names": (".pt", {"key": "a"}, lambda v, r, c, p: torch_saved({"a": tensor(v), "b": tensor(v[:1])}, p)),
    "pt of rows": (".pt", {}, lambda v, r, c, p: torch_saved([tensor(row) for row in v], p)),
    "json": (".json", {}, lambda v, r, c, p: p.write_text(json.dumps(v.tolist()))),
    "json by names": (".json", {}, lambda v, r, c, p: p.write_text(json.dumps(dict(zip(r, v.tolist(), strict=True))))),
    "json of objects": (".json", {}, lambda v, r, c, p: p.write_text(json.dumps(json_rows(v, r, c)))),
}


def json_rows(values, row_names, column_names):
    return [
        {"id": name, **dict(zip(column_names, row, strict=True))}
        for name, row in zip(row_names, values.tolist(), strict=True)
    ]


def json_lines(values, row_names, column_names):
    return "".join(json.dumps(row) + "\n" for row in json_rows(values, row_names, column_names))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_and_orientation_gives_the_same_matrix(kind, tmp_path):
    suffix, options, write = FORMATS[kind]
    for orientation, values, names in (
        ("examples_by_tasks", MATRIX, (IDS, TASKS)),
        ("tasks_by_examples", MATRIX.T, (TASKS, IDS)),
    ):
        path = tmp_path / f"{orientation}{suffix}"
        write(values, *names, path)
        for join in ("order", "id"):
            found = read(path, orientation, join=join, **options)
            assert list(found) == ["id", *TASKS]
            assert found["id"].tolist() == IDS
            assert (found[TASKS].dtypes == np.float32).all()
            assert np.array_equal(found[TASKS].to_numpy(), MATRIX), (orientation, join)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_scores_widen_by_their_shortest_decimal(dtype, tmp_path):
    decimals = np.array([0.85, 0.9, 0.1, 0.5, 0.8])
    np.save(tmp_path / "scores.npy", decimals.astype(dtype))
    found = aggregate(read(tmp_path / "scores.npy", "scores", ids=IDS[:5]), "mean")
    assert found["score"].tolist() == decimals.tolist()


def test_the_authors_json_is_scores_of_numbered_rows(tmp_path):
    path = tmp_path / "icp_scores.json"
    path.write_text(json.dumps({str(row): [row / 100] for row in range(101)}))
    made = section(path, "scores", join="id")
    ids, _ = rows("icp", made)
    assert ids == [f"{row:03d}" for row in range(101)]
    assert attribution("icp", made, ids, [])["score"].tolist() == [row / 100 for row in range(101)]
    assert attribution("icp", made, ["085", "007"], [])["score"].tolist() == [0.85, 0.07]


def test_scores_may_lie_in_a_row_a_column_or_a_list_column(tmp_path):
    values = MATRIX[:, 0]
    for name, array in (("flat", values), ("column", values[:, None]), ("row", values[None])):
        np.save(tmp_path / f"{name}.npy", array)
        assert np.array_equal(read(tmp_path / f"{name}.npy", "scores")["score"].astype(np.float32), values)
    frame = pd.DataFrame({"id": IDS, "text": "words", "score": values, "effects": MATRIX.tolist()})
    frame.to_parquet(tmp_path / "table.parquet")
    for key in ("score", None):  # the column that is called so, where none is named
        scores = read(tmp_path / "table.parquet", "scores", key=key, join="id")
        assert np.array_equal(scores["score"].astype(np.float32), values)
    matrix = read(tmp_path / "table.parquet", key="effects")
    assert np.array_equal(matrix[TASKS].to_numpy(), MATRIX)


@pytest.mark.parametrize("orientation", ["examples_by_tasks", "tasks_by_examples"])
@pytest.mark.parametrize("parts", ["examples", "tasks"])
def test_parts_together_are_the_whole(orientation, parts, tmp_path):
    pieces = np.split(MATRIX, 2) if parts == "examples" else np.split(MATRIX, 2, axis=1)
    paths = [tmp_path / f"part-{number}.pt" for number in range(2)]
    for path, piece in zip(paths, pieces, strict=True):
        torch_saved(tensor(piece if orientation == "examples_by_tasks" else piece.T), path)
    found = read(paths, orientation, parts=parts)
    assert np.array_equal(found[TASKS].to_numpy(), MATRIX)


def test_files_that_hold_none_of_the_examples_are_refused_though_some_may_be_missing(tmp_path):
    pd.DataFrame({"id": [f"other-{n}" for n in range(N)], "x": range(N)}).to_csv(tmp_path / "scores.csv", index=False)
    told = refusal(tmp_path / "scores.csv", "scores", join="id", allow_missing=True)
    assert "none of the 12 is in the files" in told


def test_files_that_name_their_rows_in_another_order_do_not_join_by_order(tmp_path):
    shuffled = pd.DataFrame({"id": IDS[::-1], "x": range(N)})
    shuffled.to_csv(tmp_path / "scores.csv", index=False)
    assert "in another order; set join: id" in refusal(tmp_path / "scores.csv", "scores")
    assert read(tmp_path / "scores.csv", "scores", join="id")["score"].tolist() == list(range(N))[::-1]
    pd.DataFrame(MATRIX, columns=TASKS[::-1]).assign(id=IDS).to_parquet(tmp_path / "matrix.parquet")
    assert "in another order; set join: id" in refusal(tmp_path / "matrix.parquet")


def test_ids_join_whatever_the_order_and_leave_out_what_is_not_asked_for(tmp_path):
    shuffled = np.random.default_rng(1).permutation(N)
    frame = pd.DataFrame(MATRIX[shuffled], columns=TASKS).assign(id=np.array(IDS)[shuffled])
    frame[["3", "id", "0", "2", "1"]].to_csv(tmp_path / "scores.csv", index=False)
    found = read(tmp_path / "scores.csv", join="id", ids=["07", "01"], tasks=["2", "0"])
    assert np.array_equal(found[["2", "0"]].to_numpy(), MATRIX[[7, 1]][:, [2, 0]])


@pytest.mark.parametrize("spelt", ["{}", "{:02d}"])
def test_ids_that_are_numbers_join_as_they_are_spelt_in_either(spelt, tmp_path):
    frame = pd.DataFrame(MATRIX, columns=TASKS).assign(id=[str(row) for row in range(N)])
    frame.sample(frac=1, random_state=0).to_csv(tmp_path / "scores.csv", index=False)
    ids = [spelt.format(row) for row in (7, 1, 11)]
    for missing in (False, True):
        found = read(tmp_path / "scores.csv", join="id", ids=ids, tasks=["2", "0"], allow_missing=missing)
        assert np.array_equal(found[["2", "0"]].to_numpy(), MATRIX[[7, 1, 11]][:, [2, 0]])


@pytest.mark.parametrize("spelt", ["{}", "{:02d}"])
def test_files_that_number_their_rows_join_with_examples_that_came_without_ids(spelt, tmp_path):
    frame = pd.DataFrame({"id": [spelt.format(row) for row in range(N)], "s": MATRIX[:, 0]})
    frame.sample(frac=1, random_state=0).to_csv(tmp_path / "s.csv", index=False)
    np.save(tmp_path / "s.npy", MATRIX[:, 0])
    ids, numbers = ["xf00d", "xbeef", "xbeef-2"], {"train": [7, 0, 11]}
    for path in (tmp_path / "s.csv", tmp_path / "s.npy"):
        found = attribution("given", section(path, "scores", join="id"), ids, [], row_numbers=numbers)
        assert found["id"].tolist() == ids
        assert np.array_equal(found["score"].astype(np.float32), MATRIX[[7, 0, 11], 0])
    # By their ids where the files have these.
    frame.assign(id=[*ids, *"abcdefghi"]).to_csv(tmp_path / "s.csv", index=False)
    found = attribution("given", section(tmp_path / "s.csv", "scores", join="id"), ids, [], row_numbers=numbers)
    assert np.array_equal(found["score"].astype(np.float32), MATRIX[:3, 0])
    # Examples with ids of their own never join by place.
    assert "3 of 3 are not in the files" in refusal(tmp_path / "s.npy", "scores", ids=["p", "q", "r"], join="id")


def test_an_example_without_scores_is_named_or_not_a_number(tmp_path):
    pd.DataFrame({"id": ["a", "b"], "s": [1.0, 2.0]}).to_csv(tmp_path / "s.csv", index=False)
    path = tmp_path / "s.csv"
    told = refusal(path, "scores", ids=["a", "c"], join="id")
    assert "'c'" in told
    assert "1 of 2" in told
    found = read(path, "scores", ids=["a", "c"], join="id", allow_missing=True)
    assert found["score"].tolist()[0] == 1
    assert np.isnan(found["score"].tolist()[1])


# --- what is refused


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".pkl", ".npy", ".npz", ".pt"])
def test_a_pickle_is_refused_in_one_sentence_and_not_run(suffix, tmp_path):
    path, sprung = tmp_path / f"scores{suffix}", tmp_path / "sprung"
    trap = np.array([Trap(sprung)], dtype=object)
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(Trap(sprung)))
    elif suffix == ".pt":
        torch_saved({"scores": Trap(sprung)}, path)
    elif suffix == ".npz":
        np.savez(path, trap)
    else:
        np.save(path, trap, allow_pickle=True)
    told = refusal(path, "scores")
    assert "pickle" in told
    assert str(path) in told
    assert not sprung.exists()


def test_sizes_that_do_not_fit_are_named(tmp_path):
    np.save(tmp_path / "m.npy", MATRIX)
    np.save(tmp_path / "less.npy", MATRIX[:, :3])
    assert "13 of them, but the files hold 12" in refusal(tmp_path / "m.npy", ids=[*IDS, "12"])
    assert "data.tasks: there are 3 of them, but the files hold 4" in refusal(tmp_path / "m.npy", tasks=TASKS[:3])
    told = refusal([tmp_path / "m.npy", tmp_path / "less.npy"])
    assert "less.npy has 3 tasks" in told
    assert "12 x 4 numbers" in refusal(tmp_path / "m.npy", "scores")
    np.save(tmp_path / "flat.npy", MATRIX[:, 0])
    assert "orientation: scores" in refusal(tmp_path / "flat.npy")


def test_a_name_in_two_parts_that_rows_are_found_by_is_refused(tmp_path):
    paths = [tmp_path / f"{number}.parquet" for number in range(2)]
    for path in paths:
        pd.DataFrame(MATRIX[:, :2], columns=TASKS[:2]).assign(id=IDS).to_parquet(path)
    assert read(paths, parts="tasks").shape == (N, 5), "joined by order, names do not matter"
    told = refusal(paths, parts="tasks", join="id")
    assert "1.parquet has the name '0'" in told
    assert "0.parquet has, too" in told
    told = refusal(paths, parts="examples", join="id")
    assert "1.parquet has the name '00'" in told
    with pytest.raises(DataError, match="has the name"):
        rows("given", section(paths, parts="tasks", join="id"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300, -1e-46])
def test_values_that_are_no_numbers_are_refused_by_the_examples_ids(value, tmp_path):
    values = MATRIX.astype(np.float64)
    values[7, 2] = value
    np.save(tmp_path / "m.npy", values)
    assert "1 example with a value that is NaN, infinite or too large or small for float32: 07;" in refusal(
        tmp_path / "m.npy"
    )


def test_one_score_for_each_example_keeps_what_float32_has_no_number_for(tmp_path):
    values = np.array([1e-46 * (n + 1) for n in range(N)])
    np.save(tmp_path / "s.npy", values)
    assert (read(tmp_path / "s.npy", "scores")["score"] == values).all()


BROKEN = {
    "an unknown key": ("a.npz", lambda p: np.savez(p, b=MATRIX, c=MATRIX), {"key": "a"}, "'b', 'c'"),
    "a key too few": ("a.npz", lambda p: np.savez(p, b=MATRIX, c=MATRIX), {}, "name one of them in key"),
    "half a file": ("a.npz", lambda p: (np.savez(p, MATRIX), p.write_bytes(p.read_bytes()[:100])), {}, "damaged"),
    "rows of many lengths": ("a.json", lambda p: p.write_text("[[1, 2], [3]]"), {}, "different lengths"),
    "a key twice": ("a.json", lambda p: p.write_text('{"0": [1], "0": [2]}'), {}, "twice"),
    "a text": ("a.json", lambda p: p.write_text('[["a"], ["b"]]'), {}, "not real numbers"),
    "words in a column": ("a.csv", lambda p: p.write_text("id,x,y\na,1,word\n"), {}, "'y' holds string"),
    "a row too short": ("a.csv", lambda p: p.write_text("id,x,y\na,1\n"), {}, "broken CSV"),
    "a column twice": ("a.csv", lambda p: p.write_text("x,x\n1,2\n"), {}, "'x' appears twice"),
    "an id twice": ("a.csv", lambda p: p.write_text("id,x\na,1\na,2\n"), {"join": "id"}, "'a' appears twice"),
    "an id that is a number with a fraction": (
        "a.parquet",
        lambda p: pd.DataFrame({"id": [1.5], "x": [1.0]}).to_parquet(p),
        {},
        "a text or a whole number",
    ),
    "no column but the ids": ("a.csv", lambda p: p.write_text("id\na\n"), {}, "no column of scores beside 'id'"),
    "a name in an array": (
        "a.npy",
        lambda p: np.save(p, MATRIX),
        {"key": "scores"},
        "holds no names, so there is no 'scores'",
    ),
    "another format": ("a.xlsx", lambda p: p.write_text(""), {}, "unknown format"),
    "no file": ("a.csv", lambda p: None, {}, "cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(case, tmp_path):
    name, write, options, words = BROKEN[case]
    write(tmp_path / name)
    told = refusal(tmp_path / name, **options)
    assert words in told
    assert name in told


@given(st.binary(max_size=60), st.sampled_from([".csv", ".json", ".jsonl", ".npy", ".npz", ".parquet"]))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_are_a_bug(tmp_path, content, suffix):
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(content)
    with suppress(IcprobeError):
        assert rows("noise", section(path))[0]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet", ".csv"])
def test_no_damage_is_a_bug(suffix, tmp_path):
    path, rng = tmp_path / f"scores{suffix}", np.random.default_rng(1)
    write = next(write for kind, _, write in FORMATS.values() if kind == suffix)
    write(MATRIX, IDS, TASKS, path)
    whole = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(damaged if rng.random() < 0.8 else damaged[: rng.integers(len(whole))])
        with suppress(IcprobeError):
            rows("damaged", section(path, key=None))


# --- the published scores


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"{PUBLISHED} is absent")
def test_the_published_part_agrees_with_a_naive_count():
    with np.load(PUBLISHED) as file:
        icp, influence = file["icp"], file["influence"]
    ids, tasks = rows("influence", section(PUBLISHED, key="influence"))
    assert (len(ids), len(tasks)) == influence.shape
    assert ids[7] == "00007"
    scores = {
        "icp": aggregate(read(PUBLISHED, "scores", ids, tasks, key="icp"), "fraction_positive"),
        "influence": aggregate(read(PUBLISHED, ids=ids, tasks=tasks, key="influence"), "mean"),
    }
    scores = {name: table.set_index("id")["score"] for name, table in scores.items()}
    hundredths = np.rint(icp * 100).astype(int)
    thresholds = {"<=0.5": hundredths <= 50, ">0.5": hundredths > 50, ">0.8": hundredths > 80, ">0.85": hundredths > 85}
    mean = influence.astype(np.float64).sum(axis=1) / influence.shape[1]
    by_score = sorted(range(len(ids)), key=lambda row: (mean[row], ids[row]))
    by_negative = sorted(range(len(ids)), key=lambda row: (-mean[row], ids[row]))
    found = overlaps(scores, list(thresholds)).set_index("bin")
    for name, inside in thresholds.items():
        order = by_score if name.startswith("<=") else by_negative
        assert found.loc[name, "n"] == inside.sum()
        assert found.loc[name, "n_overlap"] == sum(inside[row] for row in order[: inside.sum()])
    table = correlations(scores, None).set_index("statistic")["value"]
    assert table["spearman"] == pytest.approx(pd.Series(icp).corr(pd.Series(mean), method="spearman"), abs=1e-9)
    # Of the complete data 0.729 and 0.752 are known; these rows are the first 23,112 of 52,002.
    assert table["spearman"] == pytest.approx(0.729, abs=0.01)
    assert table["pearson"] == pytest.approx(0.752, abs=0.01)
