"""Estimates what each job needs of a machine: memory, run time and GPUs, as functions of its work.

No rule has these as params, so that a better estimate repeats nothing. They are meant to be enough, not tight: a job
that was killed is submitted again with more.
"""

import functools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from icprobe import artifacts, paths
from icprobe.analysis import frontier
from icprobe.config import Config
from icprobe.config.sources import local_files
from icprobe.engine.batching import parse_shard, shard_numbers
from icprobe.errors import ArtifactError
from icprobe.workflow import signatures, work
from icprobe.workflow.data_set_sizes import DataSetSizes
from icprobe.workflow.gpus import GPUS_IF_ANY
from icprobe.workflow.work import (
    ROW_TOKENS,
    SPEED,
    adapter_parameters,
    decoding_bytes,
    k_shot_operations,
    operations,
    parameters,
    training_operations,
)

LEAST_MB = 1000  # Snakemake starts three times for a job on a cluster: 350 MB before any work
TORCH_MB = 1000  # more, of a script with torch, transformers and peft
ROW_MB = 0.01  # of a row of texts as Python's objects, with its tokens
# Of activations that a backward pass keeps for a token, over the square root of the model's parameters (measured with
# SmolLM2-135M: 1.7 MB a token; see attribution.memory_plan).
ACTIVATION_BYTES = 150.0
LOGITS_BYTES = 12 * 65_000  # of a token's logits, their float32 copy and their gradient
MEMORY_BYTES_A_SECOND = {"cpu": 2e10, "auto": 2e10, "cuda": 1e12}  # what generation waits for
CORE_OPERATIONS_A_SECOND = 2e10  # of floating-point numbers, in small products
DOWNLOAD_BYTES_A_SECOND = 1e7
READ_BYTES_A_SECOND = 3e8  # of weights, with their SHA-256
ROWS_A_SECOND = 1000  # that are read, checked and counted in tokens
MARGIN = 3  # of the run time over its estimate
START_MINUTES = 20
MILLISECONDS, BYTES = "estimated_milliseconds", "estimated_bytes"  # resources that only an estimate's dry run has
MATRICES = 7 * 30  # linear layers of a model of which nobody knows how many it has
# What a job takes before it computes: a light one, and one that loads torch and a model.
LIGHT_SECONDS, HEAVY_SECONDS = 2, 10


@dataclass(frozen=True)
class Needs:
    """What a job asks for. megabytes: memory beyond LEAST_MB; seconds: its run time, about. What it leaves on the disk
    it does not ask for: disk, in bytes, of what is large.
    """

    megabytes: float = 0
    seconds: float = 0
    disk: float = 0

    def memory(self, attempt: int) -> int:
        """Memory in MB that attempt number `attempt` (from 1) asks for."""
        return int(attempt * (LEAST_MB + self.megabytes))

    def minutes(self, attempt: int) -> int:
        """Time limit in minutes that attempt number `attempt` (from 1) asks for."""
        return int(attempt * (START_MINUTES + MARGIN * self.seconds / 60))


def estimate_seconds(minutes: int, heavy: bool = False) -> float:
    """The estimate behind a first attempt's time limit, and what the job's start takes."""
    return (HEAVY_SECONDS if heavy else LIGHT_SECONDS) + max(0.0, (minutes - START_MINUTES) * 60 / MARGIN)


@dataclass(frozen=True)
class Sizes(DataSetSizes):
    """The sizes of an experiment: about how many rows its tables have, and the shards of each model."""

    tasks: float
    prompts: float
    shards: dict[str, int]

    @classmethod
    def of(cls, config: Config) -> "Sizes":
        """By what was there before the experiment began."""
        tables = [getattr(config.data, name) for name in ("train", "tasks", "eval")]
        examples, tasks, prompts = (work.rows(table, local_files(table)) for table in tables)
        shards = {model: work.shards(config, model, examples, tasks) for model in config.models}
        return cls(config, examples, tasks, prompts, shards)

    def parameters(self, model: str) -> float:
        """Parameters of a model: as its manifest says once it is here, an estimate before."""
        return self._told(model, "parameters", parameters(self.config, model))

    def _told(self, model: str, key: str, otherwise: Any) -> Any:
        """A number of a model's manifest."""
        return artifacts.known_manifest(self.config.model_directory(model)).get(key, otherwise)

    def shard(self, model: str, item: str) -> tuple[float, float]:
        """(examples, tokens) of a shard "3-of-16": counted once the examples' lengths are measured, an estimate before.

        All shards have about the same tokens, so that those of short examples have more rows.
        """
        number, of = parse_shard(item)
        path = paths.LENGTHS.format(experiment=self.config.experiment, model=model)
        try:
            examples, tokens = _measured(path, os.stat(path).st_mtime_ns, of)
        except (OSError, ValueError):  # pyarrow's, too
            return self.examples / of, ROW_TOKENS * self.examples / of
        return float(examples[number]), tokens / of

    # What follows is supposed, of any machine and any texts; `measured.Measured` knows it.

    def rate(self, model: str, kind: str, device: str) -> float:
        """How much of a kind of work (`frontier.work`; here "train", "ask" and "decode", too) is done in a second."""
        return MEMORY_BYTES_A_SECOND[device] if kind == "decode" else SPEED[device]

    def seconds(self, model: str, work: Mapping[str, float], device: str) -> float:
        """Seconds that so much work of these kinds takes."""
        return sum(amount / self.rate(model, kind, device) for kind, amount in work.items())

    def row_tokens(self, model: str, table: str) -> float:
        """Tokens of a row of "train", "tasks" or "eval", in the mean."""
        return ROW_TOKENS

    @property
    def matrix_mb(self) -> float:
        """Megabytes of one attribution matrix in memory."""
        return 4e-6 * self.examples * self.tasks

    # --- models and tables --------------------------------------------------------------------------------------

    def prepare_model(self, model: str) -> Needs:
        weights = 4 * self.parameters(model)
        return Needs(TORCH_MB + 3e-6 * weights, weights / DOWNLOAD_BYTES_A_SECOND, weights)

    def tables(self, rows: float) -> Needs:
        """Reads rows of texts, checks them, and counts them in each model's tokens."""
        return Needs(1000 + ROW_MB * rows, len(self.config.models) * rows / ROWS_A_SECOND)

    def select_tasks(self, candidates: float) -> Needs:
        """Reads all candidates, and for k-means runs the first model over them."""
        needs = self.tables(candidates)
        if not self.config.data.tasks or not str(self.config.data.tasks.select).startswith("kmeans"):
            return needs
        size = self.parameters(self.config.models[0])
        forward = 2 * size * ROW_TOKENS * candidates / SPEED["cpu"]
        return Needs(needs.megabytes + TORCH_MB + 8e-6 * size, needs.seconds + forward)

    def measure_rates(self, model: str) -> Needs:
        """A little of each kind of work: what the hungriest kinds ask for, a minute or two."""
        kinds = [self.attribute(model, "one_step", "1-of-1"), self.attribute(model, "influence", "1-of-1")]
        kinds.append(self.fine_tune(model, 1))
        return Needs(max(needs.megabytes for needs in kinds), 120)

    # --- attributions -------------------------------------------------------------------------------------------

    def attribute(self, model: str, method: str, item: str) -> Needs:
        """Computes one shard of a method, in a job that reads the model."""
        settings, size = self.config.attribution, self.parameters(model)
        examples, tokens = self.shard(model, item)
        of_tasks = self.row_tokens(model, "tasks") * self.tasks
        # icp reads a little less than one_step, and so much is expected of what nobody has counted.
        counted: Mapping[str, float] = {"read": operations(size, examples, tokens, of_tasks)}
        if method == "icp_k_shot":
            draws = settings.icp_k_shot.model_dump()
            counted = {"read": k_shot_operations(size, examples, tokens, of_tasks, **draws)}
        elif method == "icp_reverse":
            wanted = self.tasks if settings.icp_reverse.tasks == "all" else settings.icp_reverse.tasks
            in_contexts = of_tasks * min(wanted / max(self.tasks, 1), 1.0)
            passes = 1 + self.contexts(model, in_contexts, wanted)
            counted = {"read": 2 * size * (passes * tokens + in_contexts)}
        else:
            checkpoints = len(settings.tracin.directories) or settings.tracin.checkpoints
            # Of EK-FAC all factors are rotated, too, and each further damping of its pass has products of its own;
            # responses are at most the whole examples.
            swept = {*settings.influence_ekfac.swept, "influence_ekfac"}
            counted_as, times = ("influence", 2) if method in swept else (method, 1)
            further = max(0, len(swept.intersection(settings.methods)) - 1) if method in swept else 0
            sizes = (size, examples, tokens, self.tasks, of_tasks, tokens)
            beside = adapter_parameters(size, self.config.finetune.lora.rank) if method == "less" else 0.0
            known = frontier.work(
                counted_as, *sizes, checkpoints=checkpoints, adapters=beside, dimension=settings.less.dimension
            )
            counted = (
                counted
                if known is None
                else {kind: (times + further * (kind == "products")) * amount for kind, amount in known.items()}
            )
        seconds = self.seconds(model, counted, settings.device)
        # All texts are read, a part of the matrix is kept.
        megabytes = TORCH_MB + ROW_MB * (self.examples + self.tasks) + 16e-6 * examples * self.tasks + 8e-6 * size
        if method == "icp_k_shot":  # of each draw
            megabytes += 4e-6 * settings.icp_k_shot.draws * examples * self.tasks
        if (method.startswith("influence") or method in ("tracin", "less")) and settings.device != "cuda":
            # The budget holds gradients and activations.
            megabytes += 1000 * settings.memory_budget_gb
        if method in ("one_step", "influence_mean", "self_influence") and settings.device != "cuda":
            megabytes += 8e-6 * size + _activations_mb(size, settings.batch_tokens)
        return Needs(megabytes, seconds, 4 * examples * self.tasks)

    def contexts(self, model: str, tokens: float, tasks: float) -> float:
        """Contexts that icp_reverse puts tasks of so many tokens into: as it has counted them, or an estimate before.

        Each leaves room for the longest example, about four times the mean one (`contexts.task_groups`).
        """
        of_model = {"experiment": self.config.experiment, "model": model, "method": "icp_reverse"}
        try:
            return artifacts.read_json(paths.CONTEXTS_CHECKED.format(**of_model))["contexts"]
        except (ArtifactError, KeyError):
            limit = self._told(model, "max_positions", None)
        room = math.inf if limit is None else max(1.0, limit - 4 * self.row_tokens(model, "train"))
        return max(1, min(math.ceil(tokens / room), tasks))

    def fisher_parts(self, model: str) -> int:
        """Jobs that a pass over the examples for their Fisher matrix is cut into."""
        return work.fisher_parts(self.config, model, self.examples)

    def sum_fisher(self, model: str, part: str) -> Needs:
        """One pass over a part of the examples for their Fisher matrix, within the budget where layers are small."""
        settings, size = self.config.attribution, self.parameters(model)
        _, tokens = self.shard(model, part)
        megabytes = TORCH_MB + ROW_MB * self.examples + 8e-6 * size
        if settings.device != "cuda":
            megabytes += 1000 * settings.memory_budget_gb
        seconds = self.seconds(model, {"gradients": work.fisher_operations(size, tokens)}, settings.device)
        return Needs(megabytes, seconds, 10 * size)

    def fisher_bases(self, model: str) -> Needs:
        """The eigenvectors of all layers in float64, one matrix after another, on the CPU.

        Measured with SmolLM2-135M: 100 s on one core; by P^1.5, as matrices grow with the width of a model.
        """
        size = self.parameters(model)
        return Needs(TORCH_MB + 4e-6 * size, 6.5e-11 * size**1.5, 10 * size)

    def without_model(self, method: str) -> Needs:
        """Makes a matrix of lengths or chance, or, for bm25, of all texts' words."""
        words = ROW_MB * (self.examples + self.tasks) + 4 * self.matrix_mb if method == "bm25" else 0
        return Needs(1000 + 1e-3 * self.examples + words)

    def matrix(self) -> Needs:
        """Reads a whole matrix at once, and computes next to nothing."""
        return Needs(1000 + 4 * self.matrix_mb + 1e-3 * self.examples)

    def combine(self) -> Needs:
        """Reads one matrix after the other whole, and ranks it beside their sum, in 8 bytes a value each."""
        return Needs(1000 + 12 * self.matrix_mb + 1e-3 * self.examples)

    def report(self) -> Needs:
        """Reads one matrix after the other, and all texts."""
        rows = self.examples + self.tasks
        return Needs(3000 + 4 * self.matrix_mb + ROW_MB * rows)

    def correlate(self) -> Needs:
        """Resamples all pairs of methods: the bootstrap of Kendall's tau is quadratic in the examples."""
        settings, methods = self.config.analysis, len(self.config.attribution.methods)
        pairs = methods * (methods - 1) / 2
        resampled = self.examples if self.examples <= settings.analytic_above else 0
        seconds = pairs * settings.resamples * resampled**2 / 2e10
        megabytes = 3000 + 1e-5 * settings.resamples * resampled + 1e-4 * methods * self.examples
        return Needs(megabytes + 4 * self.matrix_mb, seconds)  # a domain's scores are made of a whole matrix's columns

    def tell_labels(self) -> Needs:
        """Reads the labels, and resamples each method's scores with each label that is a number."""
        settings = self.config.analysis
        resampled = settings.resamples * (self.examples if self.examples <= settings.analytic_above else 0)
        pairs = len(self.config.attribution.methods) * len(self.config.data.labels)
        return Needs(1000 + 1e-3 * self.examples + 1e-5 * resampled, 1e-7 * pairs * resampled)

    def chain(self) -> Needs:
        """Ranks all cells in each resample, in all tasks together and one by one, and again by domain."""
        settings = self.config.analysis
        matrices = 3 + len(settings.chain.learning_rates)
        resamples = settings.resamples if self.examples <= settings.analytic_above else 50
        cells = matrices * self.examples * self.tasks
        return Needs(2000 + 6e-4 * cells + 4e-6 * resamples * self.examples, 4e-7 * cells * resamples)

    # --- the synthetic check ------------------------------------------------------------------------------------

    def train_regressor(self) -> Needs:
        """Trains a small transformer on one core."""
        check = self.config.synthetic
        size = 12 * check.layers * check.width**2
        tokens = check.batch_size * (2 * check.points + 3)
        seconds = 6 * size * tokens * check.steps / CORE_OPERATIONS_A_SECOND
        return Needs(TORCH_MB + _activations_mb(size, tokens), seconds)

    def correlate_points(self) -> Needs:
        """Ranks all points of a dimension and noise in each resample."""
        check = self.config.synthetic
        values = len(check.dimensions) * len(check.noise) * check.functions * check.points
        return Needs(1000 + 1e-4 * values, 2e-6 * values * self.config.analysis.resamples)

    # --- fine-tuned models --------------------------------------------------------------------------------------

    def fine_tune(self, model: str, examples: float, processes: int = 1) -> Needs:
        """Trains all weights, with their gradients and AdamW's two moments, or adapters; examples: in the subset."""
        settings, size = self.config.finetune, self.parameters(model)
        tokens = self.row_tokens(model, "train") * examples * settings.epochs
        seconds = self.seconds(model, {"train": training_operations(size, tokens)}, settings.device)
        # Each of several processes holds the model.
        megabytes = TORCH_MB + ROW_MB * examples + processes * (8e-6 if settings.lora else 24e-6) * size
        if settings.device != "cuda":
            longest = settings.batch_size * min(settings.max_length, 4 * ROW_TOKENS)
            megabytes += _activations_mb(size, longest) + 1e-6 * longest * LOGITS_BYTES
        return Needs(megabytes, seconds, self.checkpoint_bytes(model) if examples else 0)

    def checkpoint_bytes(self, model: str) -> float:
        """Bytes of a fine-tuned model: its weights, or adapters on each of its matrices, taken to be square."""
        size, lora = self.parameters(model), self.config.finetune.lora
        weights = self._told(model, "attributed_parameters", size) * self._told(model, "attributed_tensors", MATRICES)
        return 4 * size if lora is None else 8 * lora.rank * weights**0.5

    def generate(self, model: str) -> Needs:
        """Reads all weights for every token of a batch; an adapter is merged on the CPU in float32."""
        settings, size = self.config.evaluation, self.parameters(model)
        steps = settings.max_new_tokens * math.ceil(max(1, self.prompts) / settings.batch_size)
        cache = _activations_mb(size, settings.batch_size * (settings.max_new_tokens + 4 * ROW_TOKENS)) / 8
        seconds = self.seconds(model, {"decode": decoding_bytes(size, steps)}, settings.device)
        return Needs(TORCH_MB + 10e-6 * size + cache, seconds)

    def measure_outcomes(self, model: str, models: int) -> Needs:
        """Reads so many models one after the other, in float32, and takes all tasks and eval prompts through each."""
        settings, size = self.config.evaluation, self.parameters(model)
        rows = {"tasks": self.tasks, "eval": self.prompts}
        weights, tokens = 4 * size, sum(self.row_tokens(model, table) * n for table, n in rows.items())
        asked = self.seconds(model, {"ask": 2 * size * tokens}, settings.device)
        seconds = models * (weights / READ_BYTES_A_SECOND + asked)
        return Needs(TORCH_MB + 2e-6 * weights + ROW_MB * (self.tasks + self.prompts) + 500, seconds)

    # --- retraining ---------------------------------------------------------------------------------------------

    def _retrained_examples(self, part: str) -> float:
        """Examples in a set of the part."""
        share = {"subsets": self.config.truth.share, "removals": 1 - self.config.truth.drop}.get(part, 1)
        return share * self.examples

    def retraining_chunks(self, model: str, part: str, sets: float) -> int:
        """Jobs that a part's trainings are cut into."""
        trainings = sets * len(self.config.truth.seeds)
        examples, answers = self._retrained_examples(part), self.tasks + self.prompts
        return work.retraining_chunks(self.config, model, trainings, examples, answers)

    def retrain(self, model: str, part: str, sets: float) -> Needs:
        """Trains, and asks, for each of a chunk's trainings; the model as it is measured stands beside it."""
        training, asking = self.fine_tune(model, self._retrained_examples(part)), self.measure_outcomes(model, 1)
        trainings = sets * len(self.config.truth.seeds) / self.retraining_chunks(model, part, sets)
        megabytes = training.megabytes + 8e-6 * self.parameters(model)
        return Needs(megabytes, trainings * (training.seconds + asking.seconds))


def _activations_mb(parameters: float, tokens: float) -> float:
    """Megabytes of activations that a backward pass over so many tokens keeps."""
    return 1e-6 * tokens * ACTIVATION_BYTES * parameters**0.5


@functools.cache
def _measured(path: str, _modified: int, of: int) -> tuple[np.ndarray, float]:
    """Counts the examples of each shard, at its number from 1 to `of`, as if each were a batch; and all tokens."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["n_query", "n_target"])
    tokens = np.sort(sum(np.nan_to_num(column.to_numpy(), nan=1.0) for column in table.columns))
    return np.bincount(shard_numbers(tokens, of), minlength=of + 1), float(tokens.sum())


def directives(
    needs: Callable[..., Needs], device: str = "cpu", gpus: int = 1, in_turn: bool = True, told: bool = False
) -> dict[str, Any]:
    """Makes a rule's `resources` from a function of its wildcards and input files.

    device: what the configuration computes on. `cuda` asks for so many GPUs; `auto` takes what it finds.
    in_turn: either takes its turn on those of the machine (`gpus.turn`); not where a batch system has given it its own.
    told: whether the needs that stand behind these are among them, for `icprobe.workflow.estimating`.
    """
    found: dict[str, Any] = {
        "mem_mb": lambda wildcards, input, attempt: needs(wildcards, input).memory(attempt),
        "runtime": lambda wildcards, input, attempt: needs(wildcards, input).minutes(attempt),
    }
    if told:
        found[MILLISECONDS] = lambda wildcards, input: round(1000 * needs(wildcards, input).seconds)
        found[BYTES] = lambda wildcards, input: round(needs(wildcards, input).disk)
    signatures.remember(found.values())
    if device != "cpu" and in_turn:
        found[GPUS_IF_ANY] = gpus
    return {**found, "gpu": gpus} if device == "cuda" else found
