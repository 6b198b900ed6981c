"""The language model within a model that is composed of several, such as one that reads images, too."""

import logging
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from icprobe.errors import ModelError, out_of_memory, reason

logger = logging.getLogger(__name__)

CLOSE = 1e-4  # how far its logits may be from the whole model's, relative to the largest


@torch.no_grad()
def text_model(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The model itself or, where it is composed of several, its language model, with the same weights in memory.

    name: of the whole, for messages. Raises ModelError where transformers has no class for the language model alone, or
    where that gives other logits.
    """
    config = model.config.get_text_config(decoder=True)
    if config is model.config:
        return model
    composed = f"{name}: a {model.config.model_type} is composed of several models"
    kind = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if kind is None:
        raise ModelError(
            f"{composed}, and transformers has no class for its language model alone, a {config.model_type}; choose "
            "a model of text alone."
        )
    try:
        with torch.device("meta"):
            text = kind(config).eval()
        setattr(text, text.base_model_prefix, _decoder(model, type(text.base_model)))
        text.set_output_embeddings(model.get_output_embeddings())
        tied = text.get_output_embeddings().weight is text.get_input_embeddings().weight
        text.config.tie_word_embeddings = tied  # else it would be saved without one of them
        text.generation_config = model.generation_config
        ids = torch.arange(5, 12)[None]
        whole, own = (m(input_ids=ids, use_cache=False).logits.float() for m in (model.eval(), text))
    except Exception as error:  # models are composed in many ways
        if out_of_memory(error):
            raise
        raise ModelError(
            f"{composed}, and its language model cannot be taken out ({reason(error)}); choose a model of text alone."
        ) from None
    if (whole - own).abs().max() > CLOSE * whole.abs().max():
        raise ModelError(f"{composed}, and its language model alone gives other logits; choose a model of text alone.")
    share = sum(p.numel() for p in text.parameters()) / sum(p.numel() for p in model.parameters())
    logger.warning("%s: its language model alone is used, %.0f%% of its weights", composed, 100 * share)
    return text


def _decoder(model: PreTrainedModel, kind: type[Any]) -> PreTrainedModel:
    """The module of a class within a model."""
    return next(module for module in model.modules() if type(module) is kind)
