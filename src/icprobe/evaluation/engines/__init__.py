"""Engines: who writes the responses to the eval prompts where `evaluation.generation`, with transformers, does not.

An engine is a function `(questions, model, settings) -> iterator of (id, answer)`, named in ENGINES, in any order. An
answer is the token ids that follow the prompt, which may run on beyond where the response ends; or a text.
"""

import importlib.util
from dataclasses import dataclass

from icprobe.errors import ConfigError
from icprobe.evaluation import judges

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
    judges.key(variable, "endpoint", "endpoint")


def require_vllm() -> None:
    """Raises ConfigError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "config: evaluation.engine: vllm is not installed; pip install vllm, or choose another engine"
        )
