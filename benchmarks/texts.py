"""What is measured on: examples, tasks and a model, chosen once and read alike by every contestant."""

import json
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.contestant import spread
from icprobe.config.templates import Templates
from icprobe.errors import DataError
from icprobe.tables import checking, selecting
from icprobe.texts.control_tokens import token_ids
from icprobe.texts.prompts import Prompts

ROOT = Path(__file__).parents[1]
COLUMNS = ["id", "instruction", "input", "output"]
SHORT = 160  # tokens; a document of the CPU comparisons has fewer
# Rows of kmeans_100.json, counted from 0: short tasks, whose shared prefix is most of an ICP row.
TWELVE = (0, 2, 5, 6, 7, 9, 11, 15, 22, 25, 27, 32)

# Shapes for models with random weights: what is measured there is speed alone.
SHAPES = {
    "pythia-1b": {
        "architecture": "gpt_neox",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 8,
        "max_position_embeddings": 2048,
        "vocab_size": 50304,
    },
    "llama-7b": {
        "architecture": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "vocab_size": 32000,
    },
    "tiny": {
        "architecture": "llama",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": None,  # the tokenizer's
    },
}


@dataclass
class Work:
    """What one contestant is given; travels to its process as JSON.

    model: a prepared model's directory; shape: a key of SHAPES, whose random weights take the model's place (its
    tokenizer stays). batch_tokens: largest product of a batch's rows and its longest row. folder: for scratch files.
    """

    train: list[dict[str, Any]]
    tasks: list[dict[str, Any]]
    model: str
    shape: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 2
    batch_tokens: int = 1024
    folder: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> Any:
        from icprobe.texts.tokenizing import load_tokenizer

        return load_tokenizer(self.model)

    @cached_property
    def prompts(self) -> Prompts:
        return Prompts(Templates().model_dump())

    def load_model(self) -> Any:
        """The model, frozen and in evaluation mode."""
        from icprobe.engine.models import load_model, resolve_device

        if not self.shape:
            return load_model(self.model, self.dtype, self.device)
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from icprobe.engine.models import DTYPES

        sizes = dict(SHAPES[self.shape])
        sizes["vocab_size"] = max(sizes["vocab_size"] or 0, len(self.tokenizer))
        config = AutoConfig.for_model(sizes.pop("architecture"), **sizes)
        torch.manual_seed(0)
        with resolve_device(self.device):
            model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[self.dtype])
        return model.eval().requires_grad_(False)

    @cached_property
    def lengths(self) -> pd.DataFrame:
        """Table id, n_query, n_target of the examples."""
        from icprobe.tables.fitting import lengths
        from icprobe.texts.readers import Reader

        return lengths(pd.DataFrame(self.train), self.prompts, Reader("model", self.tokenizer, None))

    def capabilities(self, model: Any) -> Any:
        """What icprobe's engines can do with the model that was loaded."""
        from icprobe.engine.admission import capabilities_of
        from icprobe.engine.capabilities import Capabilities

        return capabilities_of(model) if self.shape else Capabilities.of(self.model)

    def inputs(self, model: Any = None, capabilities: Any = None) -> Any:
        """The same as icprobe's methods take it."""
        from icprobe.attribution.matrix import Inputs

        train, tasks = pd.DataFrame(self.train)[COLUMNS], pd.DataFrame(self.tasks)[COLUMNS]
        return Inputs(train, tasks, self.lengths, self.prompts, model, self.tokenizer, capabilities)

    @cached_property
    def documents(self) -> list[Any]:
        """The examples' documents as `Encoded`, their loss over all tokens after the first."""
        from icprobe.attribution.documents import encode_documents

        return [*encode_documents(self.inputs(), [range(len(self.train))]).values()]

    @cached_property
    def targets(self) -> list[Any]:
        """The tasks as `Encoded`, their loss over the target alone."""
        from icprobe.attribution.matrix import encode_tasks

        return encode_tasks(self.inputs())

    @cached_property
    def runs(self) -> list[np.ndarray]:
        """Rows of the examples in icprobe's batches."""
        from icprobe.engine.batching import batches

        return batches(self.lengths, self.batch_tokens)

    @cached_property
    def sorted_batches(self) -> tuple[list[list[int]], list[list[int]]]:
        """(rows of the examples, rows of the tasks), each sorted by length into batches of `batch_tokens`."""
        return by_length(self.documents, self.batch_tokens), by_length(self.targets, self.batch_tokens)


def by_length(sequences: list[Any], batch_tokens: int) -> list[list[int]]:
    """Indices in order of length, in batches whose padded size is at most batch_tokens."""
    runs: list[list[int]] = []
    for index in sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids)):
        if runs and (len(runs[-1]) + 1) * len(sequences[index].ids) <= batch_tokens:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


class Source:
    """Where texts come from: the real Alpaca examples with the k-means tasks, or a folder with train and tasks.

    tokenizer: counts the documents' tokens. Raises DataError in one sentence where the files are absent.
    """

    def __init__(self, folder: str, tokenizer: Any, seed: int = 0) -> None:
        self.folder, self.tokenizer, self.seed = Path(folder), tokenizer, seed
        self.alpaca = (self.folder / "alpaca").is_dir()
        train, tasks = (
            ("alpaca/alpaca_bins.jsonl", "alpaca/kmeans_100.json") if self.alpaca else ("train.jsonl", "tasks.jsonl")
        )
        for name in (train, tasks):
            if not (self.folder / name).is_file():
                raise DataError(
                    f"{folder}: holds no {name}; the Alpaca texts are not part of this repository, "
                    "give --data resources/demo for texts that are."
                )
        self._train = checking.read_table({"path": str(self.folder / train)}, extra=["published_icp"])
        self._tasks = checking.read_table({"path": str(self.folder / tasks)})

    def examples(self, n: int, max_tokens: int | None = SHORT) -> list[dict[str, Any]]:
        """n examples, of Alpaca as many from each published ICP bin (as configs/alpaca.yaml draws them)."""
        frame = self._train
        if self.alpaca:
            if max_tokens:
                prompts = Prompts(Templates().model_dump())
                texts = [prompts.document(row) for row in frame.to_dict("records")]
                ids = token_ids(self.tokenizer, texts)
                frame = frame[[len(document) < max_tokens for document in ids]].reset_index(drop=True)
            frame = selecting.sample(frame, n, stratify="published_icp" if max_tokens else None, seed=self.seed)
        return frame[COLUMNS].iloc[:n].to_dict("records")

    def tasks(self, n: int) -> list[dict[str, Any]]:
        """n tasks: the twelve short ones where n ≤ 12, else the first n; as many as there are."""
        rows = TWELVE[:n] if self.alpaca and n <= len(TWELVE) else range(min(n, len(self._tasks)))
        return self._tasks[COLUMNS].iloc[list(rows)].to_dict("records")

    def dealt_tasks(self, n: int) -> list[dict[str, Any]]:
        """n tasks of the shorter half, spread evenly over its lengths: they differ in nothing but their number."""
        rows = sorted(self._tasks[COLUMNS].to_dict("records"), key=size)
        return dealt(rows[: max(n, len(rows) // 2)], n)


def size(row: dict[str, Any]) -> tuple[int, str]:
    """Length in characters, then id: an order."""
    return sum(len(row[column]) for column in COLUMNS[1:]), row["id"]


def dealt(rows: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """n rows spread evenly over the rows in order of their length in characters."""
    order = sorted(rows, key=size)
    chosen = [order[i] for i in spread(len(order), n)]
    return sorted(chosen, key=lambda row: row["id"])


def write(work: Work, path: Path) -> None:
    values = {f.name: getattr(work, f.name) for f in fields(work)}
    path.write_text(json.dumps(values), encoding="utf-8")


def read(path: Path) -> Work:
    return Work(**json.loads(path.read_text(encoding="utf-8")))
