"""One-shot contexts by chat templates: the tokens of the whole text, and what methods compute on conversations."""

import copy

import naive
import numpy as np
import pandas as pd
import pytest
import torch
from chats import CHATML, CONVERSATIONS, EXAMPLES, OURS, TASKS, assert_whole, chat, row
from matrices import assert_close, matrices

from icprobe.attribution import icp, icp_k_shot, icp_reverse, influence
from icprobe.attribution.contexts import Draws, check, task_groups
from icprobe.attribution.documents import encode_documents
from icprobe.attribution.matrix import Inputs
from icprobe.attribution.objective import Objective
from icprobe.attribution.one_shots import OneShots
from icprobe.engine.admission import capabilities_of
from icprobe.errors import DataError
from icprobe.tables.fitting import fit_train, lengths
from icprobe.texts.conversations import messages_of
from icprobe.texts.prompts import encode
from icprobe.texts.readers import Reader


@pytest.mark.parametrize("context", ["text", "turns"])
@pytest.mark.parametrize("template", OURS)
def test_one_shot_contexts_are_those_of_the_whole_text(template, context, spoken):
    tokenizer = spoken(OURS[template])
    prompts = chat(context=context)
    bound, _ = assert_whole(tokenizer, prompts, EXAMPLES, TASKS)
    for example in EXAMPLES:
        for task in TASKS:
            messages, before = messages_of(task)[:-1], messages_of(example)
            if context == "turns":
                messages = [*before, *messages]
            else:
                assert before[-1]["content"] in bound.one_shot(example, task)
                continue
            told = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert bound.one_shot(example, task) == told


def test_tasks_with_system_messages_are_probed_exactly_too(spoken):
    tokenizer = spoken(CHATML)
    tasks = [*TASKS, row(CONVERSATIONS["system"], id="t9")]
    for context, examples in (("text", EXAMPLES), ("turns", [EXAMPLES[0], EXAMPLES[2]])):
        prompts = chat(context=context)
        _, shots = assert_whole(tokenizer, prompts, examples, tasks)
        assert shots.beginning(examples) == ()


def test_two_system_messages_in_one_conversation_are_refused(spoken):
    tokenizer = spoken(CHATML)
    other = row([("system", "Rhyme."), ("user", "a"), ("assistant", "b")], id="t0")
    tables = pd.DataFrame(EXAMPLES), pd.DataFrame([other])
    with pytest.raises(DataError, match="row z1 and task t0 have different system messages"):
        fit_train(*tables, chat(context="turns"), [Reader("m", tokenizer, 4096)], "error")
    fit_train(*tables, chat(context="text"), [Reader("m", tokenizer, 4096)], "error")


@pytest.fixture(scope="module")
def probed(tiny_model, spoken):
    """A model with a chat template, and inputs of conversations for it."""
    tokenizer = spoken(CHATML)
    model = copy.deepcopy(tiny_model("llama"))
    model.resize_token_embeddings(len(tokenizer))
    train, tasks = pd.DataFrame(EXAMPLES), pd.DataFrame(TASKS)

    def make(**settings):
        prompts = chat(**settings)
        counted = lengths(train, prompts, Reader("m", tokenizer, None))
        return Inputs(train, tasks, counted, prompts, model, tokenizer, capabilities_of(model))

    return make


@pytest.mark.parametrize("context", ["text", "turns"])
def test_icp_is_that_of_the_naive_loop(context, probed):
    inputs = probed(context=context)
    bound = inputs.prompts.of(inputs.tokenizer)
    found = matrices(icp, inputs, "icp")["icp"]
    naive_log_likelihood = lambda context, task: naive.log_likelihood(  # noqa: E731
        inputs.model, inputs.tokenizer, str(context), str(bound.target(task))
    )
    wanted = [
        [naive_log_likelihood(bound.one_shot(z, t), t) - naive_log_likelihood(bound.query(t), t) for t in TASKS]
        for z in EXAMPLES
    ]
    assert_close(found, np.array(wanted), 1e-4)


@pytest.mark.parametrize("train_loss", ["document", "response"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_influence_is_that_of_all_turns_of_the_assistant(train_loss, reduction, probed):
    inputs = probed()
    settings = {"train_loss": train_loss, "reduction": reduction}
    found = matrices(influence, inputs, ["influence"], **settings)["influence"]
    documents = encode_documents(inputs, [range(len(EXAMPLES))], Objective(**settings))
    if train_loss == "response":
        assert next(iter(documents.values())).n_target == 4  # of two turns
    bound = inputs.prompts.of(inputs.tokenizer)
    answers = [encode(inputs.tokenizer, bound.query(t), bound.target(t)) for t in TASKS]
    of_examples = [gradient(inputs.model, one.ids, one.targets, reduction == "mean") for one in documents.values()]
    of_tasks = [gradient(inputs.model, one.ids, one.targets, False) for one in answers]
    wanted = np.array([[naive.influence(z, t) for t in of_tasks] for z in of_examples])
    assert_close(found, wanted, 1e-5, relative_to=np.abs(wanted).max())


def gradient(model, ids, targets, mean):
    """{parameter: gradient} of −Σ log p over the target tokens, or their mean, by autograd."""
    model = copy.deepcopy(model).requires_grad_(True)
    model.set_attn_implementation("eager")
    log_p = model(input_ids=torch.tensor([[*ids]])).logits[0].float().log_softmax(-1)
    loss = -sum(log_p[place - 1, ids[place]] for place in targets)
    (loss / len(targets) if mean else loss).backward()
    parameters = dict(model.named_parameters())
    return {name: parameters[name].grad for name in naive.block_parameters(model)}


# The system's words stand in the user's last turn, so that an example's move into the task's.
LAST = (
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set ms = messages[1:] %}{% else %}"
    "{% set s = '' %}{% set ms = messages %}{% endif %}{% for m in ms %}{% if m.role == 'user' %}"
    "{{ '[INST]' + (s if loop.last or loop.index == loop.length - 1 else '') + m.content + '[/INST]' }}{% else %}"
    "{{ m.content + eos_token }}{% endif %}{% endfor %}"
)


def test_contexts_that_an_example_changes_are_rendered_whole(spoken):
    tokenizer, prompts = spoken(LAST), chat(context="turns")
    assert_whole(tokenizer, prompts, EXAMPLES, TASKS)


def test_an_empty_system_message_is_one(spoken):
    prompts = chat(context="turns").of(spoken(CHATML))
    silent = row([("system", ""), ("user", "a"), ("assistant", "b")])
    assert prompts.one_shot(TASKS[0], silent).startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\nName")


@pytest.mark.parametrize("context", ["text", "turns"])
@pytest.mark.parametrize("template", OURS)
def test_contexts_of_several_are_those_of_the_whole_text(template, context, spoken):
    tokenizer = spoken(OURS[template])
    prompts = chat(context=context)
    shots, bound = OneShots(tokenizer, prompts, TASKS), prompts.of(tokenizer)
    for some in (EXAMPLES[:3], [EXAMPLES[2], EXAMPLES[0]]):
        prefix, suffixes = shots.encode_several(some, range(len(TASKS)))
        system = [m for example in some for m in messages_of(example) if m["role"] == "system"]
        for task, suffix in zip(TASKS, suffixes, strict=True):
            told = bound.few_shot(some, task)
            whole = encode(tokenizer, told, bound.target(task))
            assert (*prefix, *suffix.ids) == whole.ids
            assert suffix.ids[suffix.first :] == whole.ids[whole.n_context :]
            if context == "turns":
                turns = [m for each in (*some, task) for m in messages_of(each) if m["role"] != "system"][:-1]
                written = tokenizer.apply_chat_template([*system, *turns], tokenize=False, add_generation_prompt=True)
                assert told == written
            else:
                assert "\n\n".join(map(as_text, some)) in told


def as_text(example):
    """A conversation as it stands in a prompt by the templates query and target."""
    messages = messages_of(example)
    above = [m["content"] for m in messages if m["role"] == "system"]
    said = [m["content"] for m in messages if m["role"] != "system"]
    pairs = zip(said[::2], said[1::2], strict=True)
    return "\n\n".join([*above, *(f"Instruction: {asked} Response: {answer}" for asked, answer in pairs)])


@pytest.mark.parametrize("context", ["text", "turns"])
def test_icp_reverse_and_icp_k_shot_are_those_of_the_naive_loop(context, probed):
    inputs = probed(context=context)
    inputs.train, inputs.lengths = inputs.train[:3], inputs.lengths[:3]
    bound, examples = inputs.prompts.of(inputs.tokenizer), EXAMPLES[:3]

    def likelihood(rows, row):
        told = bound.few_shot(rows, row) if rows else bound.query(row)
        return naive.log_likelihood(inputs.model, inputs.tokenizer, str(told), str(bound.target(row)))

    (group,) = task_groups(TASKS, inputs.lengths, bound, Reader("m", inputs.tokenizer, None), inputs.seed)
    tasks = [TASKS[number] for number in group]
    wanted = [likelihood(tasks, z) - likelihood([], z) for z in examples]
    (found,) = [block for *_, block in icp_reverse.attribute(inputs, "icp_reverse", [np.arange(3)])]
    assert_close(found[:, 0], np.array(wanted), 1e-4)

    drawn = Draws([z["id"] for z in examples], inputs.seed, 2, 1)
    wanted = []
    for number in range(3):
        (other,) = drawn.others(number, 0)
        shown = [examples[other], examples[number]]
        wanted.append([likelihood(shown, t) - likelihood(shown[:1], t) for t in TASKS])
    found = matrices(icp_k_shot, inputs, "icp_k_shot", k=2, draws=1)["icp_k_shot"]
    assert_close(found, np.array(wanted), 1e-4)


def test_system_messages_that_cannot_stand_together_are_refused_before_a_context_is_read(spoken):
    tokenizer, train = spoken(CHATML), pd.DataFrame(EXAMPLES)
    reader = Reader("m", tokenizer, 4096)
    counted = lengths(train, chat(), reader)

    def checked(method, context, some=TASKS, **settings):
        tasks = pd.DataFrame(some)
        return check(method, settings, train, tasks, counted, chat(context=context), reader, 0)["contexts"]

    assert checked("icp_k_shot", "text", k=2, draws=1) == 4
    with pytest.raises(DataError, match=r"rows z1 and z3 have different system messages, .* set attribution\.icp"):
        checked("icp_k_shot", "turns", k=2, draws=1)
    others = [row([("system", s), ("user", "a"), ("assistant", "b")], id=s) for s in ("rhyme", "sing")]
    with pytest.raises(DataError, match=r"rows (rhyme|sing) and (rhyme|sing) have different system messages"):
        checked("icp_reverse", "turns", others, tasks="all")
    assert checked("icp_reverse", "turns", tasks="all") == 1
