"""influence_ekfac: the naive loop's numbers, whatever the budget, the parts of the fit, shards or a kill."""

import copy
import hashlib
from dataclasses import replace

import naive
import numpy as np
import pandas as pd
import pytest
import torch
from matrices import ARCHITECTURES, assert_close, matrices
from test_memory_plan import plan_of
from transformers.pytorch_utils import Conv1D

import icprobe
from icprobe.attribution import fisher, influence, influence_ekfac, memory_plan
from icprobe.attribution.shards import compute
from icprobe.engine import likelihood
from icprobe.engine.batching import batches
from icprobe.engine.gradients import layers_of, loss_backward
from icprobe.engine.likelihood import drawn_targets
from icprobe.engine.network import Network
from icprobe.errors import ScoreError

# Small enough for the Fisher matrix of a layer to be written out.
SMALL = {"llama": "self_attn", "gpt_neox": r"attention\.dense", "gpt2": r"attn\.c_proj"}


def fitted(inputs, folder, batch_tokens=200, **settings):
    return fisher.fit(inputs, batches(inputs.lengths, batch_tokens), folder, **settings)


def scores(inputs, folder, batch_tokens=200, **settings):
    of_fit = {key: value for key, value in settings.items() if key in ("labels", "train_loss", "parameters")}
    found = fitted(inputs, folder, batch_tokens, **of_fit)
    return matrices(influence_ekfac, inputs, "influence_ekfac", batch_tokens, fisher=found, **settings)[
        "influence_ekfac"
    ]


# --- the naive loop ---------------------------------------------------------------------------------------------


def drawn(logits, seed, example, n):
    """A target for each of the last n but one positions, by inversion of the whole distribution."""
    key = hashlib.sha256(f"{seed} {example}".encode()).digest()
    uniforms = np.random.default_rng(int.from_bytes(key)).random(n)
    probabilities = logits[:-1].double().softmax(-1).cumsum(-1)[-n:]
    return [int((p <= u).sum()) for p, u in zip(probabilities, uniforms, strict=True)]


def factors(inputs, row, names, labels, seed=3):
    """{layer: (a [n, d_in (+ 1)], δ [n, d_out])} of one document's summed loss."""
    model = copy.deepcopy(inputs.model).requires_grad_(True)
    model.set_attn_implementation("eager")
    seen, handles = {}, []
    for name in names:
        module = model.get_submodule(name)

        def keep(module, args, output, name=name):
            output.retain_grad()
            seen[name] = (args[0].detach()[0], output)

        handles.append(module.register_forward_hook(keep))
    ids = inputs.tokenizer(naive.query(row) + naive.target(row), add_special_tokens=False)["input_ids"]
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    n = len(ids) - 1
    targets = ids[1:] if labels == "empirical" else drawn(logits.detach(), seed, row["id"], n)
    (-logits[:-1].log_softmax(-1)[range(n), targets].sum()).backward()
    found = {}
    for name, (a, output) in seen.items():
        if model.get_submodule(name).bias is not None:
            a = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], dim=1)
        found[name] = (a, output.grad[0])
    return found


def joined(model, gradients, name):
    """A layer's gradient [d_out, d_in (+ 1)]."""
    weight = gradients[f"{name}.weight"]
    weight = weight.T if isinstance(model.get_submodule(name), Conv1D) else weight
    bias = gradients.get(f"{name}.bias")
    return weight.double() if bias is None else torch.cat([weight, bias[:, None]], dim=1).double()


def naive_scores(inputs, names, labels, damping, dense):
    """The matrix by the definition; dense: with the Fisher matrix of each layer written out, and a solver."""
    model, rows = inputs.model, inputs.train.to_dict("records")
    of_rows = [factors(inputs, row, names, labels) for row in rows]
    examples, tasks = (
        [naive.gradient(model, inputs.tokenizer, row, whole) for row in table.to_dict("records")]
        for table, whole in ((inputs.train, True), (inputs.tasks, False))
    )
    matrix = np.zeros((len(examples), len(tasks)))
    for name in names:
        pairs = [of_row[name] for of_row in of_rows]
        q_a = torch.linalg.eigh(sum(a.T @ a for a, _ in pairs)).eigenvectors
        q_s = torch.linalg.eigh(sum(d.T @ d for _, d in pairs)).eigenvectors
        eigenvalues = sum((q_s.T @ (d.T @ a) @ q_a) ** 2 for a, d in pairs) / len(pairs)
        damped = eigenvalues + damping * eigenvalues.mean()
        of_tasks = torch.stack([joined(model, task, name) for task in tasks])
        if dense:
            basis = torch.kron(q_s, q_a)
            fisher_matrix = (basis * damped.flatten()) @ basis.T
            inverse = torch.linalg.solve(fisher_matrix, of_tasks.flatten(1).T).T.view_as(of_tasks)
        else:
            inverse = q_s @ ((q_s.T @ of_tasks @ q_a) / damped) @ q_a.T
        of_examples = torch.stack([joined(model, example, name) for example in examples])
        matrix += torch.einsum("ixy,jxy->ij", of_examples, inverse).numpy()
    return matrix


@pytest.mark.parametrize("labels", ["empirical", "sampled"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_influence_ekfac_equals_the_naive_loop_with_the_matrix_written_out(architecture, labels, inputs, tmp_path):
    ours = inputs(architecture, torch.float64)
    names = [layer.name for layer in layers_of(Network(ours.model, ours.capabilities), SMALL[architecture])]
    slow = naive_scores(ours, names, labels, 0.1, dense=True)
    fast = scores(ours, tmp_path, labels=labels, parameters=SMALL[architecture])
    assert_close(fast, slow, 1e-5, np.abs(slow).max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_influence_ekfac_equals_the_naive_loop_over_all_layers(architecture, dtype, inputs, tmp_path):
    exact = inputs(architecture, torch.float64)
    names = [layer.name for layer in layers_of(Network(exact.model, exact.capabilities))]
    slow = naive_scores(exact, names, "empirical", 0.01, dense=False)
    fast = scores(inputs(architecture, dtype), tmp_path, labels="empirical", damping=0.01)
    assert_close(fast, slow, 1e-5 if dtype == torch.float64 else 1e-3, np.abs(slow).max())


# --- labels -----------------------------------------------------------------------------------------------------


def test_targets_are_drawn_from_the_models_own_distribution(inputs):
    network = Network(inputs("llama").model, inputs("llama").capabilities)
    states = torch.randn(1, 48, generator=torch.Generator().manual_seed(0)).expand(4000, -1)
    uniforms = torch.from_numpy(np.random.default_rng(0).random(4000))
    found = torch.tensor(drawn_targets(network, states, uniforms))
    probabilities = network.model.lm_head(states[:1]).softmax(-1)[0].double()
    frequencies = torch.bincount(found, minlength=len(probabilities)) / 4000
    worst = (
        (frequencies - probabilities).abs() / (probabilities * (1 - probabilities) / 4000).sqrt().clamp(1e-4)
    ).max()
    assert worst < 5, f"{worst:.1f} standard errors"
    until = probabilities.cumsum(0)
    assert (found == (until <= uniforms[:, None]).sum(1)).all()


@pytest.mark.parametrize("words", [1, 7, 200])
def test_what_is_drawn_does_not_depend_on_the_parts_of_the_vocabulary(words, inputs, monkeypatch):
    network = Network(inputs("gpt_neox").model, inputs("gpt_neox").capabilities)
    states = torch.randn(300, 48, generator=torch.Generator().manual_seed(1))
    uniforms = torch.from_numpy(np.random.default_rng(1).random(300))
    whole = drawn_targets(network, states, uniforms)
    monkeypatch.setattr(likelihood, "HEAD_WORDS", words)
    assert drawn_targets(network, states, uniforms) == whole


def test_labels_are_drawn_by_seed_and_id_whatever_the_order_and_the_part(inputs):
    ours = inputs("llama")
    every = [np.arange(7)]
    whole = fisher.Pass(ours, every).uniforms
    part = fisher.Pass(ours, [np.array([5, 2])]).uniforms
    assert all((part[row] == whole[row]).all() for row in (2, 5))
    assert not np.array_equal(whole[2], fisher.Pass(replace(ours, seed=4), every).uniforms[2])
    assert fisher.Pass(ours, every, labels="empirical").uniforms is None


# --- budget, parts, kills ---------------------------------------------------------------------------------------


def files(folder):
    return {path.name: fisher.read(path) for path in sorted(folder.glob("*.safetensors"))}


def same_bits(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name][key], other[name][key]) for name in one for key in one[name])


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])  # of these llama's layers share inputs
def test_the_budget_changes_no_bit_of_the_fit(architecture, inputs, tmp_path):
    ours = inputs(architecture)
    roomy, narrow = (
        fitted(ours, tmp_path / name, 100, memory_budget_gb=budget) for name, budget in (("roomy", 3), ("narrow", 1e-4))
    )
    assert all(same_bits(files(one), files(other)) for one, other in zip(roomy, narrow, strict=True))


@pytest.mark.parametrize("hold", ["tasks", "examples"])
@pytest.mark.parametrize(("dense", "together"), [(True, False), (False, False), (False, True)])
def test_the_memory_plan_changes_no_bit_of_the_matrix(hold, dense, together, inputs, tmp_path, monkeypatch):
    ours = inputs("gpt2")
    found = fitted(ours, tmp_path)
    reference = matrices(influence_ekfac, ours, "influence_ekfac", fisher=found)["influence_ekfac"]
    monkeypatch.setattr(memory_plan.Plan, "cheapest", plan_of(hold, dense, together))
    other = matrices(influence_ekfac, ours, "influence_ekfac", fisher=found)["influence_ekfac"]
    assert (other == reference).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parts_of_the_fit_and_batches_change_nothing_but_rounding(architecture, inputs, tmp_path):
    ours = inputs(architecture)
    reference = scores(ours, tmp_path / "whole")
    cut = batches(ours.lengths, 100)
    parts = [cut[:1], [], cut[1:]]
    folders = {step: [tmp_path / step / str(n) for n in range(3)] for step in ("covariances", "sums")}
    over = [fisher.Pass(ours, part) for part in parts]
    names = [layer.name for layer in over[0].layers]
    for one, folder in zip(over, folders["covariances"], strict=True):
        one.covariances(folder)
    fisher.eigenvectors(folders["covariances"], names, tmp_path / "bases")
    for one, folder in zip(over, folders["sums"], strict=True):
        one.eigenvalues(tmp_path / "bases", folder)
    fisher.corrected(folders["sums"], names, 7, tmp_path / "eigenvalues")
    found = matrices(
        influence_ekfac, ours, "influence_ekfac", 100, fisher=[tmp_path / "bases", tmp_path / "eigenvalues"]
    )["influence_ekfac"]
    assert_close(found, reference, 1e-3, np.abs(reference).max())


class Killed:
    """A backward pass that is killed when it has been called so often."""

    def __init__(self, calls):
        self.left, self.original = calls, loss_backward

    def __call__(self, *arguments):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return self.original(*arguments)


@pytest.mark.parametrize("budget", [3, 1e-4])
def test_a_killed_fit_goes_on_where_it_was_saved_with_the_same_bits(budget, inputs, tmp_path, monkeypatch):
    ours = inputs("llama")
    monkeypatch.setattr(fisher, "SAVE_SECONDS", -1.0)
    whole = fitted(ours, tmp_path / "whole", 100, memory_budget_gb=budget)
    with monkeypatch.context() as patched:
        patched.setattr(fisher, "loss_backward", Killed(3))
        with pytest.raises(KeyboardInterrupt):
            fitted(ours, tmp_path / "killed", 100, memory_budget_gb=budget)
    counted = Killed(10**6)
    monkeypatch.setattr(fisher, "loss_backward", counted)
    resumed = fitted(ours, tmp_path / "killed", 100, memory_budget_gb=budget)
    again = 10**6 - counted.left
    counted.left = 10**6
    fitted(ours, tmp_path / "undisturbed", 100, memory_budget_gb=budget)
    assert again == 10**6 - counted.left - 3
    assert all(same_bits(files(one), files(other)) for one, other in zip(whole, resumed, strict=True))
    assert not list((tmp_path / "killed/covariances").glob("*.unfinished"))


def test_damaged_sums_of_a_killed_fit_are_computed_again(inputs, tmp_path, monkeypatch):
    ours = inputs("llama")
    monkeypatch.setattr(fisher, "SAVE_SECONDS", -1.0)
    with monkeypatch.context() as patched:
        patched.setattr(fisher, "loss_backward", Killed(2))
        with pytest.raises(KeyboardInterrupt):
            fitted(ours, tmp_path / "killed", 100)
    (unfinished,) = (tmp_path / "killed/covariances").glob("*.unfinished")
    unfinished.write_bytes(unfinished.read_bytes()[:1000])
    resumed, whole = fitted(ours, tmp_path / "killed", 100), fitted(ours, tmp_path / "whole", 100)
    assert all(same_bits(files(one), files(other)) for one, other in zip(whole, resumed, strict=True))


def test_a_killed_matrix_goes_on_under_another_plan(inputs, tmp_path):
    class Pieces(dict):
        def __setitem__(self, name, piece):
            super().__setitem__(name, piece)
            if len(self) == 3:
                raise KeyboardInterrupt

    ours, pieces = inputs("llama"), Pieces()
    found = fitted(ours, tmp_path)
    reference = matrices(influence_ekfac, ours, "influence_ekfac", fisher=found)["influence_ekfac"]
    with pytest.raises(KeyboardInterrupt):
        matrices(influence_ekfac, replace(ours, pieces=pieces), "influence_ekfac", fisher=found, memory_budget_gb=1e-4)
    resumed = matrices(influence_ekfac, replace(ours, pieces=dict(pieces)), "influence_ekfac", fisher=found)
    assert (resumed["influence_ekfac"] == reference).all()


def test_shards_change_no_bit_of_the_matrix(inputs, tmp_path):
    ours = inputs("llama")
    settings = {"batch_tokens": 100, "fisher": fitted(ours, tmp_path, 100)}

    def table(shards):
        parts = [
            compute(
                influence_ekfac.__name__,
                ["influence_ekfac"],
                ours,
                settings,
                shard,
                shards,
                100,
                tmp_path / f"{shards}-{shard}",
            )["influence_ekfac"]
            for shard in range(1, shards + 1)
        ]
        return pd.concat(parts).set_index("id").sort_index()

    for folder in ("1-1", "2-1", "2-2"):
        (tmp_path / folder).mkdir()
    pd.testing.assert_frame_equal(table(2), table(1), check_exact=True)


# --- what it means ----------------------------------------------------------------------------------------------


def test_a_mean_loss_divides_the_examples_gradients_and_leaves_the_matrix_alone(inputs, few, tmp_path):
    ours = inputs("llama")
    found = fitted(ours, tmp_path)
    plain, mean = (
        matrices(influence_ekfac, ours, "influence_ekfac", fisher=found, reduction=reduction)["influence_ekfac"]
        for reduction in ("sum", "mean")
    )
    tokens = (few[2]["n_query"] + few[2]["n_target"] - 1).to_numpy()
    assert_close(mean, plain / tokens[:, None], 1e-5, np.abs(mean).max())


def test_much_damping_is_influence_over_lambda(inputs, tmp_path):
    ours = inputs("llama", torch.float64)
    pattern = r"layers\.0\.self_attn\.o_proj"
    found = fitted(ours, tmp_path, parameters=pattern)
    eigenvalues = fisher.read(fisher.layer_file(found[1], 0))["eigenvalues"]
    damped = matrices(influence_ekfac, ours, "influence_ekfac", fisher=found, parameters=pattern, damping=1e8)[
        "influence_ekfac"
    ]
    plain = matrices(influence, ours, "influence", methods=["influence"], parameters=pattern)["influence"]
    expected = plain / (1e8 * eigenvalues.mean().item())
    assert_close(damped, expected, 1e-5, np.abs(expected).max())


def test_a_layer_without_any_gradient_is_refused_by_name(inputs, tmp_path):
    ours = inputs("llama")
    ours.model = copy.deepcopy(ours.model)
    with torch.no_grad():
        ours.model.model.layers[1].self_attn.o_proj.weight.zero_()  # so that no gradient comes back to values
    with pytest.raises(
        ScoreError, match=r"no example has a gradient in model\.layers\.1\.self_attn\.\w_proj, .* leave"
    ):
        fitted(ours, tmp_path)


def test_numbers_that_are_no_numbers_are_refused_by_the_layers_name(inputs, tmp_path):
    ours = inputs("llama")
    ours.model = copy.deepcopy(ours.model)
    with torch.no_grad():
        ours.model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
    with pytest.raises(ScoreError, match=r"influence_ekfac: (inputs|gradients) in \S+ that are NaN or infinite"):
        fitted(ours, tmp_path)


def from_python(tiny_model, tokenizer, few, **settings):
    """The matrices that `icprobe.value` makes."""
    train, tasks, _ = few
    model = copy.deepcopy(tiny_model("llama"))
    return icprobe.value(train, tasks, model=model, tokenizer=tokenizer, seed=3, matrices=True, **settings)[1]


def test_it_is_valued_from_python(tiny_model, tokenizer, few, inputs, tmp_path):
    matrix = from_python(tiny_model, tokenizer, few, methods=["influence", "influence_ekfac"])
    expected = scores(inputs("llama"), tmp_path, batch_tokens=1024)
    assert (matrix["influence_ekfac"].drop(columns="id").to_numpy() == expected).all()
