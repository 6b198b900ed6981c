"""Fine-tuned models as they are asked: loaded from a checkpoint, an adapter merged into its base."""

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from icprobe import artifacts
from icprobe.engine.models import DTYPES, load_model, resolve_device
from icprobe.errors import ArtifactError


def load_fine_tuned(
    checkpoint: str | Path, base: str | Path, dtype: str = "float32", device: str = "auto"
) -> PreTrainedModel:
    """The fine-tuned model of a checkpoint in evaluation mode; an adapter is merged into its base in float32.

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
    model = PeftModel.from_pretrained(load_model(base, dtype="float32", device="cpu"), checkpoint).merge_and_unload()
    return model.to(device=resolve_device(device), dtype=DTYPES[dtype]).eval().requires_grad_(False)
