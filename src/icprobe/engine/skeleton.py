"""A prepared model without its weights, whose layers have their names and shapes."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from icprobe import artifacts
from icprobe.engine.experts import unstack


def skeleton(directory: str | Path) -> PreTrainedModel:
    """The model in a directory that `models.prepare` wrote, on the meta device, a mixture's experts apart."""
    trusted = bool(artifacts.read_manifest(directory).get("source", {}).get("trust_remote_code"))
    config = AutoConfig.from_pretrained(directory, trust_remote_code=trusted)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    unstack(model)
    return model
