"""A model is admitted where the engines give what plain transformers gives; else it is refused in one sentence."""

import copy
import json
import shutil
from dataclasses import asdict

import pytest
import torch
import transformers
from loud import loud_model
from peft import LoraConfig, get_peft_model
from torch import nn

from icprobe.engine import admission, models
from icprobe.engine.admission import admit
from icprobe.engine.capabilities import Capabilities
from icprobe.errors import ModelError
from icprobe.texts.tokenizing import reader

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
LLAMA = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2}


def made(kind, tokenizer, **sizes):
    return loud_model(kind, **{**SIZES, "vocab_size": len(tokenizer), **sizes})


def source_of(model, tokenizer, folder, **tokenizer_config):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    said = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"} | tokenizer_config
    path.write_text(json.dumps(said))
    return {"source": "local", "path": str(folder), "trust_remote_code": False}


@pytest.fixture
def prepared(tokenizer, tmp_path):
    """(type or model, sizes) → the manifest of the model, made, saved and prepared; its directory is tmp_path/out."""

    def prepare(model, words=tokenizer, **sizes):
        model = made(model, tokenizer, **sizes) if isinstance(model, str) else model
        return models.prepare(source_of(model, words, tmp_path / "source"), tmp_path / "out", admit)

    return prepare


@pytest.fixture
def tried(tokenizer, tmp_path, monkeypatch):
    """model → its capabilities, of a kind that no class of transformers is."""

    def trial(model):
        def opened(_directory, dtype, _trusted, experts_apart=True, **_load):
            return copy.deepcopy(model).to(models.DTYPES[dtype]).eval().requires_grad_(False)

        monkeypatch.setattr(admission, "opened", opened)
        return admit(tmp_path, tokenizer)

    return trial


def refused(attempt, *arguments, **options):
    with pytest.raises(ModelError) as caught:
        attempt(*arguments, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# --- θ ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sizes", "said"),
    [
        (
            "jetmoe",
            {"intermediate_size": 64, "kv_channels": 8, "num_key_value_heads": 2, "num_local_experts": 4},
            "95% of the weights",
        ),
        (
            "llama4_text",
            {**LLAMA, "head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 4},
            "experts.gate_up",
        ),
    ],
)
def test_weights_that_theta_lacks_are_refused(kind, sizes, said, prepared):
    message = refused(prepared, kind, **sizes)
    assert said in message
    assert "gradients would leave them out" in message


def test_few_weights_that_theta_lacks_are_named(prepared):
    """Mamba multiplies with the weight of a layer that it does not call, and with a matrix of its own."""
    manifest = prepared("mamba", state_size=8, time_step_rank=4)
    assert manifest["unreached"] == [f"backbone.layers.{n}.mixer.dt_proj" for n in (0, 1)]
    assert manifest["left_out"].keys() == {"mixer.A_log", "mixer.dt_proj.weight"}
    assert manifest["attributed_share"] + sum(manifest["left_out"].values()) > 0.9


def test_the_share_of_the_blocks_weights_that_theta_covers_is_kept(prepared, tmp_path):
    manifest = prepared("llama", **LLAMA)
    inside = models.blocks(models.load_model(tmp_path / "out", device="cpu"))
    share = manifest["attributed_parameters"] / sum(p.numel() for p in inside.parameters())
    assert manifest["attributed_share"] == share < 1
    assert manifest["packs"]
    assert manifest["in_step"]
    assert manifest["refused_dtypes"] == {}


def test_norms_of_several_dimensions_are_no_matrices(prepared):
    """Cohere's norms of queries and keys have a weight for each head."""
    manifest = prepared("cohere", **LLAMA, use_qk_norm=True, logit_scale=1.0)
    assert manifest["attributed_share"] > 0.98


class PlainLinear(nn.Linear):
    def forward(self, x):
        out = x @ self.weight.T
        return out if self.bias is None else out + self.bias


class RoundedLinear(nn.Linear):
    """As BitNet's: weights of three values, gradients straight through."""

    def forward(self, x):
        scale = self.weight.abs().mean()
        weight = self.weight + ((self.weight / scale).round().clamp(-1, 1) * scale - self.weight).detach()
        return nn.functional.linear(x.round(decimals=1).detach() + (x - x.detach()), weight, self.bias)


class BranchingLinear(nn.Linear):
    """A low-rank branch of its own, as an adapter's."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.down = nn.Parameter(torch.randn(2, self.in_features))


def with_layer(model, kind):
    """The model with a layer of another class and the same weight."""
    old = model.model.layers[1].mlp.up_proj
    new = kind(old.in_features, old.out_features, bias=False)
    new.weight = old.weight
    model.model.layers[1].mlp.up_proj = new
    return model


def test_a_linear_layers_own_forward_pass_is_kept_and_tried(tokenizer, tried):
    llama = made("llama", tokenizer, **LLAMA)
    assert tried(with_layer(llama, PlainLinear)).packs
    falcon = {"parallel_attn": True, "multi_query": True, "alibi": False, "bias": False}
    expected = Capabilities(pytest.approx(0.99, abs=0.01), pads_left=True)
    assert tried(made("falcon", tokenizer, **falcon)) == expected
    assert "layer model.layers.1.mlp.up_proj has parameters besides weight and bias: down" in refused(
        tried, with_layer(llama, BranchingLinear)
    )
    message = refused(tried, with_layer(llama, RoundedLinear))
    assert "the gradient of model.layers.1.mlp.up_proj.weight" in message
    assert "attributions would come out wrong" in message


def test_weights_that_blocks_share_are_refused(tokenizer, tried):
    model = made("llama", tokenizer, **LLAMA)
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    assert "model.layers.0.mlp.up_proj are used in several places" in refused(tried, model)
    model = made("llama", tokenizer, **LLAMA)
    model.model.layers[1].mlp = model.model.layers[0].mlp
    assert "model.layers.0.mlp.gate_proj are used in several places" in refused(tried, model)


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        # What a layer's weight does past the layer itself is not seen; one that does nothing is none of the weights.
        (
            lambda self, x: self.down_proj(x @ self.up_proj.weight.T),
            "12% of the weights of its blocks are in no linear layer (first 0.mlp.up_proj.weight",
        ),
        (lambda self, x: self.gate_proj(x) @ self.down_proj.weight.T, "(first 0.mlp.down_proj.weight"),
        (
            lambda self, x: self.down_proj(self.gate_proj(x) * self.gate_proj(-x)),
            "mlp.gate_proj is called several times",
        ),
        (
            lambda self, x: self.down_proj(
                self.up_proj(x) * nn.functional.pad(self.gate_proj(x[:, ::2]), (0, 0, 0, x.shape[1] // 2))
            ),
            "mlp.gate_proj sees 5 rows where a sequence has 9 tokens",
        ),
    ],
)
def test_layers_that_are_not_called_once_for_each_token_are_refused(calls, said, tokenizer, tried):
    assert said in refused(tried, with_mlp(made("llama", tokenizer, **LLAMA), calls))


def with_mlp(model, calls):
    """The model, whose first block calls its layers in another way."""

    class Mlp(type(model.model.layers[0].mlp)):
        forward = calls

    model.model.layers[0].mlp.__class__ = Mlp
    return model


def test_a_layer_that_plays_no_part_is_none_of_theta(tokenizer, tried):
    def with_choice(self, x):
        with torch.no_grad():
            chosen = (self.gate_proj(x) > 0).to(x.dtype)
        return self.down_proj(self.up_proj(x) * chosen)

    for calls in (lambda self, x: self.down_proj(self.up_proj(x)), with_choice):
        found = tried(with_mlp(made("llama", tokenizer, **LLAMA), calls))
        assert found.unreached == ("model.layers.0.mlp.gate_proj",)
        assert found.left_out == {}
        assert found.packs
        assert found.attributed_share > 0.98


# --- what the engines make of it --------------------------------------------------------------------------------


def test_attention_called_twice_a_layer_is_refused(prepared):
    assert "differ by" in refused(prepared, "diffllama", **LLAMA)


@pytest.mark.parametrize(
    ("kind", "sizes", "scale", "cap"),
    [
        ("gemma2", {"head_dim": 8, "final_logit_softcapping": 30.0}, 1, 30),
        ("nanochat", {"final_logit_softcapping": 15.0}, 1, 15),
        ("cohere", {"logit_scale": 0.3}, 0.3, 0),
        ("granite", {"logits_scaling": 7.0}, 1 / 7, 0),
    ],
)
def test_how_logits_are_capped_and_scaled_is_kept(kind, sizes, scale, cap, prepared):
    manifest = prepared(kind, **LLAMA, **sizes)
    assert (manifest["logit_scale"], manifest["logit_cap"]) == (scale, cap)


def test_logits_that_are_made_otherwise_are_refused(tokenizer, tried):
    class Odd(transformers.LlamaForCausalLM):
        def forward(self, *args, **options):
            out = super().forward(*args, **options)
            out.logits = out.logits + 0.01 * out.logits**2
            return out

    model = made("llama", tokenizer, **LLAMA)
    model.__class__ = Odd
    assert "its logits are not its output embedding of hidden states, scaled or capped" in refused(tried, model)


def test_what_a_model_does_between_its_last_block_and_its_logits_is_done(tokenizer, tried):
    """A BERT that predicts transforms its hidden states once more, MiniCPM-3 scales them."""
    bert = {"is_decoder": True, "intermediate_size": 64, "hidden_act": "gelu"}
    assert tried(made("bert", tokenizer, **bert)).packs
    sizes = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    assert tried(made("minicpm3", tokenizer, **{**LLAMA, "num_key_value_heads": 4}, **sizes)).packs


def test_whatever_fails_in_the_trial_names_the_model_and_the_step(tokenizer, tried):
    class Failing(nn.Linear):
        def forward(self, x):
            if torch.is_grad_enabled():
                raise KeyError("unforeseen")
            return super().forward(x)

    message = refused(tried, with_layer(made("llama", tokenizer, **LLAMA), Failing))
    assert message.startswith("LlamaForCausalLM: a look at its layers fails ('unforeseen'); such a model")


def test_a_dtype_in_which_a_model_fails_is_refused_where_it_is_asked_for(tokenizer, prepared, tried, tmp_path):
    class InFloat32(nn.Linear):
        def forward(self, x):
            return super().forward(x.float())

    prepared("llama", **LLAMA)
    Capabilities.of(tmp_path / "out").check_dtype("bfloat16")
    found = tried(with_layer(made("llama", tokenizer, **LLAMA), InFloat32))
    assert list(found.refused_dtypes) == ["bfloat16"]
    models.artifacts.write_manifest(tmp_path / "out", **asdict(found))
    Capabilities.of(tmp_path / "out").check_dtype("float32")
    message = refused(Capabilities.of(tmp_path / "out").check_dtype, "bfloat16")
    assert "in bfloat16 fails (" in message
    assert message.endswith("set attribution.dtype: float32.")
    message = refused(Capabilities.of(tmp_path / "out").check_dtype, "bfloat16", "finetune")
    assert message.endswith("set finetune.dtype: float32.")


def test_float16_weights_that_overflow_in_float16_alone_are_admitted(tokenizer, prepared):
    model = made("llama", tokenizer, **LLAMA)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight *= 2000
        model.model.layers[0].mlp.gate_proj.weight *= 2000
        model.model.layers[0].mlp.down_proj.weight /= 2000
    half = model.half()
    assert not half(input_ids=torch.tensor([[5, 6, 7]])).logits.isfinite().all()
    assert prepared(half)["packs"]


def test_attention_of_another_kind_than_full_is_not_packed(tokenizer, tried):
    model = made("llama", tokenizer, **LLAMA)
    model.config.layer_types = ["chunked_attention", "full_attention"]
    assert not tried(model).packs


# --- positions --------------------------------------------------------------------------------------------------


def test_frequencies_that_the_longest_sequence_chooses_end_at_the_original_length(prepared, tmp_path):
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    sizes = {**LLAMA, "original_max_position_embeddings": 160, "sliding_window": None, "pad_token_id": 0}
    manifest = prepared("phi3", **sizes, rope_parameters=rope)
    assert manifest["max_positions"] == 160
    assert reader(tmp_path / "out").max_positions == 160
    model = models.load_model(tmp_path / "out", device="cpu")
    assert models.max_positions(model.config) == 160
    beyond = model(input_ids=torch.arange(1, 162)[None]).logits[0, :160]
    assert not torch.allclose(beyond, model(input_ids=torch.arange(1, 161)[None]).logits[0], atol=1e-3)


def test_a_doge_ends_at_the_window_beyond_which_it_looks_at_later_tokens(prepared, tmp_path):
    assert prepared("doge", **LLAMA, keep_window_size=24)["max_positions"] == 24
    model, ids = models.load_model(tmp_path / "out", device="cpu"), torch.tensor([[*range(2, 12)] * 6])
    for length, same in ((24, True), (60, False)):
        before = model(input_ids=ids[:, :length]).logits[0, : length - 4]
        assert torch.allclose(before, model(input_ids=ids[:, : length - 4]).logits[0], atol=1e-5) is same


# --- tokens -----------------------------------------------------------------------------------------------------


def test_a_tokenizer_that_does_not_give_what_its_file_gives_is_refused(tokenizer, tmp_path):
    model = made("qwen2", tokenizer, **LLAMA, use_sliding_window=False)
    source = source_of(model, tokenizer, tmp_path / "own", tokenizer_class="Qwen2Tokenizer")
    message = refused(models.prepare, source, tmp_path / "out", admit)
    assert "its Qwen2Tokenizer makes" in message
    assert "by its tokenizer.json it has" in message


def test_ids_beyond_the_embedding_are_refused_unless_no_text_gives_them(tokenizer, prepared, tmp_path):
    model, rows = made("llama", tokenizer, **LLAMA), len(tokenizer)
    padded = copy.deepcopy(tokenizer)
    padded.add_special_tokens({"pad_token": "[PAD]"})
    assert f"embedding of {rows} rows does not have, first {rows} ('[PAD]')" in refused(prepared, model, padded)
    wordy = copy.deepcopy(tokenizer)
    wordy.add_tokens(["notwithstanding"])
    assert f"first {rows} ('notwithstanding')" in refused(prepared, model, wordy)
    imaging = copy.deepcopy(tokenizer)
    imaging.add_tokens(["<image>"], special_tokens=True)
    assert prepared(model, imaging)["packs"]


@pytest.mark.parametrize("tied", [(True, True), (True, False), (False, True), (False, False)])
def test_of_a_composite_model_the_language_model_is_taken(tied, tokenizer, prepared, tmp_path):
    text = {**LLAMA, "vocab_size": len(tokenizer), "head_dim": 8, "tie_word_embeddings": tied[1]}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        tie_word_embeddings=tied[0],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = transformers.Gemma3ForConditionalGeneration(config).eval()
    manifest = prepared(whole)
    assert manifest["architecture"] == "gemma3_text"
    assert manifest["parameters"] < sum(p.numel() for p in whole.parameters())
    ids = torch.arange(5, 25)[None]
    logits = models.load_model(tmp_path / "out", device="cpu")(input_ids=ids).logits
    torch.testing.assert_close(logits, whole(input_ids=ids).logits)


def test_a_model_with_several_ends_is_tried_as_one_with_one(prepared):
    """As the configurations of Llama-3's and Gemma's Instruct models name them."""
    assert prepared("llama", **{**LLAMA, "eos_token_id": [1, 2]})["packs"]


def test_a_model_with_an_adapter_in_it_is_refused(tokenizer, prepared, tmp_path):
    model = made("llama", tokenizer, **LLAMA)
    model.save_pretrained(tmp_path / "base")
    adapter = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, adapter).save_pretrained(tmp_path / "both")
    for file in (tmp_path / "base").iterdir():
        shutil.copy(file, tmp_path / "both" / file.name)
    tokenizer.save_pretrained(tmp_path / "both")
    source = {"source": "local", "path": str(tmp_path / "both"), "trust_remote_code": False}
    with pytest.raises(ModelError, match="it holds an adapter; merge that into its base"):
        models.prepare(source, tmp_path / "out", admit)
