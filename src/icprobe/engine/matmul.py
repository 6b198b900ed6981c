"""Float32 matrix products on a CPU through oneDNN, which outruns there the BLAS that PyTorch links (docs/log.md).

PyTorch's own `linear` and `mm` take oneDNN for 16-bit types alone; its operator for fused linear layers takes it for
float32 as well. Where there is no oneDNN, and on other devices, PyTorch's products are taken.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from icprobe.cores import multiply_bfloat16

AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# Weights up to this size are also kept in the order in which oneDNN reads them; larger models pay with time.
PACKED_BYTES = 1e9

Forward = Callable[[Tensor], Tensor]
# Forward passes that do no more than multiply.
OWN_FORWARDS = (nn.Linear.forward, Conv1D.forward)


def matmul(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, [..., k], [m, k], [m] → [..., m], into `out` where given (no bias then). No gradient.

    Either matrix may be the transposed view of a contiguous one.
    """
    if AVAILABLE and x.dtype == torch.float32 and x.device.type == "cpu":
        # Of other strides oneDNN makes a loop that is a hundred times slower.
        result = torch.ops.mkldnn._linear_pointwise(_dense(x), weight, bias, "none", [], "")
        return result if out is None else out.copy_(result)
    return linear(x, weight, bias) if out is None else torch.mm(x, weight.T, out=out)


def matmul_float32(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`matmul` of matrices [n, k], [m, k], [m] → [n, m] in float32: nothing is rounded before it is widened.

    For sums that scores are made of: a product of 16-bit matrices would come out in 16 bits, however it was summed.
    """
    if x.element_size() >= 4:
        return matmul(x, weight, bias).float()
    if x.device.type == "cuda":
        result = torch.mm(x, weight.T, out_dtype=torch.float32)
        return result if bias is None else result.add_(bias)
    exact = x.dtype == weight.dtype == torch.bfloat16 and multiply_bfloat16()
    with _as_bfloat16() if exact else nullcontext():
        return matmul(x.float(), weight.float(), None if bias is None else bias.float())


@contextmanager
def _as_bfloat16() -> Iterator[None]:
    """Within the block float32 matrices on a CPU may be rounded to bfloat16 before they are multiplied.

    Sums are float32. Numbers that came from bfloat16 stay as they are, and their products are exact in float32: that is
    four times as fast, where the processor has instructions for it, and rounds no more.
    """
    products = torch.backends.mkldnn.matmul
    before, products.fp32_precision = products.fp32_precision, "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


def compiled_on_cuda(function: Forward) -> Forward:
    """A function of one tensor as one compiled kernel where that is on CUDA and Triton is there; else as it is."""
    compiled = functools.cache(lambda: torch.compile(function, dynamic=True))

    @functools.wraps(function)
    def call(x: Tensor) -> Tensor:
        on_cuda = x.is_cuda and importlib.util.find_spec("triton") is not None
        return compiled()(x) if on_cuda else function(x)

    return call


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous() or (x.dim() == 2 and x.T.is_contiguous()) else x.contiguous()


class _Linear(torch.autograd.Function):
    """x Wᵀ + b, differentiable with respect to x alone."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return matmul(x, weight, bias)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, delta: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return matmul(delta, weight.T), None, None


def can_pack(modules: Iterable[nn.Module]) -> bool:
    """Whether there is to be a copy of the layers' weights in oneDNN's order."""
    return sum(module.weight.nbytes for module in modules) <= PACKED_BYTES


def onednn_forwards(modules: Iterable[nn.Module], packed: bool = False) -> dict[nn.Module, Forward]:
    """Forward passes by `matmul` of linear layers (nn.Linear, Conv1D; frozen), for `use_forwards`.

    A layer with a forward pass of its own, of its class or itself, keeps it: it may do more than multiply.
    packed: passes without gradients read a copy of the weights as they are now, in oneDNN's own order; else a changed
    weight counts from then on.
    """
    modules = [m for m in modules if type(m).forward in OWN_FORWARDS and "forward" not in vars(m)]
    if not AVAILABLE or any(m.weight.dtype != torch.float32 or m.weight.device.type != "cpu" for m in modules):
        return {}
    packed = packed and can_pack(modules)
    copies = [torch.ops.mkldnn._reorder_linear_weight(_weight(m), None) if packed else None for m in modules]
    return {module: _forward(module, copy) for module, copy in zip(modules, copies, strict=True)}


def set_forwards(forwards: Mapping[nn.Module, Forward]) -> None:
    """Makes the modules compute by these forward passes from now on."""
    for module, forward in forwards.items():
        vars(module)["forward"] = forward  # nn.Module's own way of setting an attribute takes ten times as long


@contextmanager
def use_forwards(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Within the block the modules compute by these forward passes; after it as before."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        set_forwards(forwards)
        yield
    finally:
        for module, forward in before.items():
            vars(module).pop("forward", None)
            if forward is not None:
                vars(module)["forward"] = forward


def _weight(module: nn.Module) -> Tensor:
    """The weight in nn.Linear's orientation, [d_out, d_in]."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def _forward(module: nn.Module, packed: Tensor | None) -> Forward:
    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return _Linear.apply(x, _weight(module), module.bias)
        ours = packed is not None and x.dtype == torch.float32  # autocast gives another
        return matmul(x, packed if ours else _weight(module), module.bias)

    return forward
