"""Models as they are opened: with the weights of their files, in the dtype that transformers gives them."""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_from_python import TASKS, TRAIN
from transformers import AutoConfig, AutoModelForCausalLM

import icprobe
from icprobe import artifacts
from icprobe.engine import checkpoints, models
from icprobe.engine.admission import admit
from icprobe.engine.quantization import cast_rest
from icprobe.errors import ConfigError, ModelError, out_of_memory
from icprobe.workflow import checks

RWKV = {"hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 3, "rescale_every": 1}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
XGLM = {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 64}
TYPES = {
    "xglm": XGLM,
    "minimax": SIZES | {"num_local_experts": 2, "num_key_value_heads": 2, "head_dim": 8},
    "llama": SIZES,
    "gemma3_text": SIZES | {"num_key_value_heads": 2, "head_dim": 8},
}
# As earlier versions saved them in each layer's attention.
OLD_BUFFERS = (
    *(f"rotary_emb.{name}" for name in ("inv_freq", "original_inv_freq", "cos_cached", "scale", "freqs_cis")),
    *("freqs_cis", "cos_sin_cache", "attn_mask", "bias", "masked_bias"),
)


def saved(tmp_path, kind, **sizes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{"vocab_size": 300, **sizes})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def gradients(model, ids):
    """Of the blocks' weights, by autograd."""
    model.requires_grad_(True)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if ".blocks." in name and p.grad is not None}


def test_gradients_of_a_model_that_divides_weights_in_evaluation_are_those_by_its_own(tmp_path):
    ids = torch.randint(0, 300, (1, 12), generator=torch.Generator().manual_seed(0))
    folder = saved(tmp_path, "rwkv", context_length=128, **RWKV)
    wanted = gradients(AutoModelForCausalLM.from_pretrained(folder).train(), ids)
    found = gradients(models.opened(folder, "float32", False), ids)
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * gradient.abs().max().item(), msg=name)


@pytest.mark.parametrize(
    ("described", "first"),
    [({"attention_bias": False}, "layers.0.self_attn.k_proj.bias"), ({"num_hidden_layers": 1}, "layers.1.")],
)
def test_files_that_hold_more_of_a_model_than_its_configuration_says_are_refused(described, first, tokenizer, tmp_path):
    folder = saved(tmp_path, "llama", **SIZES, attention_bias=True, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    whole = {"source": "local", "path": str(folder), "trust_remote_code": False}
    models.prepare(whole, tmp_path / "whole", admit)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **described}))
    with pytest.raises(ModelError, match=rf"would be left out of LlamaForCausalLM, first model\.{first}.*config.json"):
        models.prepare(whole, tmp_path / "out", admit)
    with pytest.raises(ModelError, match="would be left out"):
        models.opened(folder, "float32", False)


@pytest.mark.parametrize(
    ("kind", "sizes", "described"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 3, "n_head": 4}, {"n_layer": 2}),
        ("llama", SIZES | {"attention_bias": True, "tie_word_embeddings": True}, {"attention_bias": False}),
        ("cohere", SIZES | {"use_qk_norm": True}, {"use_qk_norm": False}),
        ("phi", SIZES | {"qk_layernorm": True}, {"qk_layernorm": False}),
        (
            "opt",
            {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
            {"_remove_final_layer_norm": True},
        ),
    ],
)
@pytest.mark.parametrize("headless", [False, True])
def test_so_are_files_of_which_a_whole_part_would_be_left_out(kind, sizes, described, headless, tmp_path):
    folder = saved(tmp_path, kind, **sizes)
    if headless:  # as the hub's GPT-2 is saved
        weights = {
            name.removeprefix("transformer.").removeprefix("model."): w
            for name, w in load_file(folder / "model.safetensors").items()
        }
        if "lm_head.weight" in weights:
            pytest.skip("has a head of its own")
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    models.opened(folder, "float32", False)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **described}))
    with pytest.raises(ModelError, match="would be left out"):
        models.opened(folder, "float32", False)


def with_one_more(tmp_path, key, kind, sizes):
    folder = saved(tmp_path, kind, **sizes)
    weights = {**load_file(folder / "model.safetensors"), key: torch.zeros(3)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("v_head.summary.weight", {}),  # of a model that was trained to be rewarded
        *((key, {}) for key in ("score.weight", "value_head.weight", "classifier.bias", "pooler.dense.weight")),
        *((f"model.layers.0.self_attn.{name}", {}) for name in OLD_BUFFERS),
        ("model.rotary_emb.original_inv_freq", {}),
        ("model.layers.0.self_attn.k_proj.k_scale", {}),  # of a quantised cache
        ("model.mtp_norm.weight", {}),  # of what predicts further tokens
        ("model.mm_projector.weight", {}),
        ("vision_tower.layers.0.mlp.weight", {}),
        ("model.layers.2.mlp.up_proj.weight", {"num_nextn_predict_layers": 1}),
    ],
)
def test_what_no_layer_of_a_model_is_may_stand_beside_its_weights(key, more, tmp_path):
    folder = with_one_more(tmp_path, key, "llama", SIZES | more)
    assert models.opened(folder, "float32", False).num_parameters() > 0


GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}


@pytest.mark.parametrize(
    ("kind", "sizes", "key"),
    [
        ("gpt2", GPT2, "h.0.attn.mask"),
        *(("xglm", XGLM, f"model.embed_positions.{name}") for name in ("weights", "_float_tensor")),
    ],
)
def test_nor_is_a_buffer_of_other_models_a_weight(kind, sizes, key, tmp_path):
    folder = with_one_more(tmp_path, key, kind, sizes)
    assert models.opened(folder, "float32", False).num_parameters() > 0


@pytest.mark.parametrize(
    ("kind", "sizes", "key"),
    [
        ("gpt2", GPT2, "transformer.emb_ln.weight"),
        ("gpt2", GPT2, "emb_ln.bias"),  # as the hub's GPT-2 is saved
        ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "transformer.wpe.weight"),
        *(("llama", SIZES, f"model.{name}.weight") for name in ("embed_positions", "embed_proj", "ln_f", "odd")),
        *(
            ("llama", SIZES, f"model.layers.0.{name}")
            for name in ("self_attn.sinks", "mlp.experts.gate_up_proj", "mixer.A_log", "mixer.D", "mixer.dt_bias")
        ),
        ("llama", SIZES, "model.layers.1.mlp.gate.e_score_correction_bias"),
        ("llama", SIZES, "model.layers.1.self_attn.q_proj.weight_scale"),
    ],
)
def test_a_weight_of_a_decoder_that_its_model_does_not_have_is_refused(kind, sizes, key, tmp_path):
    with pytest.raises(ModelError, match=f"1 weight in its files would be left out of .*, first (transformer.)?{key}"):
        models.opened(with_one_more(tmp_path, key, kind, sizes), "float32", False)


def test_such_a_model_in_memory_is_refused(tokenizer):
    config = AutoConfig.for_model("rwkv", vocab_size=len(tokenizer), context_length=512, **RWKV)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match="RwkvForCausalLM in memory divides weights where it is not trained"):
        icprobe.value(TRAIN, TASKS, methods=["icp"], model=model, tokenizer=tokenizer, dtype="float32")


@pytest.mark.parametrize("kind", sorted(models.COUNT_BEHIND_PADDING))
def test_a_model_that_counts_positions_from_behind_padding_reads_as_many_as_it_says(kind):
    """So that a text which is too long is refused by its length, and not by an index out of range."""
    own = {"default_language": "en_XX"} if kind == "xmod" else {}
    config = AutoConfig.for_model(kind, vocab_size=300, max_position_embeddings=40, is_decoder=True, **SIZES, **own)
    model, most = AutoModelForCausalLM.from_config(config).eval(), models.max_positions(config)
    assert most == 40 - config.pad_token_id - 1
    ids = torch.full((1, most + 1), 7)
    with torch.no_grad():
        assert model(input_ids=ids[:, :most]).logits.isfinite().all()
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=ids)


@pytest.mark.parametrize("kind", TYPES)
def test_a_model_that_is_brought_to_bfloat16_is_as_transformers_loads_it(kind, tmp_path):
    folder = saved(tmp_path, kind, **TYPES[kind])
    wanted = models.opened(folder, "bfloat16", False)
    found = checkpoints.ready(models.opened(folder, "float32", False), "bfloat16", "cpu")
    dtypes = [{name: tensor.dtype for name, tensor in model.state_dict().items()} for model in (wanted, found)]
    dtypes += [{name: buffer.dtype for name, buffer in model.named_buffers()} for model in (wanted, found)]
    assert dtypes[0] == dtypes[1]
    assert dtypes[2] == dtypes[3]
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(found(input_ids=ids).logits, wanted(input_ids=ids).logits)


def test_weights_in_float32_keep_their_buffers(tmp_path):
    model = models.opened(saved(tmp_path, "llama", **SIZES), "float32", False)
    before = dict(model.named_buffers())
    cast_rest(model, torch.float32)
    assert all(buffer is before[name] for name, buffer in model.named_buffers())


def test_an_adapter_is_told_as_what_it_is_wherever_it_stands(tokenizer, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(saved(tmp_path, "llama", **SIZES))
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"model: a LlamaForCausalLM in memory: it holds an adapter; merge that"):
        icprobe.value(TRAIN, TASKS, methods=["icp"], model=model, tokenizer=tokenizer, dtype="float32")
    source = {"source": "local", "path": str(tmp_path / "adapter"), "trust_remote_code": False}
    with pytest.raises(ModelError, match=r"adapter: it holds an adapter; merge that into its base"):
        models.prepare(source, tmp_path / "out", admit)
    plan = SimpleNamespace(models_here=["m"], config=SimpleNamespace(model_sources={"m": SimpleNamespace(**source)}))
    with pytest.raises(ConfigError, match=r"model_sources\.m\.path: .*adapter: it holds an adapter; merge that into"):
        checks.check_models(plan)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to mmap 512 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
        RuntimeError("CUDA error: out of memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    ],
)
def test_memory_that_is_short_while_a_model_is_loaded_is_no_fault_of_its_files(error, tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise error

    assert out_of_memory(error)
    folder = saved(tmp_path, "llama", **SIZES)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(type(error)):
        models.prepare({"source": "local", "path": str(folder), "trust_remote_code": False}, tmp_path / "out", admit)
    monkeypatch.setattr(checkpoints, "trusts", lambda _: False)
    with pytest.raises(type(error)):
        checkpoints.load_given(folder, folder, device="cpu")


def test_linear_layers_beside_the_blocks_are_named_as_left_out(tokenizer, tmp_path):
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    folder = saved(tmp_path, "opt", **sizes, word_embed_proj_dim=16, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    models.prepare({"source": "local", "path": str(folder), "trust_remote_code": False}, tmp_path / "out", admit)
    left_out = artifacts.read_manifest(tmp_path / "out")["left_out"]
    assert left_out.keys() == {"model.decoder.project_in.weight", "model.decoder.project_out.weight"}
