"""How fast this machine computes what an experiment asks for: a little of each kind of its work, done and timed.

The rates are of the counts by which resources are reckoned (`icprobe.analysis.frontier.work`, `workflow.resources`), of
the real model, on rows of the experiment, in its arithmetic and with its threads; so what such counts leave out, such
as attention, or waiting for memory, is in the rates.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import cycle, islice, pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, TrainerCallback

from icprobe import artifacts
from icprobe.analysis import frontier
from icprobe.attribution import icp, one_step
from icprobe.attribution.contraction import CONTRACTIONS, contract
from icprobe.attribution.documents import encode_documents
from icprobe.attribution.gradient_cache import GradientCache
from icprobe.attribution.matrix import Inputs, encode_tasks
from icprobe.attribution.objective import Objective
from icprobe.engine.capabilities import Capabilities
from icprobe.engine.gradients import Layer, grams, layers_of, per_example_gradients
from icprobe.engine.models import load_model, set_precision
from icprobe.engine.network import Network
from icprobe.evaluation.generation import generate
from icprobe.evaluation.outcomes import held_out_answers, log_likelihoods, network_of
from icprobe.tables.checking import records
from icprobe.texts.chat import Chat
from icprobe.texts.prompts import Encoded, Prompts
from icprobe.texts.tokenizing import load_tokenizer
from icprobe.training.fine_tune import log_cut, tokenize, trainer_of
from icprobe.workflow.work import SPEED, decoding_bytes, training_operations

logger = logging.getLogger(__name__)

SECONDS = 0.5  # that one kind of work is timed for, about, on a machine as fast as is supposed
LEAST_TOKENS = 64  # of what is timed, and of what is done before it
OBJECTIVE = ("train_loss", "reduction", "task_likelihood", "parameters")
TIMED_BATCHES = 2  # of a training, after one that is not timed
TOKENS_GENERATED = 16


@dataclass
class Sample:
    """A little of an experiment, to be computed.

    base: directory of the prepared model. train, tasks, eval: tables, the last as it is where there is none. lengths:
    of train, in tokens. settings: of the sections "attribution", "finetune" and "evaluation" what arithmetic depends
    on, and "influence", the contractions of the pass over gradients.
    """

    base: str
    train: pd.DataFrame
    tasks: pd.DataFrame
    eval: pd.DataFrame
    lengths: pd.DataFrame
    prompts: Prompts | Chat
    settings: Mapping[str, Mapping[str, Any]]
    seed: int = 0

    @cached_property
    def parameters(self) -> float:
        return artifacts.read_manifest(self.base)["parameters"]

    @cached_property
    def own_tokenizer(self) -> Any:
        return load_tokenizer(self.base)

    def model(self, dtype: str, section: str = "attribution") -> PreTrainedModel:
        """The model in some arithmetic, on the device of a section; one at a time is in memory."""
        wanted = (dtype, self.settings[section]["device"])
        if getattr(self, "_loaded", None) != wanted:
            self._model = None
            self._model, self._loaded = load_model(self.base, *wanted), wanted
        return self._model

    def room(self, device: str) -> float:
        """Tokens of a row that is timed: a batch's, or fewer where the model is large for the device."""
        affordable = SECONDS * SPEED[device] / (2 * self.parameters)
        return max(LEAST_TOKENS, min(self.settings["attribution"]["batch_tokens"], affordable))

    @property
    def objective(self) -> Objective:
        known = {name: self.settings["attribution"][name] for name in OBJECTIVE}
        return Objective(**known, max_length=self.settings["finetune"]["max_length"])

    def batch(self, room: float) -> list[int]:
        """Rows of examples of about the mean length, as many as have so many tokens together, at least one."""
        tokens = self.tokens
        rows = np.argsort(np.abs(tokens - tokens.mean()), kind="stable")
        return rows[: max(1, int((np.cumsum(tokens[rows]) <= room).sum()))].tolist()

    @property
    def tokens(self) -> np.ndarray:
        """Tokens of each example [N]."""
        return (self.lengths["n_query"] + self.lengths["n_target"]).to_numpy()

    def inputs(self, dtype: str, room: float | None = None) -> tuple[Inputs, int]:
        """What a method is given, with as many of the tasks as have so many tokens (default: `room`); and these."""
        model = self.model(dtype)
        room = self.room(model.device.type) if room is None else room
        whole = Inputs(self.train, self.tasks, self.lengths, self.prompts, model, self.own_tokenizer, seed=self.seed)
        whole.capabilities = Capabilities.of(self.base)
        chosen, used = _that_fit([len(task.ids) for task in encode_tasks(whole)], room)
        whole.tasks = self.tasks.iloc[chosen]
        return whole, used

    def operations(self, method: str, kind: str, rows: Sequence[int], tasks: int, task_tokens: float) -> float:
        """Counts those of one kind that a method does with these examples and so many tasks."""
        sizes = (len(rows), float(self.tokens[rows].sum()), tasks, task_tokens)
        return frontier.work(method, self.parameters, *sizes, response_tokens=0.0)[kind]


def rates(kinds: Sequence[str], sample: Sample) -> dict[str, float]:
    """{kind: amount a second} of some kinds of work, by the counts that resources have of them."""
    found: dict[str, float] = {}
    set_precision(sample.settings["attribution"]["tf32"])
    # Kinds of one arithmetic after one another: the model is loaded for each.
    for kind in sorted(kinds, key=list(KINDS).index):
        began = time.monotonic()
        found |= KINDS[kind](sample)
        logger.info("%s: %.3g a second; timed in %.1f s", kind, found[kind], time.monotonic() - began)
    return found


def _that_fit(tokens: Sequence[int], room: float) -> tuple[list[int], int]:
    """The places of sequences that have so many tokens together, at least one, and how many tokens these have."""
    chosen, used = [], 0
    for place, count in enumerate(tokens):
        if not chosen or used + count <= room:
            chosen.append(place)
            used += count
    return chosen, used


def _seconds(work: Callable[[], Any], before: Callable[[], Any]) -> float:
    """Seconds that some work takes, once a little like it has been done before; what a GPU does is waited for."""
    before()
    times, until = [], time.monotonic() + SECONDS
    while not times or (time.monotonic() < until and len(times) < 10):
        times.append(_once(work))
    return float(np.mean(times))


def _once(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - began


# --- attribution ------------------------------------------------------------------------------------------------


def _read(sample: Sample) -> dict[str, float]:
    """Passes forward, as icp has them: one example and tasks behind it."""
    settings, rows = sample.settings["attribution"], sample.batch(0)
    inputs, task_tokens = sample.inputs(settings["dtype"])
    few, probe = (icp.Probe(i, settings["batch_tokens"]) for i in (sample.inputs(settings["dtype"], 0)[0], inputs))
    counted = sample.operations("icp", "read", rows, len(inputs.tasks), task_tokens)
    return {"read": counted / _seconds(lambda: probe.effects(rows, "timed"), lambda: few.effects(rows, "timed"))}


def _gradients(sample: Sample) -> dict[str, float]:
    """Passes forward and backward, as influence has them."""
    settings = sample.settings["attribution"]
    inputs, _ = sample.inputs(settings["dtype"])
    rows = sample.batch(sample.room(inputs.model.device.type))
    documents = encode_documents(inputs, [rows], sample.objective)
    batch, network = [documents[row] for row in rows], Network(inputs.model, inputs.capabilities)
    layers = layers_of(network, sample.objective.parameters)

    def gradients(batch: list[Encoded]) -> GradientCache:
        return GradientCache(network, layers, [batch], dense=False)

    took = _seconds(lambda: gradients(batch), lambda: gradients(batch[:1]))
    return {"gradients": sample.operations("influence", "gradients", rows, 0, 0.0) / took}


def _products(sample: Sample) -> dict[str, float]:
    """Products of the gradients of a batch of examples with those of a pack of tasks, which are formed for it.

    Of random numbers, in one layer of each shape: that takes as long, and needs no passes.
    """
    settings = sample.settings["attribution"]
    inputs, _ = sample.inputs(settings["dtype"], room=settings["batch_tokens"])
    rows, tasks = sample.batch(settings["batch_tokens"]), encode_tasks(inputs)
    network = Network(inputs.model, inputs.capabilities)
    layers = layers_of(network, sample.objective.parameters)
    contractions = {name: CONTRACTIONS[name] for name in sample.settings["influence"]["contractions"]}
    every = len(sample.tasks) if [*contractions] == ["influence"] else None
    cache = GradientCache(network, layers, [], dense=False, all_tasks=every)
    lengths = sample.tokens[rows].tolist(), [len(task.ids) for task in tasks]

    def once(layer: Layer) -> float:
        examples, others = (_factors(layer, of_side, cache.dtype, cache.device) for of_side in lengths)
        by_grams = cache._by_grams(layer, others[2], examples[2], False)

        def multiply() -> None:
            if by_grams:
                grams(layer, *examples, *others)
                return
            formed = zip(per_example_gradients(layer, *examples), per_example_gradients(layer, *others), strict=True)
            for first, second in formed:
                contract(contractions, {0: first}, {0: second}, [(0, 0)])

        multiply()
        return _once(multiply)

    shapes: dict[tuple, list[Layer]] = {}
    for layer in layers:
        shapes.setdefault((layer.d_in, layer.d_out, layer.bias, layer.share), []).append(layer)
    took = sum(len(alike) * once(alike[0]) for alike in shapes.values())
    return {"products": sample.operations("influence", "products", rows, len(tasks), 0.0) / took}


def _factors(
    layer: Layer, lengths: Sequence[int], dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, list[slice]]:
    """Random inputs and output gradients of a layer, of sequences of these lengths, and where each lies."""
    ends = np.cumsum([max(1, round(layer.share * n)) for n in lengths]).tolist()
    a, delta = (torch.randn(ends[-1], d, dtype=dtype, device=device) for d in (layer.d_in, layer.d_out))
    return a, delta, [slice(*pair) for pair in pairwise([0, *ends])]


def _steps(sample: Sample) -> dict[str, float]:
    """Steps of one_step: each example's gradient, and the tasks read with its update in the way."""
    settings, rows = sample.settings["attribution"], sample.batch(0)
    inputs, task_tokens = sample.inputs("float32")
    batches = [np.array([row]) for row in rows]

    def steps() -> None:
        list(one_step.attribute(inputs, "one_step", batches, settings["batch_tokens"], **asdict(sample.objective)))

    before = 2 * sample.parameters * task_tokens  # of the tasks by themselves, which an experiment reads once
    counted = before + sample.operations("one_step", "steps", rows, len(inputs.tasks), task_tokens)
    return {"steps": counted / _once(steps)}


# --- fine-tuned models ------------------------------------------------------------------------------------------


def _ask(sample: Sample) -> dict[str, float]:
    """Passes forward over held-out answers, in float32."""
    model = sample.model("float32", "evaluation")
    network = network_of(sample.base, model)
    answers = held_out_answers(
        {"tasks": sample.tasks},
        sample.prompts,
        sample.own_tokenizer,
        artifacts.read_manifest(sample.base)["max_positions"],
    )
    places, used = _that_fit([len(answer.encoded.ids) for answer in answers], sample.room(model.device.type))
    chosen = [answers[place] for place in places]
    took = _seconds(lambda: log_likelihoods(network, chosen), lambda: log_likelihoods(network, chosen[:1]))
    return {"ask": 2 * sample.parameters * used / took}


def _decode(sample: Sample) -> dict[str, float]:
    """Tokens of responses, one after the other, of a batch of prompts."""
    settings = sample.settings["evaluation"]
    model = sample.model(settings["dtype"], "evaluation")
    size = settings["batch_size"] if Capabilities.of(sample.base).pads_left else 1
    bound = sample.prompts.of(sample.own_tokenizer)
    texts = [bound.query(row) for row in records(sample.eval)[:size]]
    tokens = min(settings["max_new_tokens"], TOKENS_GENERATED)
    took = _once(lambda: generate(model, sample.own_tokenizer, texts, tokens, size, settings["device"]))
    return {"decode": decoding_bytes(sample.parameters, tokens) / took}


class _Timed(TrainerCallback):
    """When each step of a training ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.monotonic())


def _train(sample: Sample) -> dict[str, float]:
    """Steps of fine-tuning, of a batch each."""
    sample._model = sample._loaded = None  # the trainer loads its own
    settings = {**sample.settings["finetune"], "epochs": 1.0, "accumulation": 1, "processes": 1, "warmup_ratio": 0.0}
    wanted = settings["batch_size"] * (1 + TIMED_BATCHES)
    rows = records(sample.train.sample(frac=1, random_state=sample.seed)[:wanted])
    found, counts = tokenize(sample.own_tokenizer, rows, sample.prompts, settings["max_length"])
    log_cut(len(rows), counts, settings["max_length"])
    examples, timed = [*islice(cycle(found), wanted)], _Timed()  # of a few examples each comes again
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(sample.base, sample.own_tokenizer, examples, settings, sample.seed, folder, [timed])
        trainer.train()
    tokens = sum(len(example["input_ids"]) for example in examples) * TIMED_BATCHES / (1 + TIMED_BATCHES)
    return {"train": training_operations(sample.parameters, tokens) / (timed.ends[-1] - timed.ends[0])}


KINDS: dict[str, Callable[[Sample], dict[str, float]]] = {
    "read": _read,
    "gradients": _gradients,
    "products": _products,
    "steps": _steps,
    "ask": _ask,
    "decode": _decode,
    "train": _train,
}
