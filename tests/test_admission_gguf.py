"""A GGUF of which transformers would drop something is refused in one sentence."""

import gguf
import numpy as np
import pytest
import transformers
from tiny_gguf import tiny_gguf

from icprobe.engine import models
from icprobe.engine.admission import admit
from icprobe.errors import ModelError

SOURCE = {"source": "pypi", "package": "p", "version": "1"}


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """What a writer adds to a GGUF → the manifest of the model that it is prepared as."""

    def prepare(more):
        tiny_gguf(tmp_path / "m.gguf", more)
        monkeypatch.setattr(models, "fetch_gguf", lambda source, folder: tmp_path / "m.gguf")
        return models.prepare(SOURCE, tmp_path / "out", admit)

    return prepare


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (lambda w: (w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), w.add_rope_scaling_factor(4.0)), "factor"),
        (lambda w: (w.add_rope_scaling_type(gguf.RopeScalingType.YARN), w.add_rope_scaling_factor(4.0)), "factor"),
        (lambda w: w.add_float32("llama.rope.scale_linear", 4.0), "rope.scale_linear = 4.0"),
        (lambda w: w.add_sliding_window(16), "attention.sliding_window = 16"),
        (lambda w: w.add_rope_scaling_attn_factors(1.2), "rope.scaling.attn_factor = 1.2"),
        (lambda w: w.add_logit_scale(0.5), "logit_scale = 0.5"),
        (lambda w: w.add_residual_scale(0.25), "residual_scale = 0.25"),
        (lambda w: w.add_embedding_scale(12.0), "embedding_scale = 12.0"),
        (lambda w: w.add_attention_scale(0.5), "attention.scale = 0.5"),
        (lambda w: w.add_clamp_kqv(8.0), "attention.clamp_kqv = 8.0"),
        (lambda w: w.add_causal_attention(False), "attention.causal = False"),
        (lambda w: w.add_final_logit_softcapping(30.0), "final_logit_softcapping = 30.0"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.array([1, 8] * 8, np.float32)), "the tensor rope_freqs.weight"),
    ],
)
def test_what_a_gguf_says_and_transformers_drops_is_refused(more, said, prepared):
    with pytest.raises(ModelError, match=r"^m\.gguf: transformers drops ") as caught:
        prepared(more)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("values", "dropped"),
    [
        ({"rope.dimension_count": 8, "rope.freq_base": 5e5, "attention.scale": 8**-0.5}, []),
        ({"rope.dimension_count": 4}, ["rope.dimension_count"]),
        ({"rope.freq_base": 1e4}, ["rope.freq_base"]),
        ({"attention.scale": 0.5, "attention.clamp_kqv": 8.0}, ["attention.clamp_kqv", "attention.scale"]),
    ],
)
def test_what_a_gguf_says_of_positions_and_scales_is_what_the_configuration_says(values, dropped):
    """Of some architectures transformers reads no base of the rotary positions, of most no width."""
    config = transformers.Qwen2Config(hidden_size=32, num_attention_heads=4, rope_parameters={"rope_theta": 5e5})
    assert list(models._dropped(values, config)) == dropped


@pytest.mark.parametrize(
    ("more", "held"),
    [
        (lambda w: w.add_tensor("blk.0.attn_q.bias", np.ones(64, np.float32)), 74240),
        (lambda w: w.tensors[0].pop("blk.0.ffn_up.weight"), 74176 - 64 * 128),
    ],
)
def test_a_gguf_whose_tensors_are_not_the_models_is_refused(more, held, prepared):
    with pytest.raises(ModelError, match=f"m.gguf: it holds {held} weights, but a LlamaForCausalLM has 74176"):
        prepared(more)


def test_a_gguf_of_which_nothing_is_dropped_is_admitted(prepared):
    def more(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_sliding_window(4096)  # as long as the model's context
        writer.add_rope_freq_base(5e5)
        writer.add_attention_scale(32**-0.5)
        writer.add_causal_attention(True)
        writer.add_residual_scale(1.0)
        writer.add_tensor("rope_freqs.weight", np.ones(16, np.float32))

    assert prepared(more)["packs"]
