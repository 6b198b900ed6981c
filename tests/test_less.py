"""less: the naive loop's numbers along a training of adapters, whatever the plan, shard or kill; and its projection."""

import re
from dataclasses import replace

import naive
import numpy as np
import pytest
import torch
from loud import loud_model
from matrices import ARCHITECTURES, assert_close, in_shards, matrices
from peft import PeftModel
from safetensors.torch import load_file
from test_experts import SIZES
from test_plan import ROOT, plan
from test_tracin import LORA, SETTINGS, along, base, with_trajectory  # noqa: F401
from transformers import AutoModelForCausalLM

from icprobe import artifacts
from icprobe.attribution import less
from icprobe.attribution.matrix import Inputs, Trajectory
from icprobe.engine.adapters import STATE
from icprobe.engine.admission import capabilities_of
from icprobe.engine.models import load_model
from icprobe.errors import ConfigError, ModelError, ScoreError
from icprobe.notebook import training
from icprobe.training.trajectory import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(base, few, prompts, tmp_path_factory):  # noqa: F811
    """architecture → its base, and a directory of 3 checkpoints of 8 steps."""
    made = {}

    def make(architecture, **changed):
        key = (architecture, *changed.items())
        if key not in made:
            folder, rows = tmp_path_factory.mktemp("trained"), few[0].to_dict("records")
            settings = {**SETTINGS, "lora": LORA | changed}
            train(base(architecture), rows, prompts, folder / "out", settings, 0, folder / "partial", 3)
            made[key] = base(architecture), folder / "out"
        return made[key]

    return make


def gradients(model, tokenizer, row, start=None, end=False, mean=False):
    """{name: gradient} over a peft model's adapters of −Σ log p of a row's tokens from a place on."""
    model.zero_grad()
    ids = tokenizer(naive.query(row) + naive.target(row), add_special_tokens=False)["input_ids"]
    ids += [tokenizer.eos_token_id] if end else []
    start = start or len(tokenizer(naive.query(row), add_special_tokens=False)["input_ids"])
    log_p = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    loss = -sum(log_p[i - 1, ids[i]] for i in range(start, len(ids)))
    (loss / (len(ids) - start) if mean else loss).backward()
    return {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


def steps(directory, found):
    """What PyTorch's Adam does with gradients from the state beside a checkpoint, over minus its learning rate."""
    state, made = load_file(directory / STATE), {}
    *betas, eps = state["betas_and_eps"].tolist()
    for name, gradient in found.items():
        weight = torch.nn.Parameter(torch.zeros_like(gradient))
        adam = torch.optim.AdamW([weight], lr=1.0, betas=betas, eps=eps, weight_decay=0.0)
        own = name.removeprefix("base_model.model.")
        if f"{own}.step" in state:
            adam.state[weight] = {k: state[f"{own}.{k}"].double() for k in ("exp_avg", "exp_avg_sq")}
            adam.state[weight]["step"] = state[f"{own}.step"].clone()
        weight.grad = gradient
        adam.step()
        made[name] = -weight.detach()
    return made


def cosine(x, y):
    inner = [
        sum((one[n] * other[n]).sum().item() for n in one if n in other) for one, other in ((x, y), (x, x), (y, y))
    ]
    return inner[0] / (inner[1] * inner[2]) ** 0.5


def opened(base):  # noqa: F811
    return AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")


def slow(trained, few, tokenizer, pattern="", response=False, mean=False, opened=opened, gradients=gradients):
    """The naive matrix, and its part at each checkpoint."""
    base, directory = trained  # noqa: F811
    parts = []
    for one in artifacts.read_manifest(directory)["checkpoints"]:
        folder = directory / one["directory"]
        model = PeftModel.from_pretrained(opened(base), folder, is_trainable=True).eval()
        first = {} if response else {"start": 1}

        def over(found):
            return {name: g for name, g in found.items() if re.search(pattern, name)}

        rows, tasks = (table.to_dict("records") for table in few[:2])
        moves = [
            over(steps(folder, gradients(model, tokenizer, row, **first, end=response, mean=mean))) for row in rows
        ]
        answers = [over(gradients(model, tokenizer, row)) for row in tasks]
        parts.append(one["learning_rate"] * np.array([[cosine(z, t) for t in answers] for z in moves]))
    return sum(parts), parts


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_less_equals_the_naive_loop_over_the_checkpoints(architecture, trained, inputs, few, tokenizer):
    made = trained(architecture)
    expected, parts = slow(made, few, tokenizer)
    assert np.abs(parts[0]).max() > 0.01 * SETTINGS["learning_rate"], "no example points anywhere"
    ours = with_trajectory(inputs, architecture, along(made[1], made[0]))
    assert_close(matrices(less, ours, "less")["less"], expected, 2e-5, np.abs(expected).max())


def test_it_takes_the_loss_that_the_configuration_says_over_the_layers_that_it_says(trained, inputs, few, tokenizer):
    made = trained("gpt_neox")
    ours = with_trajectory(inputs, "gpt_neox", along(made[1], made[0]))
    for settings, naively in (
        ({"train_loss": "response", "reduction": "mean"}, {"response": True, "mean": True}),
        ({"parameters": r"attention\.dense"}, {"pattern": r"attention\.dense"}),
    ):
        expected, _ = slow(made, few, tokenizer, **naively)
        assert_close(matrices(less, ours, "less", **settings)["less"], expected, 2e-5, np.abs(expected).max())


def test_an_adapter_of_an_expert_that_no_token_goes_to_stays_where_it_is(few, prompts, tokenizer, tmp_path):
    sizes = {**SIZES, "num_local_experts": 16, "num_experts": 16, "vocab_size": len(tokenizer)}
    model = loud_model("mixtral", **sizes).requires_grad_(False)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    artifacts.write_manifest(tmp_path / "base")
    made, settings = (tmp_path / "base", tmp_path / "out"), {**SETTINGS, "lora": LORA}
    train(made[0], few[0].to_dict("records"), prompts, made[1], settings, 0, tmp_path / "partial", 2)
    trained = []  # of each text the adapters' matrices that have a gradient

    def gradients_of(*arguments, **options):
        trained.append(gradients(*arguments, **options))
        return trained[-1]

    expected, _ = slow(made, few, tokenizer, opened=load_model, gradients=gradients_of)
    assert len({len(found) for found in trained}) > 3, "all texts go to the same experts"
    ours = Inputs(*few, prompts, None, tokenizer, capabilities_of(load_model(made[0])), along(made[1], made[0]))
    assert_close(matrices(less, ours, "less")["less"], expected, 1e-4, np.abs(expected).max())


def test_the_state_beside_an_adapter_is_the_optimisers(base, few, prompts, tmp_path):  # noqa: F811
    def killed(metrics, step):
        if step == 7:
            raise KeyboardInterrupt

    settings = {**SETTINGS, "lora": LORA, "checkpoint_minutes": 1e-6}
    with pytest.raises(KeyboardInterrupt):
        train(
            base("llama"), few[0].to_dict("records"), prompts, tmp_path / "out", settings, 0, tmp_path / "partial", 4,
            killed,
        )  # fmt: skip
    kept = load_file(tmp_path / "partial/kept/step-000006" / STATE)
    saved = torch.load(tmp_path / "partial/checkpoint-6/optimizer.pt", weights_only=True)
    names = [name.removeprefix("base_model.model.") for name in load_file(
        tmp_path / "partial/checkpoint-6/adapter_model.safetensors"
    )]  # fmt: skip
    assert kept.pop("betas_and_eps").tolist() == [0.9, 0.999, 1e-8]
    assert {key.split(".lora_")[0] for key in kept} == {name.split(".lora_")[0] for name in names}
    assert {key.rsplit(".", 1)[1] for key in kept} == {"exp_avg", "exp_avg_sq", "step"}
    assert len(kept) == 3 * len(names) == 3 * len(saved["state"])
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base("llama")), tmp_path / "partial/checkpoint-6", is_trainable=True
    )
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    for number, name in enumerate(trainable):
        for key, value in saved["state"][number].items():
            found = kept[f"{name.removeprefix('base_model.model.')}.{key}"]
            assert torch.equal(found, value), f"{name}: {key}"
            assert key != "step" or value == 6


@pytest.mark.parametrize("dimension", [None, 64])
def test_the_memory_budget_changes_no_bit_and_a_kill_neither(dimension, trained, inputs):
    class Killed(dict):
        def __setitem__(self, name, piece):
            super().__setitem__(name, piece)
            if re.fullmatch(r"less/\d+/1", name):
                raise KeyboardInterrupt

    base, directory = trained("llama")  # noqa: F811
    ours, pieces = with_trajectory(inputs, "llama", along(directory, base)), Killed()
    reference = matrices(less, ours, "less", dimension=dimension)["less"]
    with pytest.raises(KeyboardInterrupt):
        matrices(less, replace(ours, pieces=pieces), "less", dimension=dimension, memory_budget_gb=1e-4)
    assert not any(re.fullmatch(r"less/\d+/2", name) for name in pieces)
    listed = ours.trajectory.checkpoints
    missing = replace(ours.trajectory, checkpoints=[("gone", listed[0][1]), *listed[1:]])
    resumed = replace(ours, trajectory=missing, pieces=dict(pieces))
    assert (matrices(less, resumed, "less", dimension=dimension)["less"] == reference).all()


@pytest.mark.parametrize("dimension", [None, 64])
def test_shards_and_batches_change_nothing_but_rounding(dimension, trained, inputs, tmp_path):
    base, directory = trained("gpt2")  # noqa: F811
    ours = with_trajectory(inputs, "gpt2", along(directory, base))
    settings = {"batch_tokens": 200, "dimension": dimension}
    whole = in_shards(less, ours, settings, 1, 200, tmp_path)
    assert_close(in_shards(less, ours, settings, 2, 100, tmp_path), whole, 1e-5, np.abs(whole).max())


def test_a_projection_errs_as_much_as_its_dimension_says_and_is_the_seeds(trained, inputs):
    base, directory = trained("llama")  # noqa: F811
    listed = along(directory, base)
    ours = with_trajectory(inputs, "llama", replace(listed, checkpoints=[(listed.checkpoints[0][0], 1.0)]))
    exact = matrices(less, ours, "less")["less"]

    def projected(seed, dimension):
        return matrices(less, replace(ours, seed=seed), "less", dimension=dimension)["less"]

    dimension = 512
    found = np.stack([projected(seed, dimension) for seed in range(8)])
    # The deviation of a correlation of so many independent pairs of numbers.
    errors = (found - exact) / ((1 - exact**2) / dimension**0.5)
    assert 0.8 < np.sqrt((errors**2).mean()) < 1.2
    assert np.abs(errors.mean(axis=0)).max() < 4 / 8**0.5, "it is biased"
    assert (projected(0, dimension) == found[0]).all()
    assert (found[0] != found[1]).all()


def test_bfloat16_changes_little(trained, inputs):
    base, directory = trained("llama")  # noqa: F811
    found = [
        matrices(less, with_trajectory(inputs, "llama", along(directory, base, dtype)), "less")["less"]
        for dtype in ("float32", "bfloat16")
    ]
    assert 1e-4 < np.abs(found[1] - found[0]).max() / np.abs(found[0]).max() < 0.1


def test_dropout_plays_no_part_in_gradients(trained, inputs, few, tokenizer):
    made = trained("llama", dropout=0.3)
    expected, _ = slow(made, few, tokenizer)
    ours = with_trajectory(inputs, "llama", along(made[1], made[0]))
    assert_close(matrices(less, ours, "less")["less"], expected, 2e-5, np.abs(expected).max())


@pytest.mark.parametrize("dimension", [None, 64])
def test_a_task_without_a_direction_is_named(dimension, trained, inputs, monkeypatch):
    base, directory = trained("llama")  # noqa: F811
    ours = with_trajectory(inputs, "llama", along(directory, base))
    plain = less.load_adapted

    def silent(*arguments):
        adapted = plain(*arguments)
        adapted.model.get_output_embeddings().weight.zero_()
        return adapted

    monkeypatch.setattr(less, "load_adapted", silent)
    with pytest.raises(
        ScoreError, match=r"less: \d tasks? with a gradient of zero, which has no direction: task-seasons"
    ):
        matrices(less, ours, "less", dimension=dimension)


def test_what_is_no_checkpoint_of_adapters_is_refused(base, inputs):  # noqa: F811
    folder = str(base("llama"))
    ours = with_trajectory(inputs, "llama", Trajectory([(folder, 1.0)], False, folder, "float32", "cpu"))
    with pytest.raises(ModelError, match="llama: it holds no adapter with its optimiser's state"):
        matrices(less, ours, "less")


def test_it_is_valued_from_python_as_by_the_workflow(trained, few, inputs, tmp_path, monkeypatch):
    import icprobe

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, directory = trained("llama")
    finetune = {key: value for key, value in SETTINGS.items() if key not in ("device", "checkpoint_minutes")}
    finetune["lora"] = {key: LORA[key] for key in ("rank", "alpha")}
    arguments = {"dtype": "float32", "device": "cpu", "batch_tokens": 200, "matrices": True, "methods": ["less"]}
    prepared = {"source": "local", "path": str(model)}
    trainings, train_one = [], training.train
    monkeypatch.setattr(training, "train", lambda *given: trainings.append(given) or train_one(*given))
    for dimension in (None, 32):
        said = {"less": {"dimension": dimension}, "seed": 3, **arguments}
        said |= {"methods": ["tracin", "less"]} if dimension is None else {}
        _, found = icprobe.value(few[0], few[1], model=prepared, finetune=finetune, **said)
        assert len(trainings) == (1 if dimension is None else 2), "tracin and less share one"
        ours = with_trajectory(inputs, "llama", along(directory, model))
        expected = matrices(less, ours, "less", dimension=dimension)["less"]
        assert (found["less"].drop(columns="id").to_numpy() == expected).all()
    with pytest.raises(ConfigError, match="methods: less takes gradients along a training as finetune says; write"):
        icprobe.value(few[0], few[1], model=prepared, **arguments)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"finetune": {"lora": None}},
            "finetune.lora: less takes gradients over adapters, and null trains all weights; write lora: {rank: 16}",
        ),
        (
            {"attribution": {"tracin": {"directories": ["here"], "learning_rates": [1]}}},
            "tracin.directories: less needs the optimiser's state beside each checkpoint, which is kept of a training",
        ),
    ],
)
def test_trainings_without_adapters_or_their_optimisers_state_are_refused_by_the_configuration(
    sections, said, monkeypatch
):
    monkeypatch.chdir(ROOT)
    attribution = {"methods": ["less"], **sections.get("attribution", {})}
    with pytest.raises(ConfigError, match=re.escape(said)):
        plan(bins=["top 20%"], **{**sections, "attribution": attribution})


def test_without_a_projection_nothing_is_drawn():
    for dimension, seeded in ((None, False), (8192, True)):
        asked = {"methods": ["less"], "less": {"dimension": dimension}}
        assert plan(attribution=asked, bins=["top 20%"]).methods["less"].seeded == seeded
