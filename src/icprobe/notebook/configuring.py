"""Turns the arguments of a call into a configuration, so that keys, defaults and checks are those of config.yaml."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from icprobe.attribution import METHODS
from icprobe.config import Config, load
from icprobe.errors import ConfigError

MODEL = "model"  # the one model's name in such a configuration


@contextmanager
def arguments_named(section: str) -> Iterator[None]:
    """Lets messages on the configuration speak of the call's arguments, among which the keys of a section are."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix("config: ").removeprefix(f"{section}.")) from None


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
