"""Where a model's weights are put when it is loaded: on one device, by accelerate where the source says so."""

from typing import Any

import torch
from accelerate.utils import get_max_memory
from transformers import PreTrainedModel

from icprobe.errors import ModelError


def arguments(load: dict[str, str], place: torch.device) -> dict[str, Any]:
    """What `from_pretrained` takes to put a model on a device. load: a source's, whose `device_map: auto` measures its
    memory.
    """
    if load.get("device_map", "none") == "none":
        return {"device_map": {"": place}}
    return {"device_map": "auto", **({"max_memory": {"cpu": get_max_memory()["cpu"]}} if place.type == "cpu" else {})}


def check_place(model: PreTrainedModel, place: torch.device) -> None:
    """Raises ModelError for a model that accelerate has not put on one device whole: the engines compute on one."""
    held = (getattr(model, "hf_device_map", None) or {"": place}).values()
    places = sorted({f"{place.type}:{where}" if isinstance(where, int) else str(where) for where in held})
    if len(places) > 1 or not places[0].startswith(place.type):
        raise ModelError(
            f"load.device_map: accelerate puts {type(model).__name__} on {' and '.join(places)}, and icprobe computes "
            f"on one device: set load.quantization: 4bit, or use a {place.type} device with more memory."
        )
