"""Models whose linear layers are kept in 8 or 4 bits by bitsandbytes, and computed as what these bits say.

bitsandbytes' own products would make scores depend on what else goes through the model: LLM.int8 rounds activations,
but for columns that it chooses by all rows of a batch, and some CPUs round 4-bit layers to bfloat16 where no gradient
is wanted. Here a layer dequantises its weight W and computes x Wᵀ + b. So likelihoods and gradients are exactly those
of the model with dequantised weights, of which no more than one layer's exist at a time.
"""

import copy
import importlib.util
import re
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import BitsAndBytesConfig, PreTrainedModel

from icprobe.engine.matmul import matmul
from icprobe.errors import ModelError, several

LACKING = "pip install 'bitsandbytes>=0.50'"


def quantised(load: dict[str, str] | None) -> bool:
    """Whether a model is loaded with quantised layers. load: a source's `load`, as plain values; None: the defaults."""
    return (load or {}).get("quantization", "none") != "none"


def options(load: dict[str, str] | None, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` takes for it. Raises ModelError where bitsandbytes is absent.

    The output embedding stays as it is. 4 bits are NF4 in blocks of 64 weights (QLoRA, arXiv 2305.14314); 8 bits have a
    scale for each row (LLM.int8, arXiv 2208.07339).
    """
    if not quantised(load):
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"load.quantization: {load['quantization']} needs bitsandbytes: {LACKING}.")
    if load["quantization"] == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": config}


def quantised_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that bitsandbytes keeps in a few bits, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and not m.weight.is_floating_point()}


def check_quantised(model: PreTrainedModel) -> None:
    """Raises ModelError where bitsandbytes has left linear layers whole, besides the output embedding."""
    head = model.get_output_embeddings()
    left = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.is_floating_point() and module is not head
    ]
    if left:
        raise ModelError(
            f"{type(model).__name__}: bitsandbytes leaves {several(len(left), 'linear layer')} whole, first {left[0]}; "
            "leave load.quantization out, or choose another model."
        )


def cast_rest(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Brings all weights that are not quantised to a dtype; quantised in float32, a layer's bits depend on none.

    As transformers loads a model in that dtype: it keeps some weights in float32 (`_keep_in_fp32_modules_strict`), and
    buffers that say so, such as the frequencies of rotary positions.
    """
    kept = [re.compile(name) for name in getattr(model, "_keep_in_fp32_modules_strict", None) or ()]
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not any(one.search(name) for one in kept):
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    if dtype == torch.float32:
        return
    with torch.device("meta"):
        made = type(model)._from_config(copy.deepcopy(model.config), dtype=dtype)
    there = dict(model.named_buffers())
    for name, buffer in made.named_buffers():
        if name in there and buffer.is_floating_point():
            owner, _, own = name.rpartition(".")
            model.get_submodule(owner)._buffers[own] = there[name].to(buffer.dtype)


def compute_dequantised(model: PreTrainedModel) -> None:
    """Lets the quantised layers of a model compute x Wᵀ + b with their dequantised weights."""
    for layer in quantised_layers(model).values():
        layer.forward = MethodType(_forward, layer)
    # trl would round adapters to bfloat16 at these marks.
    for mark in ("is_loaded_in_8bit", "is_loaded_in_4bit"):
        vars(model).pop(mark, None)


@torch.no_grad()
def dequantise(model: PreTrainedModel) -> None:
    """Puts an nn.Linear with the dequantised weight, in the model's dtype, in place of each quantised layer."""
    layers = quantised_layers(model)
    if not layers:
        return
    for name, layer in layers.items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(weight_of(layer, model.dtype), requires_grad=False)
        plain.bias = layer.bias
        model.set_submodule(name, plain.train(layer.training))
    # It is as any other now: to be moved, cast and trained.
    model.hf_quantizer = None
    model.is_quantized = False
    for mark in ("quantization_method", "is_loaded_in_8bit", "is_loaded_in_4bit"):
        vars(model).pop(mark, None)
    model.config.__dict__.pop("quantization_config", None)


def weight_of(module: nn.Module, dtype: torch.dtype | None = None) -> Tensor:
    """A linear layer's weight as it is stored, or dequantised into `dtype` [d_out, d_in] where it is quantised."""
    if module.weight.is_floating_point():
        return module.weight
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    return dequantize_bnb_weight(module.weight, getattr(module, "state", None)).to(dtype)


def _forward(self: nn.Linear, x: Tensor) -> Tensor:
    return _Dequantised.apply(x, self)


class _Dequantised(torch.autograd.Function):
    """x Wᵀ + b, differentiable with respect to x alone; the backward pass dequantises W again instead of keeping it."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, layer: nn.Linear) -> Tensor:
        ctx.layer = layer
        # Only PyTorch's own product casts as autocast says.
        product = linear if torch.is_autocast_enabled(x.device.type) else matmul
        return product(x, weight_of(layer, x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, delta: Tensor) -> tuple[Tensor, None]:
        return matmul(delta, weight_of(ctx.layer, delta.dtype).T), None
