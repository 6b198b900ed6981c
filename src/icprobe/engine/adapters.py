"""Adapters beside a model's weights: their matrices as layers that gradients are taken over, and their optimiser."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from icprobe.engine.capabilities import Capabilities
from icprobe.engine.checkpoints import base_of, ready
from icprobe.engine.gradients import Layer, layers_of
from icprobe.engine.network import Network
from icprobe.errors import ModelError

STATE = "optimizer.safetensors"
NAME = "default"  # what peft calls the one adapter of a model


@dataclass(frozen=True)
class Adapted:
    """A model that computes with adapters beside its weights, in evaluation mode, frozen.

    matrices: the adapters' A and B, of each layer one behind the other, as layers without a bias. passed: the layers
    beside which adapters stand.
    """

    model: PreTrainedModel
    matrices: Sequence[Layer]
    passed: Sequence[Layer]


def load_adapted(
    checkpoint: str | Path, base: str | Path, capabilities: Capabilities, parameters: str, dtype: str, device: str
) -> Adapted:
    """The model of a checkpoint, whose adapter is not merged. parameters: of which layers' adapters, as `layers_of`.

    Raises ModelError where no optimiser's state lies beside an adapter, and as `checkpoints.base_of`.
    """
    if not Path(checkpoint, STATE).is_file():
        raise ModelError(f"{checkpoint}: it holds no adapter with its optimiser's state ({STATE}).")
    plain = base_of(checkpoint, base)
    network = Network(plain, capabilities)
    chosen, passed = layers_of(network, parameters), layers_of(network)
    model = ready(PeftModel.from_pretrained(plain, checkpoint).get_base_model(), dtype, device)
    return Adapted(model, [m for layer in chosen for m in _matrices(layer, model.get_submodule(layer.name))], passed)


def _matrices(layer: Layer, adapter: LoraLayer) -> list[Layer]:
    """A [r, d_in] and B [d_out, r] of the adapter of a layer, which computes W x + s·B A x."""
    first, second = adapter.lora_A[NAME], adapter.lora_B[NAME]
    beside = replace(layer, bias=False)
    return [
        replace(beside, name=f"{layer.name}.lora_A.{NAME}", module=first, d_out=first.out_features),
        replace(beside, name=f"{layer.name}.lora_B.{NAME}", module=second, d_in=second.in_features, shares_input=False),
    ]


def save_state(path: str | Path, model: PeftModel, optimizer: Any) -> None:
    """Writes the state of the Adam optimiser that trains a model's adapters, by the names that its layers have.

    A parameter that had no gradient yet, as of an expert that no token went to, has none.
    """
    group = optimizer.param_groups[0]  # the others differ in nothing but weight decay
    tensors = {"betas_and_eps": torch.tensor([*group["betas"], group["eps"]], dtype=torch.float64)}
    for name, parameter in model.get_base_model().named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    save_file(tensors, path)


class Adam:
    """What the next step of an Adam optimiser would make of a gradient, from its state in a file of `save_state`."""

    def __init__(self, path: str | Path, device: torch.device) -> None:
        self._state = load_file(path)
        *self._betas, self._eps = self._state.pop("betas_and_eps").tolist()
        self._state = {name: tensor.to(device) for name, tensor in self._state.items()}

    def direction(self, layer: Layer, gradients: Tensor) -> Tensor:
        """m̂ / (√v̂ + ε) for each of some gradients of a layer's weight, [n, size] float32: the step over −η.

        Both moments have taken the gradient in and are freed of their bias towards 0, as in arXiv 1412.6980; none is
        kept. A weight that never had a gradient begins at moments of 0.
        """
        (of_first, of_second), name = self._betas, f"{layer.name}.weight"
        zeros = torch.zeros_like(gradients[0])
        first, second = (self._state.get(f"{name}.{key}", zeros).flatten() for key in ("exp_avg", "exp_avg_sq"))
        steps = float(self._state.get(f"{name}.step", 0)) + 1
        first = torch.lerp(first, gradients, 1 - of_first)
        second = (of_second * second).addcmul(gradients, gradients, value=1 - of_second)
        root = second.div_(1 - of_second**steps).sqrt_().add_(self._eps)
        return first.div_(1 - of_first**steps).div_(root)
