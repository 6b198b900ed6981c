"""Fine-tuned models as they are asked: loaded from a checkpoint, an adapter merged into its base."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from icprobe import artifacts
from icprobe.engine.models import DTYPES, load_model, resolve_device
from icprobe.errors import ArtifactError


def load_fine_tuned(
    checkpoint: str | Path, base: str | Path, dtype: str = "float32", device: str = "auto"
) -> PreTrainedModel:
    """The fine-tuned model of a checkpoint in evaluation mode; an adapter is merged into its base in float32, where
    the base's own weights are quantised ones into what their bits say.

    Raises ArtifactError where a file is damaged, or where an adapter belongs to another base.
    """
    manifest = artifacts.verify(checkpoint)
    if manifest["kind"] == "full":
        return load_model(checkpoint, dtype=dtype, device=device)
    if manifest["base_digest"] != artifacts.content_digest(base):
        raise ArtifactError(
            f"{checkpoint}: this adapter belongs to another {manifest['base']} than {base}. "
            f"Remove {checkpoint} to have it rebuilt."
        )
    plain = load_model(base, dtype="float32", device="cpu", dequantised=True)
    model = PeftModel.from_pretrained(plain, checkpoint).merge_and_unload()
    return model.to(device=resolve_device(device), dtype=DTYPES[dtype]).eval().requires_grad_(False)


@torch.no_grad()
def merged(trained: Any, base: str | Path, device: str = "auto") -> PreTrainedModel:
    """A model just trained, as `load_fine_tuned` would load it in float32 had it been saved.

    trained: with all its weights trained, which is that model itself; or with adapters on a base of any dtype, whose
    updates are added to the base model loaded anew.
    """
    if not isinstance(trained, PeftModel):
        return trained.eval().requires_grad_(False)
    model = load_model(base, dtype="float32", device=device, dequantised=True)
    for name, layer in trained.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            model.get_submodule(name).weight += layer.get_delta_weight("default").to(torch.float32)
    return model.eval().requires_grad_(False)
