"""Light jobs' offline runs are journals first; what is written of them later is what their jobs would have written."""

import errno
import fcntl
import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_jobs import run_job, start_job
from test_privacy import SECRET
from test_privacy import WORK as PRIVATE_WORK
from test_syncing import names_sent, sync
from test_tracking import inspect, read_back
from tracked import LIGHT, WORK, run_directories, run_tracked, settings

from icprobe.tracking import journals, lineage, syncing

pytestmark = pytest.mark.timeout(120)

AS_LIGHT, AS_HEAVY = "snakemake.resources = {}\n", "snakemake.resources = {'heavy': 1}\n"
# A job with an entry of each kind.
ALL = WORK.replace(
    "with job(snakemake) as run:\n",
    """
snakemake.output.append("results/demo/report.html")  # of which a card is kept: it holds texts
pathlib.Path(snakemake.output[1]).write_text("report")
with job(snakemake) as run:
    run.bars("bars", pandas.DataFrame({"rule": ["a", "b"], "seconds": [1.5, 2.5]}), "rule", "seconds", "Seconds")
    run.log({"workflow/done": 3}, step=1.5, axis="workflow/seconds")
""",
)
# What no two runs of a job have in common.
OWN = {"client_id", "sequence_client_id", "local_path", "start_time", "runtime", "_runtime", "_wandb.runtime"}
OWN |= {"_timestamp", "seconds", "peak_memory_gb", "artifact_path", "_latest_artifact_path"}


def write(directory: Path, **environment: str) -> dict[str, str]:
    """Runs of all journals, by a process of their own; {name of the run's directory: why} of those that were not."""
    body = "import json, pathlib\nfrom icprobe.tracking import journals\n"
    body += "failed = journals.write_all(pathlib.Path('results/demo/wandb').absolute())\n"
    body += "print(json.dumps({log.parent.name: why for log, why in failed.items()}))"
    ended = run_job(directory, body, **environment)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def waiting(directory: Path) -> list[Path]:
    return journals.waiting(directory / "results/demo/wandb")


def without_own(value):
    """A record without what no two runs have in common."""
    if isinstance(value, list):
        return [*map(without_own, value)]
    if not isinstance(value, dict):
        return value
    return {
        name: without_own(one)
        for name, one in value.items()
        if name not in OWN and name.split(".")[-1] not in OWN and not (name == "metadata" and "path" in value)
    }


def content(directory: Path) -> tuple[list, dict[str, bytes], dict]:
    """What a run holds: its records (but for summaries on the way), its media, its edges."""
    records = [without_own(record) for record in read_back(directory) if record["type"] != "summary"]
    (run,) = run_directories(directory)
    media = {path.name: path.read_bytes() for path in run.rglob("media/*/*")}
    return records, media, json.loads((run / "edges.json").read_text())


def test_a_run_that_is_written_later_is_the_run_that_its_job_would_have_written(tmp_path):
    direct, later = tmp_path / "direct", tmp_path / "later"
    for directory, kind in ((direct, AS_HEAVY), (later, AS_LIGHT)):
        directory.mkdir()
        ended = run_tracked(directory, kind + ALL + "import sys\nprint('wandb' in sys.modules)", mode="auto")
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.split() == [str(kind == AS_HEAVY)]
        assert "no key for https://api.wandb.ai was found" in ended.log
    assert not run_directories(later)
    (journal,) = waiting(later)
    began = journal.parent.name
    time.sleep(1.1)  # Names of directories are by the second.
    assert write(later) == {}
    assert waiting(later) == []
    assert [run.name for run in run_directories(later)] == [began]
    expected, found = content(direct), content(later)
    assert found[0] == expected[0]
    assert found[1:] == expected[1:]
    assert len(expected[1]) >= 3
    written, wanted = (read_back(directory, "--summary") for directory in (later, direct))
    assert set(written["summary"]) == set(wanted["summary"])
    assert written["config"] == wanted["config"]
    points = [record["history"]["item"]["_timestamp"] for record in read_back(later) if record["type"] == "history"]
    assert max(points) < (later / "logs/demo/rule.environment.json").stat().st_mtime + 1


def test_a_running_jobs_journal_is_left_alone_and_a_killed_jobs_becomes_a_failed_run(tmp_path):
    body = AS_LIGHT + "import time\nwith job(snakemake) as run:\n    run.log({'train/loss': 1.25}, step=7)\n"
    body += "    run.summary(examples=96)\n    print('logged', flush=True)\n    time.sleep(60)\n"
    process = start_job(tmp_path, body, ICPROBE_TRACKING=settings("offline"))
    assert process.stdout.readline() == "logged\n"
    assert write(tmp_path) == {}
    assert (len(waiting(tmp_path)), run_directories(tmp_path)) == (1, [])
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (journal,) = waiting(tmp_path)
    with open(journal, "a") as file:
        file.write('{"summary": {"exam')  # as it may have been cut off
    assert write(tmp_path) == {}
    run = read_back(tmp_path, "--summary")
    assert (run["exit_code"], waiting(tmp_path)) == (1, [])
    assert {name: run["summary"][name] for name in ("train/loss", "train/step", "examples")} == {
        "train/loss": 1.25,
        "train/step": 7,
        "examples": 96,
    }


def test_what_a_killed_writer_has_begun_is_written_anew(tmp_path):
    assert run_tracked(tmp_path, AS_LIGHT + LIGHT).returncode == 0
    (journal,) = waiting(tmp_path)
    log = journals.log_of(journal)
    log.parent.mkdir()
    log.write_bytes(b":W&B half a log")
    assert [path.name for path in syncing.pending(tmp_path / "results/demo/wandb")] == [log.name]
    assert write(tmp_path) == {}
    assert read_back(tmp_path, "--summary")["summary"]["examples"] == 96
    assert run_directories(tmp_path) == [log.parent]


def test_a_journal_of_another_machine_that_may_still_grow_is_written_and_kept(tmp_path):
    assert run_tracked(tmp_path, AS_LIGHT + LIGHT).returncode == 0
    (journal,) = waiting(tmp_path)
    header, *entries, _end = journal.read_text().splitlines()
    journal.write_text("\n".join([json.dumps({**json.loads(header), "machine": "elsewhere"}), *entries, ""]))
    for _ in range(2):
        assert write(tmp_path) == {}
        assert waiting(tmp_path) == [journal]
        assert read_back(tmp_path, "--summary")["summary"]["examples"] == 96


def test_such_a_journal_is_written_again_only_where_it_has_grown(tmp_path, server):
    run_tracked(tmp_path, AS_LIGHT + WORK)
    (journal,) = waiting(tmp_path)
    lines = journal.read_text().splitlines(keepends=True)
    header = json.loads(lines[0]) | {"machine": "elsewhere"}
    journal.write_text("".join([json.dumps(header) + "\n", *lines[1:-1]]))
    assert sync(tmp_path, server.url).returncode == 0
    log = journals.log_of(journal)
    facts = log.stat().st_mtime_ns
    assert journal.with_name("written").read_text() == str(journal.stat().st_size)
    ended = sync(tmp_path, server.url)
    assert "every run is uploaded" in ended.stderr + ended.stdout
    assert log.stat().st_mtime_ns == facts
    # What a writer that failed in the middle has left is no whole run.
    journal.with_name("written").unlink()
    os.truncate(log, log.stat().st_size // 2)
    assert sync(tmp_path, server.url).returncode == 0
    assert log.stat().st_mtime_ns != facts
    assert read_back(tmp_path, "--summary")["summary"]["examples"] == 96
    with open(journal, "a") as file:
        file.write(lines[-1])
    assert sync(tmp_path, server.url).returncode == 0
    assert not waiting(tmp_path)


def test_a_journal_is_locked_as_nfs_wants_it_and_a_lock_that_fails_is_named(tmp_path, monkeypatch):
    """NFS gives an exclusive lock to nothing that is not open for writing (EBADF, flock(2))."""
    run_tracked(tmp_path, AS_LIGHT + WORK)
    (journal,) = waiting(tmp_path)
    flock, failing = fcntl.flock, []

    def of_nfs(file, how):
        if failing or (how & fcntl.LOCK_EX and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY):
            raise OSError(errno.EBADF, "Bad file descriptor")
        return flock(file, how)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    failing.append(True)
    with pytest.raises(OSError, match="Bad file descriptor"), journals._held(journal):
        pass
    failing.clear()
    with journals._held(journal) as (_, lines):
        assert "subject" in lines[0]


def test_a_rerun_replaces_the_journal_and_the_run_of_an_earlier_attempt(tmp_path):
    for values in ("examples=1", "examples=2"):
        assert run_tracked(tmp_path, AS_LIGHT + LIGHT.replace("examples=96", values)).returncode == 0
        assert len(waiting(tmp_path)) == 1
    assert write(tmp_path) == {}
    time.sleep(1.1)
    assert run_tracked(tmp_path, AS_LIGHT + LIGHT.replace("96", "3")).returncode == 0
    assert run_directories(tmp_path) == []
    assert write(tmp_path) == {}
    assert read_back(tmp_path, "--summary")["summary"]["examples"] == 3


def test_sync_writes_and_uploads_journals_with_lineage(tmp_path, server):
    assert run_tracked(tmp_path, AS_LIGHT + WORK).returncode == 0
    ended = sync(tmp_path, server.url, "--dry-run")
    assert (ended.returncode, server.requests) == (0, []), ended.stderr
    assert "would upload 1 run to " in ended.stdout
    ended = sync(tmp_path, server.url)
    assert ended.returncode == 0, ended.stderr
    assert len(names_sent(server)) == 1
    assert len(server.sent("UseArtifact")) == 1
    assert syncing.pending(tmp_path / "results/demo/wandb") == waiting(tmp_path) == []


@pytest.mark.parametrize("fate", ["removed", "changed"])
def test_a_file_that_is_lost_before_its_run_is_written_keeps_its_digest_and_is_named(fate, tmp_path, server):
    assert run_tracked(tmp_path, AS_LIGHT + WORK).returncode == 0
    path = tmp_path / "results/demo/m/tables/correlations.csv"
    digest = lineage.describe(str(path))["digest"]
    path.unlink() if fate == "removed" else path.write_text("other bytes")
    assert write(tmp_path) == {}
    made = [record["artifact"] for record in read_back(tmp_path) if record["type"] == "artifact"]
    (table,) = (one for one in made if one["name"] == "demo.m.tables.correlations.csv")
    assert json.loads(table["metadata"])["digest"] == digest
    ended = sync(tmp_path, server.url)
    assert ended.returncode == 1
    assert f"correlations.csv was {fate}" in ended.stderr
    assert names_sent(server) == set()


def test_a_journal_that_cannot_be_written_as_a_run_is_named_by_sync_and_kept(tmp_path, server):
    assert run_tracked(tmp_path, AS_LIGHT + LIGHT).returncode == 0
    (journal,) = waiting(tmp_path)
    header, *entries = journal.read_text().splitlines()
    journal.write_text("\n".join([json.dumps({**json.loads(header), "subject": {}}), *entries]))
    ended = sync(tmp_path, server.url)
    assert ended.returncode == 1
    assert f"{journal.parent.name}: its run could not be written" in ended.stderr
    assert waiting(tmp_path) == [journal]


@pytest.mark.parametrize("left", [b"", b'{"subject": {"identi'], ids=["nothing", "half a line"])
def test_a_journal_that_holds_no_run_is_removed_and_holds_up_none(left, tmp_path):
    assert run_tracked(tmp_path, AS_LIGHT + WORK).returncode == 0
    (good,) = waiting(tmp_path)
    empty = good.parent.with_name("offline-run-20260101_000000-other-0123456789abcdef")
    shutil.copytree(good.parent, empty)
    (empty / good.name).write_bytes(left)
    with journals._held(empty / good.name) as held:
        assert held is None, "its job may have just begun"
    assert (empty / good.name).exists()
    os.utime(empty / good.name, (0, 0))
    good.write_bytes(good.read_bytes() + b"\xff\xfe\n")  # bytes that are no text
    assert write(tmp_path) == {}
    assert waiting(tmp_path) == []
    assert not empty.exists()
    assert len(run_directories(tmp_path)) == 1


def test_a_journal_for_which_the_disk_has_no_room_is_kept_and_named(tmp_path, monkeypatch):
    assert run_tracked(tmp_path, AS_LIGHT + WORK).returncode == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    failed = journals.write_all(tmp_path / "results/demo/wandb", alone=False)
    (journal,) = waiting(tmp_path)
    assert "has no room for it" in failed[journals.log_of(journal)]


def test_a_writer_that_is_killed_as_it_removes_a_journal_leaves_none(tmp_path, monkeypatch):
    assert run_tracked(tmp_path, AS_LIGHT + WORK).returncode == 0
    monkeypatch.setattr(journals, "_write", lambda *of: True)
    monkeypatch.setattr(shutil, "rmtree", lambda path: None)
    journals.write_all(tmp_path / "results/demo/wandb", alone=False)
    assert waiting(tmp_path) == []


def test_a_journal_holds_no_secret_of_its_job(tmp_path):
    body = AS_LIGHT + WORK.replace(
        "with job(snakemake) as run:\n", "snakemake.params = {'note': 'sekretvalue99'}\nwith job(snakemake) as run:\n"
    )
    assert run_tracked(tmp_path, body, MY_SECRET="sekretvalue99").returncode == 0
    (journal,) = waiting(tmp_path)
    assert '"note": "***"' in journal.read_text()


@pytest.mark.parametrize("texts", [False, True])
def test_a_journal_holds_texts_of_rows_only_where_runs_may(texts, tmp_path):
    chosen = json.dumps(json.loads(settings("offline")) | {"texts": texts})
    ended = run_job(tmp_path, AS_LIGHT + PRIVATE_WORK, ICPROBE_TRACKING=chosen)
    assert ended.returncode == 0, ended.stderr
    (journal,) = waiting(tmp_path)
    assert "0.25" in journal.read_text()
    for text in SECRET.values():
        assert (text in journal.read_text()) == texts


@pytest.mark.parametrize("environment", [{}, {"WANDB_MODE": "disabled"}], ids=["configuration", "environment"])
def test_where_wandb_is_disabled_a_light_job_leaves_nothing(environment, tmp_path):
    mode = "offline" if environment else "disabled"
    ended = run_tracked(tmp_path, AS_LIGHT + WORK, mode, **environment)
    assert ended.returncode == 0, ended.stderr
    assert not (tmp_path / "results/demo/wandb").exists()


def test_a_light_job_with_a_key_is_online_at_once(tmp_path, server):
    ended = run_tracked(tmp_path, AS_LIGHT + WORK, mode="auto", WANDB_API_KEY="a" * 40, WANDB_BASE_URL=server.url)
    assert ended.returncode == 0, ended.stderr
    assert waiting(tmp_path) == []
    assert server.sent("UpsertBucket")[0]["jobType"] == "fine_tune"


@pytest.mark.parametrize(
    ("place", "text", "found"),
    [
        ("netrc", "machine api.wandb.ai login user password " + "a" * 40, True),
        ("netrc", "machine example.org login user password word", False),
        ("config/settings", "[default]\napi_key = " + "a" * 40, True),
        ("config/settings", "[default]\nproject = mine", False),
        ("wandb/settings", "[default]\napi_key = " + "a" * 40, True),
    ],
)
def test_wandb_is_asked_for_a_key_wherever_it_could_find_one(place, text, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    assert not syncing._may_have_key(syncing.SERVER)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(text)
    assert syncing._may_have_key(syncing.SERVER) == found


SNAKEFILE = """
import json, os
os.environ["ICPROBE_TRACKING"] = json.dumps({"mode": "offline", "project": "icprobe", "experiment": "demo"})

rule all:
    input: "results/demo/a.txt", "results/demo/b.txt"

rule light:
    output: "results/demo/{name}.txt"
    log: "{name}.log"
    script: "light.py"
"""
SCRIPT = """
from pathlib import Path
from icprobe.workflow.jobs import job
with job(snakemake) as run:
    run.summary(examples=96)
    Path(snakemake.output[0]).write_text(snakemake.wildcards.name)
    assert snakemake.wildcards.name not in snakemake.config["sign"]
"""


def test_one_process_writes_the_runs_of_all_jobs_of_an_invocation_failed_ones_too(tmp_path):
    from test_invocations import Project

    project = Project(tmp_path)
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "light.py").write_text(SCRIPT)
    code, said = project.run("--keep-going", sign="b")
    assert code == 1, said
    ends = {}
    for _ in range(300):  # on a busy machine the last run is written after Snakemake has ended
        read = [inspect(log, "--summary") for run in run_directories(tmp_path) for log in run.glob("*.wandb")]
        ends = {run["name"]: run["exit_code"] for run in read if run.get("exit_code") is not None}
        if len(ends) == 3:
            break
        time.sleep(0.2)
    assert not waiting(tmp_path)
    assert ends == {"workflow all, 3 jobs": 1, "light a": 0, "light b": 1}


def test_lines_that_come_while_a_journal_is_read_are_written_another_time(tmp_path):
    """Where another machine's lock is not seen, its job may log in between."""
    assert run_tracked(tmp_path, AS_LIGHT + LIGHT).returncode == 0
    (journal,) = waiting(tmp_path)
    header, *entries, end = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([json.dumps({**json.loads(header), "machine": "elsewhere"}) + "\n", *entries]))
    with journals._held(journal) as (size, lines), open(journal, "a") as file:
        file.write(end)
        file.flush()
        assert (size < journal.stat().st_size, "end" in lines[-1]) == (True, False)
    # A run that has ended is written, whatever an earlier version has noted of its size.
    journal.with_name("written").write_text(str(journal.stat().st_size))
    journals.log_of(journal).parent.mkdir(parents=True, exist_ok=True)
    journals.log_of(journal).touch()
    assert write(tmp_path) == {}
    assert waiting(tmp_path) == []
