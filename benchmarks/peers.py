"""Published packages as contestants, each called through its own public interface on the same texts.

They come from PyPI without torchvision (benchmarks/requirements.txt); none is altered.
"""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contestant import CannotError, Outcome, Round, spread
from benchmarks.floors import padded, summed_loss
from benchmarks.naive import attributed
from benchmarks.texts import Work
from icprobe.engine.models import linear_layers
from icprobe.texts.prompts import Encoded


def lm_eval(work: Work) -> Round:
    """ICP as log-likelihood requests to HFLM, one-shot and zero-shot. settings: batch_size."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    harness = HFLM(
        pretrained=work.load_model(), tokenizer=work.tokenizer, batch_size=work.settings["batch_size"], max_length=2048
    )
    prompts = work.prompts
    pairs = [(prompts.query(task), prompts.target(task)) for task in work.tasks]
    pairs += [(prompts.one_shot(z, task), prompts.target(task)) for z in work.train for task in work.tasks]

    def run() -> Outcome:
        requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
        found = harness.loglikelihood(requests, disable_tqdm=True)
        table = np.array([value for value, _ in found], dtype=np.float64).reshape(-1, len(work.tasks))
        return Outcome((table[1:] - table[0]).astype(np.float32))

    return run


def kronfluence_task(model: Any) -> Any:
    """Its task: summed losses of examples and of tasks, over the linear layers of a model's blocks."""
    from kronfluence.task import Task

    tracked = list(linear_layers(model))

    class SummedLoss(Task):
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> torch.Tensor:
            return summed_loss(model, batch)

        def compute_measurement(self, batch: Any, model: Any) -> torch.Tensor:
            return summed_loss(model, batch)

        def get_influence_tracked_modules(self) -> list[str]:
            return tracked

    return SummedLoss()


def kronfluence(work: Work) -> Round:
    """Pairwise scores with the identity strategy, batches sorted by length.

    settings: held_tasks (tasks whose gradients are held in one pass over the examples, by its
    query_gradient_accumulation_steps; default all), mean (its aggregate_query_gradients), batch (rows; default 4).
    """
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.utils.dataset import DataLoaderKwargs

    model = work.load_model()
    task = kronfluence_task(model)
    analyzer = Analyzer(
        analysis_name="bench",
        model=prepare_model(model, task),
        task=task,
        cpu=work.device == "cpu",
        disable_tqdm=True,
        output_dir=str(Path(work.folder, "kronfluence")),
    )
    factors = FactorArguments(strategy="identity")
    orders = [[i for run in side for i in run] for side in work.sorted_batches]
    orders[1] = part_of(work, orders[1])
    examples, tasks = (
        [sequences[i] for i in order] for sequences, order in zip((work.documents, work.targets), orders, strict=True)
    )
    analyzer.fit_all_factors("identity", dataset=examples, factor_args=factors, overwrite_output_dir=True)
    rows = work.settings.get("batch", 4)
    held = work.settings.get("held_tasks") or len(tasks)
    mean = work.settings.get("mean", False)
    arguments = ScoreArguments(
        query_gradient_accumulation_steps=math.ceil(held / rows), aggregate_query_gradients=mean, damping_factor=0.0
    )
    loader = DataLoaderKwargs(collate_fn=lambda batch: padded(batch, torch.device("cpu")))

    def run() -> Outcome:
        began = time.perf_counter()
        analyzer.compute_pairwise_scores(
            "scores",
            "identity",
            query_dataset=tasks,
            train_dataset=examples,
            per_device_query_batch_size=rows,
            per_device_train_batch_size=rows,
            score_args=arguments,
            dataloader_kwargs=loader,
            overwrite_output_dir=True,
        )
        found = analyzer.load_pairwise_scores("scores")["all_modules"].float().numpy()
        if mean:
            matrix = np.empty((len(examples), 1), np.float32)
            matrix[orders[0]] = found.T / len(tasks)
            return Outcome(matrix)
        matrix = np.empty((len(examples), len(tasks)), np.float32)
        matrix[orders[0]] = found.T
        return _part(work, matrix, orders[1], held, began)

    return run


def part_of(work: Work, order: Sequence[int]) -> list[int]:
    """The tasks that are measured: all, or `part` of them, spread evenly over all lengths (order: by length)."""
    part = work.settings.get("part") or len(order)
    return [order[i] for i in spread(len(order), part)]


def _part(work: Work, matrix: np.ndarray, columns: Sequence[int], held: int, began: float) -> Outcome:
    """Passes of `held` tasks cost alike, so that the whole takes as much longer as it has more tasks."""
    facts: dict[str, Any] = {"held_tasks": held}
    if len(columns) == len(work.tasks):
        return Outcome(matrix, columns=list(columns), facts=facts)
    facts["measured_tasks"] = len(columns)
    seconds = (time.perf_counter() - began) * len(work.tasks) / len(columns)
    return Outcome(matrix, columns=list(columns), seconds=seconds, facts=facts)


def bergson(work: Work) -> Round:
    """Exact gradients (no projection): the tasks' collected in memory, the examples scored against them as they pass.

    settings: held_tasks (tasks whose gradients are held in one pass over the examples, as its query_batch_size does;
    default all), mean (its aggregation "mean").
    """
    from bergson import GradientProcessor, IndexConfig, InMemoryCollector, PreprocessConfig, Scorer
    from bergson.collector.collector import CollectorComputer
    from bergson.data import allocate_batches
    from bergson.score.score_writer import InMemorySequenceScoreWriter
    from datasets import Dataset

    model = work.load_model()
    # As its own workers load models: weights frozen, the embeddings' gradient keeps the backward pass going.
    model.get_input_embeddings().requires_grad_(True)
    root = model.base_model_prefix + "."
    modules = {name.removeprefix(root) for name in linear_layers(model)}
    mean = work.settings.get("mean", False)
    held = work.settings.get("held_tasks") or len(work.tasks)
    config = IndexConfig(
        run_path=str(Path(work.folder, "bergson")),
        token_batch_size=work.batch_tokens,
        loss_reduction="sum",
        include_bias=True,
    )
    config.partial_run_path.mkdir(parents=True, exist_ok=True)
    processor = GradientProcessor(include_bias=True)

    def table(sequences: Sequence[Encoded]) -> Any:
        return Dataset.from_dict(
            {
                "input_ids": [list(s.ids) for s in sequences],
                "labels": [[-100] * s.n_context + list(s.ids[s.n_context :]) for s in sequences],
                "length": [len(s.ids) for s in sequences],
            }
        )

    def collect(rows: Any, scorer: Any = None, preprocess: Any = None) -> Any:
        collector = InMemoryCollector(
            model=model.base_model,
            data=rows,
            cfg=config,
            processor=processor,
            target_modules=modules,
            scorer=scorer,
            preprocess_cfg=preprocess or PreprocessConfig(),
        )
        batches = allocate_batches(rows["length"][:], work.batch_tokens)
        CollectorComputer(model, rows, collector=collector, batches=batches, cfg=config).run_with_collector_hooks()
        return collector

    examples = table(work.documents)
    columns = part_of(work, [i for run in work.sorted_batches[1] for i in run])
    tasks = [work.targets[i] for i in columns]
    width = len(tasks) if mean else held
    queries = [table(tasks[i : i + width]) for i in range(0, len(tasks), width)]

    def run() -> Outcome:
        began = time.perf_counter()
        writer = InMemorySequenceScoreWriter(len(work.documents), 1 if mean else len(tasks))
        for number, query in enumerate(queries):
            preprocess = PreprocessConfig(aggregation="mean") if mean else None
            gradients = collect(query, preprocess=preprocess).gradients
            scorer = Scorer(gradients, list(gradients), writer, model.device, model.dtype, query_offset=number * held)
            del gradients
            collect(examples, scorer)
        return Outcome(writer.scores.numpy()) if mean else _part(work, writer.scores.numpy(), columns, held, began)

    return run


def dattri(work: Work) -> Round:
    """TracIn with one checkpoint of weight 1, per-example gradients by vmap over one flat vector of parameters.

    It differentiates the tasks anew for every batch of examples: measured on one batch of examples and one of tasks
    and scaled by the number of batches. settings: batch (rows; default 2).
    """
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader

    model = work.load_model()
    model.set_attn_implementation("eager")
    attributed(model)  # it takes the parameters that require a gradient
    batch_rows = work.settings.get("batch", 2)
    rows, columns = spread(len(work.documents), batch_rows), spread(len(work.targets), batch_rows)

    def loss(parameters: Any, batch: Any) -> torch.Tensor:
        ids, labels = (values.unsqueeze(0) for values in batch)
        # No mask: padding stands behind and carries no label.
        logits = torch.func.functional_call(model, parameters, (), {"input_ids": ids, "use_cache": False}).logits
        return torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum", ignore_index=-100)

    def loader(sequences: Sequence[Encoded]) -> Any:
        def collate(batch: Sequence[Encoded]) -> tuple:
            made = padded(batch, torch.device("cpu"))
            return made["input_ids"], made["labels"]

        return DataLoader(list(sequences), batch_size=batch_rows, collate_fn=collate)

    task = AttributionTask(loss, model, {name: value.detach() for name, value in model.state_dict().items()})
    attributor = TracInAttributor(task, torch.ones(1), normalized_grad=False, device=str(model.device))
    attributor.projector_kwargs = None  # its constructor always projects; exact gradients are asked for

    def run() -> Outcome:
        began = time.perf_counter()
        try:
            examples, tasks = [work.documents[i] for i in rows], [work.targets[i] for i in columns]
            matrix = attributor.attribute(loader(examples), loader(tasks))
        except (RuntimeError, ValueError) as error:
            raise CannotError(f"it fails on this model: {' '.join(str(error).split())[:200]}") from error
        passes = [math.ceil(len(side) / batch_rows) for side in (work.documents, work.targets)]
        seconds = (time.perf_counter() - began) * passes[0] * (1 + passes[1]) / 2
        facts = {"measured_examples": len(rows), "measured_tasks": len(columns)}
        return Outcome(matrix.numpy(), rows, columns, seconds, facts)

    return run
