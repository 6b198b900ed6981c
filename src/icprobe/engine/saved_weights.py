"""Whether a model that was loaded is all that its files hold."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from icprobe.errors import ModelError, several

# Of earlier versions, or of a quantised cache of keys and values. A `bias` of a module without weights is a mask, and
# what stands behind `weight` says how that is quantised. They are listed, for sinks, A_log and D are weights.
BUFFERS = re.compile(
    r"(.*_)?(freqs?|freqs_cis|mask|masked_bias|alibi|slopes|embed_positions|(position|token_type)_ids|"
    r"(cos|sin)_cached?|([kvq]|kv|output)_scale|[kv]_zero_point)"
)
ROTARY = re.compile(r"rotary|rope")  # modules that turn queries and keys, by no weights
# Directly below a decoder what is not its own: towers, heads, adapters, what predicts further tokens.
OF_OTHERS = re.compile(
    "mtp|vis|audio|speech|image|modal|mm_|tower|projector|connector|aligner|resampler|former|adapter|lora|"
    "head|score|classif|pool|value|reward"
)
# Its own, where files do not name the decoder.
OWN = re.compile("norm|^ln_|_ln$|^embed_|embeddings?$|^w[pt]e$|position|^project_")


def check_whole(model: PreTrainedModel, loaded: Mapping[str, Collection[str]], name: str | Path, advice: str) -> None:
    """Raises ModelError where weights of a model are not in its files, or the files' weights are not all in it.

    loaded: `missing_keys` and `unexpected_keys`, as transformers tells them. Parts beside the language model (a vision
    tower, a head of values), buffers of earlier versions, and blocks that predict further tokens may be left out;
    weights of its blocks, of other layers that it has, of its decoder beside them, and of further blocks may not.
    """
    if lacking := sorted(loaded["missing_keys"]):
        raise ModelError(
            f"{name}: {len(lacking)} weights of {type(model).__name__} are not in its files, first {lacking[0]}{advice}"
        )
    config = model.config.get_text_config(decoder=True)
    blocks = getattr(config, "num_hidden_layers", None)
    known = (blocks or 0) + (getattr(config, "num_nextn_predict_layers", None) or 0)
    modules, buffers = dict(model.named_modules()), {name for name, _ in model.named_buffers()}
    lists = [path for path, module in modules.items() if isinstance(module, nn.ModuleList) and len(module) == blocks]
    decoders = {path.rpartition(".")[0] for path in lists}

    def is_own(key: str, prefixed: bool = False) -> bool:
        parent, _, name = key.rpartition(".")
        has_weights = parent in modules and next(modules[parent].parameters(recurse=False), None) is not None
        above, _, last = parent.rpartition(".")
        odd = name not in ("weight", "bias")
        if key in buffers or BUFFERS.fullmatch(name) or (odd and ROTARY.search(last)):
            return False
        if odd and not has_weights and above in decoders and parent in modules:  # such as positions that are computed
            return False
        beside = above in decoders and not OF_OTHERS.search(last) and (OWN.search(last) or (above and not prefixed))
        if has_weights or beside:
            return True
        block = re.match(r"(.*?)\.(\d+)\.", key)
        if block is None or block[1] not in lists or (blocks or 0) <= int(block[2]) < known:
            return False
        return not (name == "bias" and parent in modules) and ".weight." not in key

    def is_ours(key: str) -> bool:
        # Files may be of the model without its head, whose weights' names lack its prefix.
        return is_own(key) or is_own(f"{model.base_model_prefix}.{key}", prefixed=True)

    if left := sorted(filter(is_ours, loaded["unexpected_keys"])):
        raise ModelError(
            f"{name}: {several(len(left), 'weight')} in its files would be left out of {type(model).__name__}, first "
            f"{left[0]}: its config.json does not describe them; correct that."
        )
