"""The model that values examples: prepared as the DAG prepares it, or one of transformers that is in memory."""

import os
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from icprobe import artifacts, paths
from icprobe.config.sources import SMOLLM2, SMOLLM2_SOURCE, Load
from icprobe.config.types import slice_of
from icprobe.engine.admission import admit, capabilities_of, check_ids
from icprobe.engine.capabilities import Capabilities
from icprobe.engine.experts import stack
from icprobe.engine.gradients import coverage
from icprobe.engine.models import DTYPES, check_no_adapter, load_model, max_positions, prepare, set_precision
from icprobe.engine.quantization import quantised_layers
from icprobe.engine.skeleton import skeleton
from icprobe.errors import ModelError, reason, shown
from icprobe.fingerprints import closure, contents, meaning
from icprobe.notebook.configuring import MODEL
from icprobe.texts.control_tokens import forget
from icprobe.texts.readers import Reader
from icprobe.texts.tokenizing import reader
from icprobe.workflow.plan import Plan

# What a model may be called without saying where it comes from.
BUILT_IN = {SMOLLM2: SMOLLM2_SOURCE.model_dump(mode="json")}
IN_MEMORY = "in memory"  # where a configuration says that a model comes from which nobody fetches
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
ASKED_OF_TOKENIZERS = ("get_vocab", "special_tokens_map")
# What is found out of a model lies in its manifest; `prepare` reaches them by an argument.
FINDERS = ("icprobe.engine.admission", "icprobe.engine.trials")


@dataclass(frozen=True)
class Subject:
    """A model that is ready to value examples.

    reader: what it makes of texts. load(dtype): the model in this arithmetic, in evaluation mode, frozen. directory: of
    the prepared model; None of one in memory.
    """

    reader: Reader
    capabilities: Capabilities
    load: Callable[[str], PreTrainedModel]
    directory: Path | None = None


def source_of(model: Any) -> dict[str, Any]:
    """Says where a model comes from, as an entry of the configuration's `model_sources` does.

    model: a directory, a hub id, a name of `BUILT_IN`, such an entry, or a model in memory. Raises ModelError for
    anything else.
    """
    if isinstance(model, PreTrainedModel):
        return {"source": "local", "path": IN_MEMORY}
    if isinstance(model, Mapping):
        if model.get("source") == "external":
            raise ModelError("model: one whose source is external is not here, so nothing can be computed with it.")
        return dict(model)
    if not isinstance(model, str | os.PathLike):
        raise ModelError(
            f"model: one of type {type(model).__name__} is no model of transformers; pass one with its tokenizer, "
            f"or a directory, a hub id, or {shown(next(iter(BUILT_IN)))}. (Adapters of peft: model.merge_and_unload().)"
        )
    name = os.path.expanduser(model)
    if name in BUILT_IN:
        return BUILT_IN[name]
    if os.path.isdir(name) or not HUB_ID.fullmatch(name):
        return {"source": "local", "path": name}
    return {"source": "hub", "id": name}


@contextmanager
def ready(model: Any, tokenizer: Any, plan: Plan) -> Iterator[Subject]:
    """Gives the model of a plan, ready for as long as the block lasts; one in memory is afterwards as it was before.

    Raises ModelError, before any work, where it cannot compute in the dtype of a method that is asked for, or has none
    of the layers that `parameters` chooses.
    """
    if not isinstance(model, PreTrainedModel):
        if tokenizer is not None:
            raise ModelError("tokenizer: a model that is not in memory brings its own; leave it out.")
        yield _from_directory(_prepared(plan), plan)
        return
    _check_in_memory(model, tokenizer, plan)
    forget(tokenizer)  # since the last call it may have been changed
    with _frozen(model):
        check_ids(model, tokenizer)
        limits = max_positions(model.config), model.config.vocab_size
        read = Reader(type(model).__name__, tokenizer, *limits)
        capabilities = capabilities_of(model)
        if plan.parameters_chosen:
            coverage(model, capabilities, plan.config.attribution.parameters)
        yield Subject(read, capabilities, lambda _dtype: model)


def _from_directory(directory: Path, plan: Plan) -> Subject:
    """Opens a prepared model; its weights are loaded when they are asked for."""
    capabilities, kept = Capabilities.of(directory), {}
    for dtype in _dtypes(plan).values():
        capabilities.check_dtype(dtype)
    if plan.parameters_chosen:
        coverage(skeleton(directory), capabilities, plan.config.attribution.parameters)

    def load(dtype: str) -> PreTrainedModel:
        if dtype not in kept:
            kept.clear()  # before the next one is loaded: two might not fit
            kept[dtype] = load_model(directory, dtype, plan.config.attribution.device)
        return kept[dtype]

    return Subject(reader(directory), capabilities, load, directory)


def _prepared(plan: Plan) -> Path:
    """Finds the directory of the prepared model, or prepares it in the user's cache.

    What the DAG has prepared from the same source, in the working directory, is taken as it is.
    """
    source = plan.config.model_sources[MODEL]
    if source.source == "local" and source.load == Load() and _is_prepared(Path(source.path)):
        return Path(source.path)
    name = plan.config.model_directory(MODEL).rpartition("-")[2]
    if source.source == "random" and not os.path.isfile(source.corpus):
        raise ModelError(f"model.corpus: {source.corpus}: no such file; correct the path.")
    files = contents(plan.model_files(MODEL))
    if not files:
        for made in Path().glob(paths.MODEL.format(model="*", source=name)):
            if made.is_dir():
                return made
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "icprobe", "models")
    # What another version prepared, or found out of a model, is not what this one would.
    version = [meaning(name) for name in sorted({*closure([prepare.__module__]), *FINDERS})]
    directory = cache / f"{MODEL}-{artifacts.digest([name, files, version])[:12]}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not os.access(cache, os.W_OK):
            raise PermissionError("nothing may be written there")
    except OSError as error:
        raise ModelError(
            f"{cache}: the folder for prepared models cannot be used ({reason(error)}); set the environment variable "
            "XDG_CACHE_HOME to a folder that you may write to."
        ) from None
    with artifacts.one_at_a_time(directory) as wanted:
        if wanted:
            with artifacts.atomic_path(directory) as aside:
                prepare(slice_of(source), aside, admit)
    return directory


def _is_prepared(directory: Path) -> bool:
    """Whether the DAG has prepared the model in a directory; others may have a manifest.json that says other things."""
    manifest = directory / artifacts.MANIFEST
    return manifest.is_file() and '"max_positions"' in manifest.read_text(encoding="utf-8", errors="replace")


def _dtypes(plan: Plan) -> dict[str, str]:
    """The arithmetic of each method that computes with the model."""
    return {
        method: plan.method_settings(method)["dtype"] for method in plan.computed if plan.methods[method].needs_model
    }


def arithmetic_of(model: Any) -> dict[str, str]:
    """Says the dtype of a model in memory, as an argument of `value`; nothing where the model is to be loaded."""
    return {"dtype": str(model.dtype).removeprefix("torch.")} if isinstance(model, PreTrainedModel) else {}


def _check_in_memory(model: PreTrainedModel, tokenizer: Any, plan: Plan) -> None:
    """Raises ModelError where a model in memory lacks its tokenizer, or would have to compute in another way."""
    name, device = type(model).__name__, plan.config.attribution.device
    if model.config.get_text_config(decoder=True) is not model.config:
        raise ModelError(
            f"model: a {name} in memory is composed of several models; pass its directory or hub id, and its language "
            "model alone is used."
        )
    check_no_adapter(model, f"model: a {name} in memory")
    if 0 < getattr(model.config, "rescale_every", 0) < model.config.num_hidden_layers:
        raise ModelError(
            f"model: a {name} in memory divides weights where it is not trained (rescale_every); pass its directory or "
            "hub id, for which that is left out."
        )
    if quantised_layers(model):
        raise ModelError(
            f"model: a quantised {name} in memory multiplies in bitsandbytes' own way; pass its source instead, with "
            "load={'quantization': '4bit'} in it, such as {'source': 'hub', 'id': …}."
        )
    if tokenizer is None:
        raise ModelError(f"model: a {name} in memory needs its tokenizer; pass tokenizer=…")
    _check_tokenizer(tokenizer)
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ModelError(
            f"model: a {name} in memory was made within torch.inference_mode(), so that no gradient can be taken of "
            "it; make it outside of that."
        )
    for method in plan.along_training:
        raise ModelError(
            f"model: {method} loads checkpoints of a training, and a {name} in memory has no files that these belong "
            "to; pass its directory or hub id."
        )
    if device not in ("auto", model.device.type):
        raise ModelError(f"device: a {name} in memory is on {model.device}, not on {device}; move it there.")
    for method, dtype in _dtypes(plan).items():
        if model.dtype != DTYPES[dtype]:
            own = arithmetic_of(model)["dtype"]
            raise ModelError(
                f"model: {method} computes in {dtype}, and a {name} in {own} is in memory; load it with "
                f"dtype=torch.{dtype}, or pass its directory."
            )


def _check_tokenizer(tokenizer: Any) -> None:
    """Raises ModelError for what is no tokenizer of transformers, and for one that does not tell its added tokens."""
    kind = type(tokenizer).__name__
    try:
        added = tokenizer.added_tokens_decoder
    except (AttributeError, NotImplementedError):
        added = None
    tells = isinstance(added, Mapping)  # that of mistral-common has a method there
    if not tells and isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(
            f"tokenizer: a {kind} does not tell its added tokens; pass the one of the model's tokenizer.json, which "
            "PreTrainedTokenizerFast.from_pretrained(…) gives."
        )
    if not tells or not callable(tokenizer) or not all(hasattr(tokenizer, name) for name in ASKED_OF_TOKENIZERS):
        raise ModelError(
            f"tokenizer: a {kind} is no tokenizer of transformers; pass the object, such as "
            "AutoTokenizer.from_pretrained(…) gives."
        )


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Puts a model into evaluation mode and freezes it; each module and parameter is afterwards as it was before.

    So are a mixture's experts, which the engines put apart.
    """
    training = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval().requires_grad_(False)
        for parameter in gradients:
            parameter.grad = None
        yield
    finally:
        stack(model)
        for module, before in training.items():
            module.training = before
        for parameter in trained:
            parameter.requires_grad_(True)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


@contextmanager
def arithmetic_kept() -> Iterator[None]:
    """Within the block torch computes as in a job of the workflow, whatever the caller has set; then that holds again.

    In float32 without autocast, with gradients, new tensors on the CPU and of float32.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        # Only where another is set: with it each call of torch takes longer.
        torch.device("cpu") if device.type != "cpu" else nullcontext(),
        _precision_kept(),
    ):
        try:
            torch.set_default_dtype(torch.float32)
            yield
        finally:
            torch.set_default_dtype(dtype)


@contextmanager
def _precision_kept() -> Iterator[None]:
    """Within the block products of float32 are of float32; then torch's choice of precision is as it was before.

    It may have been made by torch's older names or by its newer ones; of a mixture the older cannot be asked for.
    """
    every, matmul, onednn = torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn
    names = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = "highest"
    before = [(every, "fp32_precision", every.fp32_precision)]
    every.fp32_precision = "none"  # torch's default; those below say then what was set for themselves
    parts = [(each, "fp32_precision") for each in (matmul, onednn.matmul, onednn.conv, onednn.rnn)]
    before += [(part, name, getattr(part, name)) for part, name in (*parts, *((matmul, name) for name in names))]
    for part in (onednn.conv, onednn.rnn):
        part.fp32_precision = "none"
    try:
        set_precision(tf32=False)
        yield
    finally:
        torch.set_float32_matmul_precision(older)
        for part, name, value in before:
            setattr(part, name, value)


@contextmanager
def chance_kept() -> Iterator[None]:
    """Leaves the states of random numbers, which a training seeds and new adapters draw from, as they were before."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
