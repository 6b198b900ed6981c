"""The basis of a fitted Fisher matrix (`fisher`): its files, and the factors of gradients in it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from icprobe.engine.gradients import Factors, Layer
from icprobe.errors import ArtifactError, reason

# A layer's tensors by name: "a" and "s" (sums of products, or eigenvectors), "eigenvalues", "tokens".
Tensors = dict[str, Tensor]


def layer_file(folder: Path, index: int) -> Path:
    """Where a folder holds what is of layer `index`."""
    return folder / f"{index:05d}.safetensors"


def read(path: Path, device: torch.device | str = "cpu") -> Tensors:
    """The tensors of a file; on a CPU they stay there, mapped into memory. Raises ArtifactError for a damaged one."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: cannot be read ({reason(error)}); remove its folder.") from None


def bases_of(folder: Path, leading: Sequence[int], index: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(Q_A, Q_S) of a layer. leading: of `leaders`."""
    own = read(layer_file(folder, index), device)
    return (own if leading[index] == index else read(layer_file(folder, leading[index]), device))["a"], own["s"]


def leaders(layers: Sequence[Layer]) -> list[int]:
    """Of each layer, the one whose A it has: the first of those that share its input, if both have a bias or none."""
    found: list[int] = []
    for index, layer in enumerate(layers):
        leader = found[-1] if layer.shares_input else index
        found.append(leader if layers[leader].bias == layer.bias else index)
    return found


def wide(dtype: torch.dtype) -> torch.dtype:
    """In which sums are formed: float32, and float64 of a model in float64."""
    return torch.promote_types(dtype, torch.float32)


def with_one(layer: Layer, a: Tensor) -> Tensor:
    """The inputs [n, d_in] as a layer's Fisher matrix takes them: wide, with 1 appended where the layer has a bias."""
    a = a.to(wide(a.dtype))
    return torch.cat([a, a.new_ones(len(a), 1)], dim=1) if layer.bias else a


class Rotation:
    """Factors in the basis of a Fisher matrix, a Q_A [n, d_in (+ 1)] and δ Q_S [n, d_out], in `wide`.

    On a CPU the eigenvectors stay in their files, mapped into memory while it is their layer's turn; on other devices
    they are read once and kept, as many as `room` [bytes] takes. Layers that share their input rotate it once.
    """

    def __init__(self, layers: Sequence[Layer], folder: Path, device: torch.device, room: float) -> None:
        self._layers, self.leaders, self._folder, self._device = layers, leaders(layers), folder, device
        self._room = 0 if device.type == "cpu" else room
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        # A leader's number, inputs of batches, and these rotated: of the layer before.
        self._before: tuple[int, list[Tensor], list[Tensor]] = (-1, [], [])

    def __call__(self, index: int, factors: Sequence[Factors]) -> list[Factors]:
        """Rotates the factors of some batches in layer `index`."""
        layer, (of_input, of_output) = self._layers[index], self._basis(index)
        leader, sources, rotated = self._before
        given = [one.a for one in factors]
        # Tensors at one place in memory are the same while one of them is there.
        if leader != self.leaders[index] or [*map(_place, given)] != [*map(_place, sources)]:
            rotated = [torch.mm(with_one(layer, a), of_input) for a in given]
            self._before = self.leaders[index], given, rotated
        return [
            Factors(a, torch.mm(one.delta.to(of_output.dtype), of_output), one.tokens)
            for a, one in zip(rotated, factors, strict=True)
        ]

    def _basis(self, index: int) -> tuple[Tensor, Tensor]:
        """(Q_A, Q_S) of a layer."""
        if index in self._kept:
            return self._kept[index]
        found = bases_of(self._folder, self.leaders, index, self._device)
        size = sum(tensor.nbytes for tensor in found)
        if size <= self._room:
            self._room -= size
            self._kept[index] = found
        return found


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    """Where in memory a tensor lies."""
    return tensor.data_ptr(), tensor.shape
