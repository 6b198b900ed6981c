"""Turns the arguments of a call into a configuration, so that keys, defaults and checks are those of config.yaml."""

import os
from collections.abc import Mapping
from typing import Any

from icprobe.attribution import METHODS
from icprobe.config import Config, load

MODEL = "model"  # the one model's name in such a configuration


def configured(source: Mapping[str, Any] | None = None, **sections: Any) -> Config:
    """Validates the sections that a call has named; all others are absent or have their defaults.

    source: of the model (default: none that is here). Raises ConfigError as `icprobe.config.load` does.
    """
    nothing_else = {"bins": [], "finetune": {"methods": [], "all_data": False}, "data": {}}
    raw = {**nothing_else, **sections, "experiment": "notebook", "models": [MODEL]}
    return load(_plain({**raw, "model_sources": {MODEL: source or {"source": "external"}}}), METHODS)


def _plain(value: Any) -> Any:
    """Makes of what Python code passes what YAML could hold: texts of paths, lists of tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
