"""What each job asks of a machine: memory, run time and GPUs as functions of its work.

Never an input of a result: no rule has these as params, so that a better estimate repeats nothing. They are meant to be
enough, not tight; a job that was killed is submitted again with more.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from icprobe import artifacts
from icprobe.config import Config
from icprobe.errors import ArtifactError
from icprobe.workflow.work import ROW_TOKENS, SPEED, operations, parameters

LEAST_MB = 1000  # Snakemake starts three times for a job on a cluster: 350 MB before any work
TORCH_MB = 1000  # more, of a script with torch, transformers and peft
ROW_MB = 0.01  # of a row of texts as Python's objects, with its tokens
# Bytes of activations that a backward pass keeps for a token, over the square root of the parameters; measured with
# SmolLM2-135M: 1.7 MB (attribution.holding).
ACTIVATIONS = 150.0
LOGITS = 12 * 65_000  # bytes of a token's logits, their float32 copy and their gradient
BANDWIDTH = {"cpu": 2e10, "auto": 2e10, "cuda": 1e12}  # bytes of memory a second: what generation waits for
CORE_SPEED = 2e10  # floating-point operations a second of one core, in small products
DOWNLOAD = 1e7  # bytes a second
ROWS_A_SECOND = 1000  # that are read, checked and counted in tokens
MARGIN = 3  # of the run time over its estimate
START_MINUTES = 20
LIGHT_SECONDS = 2


@dataclass(frozen=True)
class Needs:
    """What a job asks for. megabytes: of memory beyond the least; seconds: an estimate of its run time."""

    megabytes: float = 0
    seconds: float = 0

    def memory(self, attempt: int) -> int:
        """Memory in MB at an attempt (from 1)."""
        return int(attempt * (LEAST_MB + self.megabytes))

    def minutes(self, attempt: int) -> int:
        """Time limit in minutes at an attempt (from 1)."""
        return int(attempt * (START_MINUTES + MARGIN * self.seconds / 60))


def estimate_seconds(minutes: int) -> float:
    """The estimate behind a first attempt's time limit, and of jobs that compute next to nothing what a start takes."""
    return max(LIGHT_SECONDS, (minutes - START_MINUTES) * 60 / MARGIN)


@dataclass(frozen=True)
class Sizes:
    """The sizes of an experiment: rows of its tables, about, and the shards of each model."""

    config: Config
    examples: float
    tasks: float
    prompts: float
    shards: dict[str, int]

    def parameters(self, model: str) -> float:
        """Parameters of a model: by its manifest once it is here, about before."""
        try:
            return artifacts.read_manifest(self.config.model_directory(model))["parameters"]
        except (ArtifactError, KeyError):
            return parameters(self.config, model)

    def shard(self, model: str, item: str) -> tuple[float, float]:
        """(examples, tokens) of a shard "3-of-16": all have about the same tokens, those of short examples more rows.

        Counted once the examples' lengths are measured, about before.
        """
        number, of = map(int, item.split("-of-"))
        path = f"results/{self.config.experiment}/{model}/data/lengths.parquet"
        try:
            middles, tokens = _measured(path, os.stat(path).st_mtime_ns)
        except (OSError, ValueError):  # pyarrow's, too
            return self.examples / of, ROW_TOKENS * self.examples / of
        within = np.searchsorted(middles, [(number - 1) / of, number / of])
        return float(within[1] - within[0]), tokens / of

    @property
    def matrix_mb(self) -> float:
        """Of one attribution matrix in memory."""
        return 4e-6 * self.examples * self.tasks

    # --- models and tables --------------------------------------------------------------------------------------

    def prepare_model(self, model: str) -> Needs:
        weights = 4 * self.parameters(model)
        return Needs(TORCH_MB + 3e-6 * weights, weights / DOWNLOAD)

    def tables(self, rows: float) -> Needs:
        """Rows of texts read, checked and counted in each model's tokens."""
        return Needs(1000 + ROW_MB * rows, len(self.config.models) * rows / ROWS_A_SECOND)

    def select_tasks(self, candidates: float) -> Needs:
        """k-means runs the first model over all candidates."""
        needs = self.tables(candidates)
        if not self.config.data.tasks or not str(self.config.data.tasks.select).startswith("kmeans"):
            return needs
        size = self.parameters(self.config.models[0])
        work = 2 * size * ROW_TOKENS * candidates / SPEED["cpu"]
        return Needs(needs.megabytes + TORCH_MB + 8e-6 * size, needs.seconds + work)

    # --- attributions -------------------------------------------------------------------------------------------

    def attribute(self, model: str, method: str, item: str) -> Needs:
        """One shard of a method, in a job that reads the model."""
        settings, size = self.config.attribution, self.parameters(model)
        examples, tokens = self.shard(model, item)
        seconds = operations(size, examples, tokens, ROW_TOKENS * self.tasks) / SPEED[settings.device]
        # All texts are read, a part of the matrix is kept.
        megabytes = TORCH_MB + ROW_MB * (self.examples + self.tasks) + 16e-6 * examples * self.tasks + 8e-6 * size
        if method.startswith("influence") and settings.device != "cuda":
            # The budget holds gradients and activations.
            megabytes += 1000 * settings.memory_budget_gb
        if method in ("one_step", "influence_mean") and settings.device != "cuda":
            megabytes += 8e-6 * size + 1e-6 * ACTIVATIONS * size**0.5 * settings.batch_tokens
        return Needs(megabytes, seconds)

    def matrix(self) -> Needs:
        """A whole matrix read at once, by jobs that compute next to nothing."""
        return Needs(1000 + 4 * self.matrix_mb + 1e-3 * self.examples)

    def report(self) -> Needs:
        """The report reads one matrix after the other, and all texts."""
        rows = self.examples + self.tasks
        return Needs(3000 + 4 * self.matrix_mb + ROW_MB * rows)

    def correlate(self) -> Needs:
        """The bootstrap of Kendall's tau is quadratic in the examples."""
        settings, methods = self.config.analysis, len(self.config.attribution.methods)
        pairs = methods * (methods - 1) / 2
        resampled = self.examples if self.examples <= settings.analytic_above else 0
        seconds = pairs * settings.resamples * resampled**2 / 2e10
        return Needs(3000 + 1e-5 * settings.resamples * resampled + 1e-4 * methods * self.examples, seconds)

    def chain(self) -> Needs:
        """All cells ranked in each resample, in all tasks together and one by one, and again by domain."""
        settings = self.config.analysis
        matrices = 3 + len(settings.chain.learning_rates)
        resamples = settings.resamples if self.examples <= settings.analytic_above else 50
        cells = matrices * self.examples * self.tasks
        return Needs(2000 + 6e-4 * cells + 4e-6 * resamples * self.examples, 4e-7 * cells * resamples)

    # --- the synthetic check ------------------------------------------------------------------------------------

    def train_regressor(self) -> Needs:
        """A small transformer on one core."""
        check = self.config.synthetic
        size = 12 * check.layers * check.width**2
        tokens = check.batch_size * (2 * check.points + 3)
        return Needs(TORCH_MB + 1e-6 * tokens * ACTIVATIONS * size**0.5, 6 * size * tokens * check.steps / CORE_SPEED)

    def correlate_points(self) -> Needs:
        """All points of a dimension and noise are ranked in each resample."""
        check = self.config.synthetic
        values = len(check.dimensions) * len(check.noise) * check.functions * check.points
        return Needs(1000 + 1e-4 * values, 2e-6 * values * self.config.analysis.resamples)

    # --- fine-tuned models --------------------------------------------------------------------------------------

    def fine_tune(self, model: str, examples: float) -> Needs:
        """All weights with their gradients and AdamW's two moments, or adapters; examples: in the subset."""
        settings, size = self.config.finetune, self.parameters(model)
        seconds = 6 * size * ROW_TOKENS * examples * settings.epochs / SPEED[settings.device]
        megabytes = TORCH_MB + ROW_MB * examples + (8e-6 if settings.lora else 24e-6) * size
        if settings.device != "cuda":
            tokens = settings.batch_size * min(settings.max_length, 4 * ROW_TOKENS)
            megabytes += 1e-6 * tokens * (ACTIVATIONS * size**0.5 + LOGITS)
        return Needs(megabytes, seconds)

    def generate(self, model: str) -> Needs:
        """Every token of a batch waits for all weights; an adapter is merged on the CPU in float32."""
        settings, size = self.config.evaluation, self.parameters(model)
        steps = settings.max_new_tokens * (1 + self.prompts / settings.batch_size)
        cache = 1e-6 * settings.batch_size * (settings.max_new_tokens + 4 * ROW_TOKENS) * ACTIVATIONS * size**0.5 / 4
        return Needs(TORCH_MB + 10e-6 * size + cache, 4 * size * steps / BANDWIDTH[settings.device])


@functools.cache
def _measured(path: str, _modified: int) -> tuple[np.ndarray, float]:
    """(where each example stands on the way through all tokens, ascending in 0 to 1, shortest first; all tokens)."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["n_query", "n_target"])
    lengths = np.sort(sum(np.nan_to_num(column.to_numpy(), nan=1.0) for column in table.columns))
    return (np.cumsum(lengths) - lengths / 2) / lengths.sum(), float(lengths.sum())


def directives(needs: Callable[..., Needs], device: str = "cpu") -> dict[str, Any]:
    """A rule's `resources`, from a function of its wildcards and input files.

    device: what the configuration says that it computes on. One GPU for `cuda`; `auto` takes what it finds.
    """
    found: dict[str, Any] = {
        "mem_mb": lambda wildcards, input, attempt: needs(wildcards, input).memory(attempt),
        "runtime": lambda wildcards, input, attempt: needs(wildcards, input).minutes(attempt),
    }
    return {**found, "gpu": 1} if device == "cuda" else found
