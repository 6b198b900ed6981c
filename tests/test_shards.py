"""Work cut into shards and put together again is the work: no row lost, doubled or moved, no number changed."""

import itertools
import logging
import os
import re
import resource
import sys
import tempfile
import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from icprobe.attribution import shards
from icprobe.attribution.gathering import gather
from icprobe.attribution.matrix import Inputs, to_table
from icprobe.engine.batching import batches, shard_of
from icprobe.errors import ArtifactError, ScoreError
from icprobe.tables import parquet


def lengths_of(n, seed=0):
    generator = np.random.default_rng(seed)
    ids = [f"z{i:04d}" for i in generator.permutation(n)]
    return pd.DataFrame({"id": ids, "n_query": generator.integers(1, 40, n), "n_target": generator.geometric(0.02, n)})


def tokens(lengths):
    return (lengths["n_query"] + lengths["n_target"]).to_numpy()


@pytest.mark.parametrize("batch_tokens", [1, 300, 10**6])
def test_batches_hold_every_row_once_in_order_of_length_within_their_limit(batch_tokens):
    lengths = lengths_of(200)
    runs = batches(lengths, batch_tokens)
    rows = np.concatenate(runs)
    assert sorted(rows) == list(range(200))
    keys = [(tokens(lengths)[row], lengths["id"][row]) for row in rows]
    assert keys == sorted(keys)
    for run in runs:
        assert len(run) == 1 or len(run) * tokens(lengths)[run].max() <= batch_tokens
    for one, next_one in itertools.pairwise(runs):
        assert (len(one) + 1) * tokens(lengths)[next_one[0]] > batch_tokens, "two batches would have been one"


def test_batches_do_not_depend_on_the_order_of_rows():
    lengths = lengths_of(100)
    shuffled = lengths.sample(frac=1, random_state=1).reset_index(drop=True)
    named = [[list(table["id"].iloc[run]) for run in batches(table, 400)] for table in (lengths, shuffled)]
    assert named[0] == named[1]


@pytest.mark.parametrize("of", [1, 2, 3, 7, 50, 1000])
def test_shards_are_runs_of_whole_batches_that_part_all_work_evenly_by_tokens(of):
    lengths = lengths_of(300)
    runs = batches(lengths, 500)
    parts = [shard_of(runs, lengths, number, of) for number in range(1, of + 1)]
    assert [index for part in parts for index in part] == list(range(len(runs)))
    work = [sum(tokens(lengths)[runs[index]].sum() for index in part) for part in parts]
    largest = max(tokens(lengths)[run].sum() for run in runs)
    assert max(work) <= tokens(lengths).sum() / of + largest
    assert min(work) >= tokens(lengths).sum() / of - largest


# --- gathering --------------------------------------------------------------------------------------------------

COLUMNS = [f"t{j}" for j in range(5)]


@pytest.fixture
def cut(tmp_path):
    """Paths of three shards of a matrix in another order than train, of train, and the matrix in train's order."""
    ids = [f"z{i}" for i in np.random.default_rng(0).permutation(23)]
    matrix = np.random.default_rng(1).normal(size=(23, 5)).astype(np.float32)
    parquet.write_parquet(pd.DataFrame({"id": ids, "output": "x"}), tmp_path / "train.parquet")
    order = np.random.default_rng(2).permutation(23)
    paths = []
    for number, rows in enumerate((order[:9], order[9:10], order[10:]), start=1):
        paths.append(tmp_path / f"{number}-of-3.parquet")
        parquet.write_parquet(to_table([ids[row] for row in rows], COLUMNS, matrix[rows]), paths[-1])
    return paths, tmp_path / "train.parquet", to_table(ids, COLUMNS, matrix)


@pytest.mark.parametrize("block_bytes", [1, 100, 4 * 23 * 2, 256e6])
def test_gathered_rows_are_in_the_order_of_train_however_small_the_blocks(block_bytes, cut, tmp_path):
    paths, train, expected = cut
    assert gather(paths, train, tmp_path / "whole.parquet", block_bytes) == (23, 5)
    found = parquet.read_parquet(tmp_path / "whole.parquet")
    assert found["id"].tolist() == expected["id"].tolist()
    np.testing.assert_array_equal(found[COLUMNS].to_numpy(), expected[COLUMNS].to_numpy())
    assert set(pq.read_schema(tmp_path / "whole.parquet").types[1:]) == {"float"}


def test_an_empty_shard_is_no_mistake(cut, tmp_path):
    paths, train, expected = cut
    paths.append(tmp_path / "empty.parquet")
    parquet.write_parquet(to_table([], COLUMNS, np.empty((0, 5), np.float32)), paths[-1])
    gather(paths, train, tmp_path / "whole.parquet")
    assert parquet.read_parquet(tmp_path / "whole.parquet")["id"].tolist() == expected["id"].tolist()


def refused(cut, tmp_path):
    paths, train, _ = cut
    with pytest.raises(ArtifactError) as caught:
        gather(paths, train, tmp_path / "whole.parquet")
    assert not (tmp_path / "whole.parquet").exists()
    return str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_a_damaged_shard_is_named(damage, cut, tmp_path):
    path = cut[0][1]
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    assert str(path) in refused(cut, tmp_path)


def test_every_flipped_bit_in_a_page_of_a_shard_is_found_or_harmless(cut, tmp_path):
    paths, train, expected = cut
    content = paths[0].read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for place in range(4, footer, 7):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        paths[0].write_bytes(flipped)
        try:
            gather(paths, train, tmp_path / "whole.parquet")
        except ArtifactError as error:
            assert str(paths[0]) in str(error)  # noqa: PT017
        else:
            found = parquet.read_parquet(tmp_path / "whole.parquet")
            np.testing.assert_array_equal(found[COLUMNS].to_numpy(), expected[COLUMNS].to_numpy())


def test_a_foreign_a_doubled_and_a_lost_example_are_named_with_their_shard(cut, tmp_path):
    paths, _, expected = cut
    second = parquet.read_parquet(paths[1])
    own = second["id"][0]
    parquet.write_parquet(second.assign(id="stranger"), paths[1])
    assert refused(cut, tmp_path).startswith(f"{paths[1]}: holds 'stranger', which is no example")
    other = parquet.read_parquet(paths[0])["id"][0]
    parquet.write_parquet(second.assign(id=other), paths[1])
    message = refused(cut, tmp_path)
    assert (f"{paths[0]}, {paths[1]}: '{other}' is in 2 shards" in message) or (f"'{own}' is in 0 shards" in message)
    parquet.write_parquet(second.iloc[:0], paths[1])
    assert f"'{own}' is in 0 shards" in refused(cut, tmp_path)
    parquet.write_parquet(second.rename(columns={"t0": "u0"}), paths[1])
    assert refused(cut, tmp_path).startswith(f"{paths[1]}: has other columns than {paths[0]}")
    assert expected["id"].is_unique


def test_many_shards_need_no_more_open_files_than_one(tmp_path):
    ids = [f"z{i}" for i in range(200)]
    parquet.write_parquet(pd.DataFrame({"id": ids}), tmp_path / "train.parquet")
    paths = [tmp_path / f"{i}.parquet" for i in range(200)]
    for i, path in enumerate(paths):
        parquet.write_parquet(to_table([ids[i]], ["t"], np.float32([[i]])), path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 20, limits[1]))
    try:
        gather(paths, tmp_path / "train.parquet", tmp_path / "whole.parquet")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert parquet.read_parquet(tmp_path / "whole.parquet")["t"].tolist() == list(range(200))


def test_too_little_room_to_put_rows_in_order_is_said_before_anything_is_written(small_disk, tmp_path, monkeypatch):
    ids = [f"z{i}" for i in range(1000)]
    parquet.write_parquet(pd.DataFrame({"id": ids}), tmp_path / "train.parquet")
    matrix = np.zeros((1000, 100), np.float32)
    parquet.write_parquet(to_table(ids, [f"t{j}" for j in range(100)], matrix), tmp_path / "1-of-1.parquet")
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with pytest.raises(ArtifactError, match=r"0\.0004 GB are needed .* set TMPDIR to a folder that has more"):
        gather([tmp_path / "1-of-1.parquet"], tmp_path / "train.parquet", tmp_path / "whole.parquet")
    assert not list(small_disk.iterdir())


# --- one shard, resumed -----------------------------------------------------------------------------------------


@pytest.fixture
def method(monkeypatch):
    """A method whose blocks are a function of the rows alone, and which notes what it computes or stops after some."""
    module = types.ModuleType("icprobe_test_method")
    module.computed, module.stop_after = [], None

    def attribute(inputs, method, runs, scale):
        for run in runs:
            if module.stop_after is not None and len(module.computed) >= module.stop_after:
                raise KeyboardInterrupt
            module.computed.append(tuple(run))
            for name in ("one", "two"):
                values = np.outer(run + 1.0, np.arange(1, len(inputs.tasks) + 1)) * scale
                yield name, run, (values if name == "one" else -values).astype(np.float32)

    module.attribute = attribute
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(shards, "SAVE_SECONDS", -1.0)
    return module


@pytest.fixture
def inputs():
    lengths = lengths_of(60)
    return Inputs(train=lengths[["id"]], tasks=pd.DataFrame({"id": COLUMNS}), lengths=lengths, prompts=None)


def compute(inputs, method, folder, shard=1, of=1, **options):
    folder.mkdir(exist_ok=True)
    settings = {"scale": options.pop("scale", 0.1)}
    return shards.compute(method.__name__, ["one", "two"], inputs, settings, shard, of, 200, folder, **options)


def written(tables, folder):
    for name, table in tables.items():
        parquet.write_parquet(table, folder / f"{name}.parquet")
    return {name: (folder / f"{name}.parquet").read_bytes() for name in tables}


def test_an_interrupted_shard_goes_on_where_it_was_and_gives_the_same_bytes(method, inputs, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    whole = written(compute(inputs, method, tmp_path / "undisturbed"), tmp_path)
    all_runs, method.computed[:] = list(method.computed), []
    method.stop_after = 5
    with pytest.raises(KeyboardInterrupt):
        compute(inputs, method, tmp_path / "partial")
    assert len(method.computed) == 5
    # A writer that was killed in the middle of a block leaves its file aside, which is not read.
    (tmp_path / "partial" / ".pieces-000099.npz.1.partial.npz").write_bytes(b"half")
    method.stop_after = None
    assert written(compute(inputs, method, tmp_path / "partial"), tmp_path) == whole
    # The generator was stopped before its sixth batch, so that five were saved whole.
    assert method.computed == all_runs
    assert re.search(r"resumed: [1-9]\d* of 60 examples were finished before$", caplog.text, re.MULTILINE)


def test_pieces_of_blocks_outlive_an_interruption(method, inputs, tmp_path):
    computed = []

    def attribute(inputs, method, runs, scale):
        for run in runs:
            for column in range(2):
                name = f"{method}/{run[0]}/{column}"
                if name not in inputs.pieces:
                    if len(computed) == 3:
                        raise KeyboardInterrupt
                    computed.append(name)
                    inputs.pieces[name] = np.full((len(run), 1), scale, np.float32)
            block = np.concatenate([inputs.pieces.pop(f"{method}/{run[0]}/{column}") for column in range(2)], axis=1)
            yield from (("one", run, block), ("two", run, block))

    method.attribute = attribute
    columns = inputs.tasks.iloc[:2]
    for _ in range(100):
        try:
            table = compute(replace(inputs, tasks=columns), method, tmp_path / "partial")["two"]
            break
        except KeyboardInterrupt:
            assert len(computed) == len(set(computed)), "a piece was computed twice"
            done, computed[:] = [*computed], []
    assert np.allclose(table.drop(columns="id"), 0.1)
    assert done


def test_a_block_of_one_method_without_the_other_is_computed_again(method, inputs, tmp_path):
    saved = shards.Saved(tmp_path)
    saved["one/0"] = np.zeros((len(batches(inputs.lengths, 200)[0]), 5), np.float32)
    tables = compute(inputs, method, tmp_path)
    assert tables["one"].drop(columns="id").to_numpy().all()


def test_all_shards_together_are_the_whole(method, inputs, tmp_path):
    whole = compute(inputs, method, tmp_path / "whole")["two"]
    parts = [compute(inputs, method, tmp_path / f"part{i}", i, 4)["two"] for i in range(1, 5)]
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole)


def test_a_shard_without_batches_is_an_empty_table_with_the_same_columns(method, inputs, tmp_path):
    tables = [compute(inputs, method, tmp_path / f"{i}", i, 500)["one"] for i in (1, 250, 500)]
    empty = [table for table in tables if table.empty]
    assert empty
    assert all(list(table.columns) == ["id", *COLUMNS] for table in tables)


def test_nan_is_refused_by_the_id_of_its_example(method, inputs, tmp_path):
    with pytest.raises(ScoreError, match=r"one: 60 examples with attributions that are NaN or infinite: z.*, …;"):
        compute(inputs, method, tmp_path / "nan", scale=float("nan"))


def test_a_damaged_file_of_finished_blocks_is_computed_again_and_harms_no_other(tmp_path):
    saved = shards.Saved(tmp_path)
    for index in range(3):
        saved[f"icp/{index}"] = np.full((2, 2), index, np.float32)
        saved.write()
    first = tmp_path / "pieces-000000.npz"
    first.write_bytes(first.read_bytes()[:40])
    again = shards.Saved(tmp_path)
    assert sorted(again) == ["icp/1", "icp/2"]
    again["icp/0"] = np.zeros((2, 2), np.float32)
    again.write()
    assert sorted(shards.Saved(tmp_path)) == ["icp/0", "icp/1", "icp/2"]
