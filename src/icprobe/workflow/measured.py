"""The sizes of an experiment as its tables and models are, and rates as this machine computes, where both are known."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil
import pyarrow.parquet as pq

from icprobe import artifacts, paths
from icprobe.config import Config
from icprobe.tables.parquet import read_parquet
from icprobe.workflow.resources import HEAVY_SECONDS, LIGHT_SECONDS, Sizes


@dataclass(frozen=True)
class Measured(Sizes):
    """`Sizes` once the tables are made and each model's rates.json is there (rule measure_rates).

    planned: the sizes before, by which work is cut into jobs. told: model -> what its rates.json says.
    """

    planned: Sizes = field(kw_only=True)
    told: Mapping[str, Mapping[str, Any]] = field(kw_only=True)

    @classmethod
    def of(cls, config: Config) -> "Measured":
        """By what is there of the experiment."""
        planned = Sizes.of(config)
        here = [model for model in config.models if config.model_sources[model].source != "external"]
        told = {m: artifacts.read_json(paths.RATES.format(experiment=config.experiment, model=m)) for m in here}
        counted = [_rows(config, name) for name in ("train", "tasks", "eval")]
        rows = [
            n or before for n, before in zip(counted, (planned.examples, planned.tasks, planned.prompts), strict=True)
        ]
        return cls(config, *rows, planned.shards, planned=planned, told=told)

    def rate(self, model: str, kind: str, device: str) -> float:
        return self.told[model]["rates"].get(kind) or super().rate(model, kind, device)

    def row_tokens(self, model: str, table: str) -> float:
        return self.told[model]["row_tokens"].get(table, 0.0)  # of a table that is not there

    def start(self, model: str | None, heavy: bool) -> float:
        """Seconds before a job computes: of a heavy one those in which torch, its libraries and the model load."""
        known: Mapping[str, float] = self._of(model).get("start", {})
        return known.get("heavy", HEAVY_SECONDS) if heavy else known.get("light", LIGHT_SECONDS)

    def has_gpu(self, model: str | None) -> bool:
        """Whether rates of a model were measured on a GPU, so that a job which takes what it finds takes one, too."""
        return self._of(model).get("device") == "cuda"

    def _of(self, model: str | None) -> Mapping[str, Any]:
        """What was told of a model; of jobs of none, what was told of the first."""
        return self.told.get(model or "") or next(iter(self.told.values()), {})

    def fisher_parts(self, model: str) -> int:
        return self.planned.fisher_parts(model)

    def retraining_chunks(self, model: str, part: str, sets: float) -> int:
        return self.planned.retraining_chunks(model, part, sets)

    def rows_in(self, path: str) -> float:
        with open(path, "rb") as lines:
            return sum(1 for _ in lines)

    def response_tokens(self, model: str) -> float:
        lengths = paths.LENGTHS.format(experiment=self.config.experiment, model=model)
        return float(read_parquet(lengths, columns=["n_target"])["n_target"].mean())

    def icp_scores(self, model: str) -> Any | None:
        scores = paths.scores("icp").format(experiment=self.config.experiment, model=model)
        return read_parquet(scores).set_index("id")["score"] if os.path.exists(scores) else None


def _rows(config: Config, table: str) -> int:
    """Rows of a checked table; 0 where it is not there."""
    try:
        return pq.read_metadata(paths.data(table).format(experiment=config.experiment)).num_rows
    except FileNotFoundError:
        return 0


def seconds_since_start() -> float:
    """Seconds since this process began: when a model is loaded, what a job takes before it computes."""
    return time.time() - psutil.Process().create_time()
