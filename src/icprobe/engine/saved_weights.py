"""Whether a model that was loaded is all that its files hold."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from icprobe.errors import ModelError, several

# Of earlier versions, or of a quantised cache of keys and values. A `bias` of a module without weights is a mask, and
# what stands behind `weight` says how that is quantised.
BUFFERS = {
    *("inv_freq", "masked_bias", "causal_mask", "embed_positions", "cos_cached", "sin_cached"),
    *("k_scale", "v_scale", "q_scale", "kv_scale", "output_scale", "k_zero_point", "v_zero_point"),
}
OF_OTHERS = re.compile("mtp|vis|audio")  # norms beside a decoder's own


def check_whole(model: PreTrainedModel, loaded: Mapping[str, Collection[str]], name: str | Path, advice: str) -> None:
    """Raises ModelError where weights of a model are not in its files, or the files' weights are not all in it.

    loaded: `missing_keys` and `unexpected_keys`, as transformers tells them. Parts beside the language model (a vision
    tower, a head of values), buffers of earlier versions, and blocks that predict further tokens may be left out;
    weights of its blocks, of other layers that it has, and of further blocks may not.
    """
    if lacking := sorted(loaded["missing_keys"]):
        raise ModelError(
            f"{name}: {len(lacking)} weights of {type(model).__name__} are not in its files, first {lacking[0]}{advice}"
        )
    config = model.config.get_text_config(decoder=True)
    blocks = getattr(config, "num_hidden_layers", None)
    known = (blocks or 0) + (getattr(config, "num_nextn_predict_layers", None) or 0)
    modules = dict(model.named_modules())
    lists = [path for path, module in modules.items() if isinstance(module, nn.ModuleList) and len(module) == blocks]
    decoders = {path.rpartition(".")[0] for path in lists}

    def is_own(key: str) -> bool:
        parent, _, name = key.rpartition(".")
        has_weights = parent in modules and next(modules[parent].parameters(recurse=False), None) is not None
        above, _, last = parent.rpartition(".")
        if has_weights or (above in decoders and "norm" in last and not OF_OTHERS.search(last)):
            return True
        block = re.match(r"(.*?)\.(\d+)\.", key)
        if block is None or block[1] not in lists or (blocks or 0) <= int(block[2]) < known:
            return False
        return not (name == "bias" and parent in modules) and ".weight." not in key

    def is_ours(key: str) -> bool:
        # Files may be of the model without its head, whose weights' names lack its prefix.
        return key.rpartition(".")[2] not in BUFFERS and (is_own(key) or is_own(f"{model.base_model_prefix}.{key}"))

    if left := sorted(filter(is_ours, loaded["unexpected_keys"])):
        raise ModelError(
            f"{name}: {several(len(left), 'weight')} in its files would be left out of {type(model).__name__}, first "
            f"{left[0]}: its config.json does not describe them; correct that."
        )
