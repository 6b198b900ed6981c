"""What jobs that write responses are told, and what can be known of their engine before anything has run."""

import shutil
from collections.abc import Iterator
from typing import Any

from icprobe.config import Config
from icprobe.config.types import slice_of
from icprobe.errors import ConfigError
from icprobe.evaluation.engines import require_key, require_vllm
from icprobe.workflow.plan import Plan, bin_folder

# What the responses of each engine depend upon; of an endpoint, more is said beside it.
SETTINGS = {
    "transformers": ("max_new_tokens", "batch_size", "dtype", "device"),
    "vllm": ("engine", "max_new_tokens", "batch_size", "dtype"),
    "endpoint": ("engine", "max_new_tokens"),
}
OF_ENDPOINT = ("start", "base_url", "prompts")


def settings(config: Config, model: str, *condition: str) -> dict[str, Any]:
    """The keys of the configuration that the job of a model's responses uses.

    condition: method, bin and seed of a fine-tuned model, as they are in paths; none of the base model.
    """
    evaluation = config.evaluation
    found = slice_of(evaluation, *SETTINGS[evaluation.engine])
    if evaluation.engine != "endpoint":
        return found
    if evaluation.endpoint.start:
        found["dtype"] = evaluation.dtype  # of the weights that the server gets
    name = evaluation.endpoint.name(model, condition or None)
    return {**found, "endpoint": {**slice_of(evaluation.endpoint, *OF_ENDPOINT), "model": name}}


def runs_already(config: Config) -> bool:
    """Whether responses are asked of a server that no job starts: their jobs wait, and compute nothing."""
    return config.evaluation.engine == "endpoint" and config.evaluation.endpoint.start is None


def check(plan: Plan) -> None:
    """Raises ConfigError for an engine that is not installed, or an endpoint at which two models have one name."""
    evaluation = plan.config.evaluation
    if evaluation.engine == "transformers" or not plan.judged or plan.annotations:
        return
    if evaluation.engine == "vllm":
        require_vllm()
    if not runs_already(plan.config):
        return
    names: dict[str, str] = {}
    for what, key, name in _names(plan):
        if name in names:
            raise ConfigError(
                f"config: evaluation.endpoint.{key}: {name!r} would be both {names[name]} and {what}; a running server "
                "tells models apart by their names alone: write {model}, {method}, {bin} and {seed} into model, or a "
                "base_model"
            )
        if "{" in name:
            raise ConfigError(
                f"config: evaluation.endpoint.base_model: {what} has no name, for model is {name!r}; write one"
            )
        names[name] = what


def _names(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """What each model that answers is, which key says its name at a running endpoint, and that name."""
    endpoint = plan.config.evaluation.endpoint
    for model in plan.models_here:
        if plan.config.evaluation.base_responses == "generate":
            key = "base_model" if endpoint.base_model else "model"
            yield model, key, endpoint.name(model, None)
        for method, bin, seed in plan.fine_tuned:
            condition = (method, bin_folder(bin), str(seed))
            yield "/".join((model, *condition)), "model", endpoint.name(model, condition)


def require(config: Config, here: bool) -> None:
    """Raises ConfigError where what the engine needs from outside is absent: its key; the command that starts it.

    here: whether the jobs run on this machine.
    """
    endpoint = config.evaluation.endpoint if config.evaluation.engine == "endpoint" else None
    if endpoint:
        require_key(endpoint.key_variable)
    if endpoint and endpoint.start and here and not shutil.which(endpoint.start[0]):
        raise ConfigError(
            f"config: evaluation.endpoint.start: there is no command {endpoint.start[0]!r}; install it, or write its "
            "path; each argument is an item of the list"
        )
