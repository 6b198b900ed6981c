"""What is known of an example and a task is not computed again, whatever stands beside them; all else is."""

import logging
import re
from dataclasses import replace

import dag
import numpy as np
import pandas as pd
import pytest

from icprobe.attribution import METHODS, shards
from icprobe.attribution.blocks import Blocks, contents
from icprobe.tables import parquet
from icprobe.tracking.environment import measured

# Each of another module, and what becomes of its matrix where tasks are added.
MODULES = [["icp"], ["influence", "influence_log", "cosine"], ["one_step"], ["embedding"], ["perplexity"]]


def part(inputs, rows, tasks):
    """Some of the data, in another order."""
    train, lengths = (table.iloc[rows].reset_index(drop=True) for table in (inputs.train, inputs.lengths))
    return replace(inputs, train=train, lengths=lengths, tasks=inputs.tasks.iloc[tasks].reset_index(drop=True))


def compute(inputs, methods, folder, work, shard=1, of=1):
    known = METHODS[methods[0]]
    blocks = {method: Blocks(folder / method, f"{work}-{shard}", work) for method in methods}
    partial = folder / f"partial-{work}-{shard}"
    partial.mkdir(parents=True, exist_ok=True)
    settings = {"batch_tokens": 200}
    tables = shards.compute(
        known.module, methods, inputs, settings, shard, of, 200, partial, known.per_task, blocks if folder else None
    )
    return {method: table.set_index("id").sort_index() for method, table in tables.items()}, blocks


@pytest.mark.parametrize("methods", MODULES, ids=lambda methods: methods[0])
def test_new_tasks_and_examples_are_computed_for_their_price_alone(methods, inputs, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    ours = inputs("llama")
    at_once, _ = compute(ours, methods, tmp_path / "at once", "all")
    before, _ = compute(part(ours, [4, 0, 2, 5], [2, 0]), methods, tmp_path / "grown", "some")
    caplog.clear()
    after, blocks = compute(ours, methods, tmp_path / "grown", "all")
    entries = 7 * 3 if METHODS[methods[0]].per_task else 7
    held = 4 * 2 if METHODS[methods[0]].per_task else 4
    assert f"{held} of {entries} entries are known from other data" in caplog.text
    assert all(block.used for block in blocks.values())
    for method in methods:
        old = before[method]
        pd.testing.assert_frame_equal(after[method].loc[old.index, old.columns], old, check_exact=True)
        assert list(after[method]) == list(at_once[method])
        if method != "influence_log":  # a sum of logarithms of terms that may be near 0
            pd.testing.assert_frame_equal(after[method], at_once[method], rtol=1e-5, atol=1e-5)
    assert len(list((tmp_path / "grown" / methods[0]).iterdir())) == 2

    # In shards, as another experiment would cut them: all is known, and no bit is another.
    pieces = [compute(part(ours, range(7), [1, 2]), methods, tmp_path / "grown", f"{n}", n, 2)[0] for n in (1, 2)]
    for method in methods:
        cut = pd.concat([piece[method] for piece in pieces]).sort_index()
        pd.testing.assert_frame_equal(cut, after[method][list(cut)], check_exact=True)
        left = {path.stem for path in (tmp_path / "grown" / method).iterdir()}
        assert left == {"all-1", "1-1", "2-2"}, "the smaller block is in the larger one"


def test_which_shard_comes_first_does_not_show(inputs, tmp_path):
    """Two rows with the same texts, in two shards: neither takes what the other has computed."""
    ours = inputs("llama")
    ours = part(ours, [*range(7), 2, 3], range(3))
    ours = replace(ours, train=ours.train.assign(id=[f"{n}" for n in range(9)]))
    ours = replace(ours, lengths=ours.lengths.assign(id=ours.train["id"]))
    compute(part(ours, [2], [0]), ["icp"], tmp_path / "a", "some")
    compute(part(ours, [2], [0]), ["icp"], tmp_path / "b", "some")
    found = [
        {shard: compute(ours, ["icp"], tmp_path / name, "all", shard, 4)[0]["icp"] for shard in order}
        for name, order in (("a", [1, 2, 3, 4]), ("b", [4, 3, 2, 1]))
    ]
    for shard, table in found[0].items():
        pd.testing.assert_frame_equal(table, found[1][shard], check_exact=True)
    where = {row: shard for shard, table in found[0].items() for row in table.index}
    assert where["2"] != where["7"] or where["3"] != where["8"], "the texts stand in two shards"


def test_what_was_done_before_as_a_whole_is_done_again(inputs, tmp_path, caplog):
    """Whoever asks for it again has no other reason than that the result is not trusted."""
    caplog.set_level(logging.INFO)
    ours = part(inputs("llama"), range(3), [0, 1])
    first, _ = compute(ours, ["icp"], tmp_path, "same")
    for path in (tmp_path / "partial-same-1").iterdir():
        path.unlink()
    block = next((tmp_path / "icp").iterdir())
    with np.load(block) as file:
        np.savez(block, **{**file, "values": file["values"] + 1})
    again, blocks = compute(ours, ["icp"], tmp_path, "same")
    pd.testing.assert_frame_equal(again["icp"], first["icp"], check_exact=True)
    assert "are known" not in caplog.text
    assert not blocks["icp"].used


def test_a_killed_job_resumes_the_part_that_it_had_to_compute(inputs, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(shards, "SAVE_SECONDS", -1.0)
    ours = inputs("llama")
    compute(part(ours, [1, 3], [0]), ["icp"], tmp_path, "some")
    keep = Blocks.keep

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Blocks, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        compute(ours, ["icp"], tmp_path, "all")
    monkeypatch.setattr(Blocks, "keep", keep)
    caplog.clear()
    after, _ = compute(ours, ["icp"], tmp_path, "all")
    assert caplog.text.count("examples were finished before") == 2  # of the two that lacked two tasks, of the five
    at_once, _ = compute(ours, ["icp"], tmp_path / "at once", "all")
    pd.testing.assert_frame_equal(after["icp"], at_once["icp"], rtol=1e-5, atol=1e-5)


def test_the_texts_alone_say_which_row_it_is():
    row = {"id": "a", "instruction": "Add.", "input": "1 1", "output": "2", "domain": "maths", "planted": "sound"}
    (same, other) = contents(pd.DataFrame([row, {**row, "output": "3"}]))
    assert contents(pd.DataFrame([{**row, "id": "b", "domain": "code"}])).tolist() == [same]
    assert contents(pd.DataFrame([{**row, "messages": None}, {**row, "messages": "[]"}]))[0] != same != other
    assert len(set(contents(pd.DataFrame([{**row, "input": "1", "output": "12"}, {**row, "input": "11"}])))) == 2


def test_a_damaged_block_is_told_and_computed_again(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    examples, tasks = np.array([b"a", b"b"]), np.array([b"t"])
    values = np.array([[1], [2]], np.float32)
    Blocks(tmp_path, "one", "one").keep(examples, tasks, values)
    assert Blocks(tmp_path, "two", "two").find(np.array([b"b", b"c", b"b"]), tasks)[:, 0].tolist()[::2] == [2, 2]
    (path,) = tmp_path.iterdir()
    written_now = tmp_path / f".{path.name}.1.partial.npz"  # by another job
    written_now.write_bytes(b"half")
    path.write_bytes(path.read_bytes()[:-30])
    assert np.isnan(Blocks(tmp_path, "two", "two").find(examples, tasks)).all()
    assert "is damaged" in caplog.text
    assert not path.exists()
    assert written_now.exists()


@pytest.mark.timeout(900)
def test_in_the_workflow_a_new_task_and_a_new_example_leave_the_rest(tmp_path_factory, tmp_path):
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path)
    methods = ["icp", "influence", "influence_log", "one_step"]
    paths = {method: dag.RESULTS / f"attributions/{method}.parquet" for method in methods}
    before = {method: parquet.read_parquet(tmp_path / path).set_index("id") for method, path in paths.items()}
    more = {"data": {"tasks": {"select": "first:5"}, "train": {"sample": {"n": 28}}}}
    ended = project.snakemake(*map(str, paths.values()), "--cores", "2", config=more)
    assert ended.returncode == 0, ended.output
    for method, path in paths.items():
        found, old = parquet.read_parquet(tmp_path / path).set_index("id"), before[method]
        both = old.index.intersection(found.index)
        assert len(both) >= 12
        assert found.shape == (28, 5)
        pd.testing.assert_frame_equal(found.loc[both, list(old)], old.loc[both], check_exact=True)
    logs = [project.log(f"tiny/attribute/tiny-llama/icp/{shard}.log") for shard in ("1-of-2", "2-of-2")]
    known = re.findall(r"(\d+) of \d+ entries are known from other data", "".join(logs))
    assert sum(map(int, known)) == 4 * len(before["icp"].index.intersection(found.index))
    seconds, _ = measured(tmp_path / "logs/tiny/attribute/tiny-llama/icp/1-of-2.log")
    assert np.isnan(seconds), "the frontier would take it for the price of the whole"

    other = {**more, "templates": {"separator": "\n"}}
    ended = project.snakemake(str(paths["icp"]), "--cores", "2", config=other)
    assert ended.returncode == 0, ended.output
    assert "are known" not in project.log("tiny/attribute/tiny-llama/icp/1-of-2.log")
