"""Offline runs are uploaded once, in order, and what could not be uploaded is named; the saved view of a project."""

import json
import subprocess
import sys
import time
from pathlib import Path

import dag
import pytest
from tracked import FILE, KEY, LIGHT, WORK, run_directories, run_jobs, run_name_of_work, run_of, run_tracked

from icprobe.tracking import records, saved_view, syncing, wandb_runs

pytestmark = pytest.mark.timeout(90)


def sync(
    directory: Path, server: str, *options: str, within: Path | None = None, **variables: str
) -> subprocess.CompletedProcess:
    """within: the folder in which it is called, by default the project's."""
    where = str(directory / "results/demo") if within else "results/demo"
    command = [sys.executable, "-m", "icprobe.tracking.syncing", "sync", where, *options]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(directory), "WANDB_API_KEY": KEY, "WANDB_BASE_URL": server}
    environment |= {"PYTHONPATH": str(Path(syncing.__file__).parents[2]), **variables}
    return subprocess.run(command, cwd=within or directory, env=environment, capture_output=True, text=True, timeout=80)


def test_sync_is_the_same_from_another_folder(tmp_path, server):
    assert run_tracked(tmp_path, WORK).returncode == 0
    (elsewhere := tmp_path / "elsewhere").mkdir()
    said = sync(tmp_path, server.url, "--dry-run", within=elsewhere)
    assert (said.returncode, "was removed" in said.stderr) == (0, False), said.stderr
    assert sync(tmp_path, server.url, within=elsewhere).returncode == 0
    assert len(server.sent("UseArtifact")) == 1


def test_sync_uploads_once_with_lineage_and_uploads_again_what_has_grown(tmp_path, server):
    assert run_tracked(tmp_path, WORK).returncode == 0
    first = sync(tmp_path, server.url)
    assert first.returncode == 0, first.stderr
    assert server.sent("UpsertBucket")[0]["displayName"] == run_name_of_work()
    assert len(server.sent("UseArtifact")) == 1
    asked = len(server.requests)
    second = sync(tmp_path, server.url)
    assert (second.returncode, len(server.requests)) == (0, asked), second.stderr
    (mark,) = (tmp_path / "results/demo/wandb").glob("*run-*/*.synced")
    (log,) = (tmp_path / "results/demo/wandb").glob("*run-*/*.wandb")
    assert syncing.pending(tmp_path / "results/demo/wandb") == []
    assert mark.name == log.name + ".synced"
    log.touch()
    assert syncing.pending(tmp_path / "results/demo/wandb") == [log]


def test_a_run_of_which_the_server_refuses_a_part_is_not_uploaded(tmp_path, server):
    assert run_tracked(tmp_path, WORK).returncode == 0
    server.refused = {"CreateArtifact"}
    first = sync(tmp_path, server.url)
    assert (first.returncode, run_directories(tmp_path)[0].name in first.stderr) == (1, True), first.stderr
    assert "failed to log artifact" in first.stderr
    server.refused = {"UseArtifact"}
    second = sync(tmp_path, server.url)
    assert second.returncode == 0, second.stderr
    assert "its inputs are not linked" in second.stderr


@pytest.mark.parametrize("kind", ["refused", "silent"])
def test_sync_without_a_server_names_the_runs_and_fails_soon(tmp_path, silent_server, kind):
    assert run_tracked(tmp_path, LIGHT).returncode == 0
    begun = time.monotonic()
    failed = sync(tmp_path, silent_server if kind == "silent" else "http://127.0.0.1:9", "--timeout", "1")
    assert failed.returncode == 1
    assert run_directories(tmp_path)[0].name in failed.stderr
    assert time.monotonic() - begun < 40


def test_makers_of_a_file_are_uploaded_before_its_readers(tmp_path):
    edges = {"c": (["b.out"], []), "a": ([], ["a.out"]), "b": (["a.out"], ["b.out"]), "killed": None}
    logs = {}
    for name, edge in edges.items():
        logs[name] = tmp_path / name / f"run-{name}.wandb"
        logs[name].parent.mkdir()
        if edge:
            (tmp_path / name / records.RECORD).write_text(json.dumps({"inputs": edge[0], "outputs": edge[1]}))
    waves = syncing.waves([*map(records.read, logs.values())])
    assert [[run.log.parent.name for run in wave] for wave in waves] == [["a", "killed"], ["b"], ["c"]]


def names_sent(server) -> set[str]:
    return {sent["displayName"] for sent in server.sent("UpsertBucket")} - {None}  # the summary is sent without


def test_each_bad_run_is_skipped_and_named_and_the_rest_goes_up(tmp_path, server):
    bad = ["removed", "changed", "corrupt", "empty"]
    run_jobs(
        tmp_path,
        *[("score", name, [], [name], {}) for name in [*bad, "fine"]],
        ("score", "reader", ["fine"], ["reader"], {}),
        ("score", "of_removed", ["removed"], ["of_removed"], {}),
    )
    (tmp_path / FILE.format("removed")).unlink()
    (tmp_path / FILE.format("changed")).write_text("other bytes")
    for name in ("corrupt", "empty"):
        (log,) = run_of(tmp_path, name).glob("*.wandb")
        content = bytearray(log.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 40] = b"x" * 40
        log.write_bytes(content if name == "corrupt" else b"")
    for _ in range(2):  # and so each time
        ended = sync(tmp_path, server.url)
        assert ended.returncode == 1, ended.stderr
        for name, why in {
            "removed": f"{FILE.format('removed')} was removed",
            "of_removed": f"{FILE.format('removed')} was removed",
            "changed": f"{FILE.format('changed')} was changed since",
            "corrupt": "its log is damaged",
            "empty": "its log cannot be read",
        }.items():
            assert f"{run_of(tmp_path, name).name}: {why}" in ended.stderr
        assert "5 runs were not uploaded" in ended.stderr
        assert names_sent(server) == {"score fine", "score reader"}
        assert {log.parent for log in syncing.pending(tmp_path / "results/demo/wandb")} == {
            run_of(tmp_path, name) for name in [*bad, "of_removed"]
        }


def test_a_log_that_breaks_off_holds_up_none_that_reads_what_its_job_made(tmp_path, server):
    run_jobs(tmp_path, ("score", "cut", [], ["cut"], {}), ("score", "reader", ["cut"], ["reader"], {}))
    (log,) = run_of(tmp_path, "cut").glob("*.wandb")
    log.write_bytes(log.read_bytes()[: log.stat().st_size // 2])
    ended = sync(tmp_path, server.url)
    assert ended.returncode == 1
    assert "1 runs were not uploaded" in ended.stderr
    assert syncing.CUT in ended.stderr
    assert "score reader" in names_sent(server)
    assert [path.parent for path in syncing.pending(tmp_path / "results/demo/wandb")] == [run_of(tmp_path, "cut")]


def test_a_file_that_is_on_the_server_may_be_gone_when_its_readers_are_uploaded(tmp_path, server):
    run_jobs(tmp_path, ("attribute", "shard", [], ["shard"], {}))
    assert sync(tmp_path, server.url).returncode == 0
    run_jobs(tmp_path, ("gather", "matrix", ["shard"], ["matrix"], {}))
    (tmp_path / FILE.format("shard")).unlink()
    ended = sync(tmp_path, server.url)
    assert ended.returncode == 0, ended.stderr
    assert len(server.sent("UseArtifact")) == 1
    assert len(server.sent("shard.parquet")) == 1


def test_of_a_job_that_ran_again_with_other_params_the_last_run_alone_is_uploaded(tmp_path, server):
    run_jobs(
        tmp_path,
        ("score", "icp", [], ["icp"], {"mean": 1}),
        ("score", "icp", [], ["icp"], {"mean": 2}),
        ("rename", "other", [], ["same"], {}),
        ("score", "another", [], ["same"], {}),
        pause=1,
    )
    ended = sync(tmp_path, server.url)
    assert ended.returncode == 0, ended.stderr
    assert f"{run_of(tmp_path, 'icp', {'mean': 1}).name} is superseded" in ended.stderr
    assert f"{run_of(tmp_path, 'other').name} is superseded" in ended.stderr
    assert names_sent(server) == {"score icp", "score another"}
    assert all('"mean": {"value": 1}' not in sent["config"] for sent in server.sent("UpsertBucket"))


def test_runs_of_jobs_that_the_workflow_no_longer_has_are_superseded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "results/demo/wandb"
    for method, rule in {"icp": "score", "gone": "score", "noise": "value_points", "failed": "score"}.items():
        run = directory / f"offline-run-20260101_000000-{method}"
        run.mkdir(parents=True)
        (run / f"run-{method}.wandb").touch()
        records.write(run, rule, {"method": method}, False, [], [{"name": FILE.format(method)}])
    everything = [run.parent.name.split("-")[-1] for run in syncing.pending(directory)]
    assert everything == ["failed", "gone", "icp", "noise"]

    def left() -> list[str]:
        return [run.parent.name.split("-")[-1] for run in syncing.pending(directory)]

    first, second = (
        [("score", [FILE.format(name) for name in names])] for names in (["icp", "gone"], ["icp", "failed"])
    )
    # Of an earlier version, which knew of no other targets.
    records.write_json(directory / records.PRESENT, {"score": [FILE.format("icp")]})
    records.tell_present("demo", [("correlate", [])], whole=False)
    assert left() == ["icp", "noise"]
    records.tell_present("demo", first, whole=True)
    assert left() == ["gone", "icp", "noise"]  # no rule of the whole makes noise; it was asked for by itself
    records.tell_present("demo", second, whole=False)
    assert left() == ["failed", "gone", "icp", "noise"]
    records.tell_present("demo", second, whole=True)
    assert left() == ["failed", "icp", "noise"]
    records.tell_present("demo", [("value_points", [FILE.format("noise")])], whole=False)
    records.tell_present("demo", second, whole=True)
    assert left() == ["failed", "icp", "noise"]  # what another target made stays
    records.tell_present("demo", [("correlate", [])], whole=True)
    assert left() == ["noise"]
    # What an earlier version wrote says nothing of which rules the whole has.
    noise = [FILE.format("noise")]
    records.write_json(directory / records.PRESENT, {"score": noise, "value_points": noise})
    records.tell_present("demo", second, whole=True)
    assert left() == ["failed", "icp", "noise"]


@pytest.mark.timeout(600)
def test_runs_of_a_target_that_was_asked_for_beside_all_are_those_of_another(tmp_path, tmp_path_factory, monkeypatch):
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path / "copy")
    config = {"wandb": {"mode": "offline"}, "truth": {"subsets": 8}}
    drawn = "results/tiny/tiny-llama/truth/subsets.parquet"
    for targets, forced in (["all", drawn], "compare_bins"), (["all"], "compare_bins"):
        ended = project.snakemake(*targets, "--cores", "2", "--forcerun", forced, config=config)
        assert ended.returncode == 0, ended.output[-3000:]
        directory = project.path / "results/tiny/wandb"
        present = json.loads((directory / records.PRESENT).read_text())
        assert present[records.BESIDE] == {"draw_sets": [drawn]}
        assert {"compare_bins", "select_tasks", "report", "subset", "all"} <= {*present[records.WHOLE]}
    runs = records.read_all(directory)
    assert {"draw_sets", "compare_bins"} <= {run.rule for run in runs}
    assert not {run.rule for run in runs if run.log in records.superseded(directory, runs)}


def test_readers_wait_where_the_server_refuses_what_they_read(tmp_path, server):
    run_jobs(tmp_path, ("score", "made", [], ["made"], {}), ("score", "reader", ["made"], ["reader"], {}))
    server.refused = {"CreateArtifact"}
    first = sync(tmp_path, server.url)
    assert first.returncode == 1
    maker = run_of(tmp_path, "made").name
    assert (
        f"{run_of(tmp_path, 'reader').name}: it reads what {maker} made, which must be uploaded first" in first.stderr
    )
    server.refused = set()
    assert sync(tmp_path, server.url).returncode == 0
    assert names_sent(server) == {"score made", "score reader"}


def test_a_refused_run_whose_upload_was_killed_does_not_keep_wandbs_mark(tmp_path, server):
    run_jobs(tmp_path, ("score", "icp", [], ["icp"], {}))
    assert sync(tmp_path, server.url).returncode == 0
    (log,) = run_of(tmp_path, "icp").glob("*.wandb")
    # As `wandb sync` leaves it where nobody looked at its log any more.
    logs = tmp_path / "results/demo/wandb/logs"
    logs.mkdir(exist_ok=True)
    entry = {"level": "ERROR", "msg": "sender: failed to log artifact", "sync_path": str(log)}
    (logs / "debug-sync.9.log").write_text(json.dumps(entry) + "\n")
    before = len(server.requests)
    assert sync(tmp_path, server.url).returncode == 0
    assert len(server.requests) > before


def test_wandbs_reason_is_told_whatever_the_variables_say(tmp_path, server):
    run_jobs(tmp_path, ("score", "cut", [], ["cut"], {}))
    (log,) = run_of(tmp_path, "cut").glob("*.wandb")
    log.write_bytes(log.read_bytes()[: log.stat().st_size // 2])
    ended = sync(tmp_path, server.url, WANDB_SILENT="true")
    assert ended.returncode == 1
    assert syncing.CUT in ended.stderr


def test_a_log_of_an_upload_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path, server):
    run_jobs(tmp_path, ("score", "icp", [], ["icp"], {}))
    logs = tmp_path / "results/demo/wandb/logs"
    logs.mkdir()
    (logs / "debug-sync.1.log").write_text('{"level": "ERROR", "msg": "x", "sync_path": "elsewhere"}\n{"level": "ER')
    for _ in range(2):
        ended = sync(tmp_path, server.url)
        assert ended.returncode == 0, ended.stderr


def test_the_server_takes_no_bytes_under_another_digest_and_the_run_is_named(tmp_path, server, monkeypatch):
    """A file that is made anew between the look at it and its upload."""
    run_jobs(tmp_path, ("score", "icp", [], ["icp"], {}))
    (tmp_path / FILE.format("icp")).write_text("other bytes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(records, "lost", lambda *_: None)
    for name, value in {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    failed = syncing.sync("results/demo")
    assert failed == {run_of(tmp_path, "icp").name: failed[run_of(tmp_path, "icp").name]}
    assert "400 Bad Request" in "".join(failed.values())
    assert server.committed == set()


def test_nothing_is_uploaded_where_wandb_is_disabled(tmp_path, server, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(syncing.TrackingError, match="disabled by WANDB_MODE"):
        syncing.sync(tmp_path)
    assert server.requests == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")
def test_the_saved_view_shows_correlations_overlaps_and_win_rates():
    pytest.importorskip("wandb_workspaces", reason="the package wandb-workspaces is optional")
    view = json.loads(saved_view.workspace("icprobe", "me", "demo")._to_model().model_dump_json())
    sections = view["spec"]["section"]["panel_bank_config"]["sections"]
    assert [section["name"] for section in sections] == [
        "Correlations",
        "Overlaps",
        "Win rates",
        "Training",
        "Workflow",
    ]
    workflow = [f"workflow/{state}" for state in ("done", "failed", "total")]
    metrics = [panel["config"].get("metrics") for section in sections for panel in section["panels"]]
    assert [metric for metric in metrics if metric] == [
        ["spearman"],
        ["overlap"],
        ["win_rate"],
        ["train/loss"],
        workflow,
    ]
    tables = [json.dumps(section["panels"][1]) for section in sections[:3]]
    assert all(
        f'"{name}"' in table for name, table in zip(("correlations", "overlaps", "win_rates"), tables, strict=True)
    )
    assert '"demo"' in json.dumps(view["spec"]["section"]["run_sets"][0]["filters"])


@pytest.mark.parametrize("said", ["filestream: fatal error: api: 403", "filestream: failed to upload: 409 Conflict"])
def test_a_history_that_the_server_refused_is_no_run_that_was_sent(said, tmp_path):
    log = tmp_path / "debug-internal.log"
    lines = [{"level": "INFO", "msg": said}, {"level": "ERROR", "msg": "filestream: retrying"}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert wandb_runs._refused(log) == ""
    log.write_text(json.dumps({"level": "ERROR", "msg": said}) + "\n")
    assert wandb_runs._refused(log) == said
