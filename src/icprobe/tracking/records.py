"""What a W&B run's directory says of its job: which rule made what from what; and so, which runs still count.

Each run's directory holds such a record beside W&B's own log. `jobs.json` above them, written by the Snakefile, names
what the jobs of the present workflow make. No W&B here.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icprobe import paths
from icprobe.artifacts import content_digest, write_json
from icprobe.errors import IcprobeError
from icprobe.tracking import journals
from icprobe.tracking.lineage import UPLOAD_BYTES, artifact_type, holds_texts

RECORD = "edges.json"  # in a run's directory
PRESENT, WHOLE, BESIDE = "jobs.json", "all", "other targets"  # above all of them

Facts = Mapping[str, Any]  # name; of a finished job also bytes and digest (`lineage.describe`)


@dataclass(frozen=True)
class Record:
    """One run: its log, its job, and what that read and makes. texts: whether it holds texts of rows."""

    log: Path
    rule: str | None = None
    wildcards: Mapping[str, str] = field(default_factory=dict)
    inputs: Sequence[Facts] = ()
    outputs: Sequence[Facts] = ()
    texts: bool = False

    @property
    def job(self) -> tuple | None:
        """The same for all runs of one job, whatever its params; None where the record does not say."""
        return (self.rule, *sorted(self.wildcards.items())) if self.rule else None

    @property
    def began(self) -> str:
        """When it began, to the second: directories are named run-{time}-{id} or offline-run-{time}-{id}."""
        return self.log.parent.name.removeprefix("offline-").split("-")[1]


def write(
    directory: Path, rule: str, wildcards: Mapping[str, str], texts: bool, inputs: Iterable, outputs: Iterable
) -> None:
    """A run's record; texts: whether the run may hold texts, where its files do; inputs, outputs: facts."""
    edges = {"inputs": list(inputs), "outputs": list(outputs)}
    held = texts and _any_texts(edges)
    write_json(directory / RECORD, {"rule": rule, "wildcards": dict(wildcards), "texts": held, **edges})


def _any_texts(edges: Mapping[str, Iterable[Facts]]) -> bool:
    return any(holds_texts(one["name"]) for side in edges.values() for one in side)


def read(log: Path, beside: Path | None = None) -> Record:
    """The record beside a run's log, or beside the journal that it is to be made of; an empty one where there is none
    that can be read.
    """
    try:
        found = json.loads((beside or log).with_name(RECORD).read_text(encoding="utf-8"))
        # Names alone: written before facts were.
        edges = {
            side: [{"name": one} if isinstance(one, str) else one for one in found[side]]
            for side in ("inputs", "outputs")
        }
        # Before records said it, runs held all texts of their files.
        texts = found["texts"] if "texts" in found else _any_texts(edges)
        return Record(log, found.get("rule"), found.get("wildcards") or {}, **edges, texts=texts)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return Record(log)


def read_all(directory: Path) -> list[Record]:
    """The records of all runs below results/{experiment}/wandb, those to be made of journals too, by their paths."""
    logs: dict[Path, Path | None] = {journals.log_of(journal): journal for journal in journals.waiting(directory)}
    logs |= dict.fromkeys(directory.glob("*run-*/run-*.wandb"))
    return [read(log, journal) for log, journal in sorted(logs.items())]


# --- the present workflow ---------------------------------------------------------------------------------------


def tell_present(experiment: str, jobs: Iterable[tuple[str, Iterable[str]]], whole: bool) -> None:
    """Keeps what the workflow's jobs make, for `superseded`.

    jobs: (rule, outputs). whole: the jobs are all of the experiment; of a part, what was known before stays, and rules
    that the whole has never had stay beside it.
    """
    path = Path(paths.EXPERIMENT.format(experiment=experiment), paths.WANDB, PRESENT)
    of_whole, beside = _present(path)
    made: dict[str, set[str]] = defaultdict(set)
    for rule, outputs in jobs:
        made[rule].update(map(str, outputs))
    if whole:
        # A rule that the whole no longer has makes nothing.
        of_whole = dict.fromkeys(of_whole, ()) | made
        beside = {rule: outputs for rule, outputs in beside.items() if rule not in of_whole}
    else:
        for rule, outputs in made.items():
            known = of_whole if rule in of_whole else beside
            known[rule] = outputs.union(known.get(rule, ()))
    told = {WHOLE: of_whole, BESIDE: beside}
    with suppress(OSError):  # where the directory cannot be written, the jobs' logs say so
        write_json(path, {name: {rule: sorted(made) for rule, made in rules.items()} for name, rules in told.items()})


def _present(path: Path) -> tuple[dict[str, Collection[str]], dict[str, Collection[str]]]:
    """What the jobs of the whole make, by their rules, and what those of other targets do."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        # Versions before 0.1 did not tell the whole from other targets.
        return ({}, found) if all(isinstance(made, list) for made in found.values()) else (found[WHOLE], found[BESIDE])
    except (OSError, ValueError, LookupError, AttributeError):
        return {}, {}


def superseded(directory: Path, runs: Iterable[Record]) -> dict[Path, str]:
    """{log: why} of runs that no longer count: a later run is of the same job, or of the job that makes the same file
    now; or the workflow has no such job any more. directory: results/{experiment}/wandb.
    """
    runs = list(runs)
    latest: dict[Any, Record] = {}
    for run in sorted(runs, key=lambda run: run.began):
        for key in (run.job, *(made["name"] for made in run.outputs)):
            latest[key] = run
    of_whole, beside = _present(directory / PRESENT)
    present = beside | of_whole
    found = {}
    for run in runs:
        names = [made["name"] for made in run.outputs]
        later = next((latest[key] for key in (run.job, *names) if key and latest[key].began > run.began), None)
        if later is not None:
            found[run.log] = f"{later.log.parent.name} came after it"
        elif names and run.rule in present and not set(names) & set(present[run.rule]):
            found[run.log] = "the workflow has no such job any more"
    return found


# --- files ------------------------------------------------------------------------------------------------------


def versions(runs: Iterable[Record]) -> set[tuple[str, str]]:
    """(name, digest) of all files that runs read and made."""
    return {(one["name"], one["digest"]) for run in runs for one in (*run.inputs, *run.outputs) if "digest" in one}


def lost(run: Record, sent: set[tuple[str, str]]) -> str | None:
    """Why a run's files cannot be sent as it logged them; None where they can be, or need not be sent.

    sent: versions that the server has. Files are read where they lie when they are uploaded: what was made anew would
    arrive under the old digest.
    """
    for facts in _sent_whole(run, sent):
        # Named as from the folder that holds results/, whatever folder this is.
        file = run.log.parents[4] / facts["name"]
        if not file.exists():
            return f"{facts['name']} was removed"
        if _digest(file) != facts["digest"]:
            return f"{facts['name']} was changed since"
    return None


def what_is_sent(run: Record, sent: set[tuple[str, str]]) -> str:
    """What an upload of a run holds, in words, with its files that would be sent; sent: versions the server has."""
    files = [
        f"the manifest of {one['name']}"
        if artifact_type(one["name"]) == "model"
        else f"{one['name']} ({one.get('bytes', 0):,} bytes)"
        for one in _sent_whole(run, sent)
    ]
    logged = "configuration, numbers, tables and cards of files" + (", tables with texts" if run.texts else "")
    return "; ".join(filter(None, [logged, ", ".join(files)]))


def _sent_whole(run: Record, sent: set[tuple[str, str]]) -> list[Facts]:
    """The files of a run that are sent as they are, and are not there yet.

    Of a large file, and of texts that stay here, a card is sent; of a model its manifest.
    """
    found = []
    for facts in (*run.outputs, *run.inputs):
        name, digest = facts["name"], facts.get("digest")
        kind = artifact_type(name)
        whole = kind is not None and (kind == "model" or facts.get("bytes", 0) <= UPLOAD_BYTES)
        if digest is not None and whole and (run.texts or not holds_texts(name)) and (name, digest) not in sent:
            found.append(facts)
    return found


def _digest(file: Path) -> str | None:
    try:
        return content_digest(file)
    except (OSError, IcprobeError):
        return None
