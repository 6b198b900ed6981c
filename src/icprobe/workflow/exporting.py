"""What an export of an experiment's selections holds, and what its card says of them."""

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from icprobe.config import Config
from icprobe.config.selections import data_sets
from icprobe.config.sources import local_files


def exported(config: Config) -> dict[str, tuple[str, str]]:
    """Name -> (model, selection or baseline) of each table of the export; of several models the name begins with it."""
    several = len(config.models) > 1
    return {
        f"{model}-{name}" if several else name: (model, name)
        for model in config.models
        for name in data_sets(config.selections)
    }


def facts(config: Config) -> dict[str, Any]:
    """What else the card says: where rows and models come from. Of a local file its name alone."""
    train, sources = config.data.train, config.model_sources
    files = [] if train is None else [Path(path).name for path in local_files(train)]
    elsewhere = train and (train.hub or train.url)
    if elsewhere and elsewhere.startswith("file:"):
        elsewhere = Path(unquote(urlsplit(elsewhere).path)).name
    models = [f"{name} ({getattr(sources[name], 'id', None) or sources[name].source})" for name in config.models]
    return {"rows from": ", ".join(files) or elsewhere or "external scores", "models": ", ".join(models)}
