"""Random models of any type that transformers knows, small unless they are told to be large."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from icprobe.engine.text_models import text_model
from icprobe.errors import ModelError, did_you_mean, reason

MOST_PARAMETERS = 300_000_000  # of a type whose sizes are not known here, and not given

# Fields of configurations, by whatever name a type has them, and what makes a small model.
MIXTURE: dict[str, Any] = {
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "first_k_dense_replace", "n_shared_experts"), 1),
}
SMALL: dict[str, Any] = {
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 2048,
    **MIXTURE,
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("expert_ffn_hidden_size", "shared_experts_intermediate_size"), 32),
    # Attention by latent vectors, and attention that an index chooses.
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "v_head_dim", "index_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "index_n_heads"), 8),
    "rotary_dim": 8,
    "num_global_key_value_heads": 2,
    # State spaces and linear attention.
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim", "linear_head_dim", "chunk_size"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "attention_head_size"), 16),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    "linear_num_key_heads": 2,
    "time_step_rank": 4,
    # Decoders of models that translate, or caption.
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "ffn_hidden_size", "n_inner"), 128),
    "intermediate_size_mlp": 128,
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank", "gated_norm_rank"), 8),
    "vocab_size_per_layer_input": 512,
    "num_kv_shared_layers": 0,
    **dict.fromkeys(("sliding_window", "attention_window_size", "block_size"), 16),
}
# As wide as the hidden states, or as a head.
WIDE = ("d_model", "word_embed_proj_dim", "embedding_size", "lru_width", "ple_embed_dim", "attention_hidden_size")
HEADS = ("head_dim", "global_head_dim")

# What a type needs besides.
TWO_ROPES = {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")}
LATENT = {"head_dim": 8}
LINEAR = {"layer_types": ["linear_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse"]}
SPECIAL: dict[str, dict[str, Any]] = {
    "axk2": LATENT,
    "bailing_hybrid": LATENT | LINEAR,
    "cohere_compass_text": {"rope_parameters": TWO_ROPES, "logit_scale": 0.5},
    "deepseek_v32": LATENT,
    "dots3_note_text": {
        **LATENT,
        "head_dim": 16,
        "layer_types": ["indexed_attention", "sliding_attention"],
        "mlp_layer_types": ["dense", "sparse"],
        "per_layer_config": {},
    },
    "falcon_h1": {"mamba_d_ssm": 128},
    "glm_moe_dsa": LATENT | {"indexer_types": ["full", "full"]},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        "attention_layers": ["global", "local"],
        "num_layers": 2,
    },
    "jetmoe": {"kv_channels": 16},
    "kimi_linear": LATENT | LINEAR,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3, "num_dense_layers": 1},
    "longcat_flash": LATENT | {"zero_expert_num": 2, "num_layers": 2},
    "mimo_v2_flash": {"head_dim": 24},
    "mamba2": {"num_heads": 8, "num_attention_heads": 8, "head_dim": 16, "expand": 2},
    "reformer": {"axial_pos_embds_dim": [32, 32], "axial_pos_shape": [32, 64], "attn_layers": ["local", "local"]},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
        "hybrid_layer_ids": [1],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zaya": {"num_experts_per_tok": 1, "num_hidden_layers": 4, "layer_types": ["hybrid"] * 4, "router_hidden_size": 16},
}
# The parts of a composite model besides its language model.
PARTS = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "depth": 1,
    "num_heads": 2,
}


def random_model(architecture: str, sizes: dict[str, Any], seed: int, tokenizer: Any) -> PreTrainedModel:
    """A model with random float32 weights; `sizes` are fields of the transformers configuration of its type."""
    end = tokenizer.eos_token_id
    ids = {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    try:
        kind = type(AutoConfig.for_model(architecture))
        fields = _fields(kind)
    except Exception as error:  # a type that transformers does not know, or has no defaults for
        hint = did_you_mean(architecture, CONFIG_MAPPING)
        raise ModelError(f"model_sources: no {architecture} can be made ({reason(error)[:100]}){hint}") from None
    for key in sizes:
        if key in ids:
            raise ModelError(f"model_sources: the size {key!r} follows from the tokenizer; take it out.")
        if key not in fields or not isinstance(fields[key], int | float | None):
            raise ModelError(f"model_sources: a {architecture} has no size {key!r}; see transformers' {kind.__name__}.")
    try:
        config = AutoConfig.for_model(architecture, **_sizes(architecture, kind, ids, sizes))
        with torch.device("meta"):
            parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if parameters > MOST_PARAMETERS and not sizes:
            raise ModelError(
                f"model_sources: a {architecture} would have {parameters / 1e9:.1f} billion parameters; give it sizes."
            )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        return text_model(model, architecture)
    except ModelError:
        raise
    except Exception as error:  # sizes that do not go together surface anywhere in transformers and torch
        raise ModelError(f"model_sources: no {architecture} can be made with sizes {sizes}: {reason(error)}") from None


def _fields(kind: type) -> dict[str, Any]:
    """The fields of a type's configuration, by any of their names, with their defaults."""
    return {**kind().to_dict(), **dict.fromkeys(kind.attribute_map)}


def _sizes(architecture: str, kind: type, ids: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """All sizes of a small model: what is given, and what fits it."""
    default, special = kind(), SPECIAL.get(architecture, {})
    if (parts := getattr(default, "sub_configs", None)) and getattr(default, "text_config", None) is not None:
        found = {}
        for name in parts:
            part = getattr(default, name, None)
            if part is None:
                continue
            if name == "text_config":
                found[name] = _sizes(part.model_type, type(part), ids, {})
            else:
                known = _fields(type(part))
                found[name] = {key: value for key, value in PARTS.items() if key in known}
        return {**found, **given}
    basic = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **ids}
    fields, wanted = _fields(kind), {**basic, **special, **given}
    width, heads = wanted["hidden_size"], wanted["num_attention_heads"]
    small = {**SMALL, **dict.fromkeys(WIDE, width), **dict.fromkeys(HEADS, width // heads)}
    set_anyway = {
        key for key in (*MIXTURE, "head_dim", "num_key_value_heads") if key in fields
    }  # None, here, is no size to be derived
    found = {key: value for key, value in small.items() if key in set_anyway or fields.get(key) is not None}
    if _keys_follow_heads(kind, heads):
        found.pop("num_key_value_heads", None)
    if "qk_nope_head_dim" in fields:  # heads are of two parts, and each has keys and values of its own
        found.pop("head_dim", None)
        found["num_key_value_heads"] = heads
    if "is_decoder" in fields or architecture == "reformer":
        found["is_decoder"] = True
    if "layer_types" not in special:
        found |= _kinds_of_layers(fields, wanted)
    return {**found, **wanted} | ({} if "num_hidden_layers" in given else _number_of(found))


def _keys_follow_heads(kind: type, heads: int) -> bool:
    """Whether a type has as many heads of keys and values as of queries, where nothing else is said."""
    try:
        return getattr(kind(num_attention_heads=heads), "num_key_value_heads", None) == heads
    except Exception:  # a configuration that checks one against the other
        return False


def _kinds_of_layers(fields: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """A layer of each kind that a type has, or as many as are asked for, for types that list them."""
    found: dict[str, Any] = {}
    for name in ("layer_types", "layers_block_type"):
        listed = fields.get(name)
        if isinstance(listed, list) and name not in wanted:
            kinds = list(dict.fromkeys(listed))
            number = max(wanted["num_hidden_layers"], len(kinds))
            found[name] = (kinds * number)[:number]
    return found


def _number_of(found: dict[str, Any]) -> dict[str, Any]:
    """The number of layers that the kinds of layers say."""
    lists = [found[name] for name in ("layer_types", "layers_block_type") if name in found]
    return {"num_hidden_layers": len(lists[0])} if lists else {}
