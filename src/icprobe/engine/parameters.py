"""Which linear layers of θ gradients are taken over, by their names: all, attention's, the MLPs', or a pattern's."""

import re
from collections.abc import Sequence

from icprobe.errors import ModelError, shown

# Words of a layer's name, between dots and underscores, that say what it is part of; OPT's fc1 stands in the block.
WORDS = {
    "attention": {"attn", "attention", "attentions", "att"},
    "mlp": {"mlp", "ffn", "ffns", "feed", "moe", "expert", "experts", "fc1", "fc2"},
}


def chosen(names: Sequence[str], parameters: str, model: str) -> set[str]:
    """The names among those of all layers of θ that `attribution.parameters` chooses.

    parameters: all, attention, mlp, or a regular expression that matches somewhere in a name. model: its class, for
    messages. Raises ModelError where nothing is chosen, or where a name does not tell attention and MLP apart.
    """
    if parameters == "all":
        return set(names)
    said = "attribution.parameters: " + (parameters if parameters in WORDS else shown(parameters).replace(r"\\", "\\"))
    if parameters in WORDS:
        if unknown := [name for name in names if len(kinds(name)) != 1]:
            raise ModelError(
                f"{said}: {model} has linear layers whose names do not say whether they belong to attention or to an "
                f"MLP, first {unknown[0]}; write a pattern over the names instead."
            )
        found = {name for name in names if parameters in kinds(name)}
    else:
        found = {name for name in names if re.search(parameters, name)}
    if not found:
        raise ModelError(
            f"{said}: no linear layer of {model} is chosen; their names are such as {names[0]} and {names[-1]}."
        )
    return found


def kinds(name: str) -> set[str]:
    """What a layer is part of, by its name: attention, mlp, nothing that is known, or both."""
    words = set(re.split(r"[._]", name.lower()))
    return {kind for kind, of_kind in WORDS.items() if words & of_kind}
