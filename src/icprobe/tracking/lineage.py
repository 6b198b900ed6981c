"""What a job is to others: its id and name as a run, and what its inputs and outputs are as artifacts. No W&B here."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icprobe import paths
from icprobe.artifacts import content_digest, digest
from icprobe.errors import IcprobeError
from icprobe.formatting import bin_text

# The x-axis of every training curve, so that all bins meet in one chart.
STEP = "train/step"
# The x-axis of the workflow's own curves: seconds since it began.
CLOCK = "workflow/seconds"
# Hashing a larger file would take longer than a light job: its size must do.
DIGEST_BYTES = 2 * 10**9
# A larger file is logged by name and digest alone, so that no run holds a second copy of a model or a big matrix.
UPLOAD_BYTES = 50 * 10**6


def _beginning(pattern: str) -> re.Pattern[str]:
    """How paths of a pattern begin: whole up to the first wildcard that is neither the experiment nor the model.

    By its place, never by a part found anywhere: an experiment may be called "outcomes", a model "scores".
    """
    begins = re.split(r"\{(?!experiment\}|model\})", pattern)[0]
    return re.compile("[^/]+".join(map(re.escape, re.split(r"\{\w+\}", begins))))


# Type of the W&B artifact that a path is, by the first of these that it begins with.
ARTIFACT_TYPES = {
    _beginning(pattern): kind
    for pattern, kind in {
        paths.MODEL_NAME: "model",
        paths.REPORT: "report",
        paths.SCORES_REPORT: "report",
        paths.TRUTH_REPORT: "report",
        paths.data("{table}"): "dataset",
        paths.figure_of_all("{file}"): "figure",
        paths.TRANSFORMER: "model",
        paths.synthetic("figures/{file}"): "figure",
        paths.synthetic("{file}"): "table",
        paths.CHECKPOINT: "model",
        paths.matrix(): "attribution",
        paths.scores(): "score",
        paths.SUBSET: "subset",
        paths.RESPONSES: "responses",
        paths.OUTCOMES: "outcomes",
        paths.JUDGEMENTS: "judgements",
        paths.table("{file}"): "table",
        paths.figure("{file}"): "figure",
        paths.LENGTHS.removesuffix("lengths.parquet") + "{table}": "dataset",
        "resources/{file}": "dataset",
    }.items()
}
# Types of files that hold numbers alone. What holds texts, or may, leaves the machine only where `wandb.texts` says so.
WITHOUT_TEXTS = {"attribution", "score", "outcomes", "table", "figure", "model"}
TABLES_WITH_TEXTS = {"scores"}  # by their stems


def named(values: Any) -> dict[str, Any]:
    """The named entries of one of Snakemake's lists (wildcards, params), or of a mapping."""
    return dict(values.items()) if values else {}


@dataclass(frozen=True)
class Subject:
    """What a run is about: a job, or the whole workflow."""

    identity: str
    name: str  # for people
    kind: str  # the job type: a rule, or "workflow"
    tags: Sequence[str] = ()
    wildcards: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()


def of_job(experiment: str, snakemake: Any) -> Subject:
    """A job as the subject of its run; snakemake: the object that a script has."""
    wildcards, params = named(snakemake.wildcards), plain(named(snakemake.params))
    readable = {name: bin_text(value) if name == "bin" else value for name, value in wildcards.items()}
    return Subject(
        run_id(experiment, snakemake.rule, wildcards, params),
        run_name(snakemake.rule, wildcards),
        snakemake.rule,
        [str(readable[name])[:64] for name in ("method", "bin", "model") if readable.get(name)],
        wildcards,
        {**params, **wildcards, "experiment": experiment, "rule": snakemake.rule},
        [*map(str, snakemake.input)],
        [*map(str, snakemake.output)],
    )


def run_id(experiment: str, rule: str, wildcards: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """The same job with the same params is the same run, on every machine."""
    return f"{rule}-{digest([experiment, rule, dict(wildcards), plain(params)])[:16]}"


def run_name(rule: str, wildcards: Mapping[str, Any]) -> str:
    """A name to read, such as "fine-tune icp >0.8 seed 0"; the model is left to the tags where more is known."""
    words = dict(wildcards)
    parts = [rule.replace("_", "-"), words.pop("method", ""), bin_text(words.pop("bin", ""))]
    for name in ("experiment", "source"):
        words.pop(name, None)
    model = words.pop("model", "")
    parts += [f"{name} {value}" if name == "seed" else str(value) for name, value in words.items()]
    if not any(parts[1:]):
        parts.append(model)
    if parts[1:3] == ["all", "all"]:
        del parts[2]
    return " ".join(part for part in parts if part)


def artifact_type(path: str) -> str | None:
    """Type of the W&B artifact that a path is; None for what is no result, such as a log."""
    return next((kind for begins, kind in ARTIFACT_TYPES.items() if begins.match(path)), None)


def holds_texts(path: str) -> bool:
    """Whether a file that is an artifact holds texts of rows, or may."""
    kind = artifact_type(path)
    of_rows = kind == "table" and Path(path).stem in TABLES_WITH_TEXTS
    return kind is not None and (kind not in WITHOUT_TEXTS or of_rows)


def artifact_name(path: str) -> str:
    """Name of the artifact: the path without results/ or resources/, with dots for slashes; the same for all jobs."""
    below = re.sub(rf"^({paths.RESULTS}|resources)/", "", path.strip("/"))
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", below.replace("/", "."))
    return name if len(name) <= 128 else f"{name[:111]}-{digest(path)[:16]}"


def describe(path: str) -> dict[str, Any]:
    """Name, size and SHA-256 of an input or an output: an edge of the graph of artifacts."""
    facts: dict[str, Any] = {"name": path}
    with suppress(OSError, IcprobeError):
        if Path(path).is_dir():
            facts["bytes"] = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
            facts["digest"] = content_digest(path)
        else:
            facts["bytes"] = Path(path).stat().st_size
            if facts["bytes"] <= DIGEST_BYTES:
                facts["digest"] = content_digest(path)
    return facts


def plain(value: Any) -> Any:
    """`value` as JSON knows it: paths and numpy's numbers become text and numbers.

    Raises TypeError for an array, a Series or a table: one of a single value would pass for a number.
    """

    def convert(other: Any) -> Any:
        if getattr(other, "ndim", 0):
            raise TypeError(f"a {type(other).__name__} of {len(other)} is no single value")
        return other.item() if hasattr(other, "item") else str(other)

    return json.loads(json.dumps(value, default=convert))


def scalar(value: Any) -> Any:
    """A number, a text, a truth or None, as JSON knows it. Raises TypeError for whatever holds several of them."""
    single = plain(value)
    if isinstance(single, list | dict):
        raise TypeError(f"a {type(value).__name__} of {len(value)} is no single value")
    return single
