"""Nothing unfinished or damaged passes for a result, and a fingerprint is that of the code that runs, no other."""

import errno
import shutil
import signal
import subprocess
import sys

import pandas as pd
import pytest

from icprobe import artifacts
from icprobe.errors import ArtifactError

# --- atomic writes ----------------------------------------------------------------------------------------------


def visible(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "t.csv"
    with artifacts.atomic_path(path) as aside:
        aside.write_text("half")
        assert aside.suffix == ".csv"
        assert not path.exists()
    assert visible(path.parent) == ["t.csv"]
    assert path.read_text() == "half"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_an_interrupted_block_wrote_is_gone_and_the_old_result_stays(error, kind, tmp_path):
    path = tmp_path / "result"
    if kind == "directory":
        path.mkdir()
        (path / "a").write_text("old")
    else:
        path.write_text("old")
    with pytest.raises(error), artifacts.atomic_path(path) as aside:  # noqa: PT012
        if kind == "directory":
            aside.mkdir()
            (aside / "a").write_text("new")
        else:
            aside.write_text("new")
        raise error
    assert visible(tmp_path) == ["result"]
    assert (path / "a" if kind == "directory" else path).read_text() == "old"


def test_a_directory_replaces_an_earlier_one_whole(tmp_path):
    path = tmp_path / "model"
    for names in (["a", "b"], ["c"]):
        with artifacts.atomic_path(path) as aside:
            aside.mkdir()
            for name in names:
                (aside / name).write_text(name)
    assert visible(path) == ["c"]
    assert visible(tmp_path) == ["model"]


KILLED = """
import os, pathlib, sys, time
from icprobe import artifacts
path = pathlib.Path(sys.argv[1])
with artifacts.atomic_path(path) as aside:
    if sys.argv[2] == "directory":
        aside.mkdir()
        (aside / "weights").write_bytes(b"new" * 100_000)
    else:
        aside.write_bytes(b"new" * 100_000)
    print("half", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("before", [True, False])
def test_a_process_killed_in_the_middle_of_a_write_leaves_what_was_there(kind, before, tmp_path):
    path = tmp_path / "result.bin"
    if before and kind == "file":
        path.write_text("old")
    elif before:
        path.mkdir()
        (path / "weights").write_text("old")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path), kind], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert path.exists() == before
    if before:
        assert (path if kind == "file" else path / "weights").read_text() == "old"
    # What it left is hidden and no input of anything; the next try is not disturbed by it.
    artifacts.write_text(path / "x" if path.is_dir() else path, "next")


def test_a_full_disk_is_an_error_and_leaves_neither_a_truncated_file_nor_rubbish(small_disk):
    path = small_disk / "t.csv"
    artifacts.write_text(path, "old")
    with pytest.raises(OSError, match="No space left") as caught:
        artifacts.write_csv(path, pd.DataFrame({"a": range(1_000_000)}))
    assert caught.value.errno == errno.ENOSPC
    assert visible(small_disk) == ["t.csv"]
    assert path.read_text() == "old"


SHARED = """
import pathlib, sys, time
from icprobe import artifacts
path, go = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
print("ready", flush=True)
while not go.exists():
    time.sleep(0.01)
with artifacts.one_at_a_time(path) as wanted:
    if wanted:
        with artifacts.atomic_path(path) as aside:
            aside.mkdir()
            time.sleep(0.5)
            (aside / "weights").write_text("whole")
print("made" if wanted else "found", (path / "weights").read_text())
"""


def test_what_two_experiments_make_at_once_is_made_by_one_and_found_whole_by_the_other(tmp_path):
    go = tmp_path / "go"
    command = [sys.executable, "-c", SHARED, str(tmp_path / "model"), str(go)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    go.touch()
    assert sorted(process.communicate(timeout=60)[0] for process in processes) == ["found whole\n", "made whole\n"]
    assert [process.returncode for process in processes] == [0, 0]


def test_a_link_takes_the_place_of_a_link_and_of_nothing_else(tmp_path):
    for name in ("one", "two", "kept"):
        (tmp_path / name).mkdir()
    for target in ("one", "two"):
        artifacts.link(tmp_path / "name", tmp_path / target)
        assert (tmp_path / "name").resolve() == tmp_path / target
    artifacts.link(tmp_path / "kept", tmp_path / "one")
    assert not (tmp_path / "kept").is_symlink()


# --- manifests --------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(range(64)))
    (folder / "deep" / "config").write_text("{}")
    artifacts.write_manifest(folder, layers=2, name="é")
    return folder


def test_a_sound_directory_is_verified_and_its_facts_come_back(model):
    manifest = artifacts.verify(model)
    assert (manifest["layers"], manifest["name"]) == (2, "é")
    assert sorted(manifest["files"]) == ["deep/config", "weights"]


def damaged(model):
    with pytest.raises(ArtifactError) as caught:
        artifacts.verify(model)
    assert f"Remove {model} to have it rebuilt" in str(caught.value)
    return str(caught.value)


def test_a_missing_a_truncated_and_a_changed_file_are_named(model):
    content = (model / "weights").read_bytes()
    (model / "weights").write_bytes(content[:-1])
    assert "weights: has 63 bytes where the manifest says 64" in damaged(model)
    (model / "weights").write_bytes(content[:-1] + b"\x00")
    assert "weights: has another SHA-256" in damaged(model)
    assert artifacts.verify(model, contents=lambda name: name != "weights")["layers"] == 2
    (model / "weights").unlink()
    assert "weights: is missing" in damaged(model)


def test_any_flipped_bit_of_any_file_is_found_the_manifest_among_them(model):
    for path in (model / "weights", model / "manifest.json"):
        content = path.read_bytes()
        for place in range(len(content)):
            flipped = bytearray(content)
            flipped[place] ^= 1 << (place % 8)
            path.write_bytes(flipped)
            with pytest.raises(ArtifactError):
                artifacts.verify(model)
        path.write_bytes(content)
    artifacts.verify(model)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '"x"', '{"files": 3}', "\xff", '{"digest": 1}'])
def test_what_is_no_manifest_is_refused(text, model):
    (model / "manifest.json").write_text(text, encoding="latin-1")
    damaged(model)
    (model / "manifest.json").unlink()
    damaged(model)


def test_the_digest_of_a_directory_is_that_of_its_files(model, tmp_path):
    before = artifacts.content_digest(model)
    copy = shutil.copytree(model, tmp_path / "copy")
    artifacts.write_manifest(copy, layers=3)
    assert artifacts.content_digest(copy) == before
    (copy / "weights").write_bytes(b"other")
    artifacts.write_manifest(copy)
    assert artifacts.content_digest(copy) != before


def test_partial_work_of_other_inputs_lies_elsewhere(tmp_path):
    one = artifacts.partial_directory(tmp_path, "attribute", {"dtype": "float32"})
    assert one.is_dir()
    assert one == artifacts.partial_directory(tmp_path, "attribute", {"dtype": "float32"})
    assert one != artifacts.partial_directory(tmp_path, "attribute", {"dtype": "bfloat16"})
    assert one.parent == tmp_path / ".partial"


def test_what_a_killed_writer_left_behind_goes_with_the_next_write(tmp_path):
    left = tmp_path / ".table[1].csv.12345.partial.csv"
    left.write_text("half")
    with artifacts.atomic_path(tmp_path / "table[1].csv") as aside:
        aside.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["table[1].csv"]


def test_names_come_back_from_tables_as_they_were_whatever_they_look_like(tmp_path):
    names = ["007", "1e3", "NA", "True", "2026-01-01"]
    table = pd.DataFrame(dict.fromkeys(sorted(artifacts.NAME_COLUMNS), names) | {"gain": [0.5, 1, 2, 3, 4]})
    artifacts.write_csv(tmp_path / "t.csv", table)
    pd.testing.assert_frame_equal(artifacts.read_csv(tmp_path / "t.csv"), table)


def test_columns_of_names_in_tables_of_chains_selections_and_repeated_rows_are_known_as_such():
    from icprobe.analysis import chain, selecting
    from icprobe.tables import repeated

    assert {"task"} <= {*chain.COLUMNS} & artifacts.NAME_COLUMNS
    assert {"selection", "baseline"} <= {*selecting.COLUMNS} & artifacts.NAME_COLUMNS
    assert {"first_id"} <= {*repeated.COLUMNS} & artifacts.NAME_COLUMNS
