"""Turns the arguments of a call into a configuration, so that keys, defaults and checks are those of config.yaml."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from icprobe.attribution import METHODS
from icprobe.config import Config, load
from icprobe.config.raw import MAPPING, mistake
from icprobe.errors import ConfigError, shown

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


def mapping(name: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    """Takes an argument that is a section of the configuration, or none. Raises ConfigError for what is no mapping."""
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{name}: {MAPPING}, not {shown(value)}")
    return dict(value or {})


def _plain(value: Any, where: tuple[str, ...] = ()) -> Any:
    """Makes of what Python code passes what YAML could hold: texts of paths, lists of tuples, numbers of numpy's.

    where: the keys that lead to it. Raises ConfigError for what YAML could not hold, in words that speak of Python.
    """
    if isinstance(value, Mapping):
        return {key: _plain(inner, (*where, str(key)[:60])) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, where) for inner in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist(), where)
    # By its name: torch may not be imported here, where scores alone are asked for.
    if (kind := type(value)).__module__ == "torch" and kind.__name__ in ("dtype", "device"):
        return str(value).removeprefix("torch.")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, str | int | float | None):
        raise mistake(where, f"a text, a number, a list or a mapping is needed, not one of the type {kind.__name__}")
    return value
