"""The folder that a server gets holds the model that is to answer: its weights, in the dtype asked for."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from icprobe import artifacts
from icprobe.engine.checkpoints import load_fine_tuned
from icprobe.engine.models import linear_layers, load_model
from icprobe.engine.random_models import random_model
from icprobe.errors import ArtifactError
from icprobe.evaluation.engines.weights import served_folder

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
KINDS = {"llama": {}, "gpt2": {}, "mixtral": {"num_local_experts": 4}}


@pytest.fixture(scope="module", params=KINDS)
def base(request, tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models") / request.param
    sizes = {"hidden_size": 32, "num_attention_heads": 4, **KINDS[request.param]}
    random_model(request.param, sizes, 1, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    artifacts.write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """Adapters that change the model, as `fine_tune` saves them."""
    folder = tmp_path_factory.mktemp("checkpoints") / "lora"
    model = load_model(base, device="cpu")
    torch.manual_seed(0)
    options = LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=sorted(linear_layers(model)),
        init_lora_weights=False,
        fan_in_fan_out=model.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
    )
    get_peft_model(model, options).save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    artifacts.write_manifest(folder, kind="lora", base=base.name, base_digest=artifacts.content_digest(base))
    return folder


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def test_weights_of_the_dtype_asked_for_are_served_where_they_lie(base):
    with served_folder(base, None, "float32") as folder:
        assert folder == base.absolute()
    assert base.is_dir()


def test_adapters_are_served_merged_into_their_base_and_the_folder_goes(base, adapters):
    expected = logits(load_fine_tuned(adapters, base, device="cpu"))
    assert (expected - logits(load_model(base, device="cpu"))).abs().max() > 1e-3
    with served_folder(base, adapters, "float32") as folder:
        found = logits(AutoModelForCausalLM.from_pretrained(folder).eval())
        assert AutoTokenizer.from_pretrained(folder)("Count to ten.") == AutoTokenizer.from_pretrained(base)(
            "Count to ten."
        )
        assert not (folder / "adapter_config.json").exists()
    torch.testing.assert_close(found, expected)
    assert not Path(folder).exists()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_weights_of_another_dtype_are_cast(base, adapters, checkpoint):
    with served_folder(base, adapters if checkpoint else None, "bfloat16") as folder:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert model.config.dtype == torch.bfloat16
        served = model.state_dict()
    with served_folder(base, adapters if checkpoint else None, "float32") as folder:
        exact = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(served[name], weight.to(torch.bfloat16)) for name, weight in exact.items())


def test_damaged_weights_are_not_served(base, tmp_path):
    damaged = tmp_path / "damaged"
    with served_folder(base, None, "bfloat16") as folder:
        folder.rename(damaged)
        folder.mkdir()
    artifacts.write_manifest(damaged)
    weights = damaged / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match="SHA-256"), served_folder(damaged, None, "float32"):
        pass
