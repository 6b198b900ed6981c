"""Engines: who writes the responses to the eval prompts where `evaluation.generation`, with transformers, does not.

An engine is a function `(questions, model, settings) -> iterator of (id, answer)`, named in ENGINES, in any order. An
answer is the token ids that follow the prompt, which may run on beyond where the response ends; or a text.
"""

import importlib.util
import os
from dataclasses import dataclass

from icprobe.errors import ConfigError
from icprobe.masking import keep_secret

ENGINES = {"endpoint": "icprobe.evaluation.engines.endpoint", "vllm": "icprobe.evaluation.engines.vllm"}


@dataclass(frozen=True)
class Question:
    """An eval prompt, as text and as token ids, and how many tokens its response may have."""

    id: str
    text: str
    ids: tuple[int, ...]
    most: int


def require_key(variable: str | None) -> None:
    """Raises ConfigError where the environment variable of an endpoint's key is not set; from now on it is masked."""
    if variable:
        keep_secret(os.environ.get(variable, ""))
    if variable and not os.environ.get(variable):
        raise ConfigError(
            f"config: evaluation.endpoint.key_variable: the environment variable {variable} is not set. Put the "
            "endpoint's key into it, or leave key_variable out for an endpoint without keys."
        )


def require_vllm() -> None:
    """Raises ConfigError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "config: evaluation.engine: vllm is not installed; pip install vllm, or choose another engine"
        )
