"""Where responses end, for templates as people have them; a tiny model says what the test puts into its mouth."""

import functools
import logging

import pytest
import torch

from icprobe.engine.random_models import random_model
from icprobe.errors import ModelError
from icprobe.evaluation.generation import responses
from icprobe.evaluation.stopping import Stops
from icprobe.texts.prompts import Prompts
from icprobe.texts.tokenizing import train_tokenizer

ALPACA = (
    "Below is an instruction{% if input %}, paired with an input{% endif %}. Write a response.\n\n"
    "### Instruction:\n{{ instruction }}\n\n{% if input %}### Input:\n{{ input }}\n\n{% endif %}### Response:\n"
)
CHAT = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{{ instruction }}<|im_end|>\n<|im_start|>assistant\n"
QUESTION = "Q: {{ instruction }}\nA:"
DEFAULT = "Instruction: {{ instruction | flat }}{% if input %} Input: {{ input }}{% endif %} Response:"

# Template, what the model says, what of it is the response.
SAID = {
    "Alpaca's preamble": (ALPACA, "Paris.\n\nBelow is an instruction. Write a response.\n", "Paris."),
    "Alpaca's next turn": (ALPACA, "Paris.\n\n### Instruction:\nName another.\n\n### Response:\nRome.", "Paris."),
    "Alpaca's heading within a line": (ALPACA, "Write ### Instruction: first.", "Write ### Instruction: first."),
    "another heading": (ALPACA, "### Answer:\nParis.", "### Answer:\nParis."),
    "a chat's end of turn": (CHAT, "Paris.<|im_end|>\n<|im_start|>user\nAnd Italy?", "Paris."),
    "a chat's next turn at once": (CHAT, "Paris.<|im_start|>user\nAnd Italy?", "Paris."),
    "a chat's role as a word": (CHAT, "Roles:\nuser\nassistant", "Roles:\nuser\nassistant"),
    "a short label": (QUESTION, "See the FAQ: it is there.\nQ: And then?\nA: No.", "See the FAQ: it is there."),
    "a short label, indented": (QUESTION, "Yes.\n  Q: And then?", "Yes."),
    "the default template": (DEFAULT, "Paris.\n\nInstruction: Name another. Response: Rome.", "Paris."),
    "the default's word within a line": (DEFAULT, "The Instruction: said no.", "The Instruction: said no."),
    "a beginning of a document": ("<s>[INST] {{ instruction }} [/INST]", "Paris.\n[INST] And Italy?", "Paris."),
    "a word that is not whole": ("Go to {{ instruction }}\n", "Yes.\nGo together.\nGo to 2?", "Yes.\nGo together."),
    "one word tells nothing": ("Please {{ instruction }}\n", "Please note.\nPlease go.", "Please note.\nPlease go."),
    "a heading of one word": ("Question\n{{ instruction }}\n", "Question it.\nQuestion\nIs it?", "Question it."),
    "marks that are no tokens": ("<|user|>\n{{ instruction }}<|end|>\n", "Paris.<|end|>\n<|user|>", "Paris."),
    "a bullet tells nothing": ("- {{ instruction }}\n", "Buy:\n- milk\n- eggs", "Buy:\n- milk\n- eggs"),
    "data at once": ("{{ instruction }}\n", "Paris.\nRome.", "Paris.\nRome."),
}  # fmt: skip


@pytest.fixture(scope="module")
def model_and_tokenizer():
    tokenizer = train_tokenizer(["Below is an instruction. Q: Paris? A: Rome. [INST] "], 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<s>"]})
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 1024}
    return random_model("llama", sizes, 3, tokenizer), tokenizer


@pytest.fixture
def says(model_and_tokenizer, monkeypatch):
    """(prompts, template, texts) → the responses of a model that says texts[i] to prompt i, and the steps it took."""
    model, tokenizer = model_and_tokenizer
    forward = type(model).forward

    def generated(template, instructions, texts, batch_size):
        prompts = Prompts.of_queries({"query": template})
        rows = [{"id": str(n), "instruction": text, "input": ""} for n, text in enumerate(instructions)]
        scripts = {
            tuple(tokenizer(prompts.query(row))["input_ids"]): tokenizer(text)["input_ids"]
            for row, text in zip(rows, texts, strict=True)
        }
        state, steps = {}, []

        @functools.wraps(forward)
        def scripted(self, input_ids=None, attention_mask=None, **others):
            if input_ids.shape[1] > 1:  # the prompts; later one token at a time
                masks = torch.ones_like(input_ids) if attention_mask is None else attention_mask
                read = zip(input_ids, masks, strict=True)
                state.update(rows=[scripts[tuple(ids[mask == 1].tolist())] for ids, mask in read], step=0)
            output = forward(self, input_ids=input_ids, attention_mask=attention_mask, **others)
            # One that has said all says ends of text, as a model that was taught to stop.
            wanted = [[*script, tokenizer.eos_token_id][min(state["step"], len(script))] for script in state["rows"]]
            output.logits[:, -1] = torch.nn.functional.one_hot(torch.tensor(wanted), output.logits.shape[-1])
            state["step"] += 1
            steps.append(1)
            return output

        monkeypatch.setattr(type(model), "forward", scripted)
        limit = max(map(len, scripts.values()))
        settings = {"max_new_tokens": limit, "batch_size": batch_size, "device": "cpu"}
        found = responses(model, tokenizer, prompts, rows, "tiny", settings)
        return [row["output"] for row in found], len(steps), limit

    return generated


@pytest.mark.parametrize("case", SAID)
def test_a_response_ends_where_the_templates_next_prompt_begins(case, says):
    template, said, response = SAID[case]
    found, steps, limit = says(template, ["Name a capital."], [said], 1)
    assert found == [response]
    if response != said:
        assert steps < limit, "what comes after would be generated for nothing"


def test_rows_of_a_batch_end_where_they_end_alone(says):
    texts = [SAID["a short label"][1], "No end in sight, " * 8, "Q: at once\nA: or never.", "FAQ:\nQ: x"]
    instructions = ["Name a capital.", "Why?", "Say everything that you know of the city of Paris.", "Go on."]
    alone = [says(QUESTION, [i], [text], 1)[0][0] for i, text in zip(instructions, texts, strict=True)]
    assert alone == ["See the FAQ: it is there.", texts[1].strip(), "", "FAQ:"]
    together, *_ = says(QUESTION, instructions, texts, 4)
    assert together == alone


def test_a_label_is_seen_in_a_long_response_and_not_where_its_tail_is_cut(says):
    long = "word " * 60 + "FAQ: here. " * 30
    found, steps, limit = says(QUESTION, ["Go on."], [f"{long}\nQ: next\nA: " + "no " * 60], 1)
    assert found == [long.strip()]
    assert steps < limit - 50


def test_templates_that_tell_no_next_prompt_say_so(model_and_tokenizer, caplog):
    _, tokenizer = model_and_tokenizer
    with caplog.at_level(logging.WARNING):
        for template in (ALPACA, CHAT, QUESTION, DEFAULT):
            Stops.of(Prompts.of_queries({"query": template}), tokenizer)
        assert not caplog.records
        none = Stops.of(Prompts.of_queries({"query": "- {{ instruction }}\n"}), tokenizer)
    assert none == Stops()
    assert "a next prompt cannot be told from the response" in caplog.text


def test_control_tokens_of_the_template_alone_end_a_turn(model_and_tokenizer):
    _, tokenizer = model_and_tokenizer
    stops = Stops.of(Prompts.of_queries({"query": CHAT}), tokenizer)
    assert stops.tokens == {tokenizer.convert_tokens_to_ids(name) for name in ("<|im_start|>", "<|im_end|>")}
    assert not Stops.of(Prompts.of_queries({"query": QUESTION}), tokenizer).tokens


def test_a_template_that_begins_an_answer_as_it_ends_a_turn_is_refused(model_and_tokenizer):
    """As gpt-oss's own does: a response would be the one word that stands before the token."""
    _, tokenizer = model_and_tokenizer
    query = "<|im_start|>user<s>{{ instruction }}<|im_end|><|im_start|>assistant"
    with pytest.raises(ModelError, match=r"writes <s> at the start of an answer \('final<s>'\) and in queries"):
        Stops.of(Prompts.of_queries({"query": query, "target": "final<s>{{ output }}<|im_end|>"}), tokenizer)
    whole = Prompts.of_queries({"query": f"{query}final<s>", "target": "{{ output }}<|im_end|>"})
    assert Stops.of(whole, tokenizer).tokens
