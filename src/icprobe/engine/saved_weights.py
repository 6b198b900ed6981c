"""Whether a model that was loaded is all that its files hold."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from icprobe.errors import ModelError, several


def check_whole(model: PreTrainedModel, loaded: Mapping[str, Collection[str]], name: str | Path, advice: str) -> None:
    """Raises ModelError where weights of a model are not in its files, or the files' weights are not all in it.

    loaded: `missing_keys` and `unexpected_keys`, as transformers tells them. Parts beside the language model (a vision
    tower, a head of values), buffers of earlier versions, and blocks that predict further tokens may be left out;
    weights of the layers that the model has, and further blocks, may not.
    """
    if lacking := sorted(loaded["missing_keys"]):
        raise ModelError(
            f"{name}: {len(lacking)} weights of {type(model).__name__} are not in its files, first {lacking[0]}{advice}"
        )
    config = model.config.get_text_config(decoder=True)
    blocks = getattr(config, "num_hidden_layers", None)
    known = (blocks or 0) + (getattr(config, "num_nextn_predict_layers", None) or 0)
    lists, own = set(), set()
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == blocks:
            lists.add(path)
        if next(module.parameters(recurse=False), None) is not None:
            own.add(path)

    def is_own(key: str) -> bool:
        block = re.match(r"(.*?)\.(\d+)\.", key)
        further = block is not None and block[1] in lists and int(block[2]) >= known
        return further or key.rpartition(".")[0] in own

    if left := sorted(filter(is_own, loaded["unexpected_keys"])):
        raise ModelError(
            f"{name}: {several(len(left), 'weight')} in its files would be left out of {type(model).__name__}, first "
            f"{left[0]}: its config.json does not describe them; correct that."
        )
