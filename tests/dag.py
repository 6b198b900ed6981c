"""The DAG as a user drives it: copies of the project in temporary folders, and `snakemake` as a process of its own.

The tiny experiment is run once; each test edits or disturbs a copy of the finished run. Snakemake's records name files
relative to the working directory, so a copy that keeps modification times is as finished as its original.
"""

import fcntl
import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import forked_jobs
import snakemakes
import yaml
from snakemake.utils import update_config

from icprobe.attribution import METHODS
from icprobe.config import Config, load

ROOT = Path(__file__).parents[1]
PARTS = (
    "Snakefile",
    "config.yaml",
    "configs",
    "envs",
    "profiles",
    "resources/demo",
    "rules",
    "slurm",
    "src",
    "workflow",
)
RESULTS = Path("results/tiny/tiny-llama")
# Digests by a source's content: `icprobe.fingerprints` parses no source twice.
CACHES = ".snakemake/icprobe-caches"

# Laid over configs/tiny.yaml: the train file is not the tokenizer's corpus, and every long job has several steps to be
# killed between, each of them saved.
SETTINGS = {
    "data": {"train": {"path": "train.jsonl"}},
    "attribution": {"batch_tokens": 256},
    "finetune": {"checkpoint_minutes": 1e-4},
    "evaluation": {"batch_size": 8},
    "wandb": {"mode": "disabled"},
}

# What an earlier configuration has left: the job of a bin that is gone, and of a rule that made what another makes now.
LEFT_BEHIND = {
    "fine_tune/tiny-llama/icp/gt-0.90/seed-0": "checkpoints/icp/gt-0.90/seed-0",
    "take_base_responses/tiny-llama": "responses/base.jsonl",
}


def configuration(*names: str) -> Config:
    """The configuration that these files make, each laid over those before it."""
    raw: dict = {}
    for name in names:
        update_config(raw, yaml.safe_load((ROOT / name).read_text(encoding="utf-8")))
    return load(raw, METHODS)


# An experiment of scores that others computed, without texts or a model.
OF_OTHERS = {
    "experiment": "given",
    "models": ["theirs"],
    "model_sources": {"tiny-llama": None, "theirs": {"source": "external"}},
    "data": {"train": None, "tasks": None, "eval": None, "labels": []},
}
MODEL = Path(configuration("config.yaml", "configs/tiny.yaml").model_directory("tiny-llama"))


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, what it wrote to the terminal, and the seconds of CPU that it took."""

    returncode: int
    output: str
    cpu_seconds: float

    @property
    def jobs(self) -> Counter[str]:
        """{rule: number of its jobs} from Snakemake's own table of what it runs, or would run."""
        table = re.search(r"^job +count\n[- ]+\n(.*?)^total ", self.output, re.MULTILINE | re.DOTALL)
        return Counter({rule: int(n) for rule, n in (row.split() for row in table[1].splitlines())} if table else {})


@dataclass(frozen=True)
class Project:
    """A copy of the project in a folder of its own."""

    path: Path

    def copy(self, to: Path) -> "Project":
        """A copy with the same modification times, results and Snakemake's records included."""
        subprocess.run(["cp", "-a", f"{self.path}/.", to], check=True)
        return Project(to)

    def edit(self, name: str, old: str, new: str) -> None:
        """Replaces the first `old` in a file, as an editor would: the file gets a new modification time."""
        path = self.path / name
        text = path.read_text(encoding="utf-8")
        if old not in text:
            raise ValueError(f"{name}: there is no {old!r}")
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    def read(self, name: str | Path) -> bytes:
        return (self.path / name).read_bytes()

    def log(self, *parts: str) -> str:
        """The log of a rule's job."""
        return self.path.joinpath("logs", *parts).read_text(encoding="utf-8")

    def start(
        self,
        *arguments: str,
        config: Mapping | None = None,
        environment: Mapping[str, str] | None = None,
        path: Sequence[Path] = (),
        forked: bool = False,
    ) -> "Running":
        """`snakemake` with the demo's configuration, configs/tiny.yaml, SETTINGS and `config`, each over those before.

        path: folders on PYTHONPATH before the copy's src. forked: whether jobs are.
        """
        output = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (`wait` closes it)
        command = forked_jobs.snakemake() if forked else [sys.executable, "-m", "snakemake"]
        process = subprocess.Popen(
            [*command, *arguments, *self._layers(config)],
            cwd=self.path,
            env=_environment(path=[*path, self.path / "src"]) | {**(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return Running(process, output)

    def snakemake(
        self,
        *arguments: str,
        config: Mapping | None = None,
        environment: Mapping[str, str] | None = None,
        path: Sequence[Path] = (),
    ) -> Ended:
        """The same, to its end; forked, but for one whose imports are other ones: with hooks on its path."""
        if path:
            return self.start(*arguments, config=config, environment=environment, path=path).wait()
        return forked([*arguments, *self._layers(config)], self.path, **(environment or {}))

    def _layers(self, config: Mapping | None) -> list[str]:
        # Named, the demo's lies under them although SETTINGS bring a train file.
        layers = ["config.yaml", "configs/tiny.yaml", "settings.yaml"]
        if config is not None:
            (self.path / "mine.yaml").write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
            layers.append("mine.yaml")
        return ["--nocolor", "--configfile", *layers]


def _environment(path: Sequence[Path]) -> dict[str, str]:
    """This process's variables, without those that say how to work; path: folders on PYTHONPATH."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WANDB", "ICPROBE", "SNAKEMAKE", "PYTEST", "SLURM"))
    }
    # Some of the machine's users are others; a test that wants more threads says so.
    return {
        **inherited, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"
    }  # fmt: skip


def forked(arguments: Sequence[str], folder: Path, **environment: str) -> Ended:
    """`snakemake` in a folder that holds the project, with its src on PYTHONPATH; its CPU is without the imports."""
    return Ended(*snakemakes.snakemake(arguments, _environment([folder / "src"]) | environment, folder))


class Running:
    """A `snakemake` that has not ended yet."""

    def __init__(self, process: subprocess.Popen, output) -> None:
        self.process, self._output, self._usage = process, output, None

    @property
    def ended(self) -> bool:
        """Whether Snakemake has ended; `wait` tells how."""
        return self._reaped(os.WNOHANG)

    def _reaped(self, options: int) -> bool:
        if self._usage is None:
            ended, status, usage = os.wait4(self.process.pid, options)
            if ended:
                self.process.returncode, self._usage = os.waitstatus_to_exitcode(status), usage
        return self._usage is not None

    def wait(self) -> Ended:
        self._reaped(0)
        usage = self._usage
        self._output.seek(0)
        with self._output:
            return Ended(self.process.returncode, self._output.read(), usage.ru_utime + usage.ru_stime)

    def kill_all(self) -> Ended:
        """SIGKILL to Snakemake and all that it started, as when a machine goes down."""
        os.killpg(self.process.pid, signal.SIGKILL)
        return self.wait()


_made: list[Path] = []  # by this process


def new(to: Path) -> Project:
    """A copy of the project's files, without results, and with what an earlier copy has found the code to mean."""
    for part in PARTS:
        (to / part).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", ROOT / part, to / part], check=True)
    subprocess.run(["cp", to / "resources/demo/train.jsonl", to / "train.jsonl"], check=True)
    (to / "settings.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    if earlier := next((path for path in _made if (path / CACHES).exists()), None):
        (to / CACHES).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", earlier / CACHES, to / CACHES], check=True)
    _made.append(to)
    return Project(to)


def _leave_behind(project: Project) -> None:
    for name, output in LEFT_BEHIND.items():
        stem = project.path / "logs/tiny" / name
        stem.parent.mkdir(parents=True)
        stem.with_name(f"{stem.name}.benchmark.tsv").write_text("s\th:m:s\tmax_rss\n86400\t24:00:00\t1\n")
        record = {"rule": name.split("/")[0], "inputs": [], "environment": {"device": "left behind"}}
        made = {**record, "outputs": [str(RESULTS / output)]}
        stem.with_name(f"{stem.name}.environment.json").write_text(json.dumps(made), encoding="utf-8")


@functools.cache
def finished(folder: Path) -> Project:
    """The tiny experiment, run to its end; the same one for all tests of a session, on whichever worker they run."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "ended").exists():
            return Project(folder / "finished")
        project = new(folder / "finished")
        _leave_behind(project)
        # Itself not forked: a seed of hashes of its own shows what of the params depends on it.
        ended = project.start("all", "--cores", "2", forked=True).wait()
        if ended.returncode:
            raise RuntimeError(ended.output[-6000:])
        (folder / "ended").touch()
        return project
