"""Published packages with EK-FAC influence as contestants, each called through its own interface on the same sequences.

All take the examples' own labels, sums of losses, float32, and damp by 0.1 of a layer's mean eigenvalue. They come from
PyPI (benchmarks/peers.txt); none is altered.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.floors import padded, summed_loss
from benchmarks.peers import kronfluence_task
from icprobe.attribution.documents import encode_documents
from icprobe.attribution.matrix import Inputs, encode_tasks
from icprobe.engine.models import linear_layers
from icprobe.texts.prompts import Encoded


def by_length(inputs: Inputs) -> tuple[np.ndarray, list[Encoded]]:
    """The examples' rows, the shortest first, so that little is padded, and their sequences in this order."""
    order = np.argsort(inputs.lengths[["n_query", "n_target"]].sum(axis=1), kind="stable").to_numpy()
    documents = encode_documents(inputs, [order])
    return order, [documents[row] for row in order]


def batched(sequences: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """A batch of a loader, padded behind."""
    return padded(sequences, torch.device("cpu"))


def kronfluence(inputs: Inputs, folder: Path, batch: int = 4) -> np.ndarray:
    """The matrix by kronfluence."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.utils.dataset import DataLoaderKwargs

    order, examples = by_length(inputs)
    tasks = encode_tasks(inputs)
    model, task = inputs.model.requires_grad_(True), kronfluence_task(inputs.model)
    task.get_attention_mask = lambda batch: batch["attention_mask"]  # else its covariances take padding for tokens
    analyzer = Analyzer(
        "agreement", prepare_model(model, task), task, cpu=True, output_dir=str(folder), disable_tqdm=True
    )
    shared = {"dataloader_kwargs": DataLoaderKwargs(collate_fn=batched), "overwrite_output_dir": True}
    analyzer.fit_all_factors(
        "ekfac",
        dataset=examples,
        per_device_batch_size=batch,
        factor_args=FactorArguments(strategy="ekfac", use_empirical_fisher=True),
        **shared,
    )
    analyzer.compute_pairwise_scores(
        "scores",
        "ekfac",
        query_dataset=tasks,
        train_dataset=examples,
        per_device_query_batch_size=batch,
        per_device_train_batch_size=batch,
        # damping_factor: 0.1 of a layer's mean; all tasks are held in one pass over the examples
        score_args=ScoreArguments(damping_factor=None, query_gradient_accumulation_steps=math.ceil(len(tasks) / batch)),
        **shared,
    )
    found = np.empty((len(examples), len(tasks)), np.float32)
    found[order] = analyzer.load_pairwise_scores("scores")["all_modules"].float().numpy().T
    return found


def bergson(inputs: Inputs, folder: Path, batch_tokens: int = 1024) -> np.ndarray:
    """The matrix by bergson: the tasks' gradients preconditioned in memory, the examples scored as they pass."""
    from bergson import GradientProcessor, IndexConfig, InMemoryCollector, Scorer
    from bergson.collector.collector import CollectorComputer
    from bergson.config import HessianConfig, InversionConfig
    from bergson.data import allocate_batches
    from bergson.hessians.hessian_approximations import fit_factored_hessians
    from bergson.hessians.preconditioner import FactoredPreconditioner
    from bergson.score.score_writer import InMemorySequenceScoreWriter
    from datasets import Dataset

    model = _frozen(inputs.model)
    modules = {name.removeprefix(model.base_model_prefix + ".") for name in linear_layers(model)}
    config = IndexConfig(
        run_path=str(folder), token_batch_size=batch_tokens, loss_reduction="sum", include_bias=True, precision="fp32"
    )
    config.partial_run_path.mkdir(parents=True, exist_ok=True)

    def table(sequences: Sequence[Encoded]) -> Any:
        # Its covariances leave out each sequence's last position, which is why a token without a label stands behind.
        ids = [[*s.ids, s.ids[-1]] for s in sequences]
        labels = [[-100] * s.n_context + [*s.ids[s.n_context :], -100] for s in sequences]
        return Dataset.from_dict({"input_ids": ids, "labels": labels, "length": [len(row) for row in ids]})

    def collect(data: Any, scorer: Any = None) -> Any:
        collector = InMemoryCollector(
            model=model.base_model,
            data=data,
            cfg=config,
            processor=GradientProcessor(include_bias=True),
            target_modules=modules,
            scorer=scorer,
        )
        batches = allocate_batches(data["length"][:], batch_tokens)
        CollectorComputer(model, data, collector=collector, batches=batches, cfg=config).run_with_collector_hooks()
        return collector

    documents = encode_documents(inputs, [range(len(inputs.train))])
    examples, tasks = table([*documents.values()]), table(encode_tasks(inputs))
    factors = str(folder / "factors")
    fit_factored_hessians(
        model,
        examples,
        config,
        HessianConfig(method="kfac", ev_correction=True, use_dataset_labels=True),
        target_modules=modules,
        attention_cfgs={},
        batches=allocate_batches(examples["length"][:], batch_tokens),
        path=factors,
        do_eigendecomposition=True,
    )
    damped = InversionConfig(inversion="damped_inverse", damping_factor=0.1)
    inverse = FactoredPreconditioner.from_path(factors, inversion_cfg=damped, ev_correction=True)
    gradients = inverse.apply(collect(tasks).gradients)
    del inverse
    writer = InMemorySequenceScoreWriter(len(examples), len(tasks))
    collect(examples, Scorer(gradients, list(gradients), writer, model.device, model.dtype))
    return writer.scores.numpy()


def dattri_llm(inputs: Inputs, folder: Path, batch: int = 4) -> np.ndarray:
    """The matrix by dattri-llm: factors of all gradients held in memory, so that the model sees each sequence once.

    Its covariances leave out positions whose gradient is 0, as it is at each sequence's last; no setting changes that.
    """
    from dattri_llm import (
        AttributionArguments,
        EKFACAttributor,
        GradientStorageManager,
        GradientStreamer,
        HookManagerConfig,
    )

    order, examples = by_length(inputs)
    tasks, model = encode_tasks(inputs), _frozen(inputs.model)
    arguments = AttributionArguments(str(folder), batch, batch, use_cpu=True, dataloader_pin_memory=False)
    hooks = HookManagerConfig(hook_types=dict.fromkeys(linear_layers(model), "linear_io"), include_frozen=True)
    attributor = EKFACAttributor(arguments)

    def collect(name: str, sequences: Sequence[Encoded]) -> Any:
        streamer = GradientStreamer(
            model, sequences, arguments, batch_size=batch, loss_fn=summed_loss, config=hooks, collate_fn=batched
        )
        store = GradientStorageManager(str(folder / name), residency="memory")
        return attributor.collect_gradients(streamer, store)

    stores = collect("examples", examples), collect("tasks", tasks)
    scores = attributor.attribute_from_cache(*stores, damping=0.1, relative_damping=True).scores
    found = np.empty((len(examples), len(tasks)), np.float32)
    found[order] = scores.numpy()
    return found


def _frozen(model: Any) -> Any:
    """A model whose weights have no gradients: that of the embeddings keeps the backward pass going."""
    model.requires_grad_(False).get_input_embeddings().requires_grad_(True)
    return model
