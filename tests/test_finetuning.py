import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from trl.trainer import utils
from trl.trainer.utils import add_fused_lm_head

from icprobe import artifacts
from icprobe.config.templates import Templates
from icprobe.engine import matmul
from icprobe.engine.checkpoints import load_fine_tuned
from icprobe.engine.models import linear_layers, load_model
from icprobe.engine.random_models import random_model
from icprobe.errors import DataError, ModelError
from icprobe.texts.prompts import Prompts
from icprobe.texts.tokenizing import load_tokenizer, train_tokenizer
from icprobe.training.callbacks import newest_complete
from icprobe.training.fine_tune import IGNORED, fine_tune, tokenize, trainer_of
from icprobe.training.loss import PROBED_TOKENS, _pass_over_ignored

ROWS = [
    {
        "id": f"{n:02d}",
        "instruction": f"Say the number {n}.",
        "input": None if n % 2 else f"n = {n}",
        "output": f"It is {n}!",
    }
    for n in range(12)
]
SETTINGS = {
    "learning_rate": 1e-3,
    "epochs": 2,
    "batch_size": 2,
    "accumulation": 2,
    "scheduler": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.0,
    "max_length": 256,
    "dtype": "float32",
    "device": "cpu",
    "lora": None,
    "checkpoint_minutes": 60,
}
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def prompts():
    return Prompts(Templates().model_dump())


def make_base(folder, architecture, **sizes):
    tokenizer = train_tokenizer([" ".join(str(v) for v in row.values()) for row in ROWS], 300)
    random_model(architecture, {"hidden_size": 32, **sizes}, 0, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    artifacts.write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("models") / "tiny-llama", "llama", attention_dropout=0.1)


def weights(directory):
    return {name: entry["sha256"] for name, entry in artifacts.verify(directory)["files"].items()}


def train(base, prompts, folder, rows=ROWS, seed=0, log=lambda metrics, step: None, **changes):
    settings = {**SETTINGS, **changes}
    numbers = fine_tune(base, rows, prompts, folder / "out", settings, seed, folder / "partial", log)
    return numbers, folder / "out"


# --- what is learnt from ----------------------------------------------------------------------------------------


def test_loss_is_on_the_target_and_the_end_alone(base, prompts):
    tokenizer = load_tokenizer(base)
    examples, counts = tokenize(tokenizer, ROWS, prompts, 256)
    assert counts == {"truncated": 0, "dropped": 0}
    for row, example in zip(ROWS, examples, strict=True):
        text = prompts.document(row)
        assert example["input_ids"] == [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        learnt = [token for token in example["labels"] if token != IGNORED]
        assert tokenizer.decode(learnt) == prompts.target(row) + tokenizer.eos_token
        assert example["labels"].index(learnt[0]) == len(tokenizer(prompts.query(row))["input_ids"])


def test_what_is_too_long_is_cut_or_dropped_and_counted(base, prompts):
    tokenizer = load_tokenizer(base)
    whole, _ = tokenize(tokenizer, ROWS, prompts, 256)
    n_query = whole[1]["labels"].count(IGNORED)
    limit = n_query + 2
    examples, counts = tokenize(tokenizer, ROWS[:2], prompts, limit)
    assert counts == {"truncated": 1, "dropped": 1}, "example 0 has a longer query: its input"
    assert examples[0]["input_ids"] == whole[1]["input_ids"][:limit]
    assert tokenizer.eos_token_id not in examples[0]["input_ids"], "a response that is cut must not teach to stop"


def test_a_subset_without_a_usable_example_is_one_clear_error(base, prompts, tmp_path):
    with pytest.raises(DataError, match="max_length"):
        train(base, prompts, tmp_path, max_length=3)


def naive_training(base, prompts, rows, learning_rate):
    """One full-batch AdamW step per epoch, written out: the loss is the mean over all target tokens."""
    model = load_model(base, device="cpu").requires_grad_(True)
    model.train()
    tokenizer = load_tokenizer(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    losses = []
    for _ in range(2):
        total, n = torch.zeros(()), 0
        for row in rows:
            query = tokenizer(prompts.query(row))["input_ids"]
            ids = tokenizer(prompts.document(row))["input_ids"] + [tokenizer.eos_token_id]
            logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            for position in range(len(query), len(ids)):
                total, n = total - logp[position - 1, ids[position]], n + 1
        optimizer.zero_grad()
        (total / n).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append((total / n).item())
    return model, losses


@pytest.mark.parametrize("counts", [True, False])
def test_training_equals_a_naive_loop(counts, tmp_path, prompts, monkeypatch):
    """counts: whether transformers counts a step's loss tokens; of some models with code of their own it does not."""
    monkeypatch.setattr(transformers.GPTNeoXForCausalLM, "accepts_loss_kwargs", counts, raising=False)
    base = make_base(tmp_path / "base", "gpt_neox")  # no dropout
    rows = [row | {"output": row["output"] * (1 + n)} for n, row in enumerate(ROWS)]  # batches of different lengths
    seen = []
    settings = {"batch_size": 3, "accumulation": 4, "scheduler": "constant", "warmup_ratio": 0.0}
    log = {"log": lambda m, step: seen.append((step, m["train/loss"]))}
    numbers, out = train(base, prompts, tmp_path, rows, **log, **settings)
    expected, losses = naive_training(base, prompts, rows, 1e-3)
    assert numbers["steps"] == 2
    assert [step for step, _ in seen] == [1, 2]
    assert [loss for _, loss in seen] == pytest.approx(losses, abs=1e-3)
    trained = load_fine_tuned(out, base, device="cpu").state_dict()
    largest = max(float((trained[k] - v).abs().max()) for k, v in expected.state_dict().items())
    # Adam divides by |g|: float noise of a gradient near 0 may turn a step of 1e-3, but rarely.
    typical = max(float((trained[k] - v).abs().mean()) for k, v in expected.state_dict().items())
    assert typical < 2e-6, f"mean difference {typical:.2g}, largest {largest:.2g}"


@pytest.mark.parametrize("lora", [None, LORA])
def test_logits_are_computed_of_responses_alone(lora, base, prompts, tmp_path, monkeypatch):
    head, scored = utils._ChunkedLogProbFunction, []

    class Counting:
        @staticmethod
        def apply(states, *others):
            scored.append(len(states))
            return head.apply(states, *others)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Counting)
    train(base, prompts, tmp_path, epochs=1, lora=lora)
    examples, _ = tokenize(load_tokenizer(base), ROWS, prompts, 256)
    tried = min(PROBED_TOKENS, len(examples[0]["input_ids"])) - 1
    assert scored[0] == tried, "what the loss is tried on before"
    assert sum(scored[1:]) == sum(label != IGNORED for example in examples for label in example["labels"])


def test_a_trl_that_decides_otherwise_is_left_as_it_is(base, monkeypatch):
    """What is asked by device is no part of trl's interface."""
    model = load_model(base, device="cpu")
    add_fused_lm_head(model)
    monkeypatch.delattr(utils, "_use_triton")
    forward = model.forward
    _pass_over_ignored(model)
    assert model.forward == forward


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_products_of_layers_under_adapters_are_those_of_pytorch_faster(architecture, prompts, tmp_path, monkeypatch):
    base, found, calls = make_base(tmp_path / "base", architecture), {}, Counter()
    product = matmul.matmul
    for there in (False, True):
        monkeypatch.setattr(matmul, "AVAILABLE", there)
        monkeypatch.setattr(matmul, "matmul", lambda *given, there=there: calls.update([there]) or product(*given))
        numbers, folder = train(base, prompts, tmp_path / str(there), lora=LORA)
        found[there] = numbers["final_loss"], load_file(folder / "adapter_model.safetensors")
    assert calls[True]
    assert not calls[False]
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-5)
    for name, weight in found[True][1].items():
        assert (weight - found[False][1][name]).abs().max() < 1e-4 * weight.abs().max(), name


def test_the_environment_has_no_say_in_the_arithmetic(base, prompts, tmp_path, monkeypatch):
    found = {}
    for precision in ("no", "bf16"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        numbers, folder = train(base, prompts, tmp_path / precision, lora=LORA)
        found[precision] = numbers["final_loss"], weights(folder)["adapter_model.safetensors"]
    assert found["no"] == found["bf16"]


def test_a_model_that_is_trained_keeps_the_signature_that_generation_asks_for(base):
    model = load_model(base, device="cpu")
    add_fused_lm_head(model)
    expected = list(inspect.signature(model.forward).parameters)
    _pass_over_ignored(model)
    assert list(inspect.signature(model.forward).parameters) == expected
    assert "input_ids" in expected


def test_a_model_whose_weights_evaluation_divides_begins_its_training_with_its_own(prompts, tmp_path):
    """RWKV's: a training that is resumed takes up others before its first step would multiply them."""
    tokenizer = train_tokenizer([" ".join(str(v) for v in row.values()) for row in ROWS], 300)
    sizes = {"hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 3, "rescale_every": 1}
    config = transformers.AutoConfig.for_model("rwkv", vocab_size=len(tokenizer), context_length=128, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    artifacts.write_manifest(tmp_path / "base")
    own = load_model(tmp_path / "base", device="cpu").state_dict()
    examples = tokenize(tokenizer, ROWS, prompts, 256)[0]
    trainer = trainer_of(tmp_path / "base", tokenizer, examples, SETTINGS, 0, tmp_path / "trainer")
    found = trainer.model.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in own.items())


# --- what comes out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_training_that_diverges_is_told_and_is_no_checkpoint(base, prompts, tmp_path, lora):
    with pytest.raises(DataError, match=r"training has diverged.* Lower finetune\.learning_rate"):
        train(base, prompts, tmp_path, lora=lora, learning_rate=1e30, scheduler="constant")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_weights_that_no_trainer_saved_are_no_checkpoint(base, prompts, tmp_path, monkeypatch):
    """As where those of a model that processes share are saved in parts."""
    monkeypatch.setattr("icprobe.training.fine_tune._save", lambda *_, **__: None)
    with pytest.raises(ModelError, match=r"has saved no weights; look at the file of finetune\.accelerate"):
        train(base, prompts, tmp_path)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("can", [True, False])
def test_a_large_model_recomputes_activations_where_it_can(can, base, prompts, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("icprobe.training.fine_tune.CHECKPOINTING_ABOVE_PARAMETERS", 1)
    monkeypatch.setattr(transformers.LlamaForCausalLM, "supports_gradient_checkpointing", can)
    train(base, prompts, tmp_path, rows=ROWS[:4])
    assert ("LlamaForCausalLM cannot recompute activations" in caplog.text) != can


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_same_seed_gives_the_same_bytes(base, prompts, tmp_path, lora):
    first, again = (weights(train(base, prompts, tmp_path / name, lora=lora)[1]) for name in ("a", "b"))
    assert first == again


@pytest.mark.parametrize("reached", ["order", "dropout", "adapters"])
def test_the_seed_reaches(reached, base, prompts, tmp_path):
    changes = {"lora": {**LORA, "dropout": 0.0} if reached == "adapters" else None}
    rows = ROWS if reached == "order" else ROWS[:1]  # one example has no order
    if reached != "dropout":
        base = make_base(tmp_path / "base", "llama")
    first, other = (
        weights(train(base, prompts, tmp_path / str(seed), rows=rows, seed=seed, **changes)[1]) for seed in (0, 1)
    )
    name = next(name for name in first if name.endswith(".safetensors"))
    assert first[name] != other[name]


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
def test_adapters_sit_on_every_linear_layer_and_load_onto_their_base(architecture, prompts, tmp_path):
    base = make_base(tmp_path / "base", architecture)
    numbers, out = train(base, prompts, tmp_path, lora=LORA, learning_rate=0.05)
    assert artifacts.verify(out)["kind"] == "lora"
    assert not list(out.glob("model*.safetensors")), "the base's weights stay where they are"
    targets = json.loads((out / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets), "an order that changes from process to process"
    before, after = load_model(base, device="cpu").state_dict(), load_fine_tuned(out, base, device="cpu").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {f"{name}.weight" for name in linear_layers(load_model(base, device="cpu"))}
    assert changed == expected
    assert numbers["final_loss"] < numbers["first_loss"]


def test_an_adapter_is_refused_on_another_base(base, prompts, tmp_path):
    _, out = train(base, prompts, tmp_path, rows=ROWS[:2], lora=LORA)
    other = make_base(tmp_path / "other", "gpt_neox")
    with pytest.raises(artifacts.ArtifactError, match="another"):
        load_fine_tuned(out, other)


def test_bfloat16_training_keeps_steps_that_bfloat16_weights_would_lose(base, prompts, tmp_path):
    _, out = train(base, prompts, tmp_path, rows=ROWS[:4], dtype="bfloat16", learning_rate=1e-6, scheduler="constant")
    before, after = load_model(base, device="cpu").state_dict(), load_fine_tuned(out, base, device="cpu").state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert after[name].dtype == torch.float32
    assert 0 < float((after[name] - before[name]).abs().max()) < 1e-4


# --- a kill -----------------------------------------------------------------------------------------------------

KILLED = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    import test_finetuning as t
    from pathlib import Path
    from icprobe import artifacts
    from icprobe.config.templates import Templates

    at = {at!r}
    if at == "manifest":  # a checkpoint's files are written, its manifest is not
        written = artifacts.write_manifest
        def write(directory, **facts):
            if Path(directory).name == "checkpoint-3":
                os.kill(os.getpid(), signal.SIGKILL)
            written(directory, **facts)
        artifacts.write_manifest = write
    def log(metrics, step):
        if at == "step" and step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
    t.train(Path({base!r}), t.Prompts(Templates().model_dump()), Path({folder!r}), log=log, **{changes!r})
"""


@pytest.mark.parametrize(("lora", "at", "resumed"), [(None, "manifest", 2), (LORA, "step", 3)])
def test_a_killed_training_goes_on_to_the_same_bytes(base, prompts, tmp_path, lora, at, resumed):
    changes = {"lora": lora, "checkpoint_minutes": 1e-9}  # after every step
    script = KILLED.format(
        tests=str(Path(__file__).parent), at=at, base=str(base), folder=str(tmp_path / "killed"), changes=changes
    )
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    steps = []
    numbers, out = train(base, prompts, tmp_path / "killed", log=lambda metrics, step: steps.append(step), **changes)
    assert numbers["resumed_from_step"] == resumed
    assert steps == list(range(1, 7)), "the curve is whole; what was done is told, and not done again"
    whole, expected = train(base, prompts, tmp_path / "whole", lora=lora)
    assert weights(out) == weights(expected)
    assert numbers | {"resumed_from_step": 0} == whole


def test_an_adapters_model_in_bfloat16_has_the_positions_of_its_base(base, prompts, tmp_path):
    """Rotary frequencies are buffers in float32, whatever the weights are."""
    _, out = train(base, prompts, tmp_path, lora=LORA)
    found, plain = load_fine_tuned(out, base, "bfloat16", "cpu"), load_model(base, "bfloat16", "cpu")
    assert dict(found.named_buffers())
    for name, buffer in plain.named_buffers():
        assert torch.equal(found.get_buffer(name), buffer)
    dtypes = ({name: weight.dtype for name, weight in model.named_parameters()} for model in (found, plain))
    assert next(dtypes) == next(dtypes)


@pytest.mark.parametrize("damage", ["truncated", "removed", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage):
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(bytes(range(200)))
        artifacts.write_manifest(folder)
    file = tmp_path / "checkpoint-10" / "optimizer.pt"
    if damage == "truncated":
        os.truncate(file, 100)
    elif damage == "removed":
        file.unlink()
    else:
        file.write_bytes(bytes(reversed(range(200))))
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-9"
    assert not file.parent.exists(), "it would be taken for the newest by age"


def test_a_model_that_peft_has_no_adapters_for_is_refused_in_a_sentence(prompts, tmp_path):
    base = make_base(tmp_path / "base", "mamba", state_size=8, time_step_rank=4)
    with pytest.raises(
        ModelError, match=r"cannot be trained with adapters \(.*PEFT.*; set finetune\.lora: null to train all"
    ):
        train(base, prompts, tmp_path / "adapters", rows=ROWS[:2], lora=LORA)
    numbers, out = train(base, prompts, tmp_path / "all", rows=ROWS[:2], lora=None)
    assert numbers["steps"] > 0
    assert load_fine_tuned(out, base, device="cpu").config.model_type == "mamba"


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("bert", "BertLMHeadModel: the loss that trl computes is .*% off that of the model's own"),
        ("rembert", "RemBertForCausalLM: trl cannot compute its loss"),
    ],
)
def test_a_model_whose_loss_trl_does_not_compute_is_refused(architecture, said, prompts, tmp_path):
    """trl puts the output embedding behind the base model itself, without what these two do in between."""
    base = make_base(tmp_path / "base", architecture)
    with pytest.raises(ModelError, match=said):
        train(base, prompts, tmp_path, rows=ROWS[:2], lora=LORA)
