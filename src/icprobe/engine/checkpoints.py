"""Fine-tuned models as they are asked: loaded from a checkpoint, an adapter merged into its base."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import load_peft_weights
from transformers import PreTrainedModel

from icprobe import artifacts
from icprobe.engine.models import DTYPES, load_model, opened, resolve_device, trusts
from icprobe.engine.quantization import cast_rest
from icprobe.engine.skeleton import skeleton
from icprobe.errors import ArtifactError, IcprobeError, ModelError, out_of_memory, reason


def load_fine_tuned(
    checkpoint: str | Path, base: str | Path, dtype: str = "float32", device: str = "auto"
) -> PreTrainedModel:
    """The fine-tuned model of a checkpoint in evaluation mode; an adapter is merged into its base in float32, where
    the base's own weights are quantised ones into what their bits say.

    Raises ArtifactError where a file is damaged, or where an adapter belongs to another base.
    """
    if artifacts.read_manifest(checkpoint)["kind"] == "full":
        return load_model(checkpoint, dtype=dtype, device=device)
    return ready(PeftModel.from_pretrained(base_of(checkpoint, base), checkpoint).merge_and_unload(), dtype, device)


def base_of(checkpoint: str | Path, base: str | Path) -> PreTrainedModel:
    """The base model that a checkpoint's adapter belongs to, in float32 on the CPU, its quantised weights dequantised.

    Raises ArtifactError where a file of either is damaged, or where the adapter belongs to another base.
    """
    manifest = artifacts.verify(checkpoint)
    if manifest["base_digest"] != artifacts.content_digest(base):
        raise ArtifactError(
            f"{checkpoint}: this adapter belongs to another {manifest['base']} than {base}. "
            f"Remove {checkpoint} to have it rebuilt."
        )
    return load_model(base, dtype="float32", device="cpu", dequantised=True)


def load_given(
    directory: str | Path, base: str | Path, dtype: str = "float32", device: str = "auto"
) -> PreTrainedModel:
    """What `load_fine_tuned` gives, of a checkpoint that somebody else trained: a peft adapter, or a whole model.

    Raises ModelError where it is no checkpoint of the base, or cannot be merged into it.
    """
    try:
        if Path(directory, "adapter_config.json").is_file():
            return ready(_adapted(directory, base).merge_and_unload(), dtype, device)
        model = opened(directory, dtype, trusts(base))
        shapes = [{name: tuple(p.shape) for name, p in one.named_parameters()} for one in (model, skeleton(base))]
        if other := [name for name in {**shapes[1], **shapes[0]} if shapes[0].get(name) != shapes[1].get(name)]:
            raise ValueError(f"{other[0]} is {shapes[0].get(other[0])} there, {shapes[1].get(other[0])} here")
        return model.to(resolve_device(device))
    except Exception as error:  # what is wrong with files that others made surfaces anywhere
        if isinstance(error, IcprobeError) or out_of_memory(error):
            raise
        raise ModelError(
            f"{directory}: no checkpoint of {Path(base).name}, or none that can be merged ({reason(error)})."
        ) from None


def _adapted(directory: str | Path, base: str | Path) -> PeftModel:
    """The base with an adapter. Raises ValueError where that holds other weights than its configuration says."""
    adapted = PeftModel.from_pretrained(load_model(base, "float32", "cpu", dequantised=True), directory)
    saved, wanted = load_peft_weights(str(directory), device="cpu"), get_peft_model_state_dict(adapted)
    if other := saved.keys() ^ wanted.keys():
        raise ValueError(f"its weights are not those of its configuration, first {min(other)}")
    return adapted


def ready(model: PreTrainedModel, dtype: str, device: str) -> PreTrainedModel:
    """A model as the engines use it: of a dtype, on a device, in evaluation mode, frozen."""
    cast_rest(model, DTYPES[dtype])
    return model.to(resolve_device(device)).eval().requires_grad_(False)


@torch.no_grad()
def merged(trained: Any, base: str | Path, device: str = "auto") -> PreTrainedModel:
    """A model just trained, as `load_fine_tuned` would load it in float32 had it been saved.

    trained: with all its weights trained, which is that model itself; or with adapters on a base of any dtype, whose
    updates are added to the base model loaded anew.
    """
    if not isinstance(trained, PeftModel):
        vars(trained).pop("forward", None)  # the trainer's, in the arithmetic of training
        return trained.eval().requires_grad_(False)
    model = load_model(base, dtype="float32", device=device, dequantised=True)
    for name, layer in trained.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            model.get_submodule(name).weight += layer.get_delta_weight("default").to(torch.float32)
    return model.eval().requires_grad_(False)
