import pytest
import torch

from icprobe import artifacts
from icprobe.config.templates import Templates
from icprobe.engine import matmul
from icprobe.engine.models import linear_layers, load_model
from icprobe.engine.random_models import random_model
from icprobe.errors import DataError
from icprobe.evaluation import generation
from icprobe.evaluation.generation import batches, generate, responses
from icprobe.evaluation.stopping import Stops
from icprobe.texts.prompts import Prompts
from icprobe.texts.tokenizing import load_tokenizer, train_tokenizer

ROWS = [
    {
        "id": f"{n}",
        "subset": "odd" if n % 2 else None,
        "instruction": "Count. " * (1 + 5 * n % 7) + str(n),
        "input": "",
        "output": "-",
    }
    for n in range(9)
]
SETTINGS = {"max_new_tokens": 12, "batch_size": 4, "device": "cpu"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def prompts():
    return Prompts(Templates().model_dump())


@pytest.fixture(scope="module", params=["llama", "gpt_neox", "gpt2"])
def model_and_tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / request.param
    tokenizer = train_tokenizer(["Instruction: Response: Count to ten, then back to one. 0 1 2 3 4 5 6 7 8 9"], 300)
    sizes = {"hidden_size": 32, "n_positions" if request.param == "gpt2" else "max_position_embeddings": 128}
    model = random_model(request.param, sizes, 3, tokenizer)
    with torch.no_grad():  # small random weights copy their last token: larger ones give varied texts
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    artifacts.write_manifest(folder)
    return load_model(folder, device="cpu"), load_tokenizer(folder)


def naive(model, tokenizer, text, max_new_tokens):
    """One token after the other, the whole text anew each time; no cache, no batch, no padding."""
    ids = tokenizer(text)["input_ids"]
    new = []
    while len(new) < max_new_tokens and len(ids) + len(new) < 128:
        logits = model(input_ids=torch.tensor([ids + new])).logits[0, -1]
        new.append(int(logits.argmax()))
        if new[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(new, skip_special_tokens=True).strip()


# Greedy texts could differ where two logits tie; with random float32 weights none do here.


def test_batches_equal_a_naive_loop(model_and_tokenizer, prompts):
    model, tokenizer = model_and_tokenizer
    texts = [prompts.query(row) for row in ROWS]
    expected = [naive(model, tokenizer, text, 12) for text in texts]
    assert len(set(expected)) > 3, "texts that are all alike would show nothing"
    for batch_size in (1, 4, 9):
        assert generate(model, tokenizer, texts, 12, batch_size, "cpu") == expected, f"batch size {batch_size}"


def test_linear_layers_multiply_faster_while_they_generate_and_as_before_after_it(model_and_tokenizer, monkeypatch):
    model, tokenizer = model_and_tokenizer
    layers = [*linear_layers(model).values(), model.get_output_embeddings()]
    seen, own = [], generation._generate_batch

    def generate_batch(*given):
        seen.append(["forward" in vars(layer) for layer in layers])
        return own(*given)

    monkeypatch.setattr(generation, "_generate_batch", generate_batch)
    generate(model, tokenizer, ["Count", "Count to ten"], 2, 2, "cpu")
    monkeypatch.setattr(matmul, "PACKED_BYTES", 1)
    generate(model, tokenizer, ["Count"], 2, 2, "cpu")
    assert seen == [[True] * len(layers), [False] * len(layers)]
    assert not any("forward" in vars(layer) for layer in layers)


def test_a_text_that_leaves_little_room_stops_at_the_end_of_the_context(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    long = tokenizer.decode(tokenizer("0 1 2 3 4 5 6 7 8 9 " * 30)["input_ids"][:120])
    texts = ["Count", long, "Count to ten"]
    room = 128 - len(tokenizer(long)["input_ids"])
    assert 0 < room < 20
    assert generate(model, tokenizer, texts, 20, 3, "cpu") == [naive(model, tokenizer, text, 20) for text in texts]
    with pytest.raises(DataError, match="prompt 1 has"):
        generate(model, tokenizer, [long + long], 20, 3, "cpu")


def test_settings_of_the_model_do_not_change_greedy_decoding(model_and_tokenizer, prompts):
    model, tokenizer = model_and_tokenizer
    texts = [prompts.query(row) for row in ROWS[:3]]
    expected = generate(model, tokenizer, texts, 12, 3, "cpu")
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.do_sample = True
    assert generate(model, tokenizer, texts, 12, 3, "cpu") == expected


def test_a_response_ends_at_the_end_token(model_and_tokenizer, prompts):
    model, tokenizer = model_and_tokenizer
    text = prompts.query(ROWS[0])
    width = len(tokenizer(text)["input_ids"])
    model.generation_config.eos_token_id = None
    ids = model.generate(
        torch.tensor([tokenizer(text)["input_ids"]]), max_new_tokens=12, do_sample=False, eos_token_id=None
    )[0, width:].tolist()
    end = next(token for token in ids[2:] if token not in ids[:2])
    try:
        model.generation_config.eos_token_id = [end]  # as a chat model names more than the tokenizer's
        expected = tokenizer.decode(ids[: ids.index(end)], skip_special_tokens=True).strip()
        assert generate(model, tokenizer, [text], 12, 1, "cpu") == [expected]
    finally:
        model.generation_config.eos_token_id = None


def test_responses_are_rows_in_the_order_of_the_prompts(model_and_tokenizer, prompts):
    model, tokenizer = model_and_tokenizer
    rows = [{**ROWS[0], "input": "one\ntwo"}, *ROWS[1:]]
    found = responses(model, tokenizer, prompts, rows, "tiny", SETTINGS)
    assert [list(row) for row in found] == [["id", "subset", "instruction", "output", "generator"]] * 9
    assert [row["id"] for row in found] == [row["id"] for row in ROWS]
    assert [row["subset"] for row in found[:2]] == [None, "odd"]
    assert found[0]["instruction"] == "Count. 0\n\none\ntwo"
    stops = Stops.of(prompts, tokenizer)
    assert found[1]["output"] == generate(model, tokenizer, [prompts.query(ROWS[1])], 12, 1, "cpu", stops)[0]


@pytest.mark.parametrize("cut", [0, 7])
def test_a_killed_generation_goes_on_with_the_same_batches(model_and_tokenizer, prompts, tmp_path, monkeypatch, cut):
    model, tokenizer = model_and_tokenizer
    expected = responses(model, tokenizer, prompts, ROWS, "tiny", SETTINGS)
    seen = []
    batch = generation._generate_batch

    def until_killed(model, tokenizer, texts, *others):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(texts)
        return batch(model, tokenizer, texts, *others)

    monkeypatch.setattr(generation, "_generate_batch", until_killed)
    with pytest.raises(KeyboardInterrupt):
        responses(model, tokenizer, prompts, ROWS, "tiny", SETTINGS, tmp_path)
    journal = tmp_path / "responses.jsonl"
    content = journal.read_bytes()
    assert content.count(b"\n") == 8
    journal.write_bytes(content[: len(content) - cut])  # the last line was being written

    monkeypatch.setattr(generation, "_generate_batch", lambda *a: seen.append(a[2]) or batch(*a))
    assert responses(model, tokenizer, prompts, ROWS, "tiny", SETTINGS, tmp_path) == expected
    order = batches(model, tokenizer, [prompts.query(row) for row in ROWS], 12, 4)
    again = [] if cut == 0 else [order[1]]
    assert seen[2:] == [[prompts.query(ROWS[i]) for i in indices] for indices in [*again, order[2]]]
