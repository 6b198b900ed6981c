"""What clusters and people do to jobs: nothing is lost, nothing is done twice, and no number changes."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import dag
import pyarrow.parquet as pq
import pytest

# The first test waits for the tiny experiment, on a machine that may be busy.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# Read by every Python process that has its folder on PYTHONPATH: a job stands still after its n-th step of progress,
# says which process it is, and waits to be killed.
STANDSTILL = """
import os
import time

import icprobe.progress

steps, update = 0, icprobe.progress.Progress.update


def counted(self, *done, **named):
    global steps
    update(self, *done, **named)
    steps += 1
    if steps == int(os.environ.get("STAND_STILL_AFTER", 0)):
        aside = os.environ["STANDING"] + ".aside"
        with open(aside, "w") as file:
            file.write(str(os.getpid()))
        os.replace(aside, os.environ["STANDING"])
        time.sleep(900)


icprobe.progress.Progress.update = counted
"""
READY_SECONDS = 600  # a busy machine may take long to begin a job

ICP = dag.RESULTS / "attributions/icp/1-of-2.parquet"
ONE_STEP = dag.RESULTS / "attributions/one_step/1-of-2.parquet"
ICP_BUDGET = dag.RESULTS / "attributions/icp_budget/1-of-1.parquet"
CHECKPOINT = dag.RESULTS / "checkpoints/all/all/seed-0"
RESPONSES = dag.RESULTS / "responses/base.jsonl"
JUDGEMENTS = dag.RESULTS / "judgements/all/all/seed-0.jsonl"
RETRAINED = dag.RESULTS / "truth/subsets/1-of-1.parquet"
WEIGHTS = dag.MODEL / "model.safetensors"


@contextmanager
def standing(project: dag.Project, target: Path, steps: int, *arguments: str) -> Iterator[tuple[dag.Running, int]]:
    """`snakemake target`, whose job stands still after so many steps: the running Snakemake, and the job's process."""
    hooks, mark = project.path / "hooks", project.path / "standing"
    hooks.mkdir(exist_ok=True)
    (hooks / "sitecustomize.py").write_text(STANDSTILL, encoding="utf-8")
    mark.unlink(missing_ok=True)
    environment = {"STAND_STILL_AFTER": str(steps), "STANDING": str(mark)}
    running = project.start(str(target), "--cores", "2", *arguments, environment=environment, path=[hooks])
    ends = time.monotonic() + READY_SECONDS
    while not mark.exists() and not running.ended and time.monotonic() < ends:
        time.sleep(0.05)
    if not mark.exists():
        ended = running.wait() if running.ended else running.kill_all()
        pytest.fail(f"the job of {target} never came to step {steps}\n{ended.output}")
    yield running, int(mark.read_text())


def files(path: Path) -> dict[str, bytes]:
    """The content of a file, or of every file in a directory."""
    if path.is_file():
        return {path.name: path.read_bytes()}
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != ".snakemake_timestamp"
    }


def partial(project: dag.Project) -> dict[str, bytes]:
    return files(project.path / "results/tiny/.partial")


def killed_twice(
    project: dag.Project, target: Path, steps: tuple[int, int], log: str, resumed: Callable[[str], bool]
) -> None:
    """SIGKILL to the job, then SIGTERM to the next one, then it runs to its end: in what an undisturbed run gave."""
    wanted = files(project.path / target)
    for signal_, after, force in ((signal.SIGKILL, steps[0], ["--force"]), (signal.SIGTERM, steps[1], [])):
        with standing(project, target, after, *force) as (running, job):
            assert not (project.path / target).exists(), "a result stands under its name before it is complete"
            os.kill(job, signal_)
            ended = running.wait()
        assert ended.returncode == 1, ended.output
        assert not (project.path / target).exists()
        if signal_ is signal.SIGTERM:
            assert "terminated by SIGTERM" in project.log(log)
            assert resumed(project.log(log)), project.log(log)
            assert not [name for name in partial(project) if ".partial" in Path(name).name]
    ended = project.snakemake(str(target), "--cores", "2")
    assert ended.returncode == 0, ended.output
    assert resumed(project.log(log)), project.log(log)
    assert files(project.path / target) == wanted
    assert not partial(project), "what was partial is left behind"


def attribute_saves_each_batch(project: dag.Project) -> None:
    """And each pass: not only what took twenty seconds."""
    project.edit("src/icprobe/attribution/shards.py", "SAVE_SECONDS = ", "SAVE_SECONDS = 0 * ")
    project.edit("src/icprobe/attribution/icp.py", "PIECE_SECONDS = ", "PIECE_SECONDS = 0 * ")


def attribute(project: dag.Project) -> None:
    attribute_saves_each_batch(project)
    log = "tiny/attribute/tiny-llama/icp/1-of-2.log"
    killed_twice(project, ICP, (2, 1), log, lambda text: "examples were finished before" in text)


def retrain(project: dag.Project) -> None:
    """A killed job loses the training that it was at."""
    project.edit("settings.yaml", "wandb:", "truth: {subsets: 3}\nwandb:")
    ended = project.snakemake(str(RETRAINED), "--cores", "2")
    assert ended.returncode == 0, ended.output
    shutil.rmtree(project.path / "results/tiny/.cache/retrainings")
    log = "tiny/retrain/tiny-llama/subsets/1-of-1.log"
    killed_twice(project, RETRAINED, (2, 2), log, lambda text: "trainings were finished before" in text)


def one_step(project: dag.Project) -> None:
    attribute_saves_each_batch(project)
    log = "tiny/attribute/tiny-llama/one_step/1-of-2.log"
    killed_twice(project, ONE_STEP, (5, 8), log, lambda text: "examples were finished before" in text)


def icp_budget(project: dag.Project) -> None:
    """Killed within its first round, and within a later one."""
    attribute_saves_each_batch(project)
    methods = "[icp, influence, influence_log, one_step, length, random, icp_budget]"
    project.edit(
        "settings.yaml", "attribution:\n", f"attribution:\n  methods: {methods}\n  icp_budget: {{round_tasks: 2}}\n"
    )
    made = project.snakemake(str(ICP_BUDGET), "--cores", "2")
    assert made.returncode == 0, made.output
    log = "tiny/attribute/tiny-llama/icp_budget/1-of-1.log"
    killed_twice(project, ICP_BUDGET, (2, 5), log, lambda text: "and parts of others (" in text)


def fine_tune(project: dag.Project) -> None:
    log = "tiny/fine_tune/tiny-llama/all/all/seed-0.log"
    killed_twice(project, CHECKPOINT, (2, 2), log, lambda text: "Resuming from checkpoint-" in text)


def generate(project: dag.Project) -> None:
    log = "tiny/generate_base/tiny-llama.log"
    # A step for each batch, those of the first try included; done/total shows the rest.
    killed_twice(project, RESPONSES, (1, 2), log, lambda text: True)


def judge(project: dag.Project) -> None:
    killed_twice(project, JUDGEMENTS, (3, 2), "tiny/judge/tiny-llama/all/all/seed-0.log", lambda text: True)


def generated_once(project: dag.Project) -> None:
    """A killed generation keeps its finished batches and adds to them; none is generated twice."""
    with standing(project, RESPONSES, 1, "--force") as (running, job):
        os.kill(job, signal.SIGKILL)
        running.wait()
    (first,) = partial(project).values()
    with standing(project, RESPONSES, 2) as (running, job):
        os.kill(job, signal.SIGKILL)
        running.wait()
    (second,) = partial(project).values()
    assert len(first.splitlines()) == 8
    assert len(second.splitlines()) == 16
    assert second.startswith(first)


def snakemake_killed(project: dag.Project) -> None:
    """The machine goes down: Snakemake and its job are killed. It says how to go on, and goes on."""
    wanted = files(project.path / ICP)
    with standing(project, ICP, 1, "--force") as (running, _):
        running.kill_all()
    locked = project.snakemake(str(ICP), "--cores", "2")
    assert locked.returncode == 1
    assert "--unlock" in locked.output
    assert "Traceback" not in locked.output
    assert project.snakemake(str(ICP), "--unlock").returncode == 0
    planned = project.snakemake(str(ICP), "-n")
    assert planned.jobs == {"attribute": 1}, planned.output
    ended = project.snakemake(str(ICP), "--cores", "2")
    assert ended.returncode == 0, ended.output
    assert files(project.path / ICP) == wanted


def two_at_once(project: dag.Project) -> None:
    """A second Snakemake on the same results is refused, and harms neither."""
    wanted = files(project.path / JUDGEMENTS)
    with standing(project, JUDGEMENTS, 3, "--force") as (running, job):
        second = project.snakemake(str(JUDGEMENTS), "--cores", "1")
        assert second.returncode == 1
        assert "Directory cannot be locked" in second.output
        assert not running.ended
        os.kill(job, signal.SIGKILL)
        running.wait()
    assert project.snakemake(str(JUDGEMENTS), "--cores", "1").returncode == 0
    assert files(project.path / JUDGEMENTS) == wanted


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = len(content) // 3
    if path.suffix == ".parquet":
        # In the last page of the first task's column: a bit of the footer's statistics would change no number.
        column = pq.ParquetFile(path).metadata.row_group(0).column(1)
        first = column.dictionary_page_offset or column.data_page_offset
        place = first + column.total_compressed_size - 2
    content[place] ^= 0b100
    path.write_bytes(content)


def damaged(file: Path, damage: Callable[[Path], None], target: Path) -> Callable[[dag.Project], None]:
    """A file that was truncated or changed after it was made is found out and named; no result is made from it."""

    def check(project: dag.Project) -> None:
        damage(project.path / file)
        ended = project.snakemake(str(target), "--cores", "1", "--force")
        assert ended.returncode == 1, f"made from a damaged file:\n{ended.output}"
        assert f"{file}: " in ended.output
        assert "Traceback" not in ended.output, ended.output
        assert not (project.path / target).exists()

    return check


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """The folder on a file system of so many bytes, empty at first."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disk(project: dag.Project) -> None:
    """Unfinished work, then the result itself, find a full disk: it is said, nothing half stands there, it goes on."""
    wanted = files(project.path / ICP)
    attribute_saves_each_batch(project)
    unfinished, results = project.path / "results/tiny/.partial", (project.path / ICP).parent

    def refused(*arguments: str) -> None:
        ended = project.snakemake(str(ICP), "--cores", "2", *arguments)
        assert ended.returncode == 1, ended.output
        assert f"{ICP}: the disk is full. Free some space and run again" in ended.output
        assert "Traceback" not in ended.output
        assert not (project.path / ICP).exists()

    with small_disk(unfinished, 2 * os.sysconf("SC_PAGE_SIZE")):
        refused("--force")
        kept = partial(project)
        assert kept
        subprocess.run(["mount", "-o", "remount,size=1m", str(unfinished)], check=True)
        with small_disk(results, os.sysconf("SC_PAGE_SIZE")):
            filler = results / "filler"
            filler.write_bytes(b"x" * os.sysconf("SC_PAGE_SIZE"))
            refused()
            assert os.listdir(results) == ["filler"], "a truncated file, or rubbish"
            filler.unlink()
            ended = project.snakemake(str(ICP), "--cores", "2")
            assert ended.returncode == 0, ended.output
            assert "examples were finished before" in project.log("tiny/attribute/tiny-llama/icp/1-of-2.log")
            assert files(project.path / ICP) == wanted


def clock_ahead(project: dag.Project) -> None:
    """An input was written by a machine whose clock is some seconds ahead: the result is newer all the same."""
    scores, overlaps = project.path / dag.RESULTS / "scores/icp.parquet", dag.RESULTS / "tables/overlaps.csv"
    wanted = project.read(overlaps)
    ahead = time.time() + 12
    os.utime(scores, (ahead, ahead))
    ended = project.snakemake(str(overlaps), "--force", "--cores", "1")
    assert ended.returncode == 0, ended.output
    assert project.read(overlaps) == wanted
    assert (project.path / overlaps).stat().st_mtime > ahead
    assert "Nothing to be done" in project.snakemake(str(overlaps), "-n").output


def no_home(project: dag.Project) -> None:
    """A home in which nothing can be written, not by root either."""
    targets = [str(dag.RESULTS / "figures/lengths.svg"), str(RESPONSES)]
    wanted = project.read(RESPONSES)
    ended = project.start(*targets, "--force", "--cores", "2", environment={"HOME": "/proc/none"}).wait()
    assert ended.returncode == 0, ended.output
    assert project.read(RESPONSES) == wanted


def one_core(project: dag.Project) -> None:
    """The experiment with --cores 1 and with --cores 2, each job with one thread (OMP_NUM_THREADS, as `dag` sets it):
    the same bytes in matrices, scores, subsets and tables.
    """
    first = {name: files(project.path / dag.RESULTS / name) for name in ("attributions", "scores", "subsets", "tables")}
    # From the same responses the same judgements and tables of win rates; the responses themselves follow below.
    judged = [dag.RESULTS / "tables/win_rates.csv", JUDGEMENTS]
    before = files(project.path / JUDGEMENTS)
    ended = project.snakemake(*map(str, judged), "--force", "--cores", "1")
    assert ended.returncode == 0, ended.output
    assert files(project.path / JUDGEMENTS) == before
    assert files(project.path / dag.RESULTS / "tables") == first["tables"]
    base, checkpoint = project.read(RESPONSES), files(project.path / CHECKPOINT)
    shutil.rmtree(project.path / "results")
    of_win_rates = {"win_rates.csv", "win_rates.md", "win_rates.tex", "differences.csv"}
    first["tables"] = {name: content for name, content in first["tables"].items() if name not in of_win_rates}
    targets = [str(dag.RESULTS / part / name) for part in ("tables", "subsets") for name in first[part]]
    ended = project.snakemake(*targets, str(RESPONSES), str(CHECKPOINT), "--cores", "1")
    assert ended.returncode == 0, ended.output
    second = {name: files(project.path / dag.RESULTS / name) for name in first}
    different = [
        f"{name}/{file}"
        for name in first
        for file in first[name].keys() | second[name].keys()
        if second[name].get(file) != first[name].get(file)
    ]
    # What win rates are made of.
    different += [str(RESPONSES)] if project.read(RESPONSES) != base else []
    different += [str(CHECKPOINT)] if files(project.path / CHECKPOINT) != checkpoint else []
    assert not different, f"of other bytes with one core: {', '.join(different)}"


MATRIX = dag.RESULTS / "attributions/icp.parquet"
FAULTS: dict[str, Callable[[dag.Project], None]] = {
    "the results of one core are those of two": one_core,
    "a killed fine_tune goes on": fine_tune,
    "a killed attribute goes on": attribute,
    "a killed one_step goes on": one_step,
    "a killed retraining goes on": retrain,
    "a killed icp_budget goes on": icp_budget,
    "a killed generate goes on": generate,
    "a killed generate generates nothing twice": generated_once,
    "a killed judge runs again": judge,
    "a killed snakemake goes on": snakemake_killed,
    "a second snakemake is refused": two_at_once,
    "a truncated shard is named": damaged(ICP, truncate, MATRIX),
    "a shard with a flipped bit is named": damaged(ICP, flip, MATRIX),
    "a truncated model is named": damaged(WEIGHTS, truncate, ICP),
    "a model with a flipped bit is named": damaged(WEIGHTS, flip, RESPONSES),
    "a home that cannot be written is no hindrance": no_home,
    "a full disk is said, and work goes on": full_disk,
    "a clock that is ahead holds up for as long": clock_ahead,
}


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory):
    """name → what became of that fault; two at a time, each in a copy of the finished experiment."""
    finished = dag.finished(tmp_path_factory.getbasetemp())
    asked = [item.callspec.params["fault"] for item in request.session.items if item.path == Path(__file__)]

    def suffer(name: str) -> None:
        FAULTS[name](finished.copy(tmp_path_factory.mktemp("faulty")))

    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(suffer, name) for name in asked}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_lose_nothing_and_change_no_number(fault, outcomes):
    outcomes[fault].result()
