"""Which loss gradients are of, and which likelihood effects are of: each choice against the naive loop, and said."""

import logging

import dag
import naive
import numpy as np
import pandas as pd
import pytest
import torch
from matrices import ARCHITECTURES, assert_close, assert_influence_log, matrices
from test_attribution import pairs

from icprobe.attribution import icp, icp_budget, influence, influence_mean, one_step
from icprobe.attribution.documents import encode_documents
from icprobe.attribution.matrix import encode_tasks
from icprobe.attribution.objective import Objective, said
from icprobe.engine.batching import batches
from icprobe.engine.gradients import layers_of
from icprobe.engine.network import Network
from icprobe.errors import DataError, ModelError
from icprobe.texts.completions import check_trainable, end_of_sequence, longest
from icprobe.training.fine_tune import IGNORED, tokenize

LOSSES = [(loss, reduction) for loss in ("document", "response") for reduction in ("sum", "mean")]


@pytest.fixture(scope="module")
def naive_examples(tiny_model, tokenizer, few):
    """(architecture, train_loss, reduction) → the gradients of all examples."""
    made = {}

    def make(*key):
        if key not in made:
            architecture, *loss = key
            rows = few[0].to_dict("records")
            made[key] = [naive.example_gradient(tiny_model(architecture), tokenizer, row, *loss) for row in rows]
        return made[key]

    return make


@pytest.fixture(scope="module")
def naive_tasks(tiny_model, tokenizer, few):
    """(architecture, mean) → the gradients of all tasks."""
    made = {}

    def make(architecture, mean=False):
        if (architecture, mean) not in made:
            model, rows = tiny_model(architecture), few[1].to_dict("records")
            made[architecture, mean] = [naive.gradient(model, tokenizer, row, False, mean=mean) for row in rows]
        return made[architecture, mean]

    return make


def products(function, examples, tasks):
    return np.array([[function(z, t) for t in tasks] for z in examples])


@pytest.mark.parametrize("likelihood", ["sum", "mean"])
@pytest.mark.parametrize(("loss", "reduction"), LOSSES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_influence_of_every_loss_equals_the_naive_loop(
    architecture, loss, reduction, likelihood, inputs, naive_examples, naive_tasks
):
    examples, tasks = naive_examples(architecture, loss, reduction), naive_tasks(architecture, likelihood == "mean")
    slow = products(naive.influence, examples, tasks)
    settings = {"train_loss": loss, "reduction": reduction, "task_likelihood": likelihood}
    both = matrices(influence, inputs(architecture), "influence", **settings)
    alone = matrices(influence, inputs(architecture), "influence", methods=["influence"], **settings)
    for found in (both, alone):
        assert_close(found["influence"], slow, 1e-4, np.abs(slow).max())
    mean = np.empty(len(slow))
    ours = inputs(architecture)
    for _, rows, block in influence_mean.attribute(ours, "influence_mean", batches(ours.lengths, 200), 200, **settings):
        mean[rows] = block[:, 0]
    assert_close(mean, slow.mean(axis=1), 1e-4, np.abs(slow.mean(axis=1)).max())
    assert_influence_log(both["influence_log"], examples, tasks)


@pytest.mark.parametrize(("loss", "reduction"), LOSSES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_step_of_every_loss_equals_the_naive_loop(
    architecture, loss, reduction, inputs, few, tiny_model, tokenizer
):
    rate = 1e-3 if reduction == "sum" else 3e-2  # so that effects are alike in size

    def naive_step(z, t):
        return naive.one_step(tiny_model(architecture), tokenizer, z, t, rate, loss, reduction)

    slow = pairs(few, naive_step)
    settings = {"learning_rate": rate, "train_loss": loss, "reduction": reduction}
    assert np.abs(slow).max() > 1e-3
    assert_close(matrices(one_step, inputs(architecture), "one_step", **settings)["one_step"], slow, 1e-4)
    per_token = slow / [naive.n_target(tokenizer, task) for task in few[1].to_dict("records")]
    found = matrices(one_step, inputs(architecture), "one_step", task_likelihood="mean", **settings)["one_step"]
    assert_close(found, per_token, 1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_icp_per_token_is_divided_by_the_tokens_of_each_answer(architecture, inputs, few, tiny_model, tokenizer):
    slow = pairs(few, lambda z, t: naive.icp(tiny_model(architecture), tokenizer, z, t))
    slow /= [naive.n_target(tokenizer, task) for task in few[1].to_dict("records")]
    found = matrices(icp, inputs(architecture), "icp", task_likelihood="mean")["icp"]
    assert_close(found, slow, 1e-5)


def test_icp_budget_counts_signs_which_no_division_changes(inputs):
    ours = inputs("llama")
    share = (matrices(icp, ours, "icp", task_likelihood="mean")["icp"] > 0).mean(axis=1)
    runs = batches(ours.lengths, 200)
    for _, rows, block in icp_budget.attribute(ours, "icp_budget", runs, 200, share=0.5, round_tasks=3):
        assert np.allclose(block[:, 0], share[rows])


@pytest.mark.parametrize("budget", [1e-5, 3.0])
def test_the_memory_budget_changes_no_bit_of_any_loss(budget, inputs):
    settings = {"train_loss": "response", "reduction": "mean", "task_likelihood": "mean"}
    reference = matrices(influence, inputs("llama"), "influence", **settings)
    found = matrices(influence, inputs("llama"), "influence", memory_budget_gb=budget, **settings)
    assert all((found[method] == reference[method]).all() for method in reference)


def test_work_is_planned_and_counted_by_the_tokens_that_there_are(inputs, few, tokenizer):
    ours, runs = inputs("llama"), batches(inputs("llama").lengths, 200)
    whole = encode_documents(ours, runs)
    found = encode_documents(ours, runs, Objective(train_loss="response"))
    assert {row: len(one.ids) for row, one in found.items()} == {row: len(one.ids) + 1 for row, one in whole.items()}
    assert all(one.ids[-1] == tokenizer.eos_token_id for one in found.values())
    settings = {"train_loss": "response", "reduction": "mean", "task_likelihood": "sum", "max_length": None}
    network = Network(ours.model, ours.capabilities)
    made = influence.Influence(ours, runs, 200, 3.0, ["influence"], Objective(**settings))
    assert made.examples.all_tokens == sum(len(one.ids) for one in found.values())
    assert len(layers_of(network)) == len(made.layers)
    told = []
    ours.progress.expect = lambda n, unit, tokens=None: told.append(n)
    list(influence_mean.attribute(ours, "influence_mean", runs, 200, **settings))
    tasks = encode_tasks(ours)
    assert told == [made.examples.all_tokens + sum(len(task.ids) for task in tasks)]


@pytest.mark.parametrize("limit", [None, 60, 80])
def test_the_tokens_and_labels_are_those_of_fine_tuning(limit, inputs, few, prompts, tokenizer):
    ours = inputs("llama")
    rows = [row for row in few[0].to_dict("records") if naive_length(tokenizer, row) < (limit or 10**6)]
    ours.train, ours.lengths = (
        table[table["id"].isin([r["id"] for r in rows])] for table in (ours.train, ours.lengths)
    )
    trained, counts = tokenize(tokenizer, rows, prompts, limit or 2048)
    assert counts["dropped"] == 0
    assert bool(counts["truncated"]) == bool(limit)
    found = encode_documents(ours, [range(len(rows))], Objective("response", max_length=limit))
    for row, example in enumerate(trained):
        assert list(found[row].ids) == example["input_ids"]
        assert example["labels"].count(IGNORED) == found[row].n_context


def naive_length(tokenizer, row):
    return len(tokenizer(naive.query(row), add_special_tokens=False)["input_ids"])


def test_the_gradient_is_that_of_the_loss_that_the_trainer_takes_of_one_example(inputs, few, prompts, tokenizer):
    """Which is the mean; of several examples it is the sum of their sums, over the number of all their tokens."""
    ours = inputs("llama")
    rows = few[0].to_dict("records")
    examples, _ = tokenize(tokenizer, rows, prompts, 2048)
    model, total = ours.model.requires_grad_(True), torch.zeros(())
    counts = []
    for example in examples:
        out = model(input_ids=torch.tensor([example["input_ids"]]), labels=torch.tensor([example["labels"]]))
        counts.append(len(example["labels"]) - example["labels"].count(IGNORED))
        total = total + out.loss * counts[-1]
    (total / sum(counts)).backward()
    name, weight = next((n, p) for n, p in model.named_parameters() if "down_proj" in n)
    summed = [naive.example_gradient(ours.model, tokenizer, row, "response", "sum")[name] for row in rows]
    torch.testing.assert_close(weight.grad, sum(summed) / sum(counts), rtol=1e-3, atol=1e-6)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_an_example_that_fine_tuning_drops_has_no_loss_and_is_refused(inputs):
    ours = inputs("llama")
    n = int(ours.lengths["n_query"].max())
    name = ours.lengths["id"][ours.lengths["n_query"].idxmax()]
    with pytest.raises(DataError, match=rf"1 example without a loss: {name}; the query alone has {n} tokens or more"):
        matrices(influence, ours, "influence", train_loss="response", max_length=n)
    matrices(influence, inputs("llama"), "influence", train_loss="response", max_length=n + 1)
    check_trainable(pd.DataFrame({"id": ["a"], "n_query": [n]}), longest(None, n + 1))


def test_a_document_as_long_as_the_context_is_cut_before_its_end_token(inputs):
    ours = inputs("llama")
    row = int((ours.lengths["n_query"] + ours.lengths["n_target"]).to_numpy().argmax())
    whole = encode_documents(ours, [[row]])[row].ids
    ours.model.config.max_position_embeddings = len(whole)
    assert encode_documents(ours, [[row]], Objective("response", max_length=2048))[row].ids == whole


def test_a_tokenizer_without_an_end_token_is_refused():
    class Endless:
        eos_token_id = None

    with pytest.raises(ModelError, match="no end-of-sequence token"):
        end_of_sequence(Endless())


def test_a_cut_is_said_in_the_log(inputs, caplog):
    caplog.set_level(logging.INFO)
    ours = inputs("llama")
    n = int(ours.lengths["n_query"].max()) + 1
    encode_documents(ours, [range(len(ours.train))], Objective("response", max_length=n))
    assert f"of {len(ours.train)} examples are cut off at {n} tokens, as in training" in caplog.text


# --- what is said ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words", "absent"),
    [
        (("document", "sum"), ["as in the paper", "Fine-tuning minimises another loss: the mean over"], []),
        (("document", "mean"), ["is the mean over all its tokens", "Fine-tuning minimises another"], ["in the paper"]),
        (("response", "sum"), ["end of sequence", "after 512 tokens", "is an example's part in it"], ["not the loss"]),
        (("response", "mean"), ["where a step holds one example", "a longer response weighs more"], ["not the loss"]),
    ],
)
def test_the_objective_says_whether_it_is_that_of_fine_tuning(settings, words, absent):
    loss, reduction = settings
    known = {"train_loss": loss, "reduction": reduction, "task_likelihood": "mean", "dtype": "float32"}
    text = " ".join(said(known | ({"max_length": 512} if loss == "response" else {})))
    assert all(word in text for word in words)
    assert not any(word in text for word in absent)
    assert "in nats per token" in text


def test_a_method_that_takes_no_gradient_says_the_likelihood_alone():
    assert said({"task_likelihood": "sum"}) == [
        "The log-likelihood of a task (task_likelihood: sum) is summed over the tokens of its answer, in nats."
    ]
    assert said({"dtype": "float32"}) == []


@pytest.mark.timeout(1800)  # it may wait for the tiny experiment, on a machine that may be busy
def test_jobs_and_report_of_the_dag_say_the_objective(tmp_path_factory, tmp_path):
    project = dag.finished(tmp_path_factory.getbasetemp()).copy(tmp_path)
    assert "as in the paper" in project.log("tiny/attribute_influence/tiny-llama/1-of-2.log")
    assert "as in the paper" in project.read("results/tiny/report.html").decode()
    objective = {"train_loss": "response", "reduction": "mean", "task_likelihood": "mean"}
    ended = project.snakemake("scores", "--cores", "2", config={"attribution": objective})
    assert ended.returncode == 0, ended.output
    assert "Report: results/tiny/scores.html" in ended.output
    for job in ("attribute_influence/tiny-llama/1-of-2.log", "attribute/tiny-llama/one_step/1-of-2.log"):
        assert "Fine-tuning minimises it where a step holds one example" in project.log("tiny", job)
    icp_log = project.log("tiny/attribute/tiny-llama/icp/1-of-2.log")
    assert "in nats per token" in icp_log
    assert "The loss of an example" not in icp_log
    assert "24 examples have a loss" in project.log("tiny/check_losses/tiny-llama.log")
    page = project.read("results/tiny/scores.html").decode()
    assert "Fine-tuning minimises it where a step holds one example" in page
    assert "mean over tasks, nats² per token²" in page
