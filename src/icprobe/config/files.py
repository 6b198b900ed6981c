"""Configuration files as they are written: what YAML's readers pass over in silence."""

from collections.abc import Iterable
from pathlib import Path

import yaml

from icprobe.errors import ConfigError


def check_keys(files: Iterable[str | Path]) -> None:
    """Raises ConfigError where a section has a key twice: of the two, a reader of YAML takes the last."""
    for file in files:
        try:
            root = yaml.compose(Path(file).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (OSError, ValueError, yaml.YAMLError):
            continue  # Snakemake says so
        if root is not None:
            _check(root, str(file), (), set())


def _check(node: yaml.Node, file: str, where: tuple[str, ...], seen: set[int]) -> None:
    if id(node) in seen:  # what an alias stands for is looked at once
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _check(part, file, where, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        place = (*where, name)
        if name in lines and name != "<<":
            raise ConfigError(
                f"config: {file}: the key {'.'.join(place)} appears twice, in lines {lines[name]} and {line}, and the "
                "second would replace the first; write it once, with all that belongs under it"
            )
        lines[name] = line
        _check(value, file, place, seen)
