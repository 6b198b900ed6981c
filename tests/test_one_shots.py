"""One-shot contexts tokenised by their borders are those tokenised whole, whatever the tokenizer and the texts."""

import anything
import pytest
from conftest import demo_rows
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from icprobe.attribution.one_shots import OneShots
from icprobe.config.templates import Templates
from icprobe.texts.prompts import Prompts, encode, token_ids

TEXTS = [f"{row['instruction']} {row['input']} {row['output']}" for row in demo_rows("train")]
DIGITS = r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*| ?\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+"


def trained(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of 600 words, of a kind that people use."""
    options = {"vocab_size": 600, "special_tokens": ["<unk>", "<|end|>"]}
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(**options)
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **options)
    elif kind == "one word":
        made = Tokenizer(models.BPE(unk_token="<unk>"))
        made.normalizer = normalizers.Replace(" ", "▁")
        trainer = trainers.BpeTrainer(max_token_length=40, **options)
    else:
        made = Tokenizer(models.BPE())
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=kind == "prefix space", use_regex=kind != "digits")
        from tokenizers import Regex

        split = pre_tokenizers.Split(Regex(DIGITS), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level]) if kind == "digits" else byte_level
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    made.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<|end|>")


KINDS = ["byte level", "prefix space", "digits", "wordpiece", "unigram", "one word"]
TOKENIZERS = {kind: trained(kind) for kind in KINDS}
DEMO = [dict(row, input=row.get("input", "")) for row in demo_rows("tasks")]
ANY_ROW = dict.fromkeys(("instruction", "input", "output"), anything.texts)
PAIRS = [("\n\n", None), ("", "{{instruction|flat}}{% if input|flat %} {{input|flat}}{% endif %}")]


def prompts(separator: str, query: str | None) -> Prompts:
    templates = Templates().model_dump() | {"separator": separator}
    return Prompts(templates | ({"query": query} if query else {}))


def by_pairs(made: OneShots, example: dict) -> list[tuple[list[int], int]]:
    prefix, suffixes = made.encode(example, range(len(made._texts)))
    return [([*prefix, *suffix.ids], len(prefix) + suffix.first) for suffix in suffixes]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("separator", "query"), PAIRS)
def test_tokens_by_the_border_are_those_of_the_whole_texts(kind, separator, query):
    tokenizer, ours = TOKENIZERS[kind], prompts(separator, query)
    made = OneShots(tokenizer, ours, DEMO)
    assert made._by_border == (kind != "one word")
    for example in demo_rows("train")[:12]:
        for task, (ids, n_context) in zip(DEMO, by_pairs(made, example), strict=True):
            context = ours.one_shot(example, task)
            assert ids == tokenizer(context + ours.target(task), add_special_tokens=False)["input_ids"]
            found = tokenizer(context + ours.target(task), add_special_tokens=False, return_offsets_mapping=True)
            assert n_context == sum(end <= len(context) for _, end in found["offset_mapping"])
    assert made._by_border == (kind != "one word"), "none of the checks failed"


@pytest.mark.parametrize("kind", KINDS)
@anything.bounded
@given(
    rows=st.lists(
        st.fixed_dictionaries(dict.fromkeys(("instruction", "input", "output"), anything.texts)), min_size=4, max_size=6
    )
)
def test_whatever_the_texts_are(kind, rows):
    tokenizer, ours = TOKENIZERS[kind], prompts("", "{{instruction}}{{input}}")
    made = OneShots(tokenizer, ours, [dict(row, id=str(n)) for n, row in enumerate(rows)])
    for example in rows:
        example = dict(example, id="z")
        for task, (ids, _) in zip(rows, by_pairs(made, example), strict=True):
            whole = ours.one_shot(example, task) + ours.target(dict(task, id="t"))
            assert ids == made._ids([whole])[0]


def test_each_example_costs_a_few_texts_and_not_one_for_each_pair():
    tokenizer, counts = TOKENIZERS["byte level"], []
    made = OneShots(tokenizer, prompts("\n\n", None), DEMO)
    made.encode(demo_rows("train")[0], range(len(DEMO)))

    def counting(texts, **options):
        counts.append(len(texts))
        return tokenizer(texts, **options)

    made.tokenizer = counting
    made.encode(demo_rows("train")[1], range(len(DEMO)))
    n = len(DEMO)
    assert sum(counts) == 2 + n + 3, "prefix and its end, borders, and one whole pair; not two texts for each pair"


def test_a_tokenizer_whose_tokens_depend_on_far_texts_is_found_out(caplog):
    class Capricious:
        """The first token of a long text depends on its length."""

        def __init__(self):
            self.inner = TOKENIZERS["byte level"]

        backend_tokenizer = property(lambda self: self.inner.backend_tokenizer)
        added_tokens_decoder = property(lambda self: self.inner.added_tokens_decoder)

        def __call__(self, texts, **options):
            found = self.inner(texts, **options)["input_ids"]
            odd = [len(text) % 7 if len(text) > 500 else 0 for text in texts]
            return {"input_ids": [[(ids[0] + n) % 600, *ids[1:]] for ids, n in zip(found, odd, strict=True)]}

    made = OneShots(Capricious(), prompts("\n\n", None), DEMO)
    example = max(demo_rows("train"), key=lambda row: len(row["output"]))
    for _ in DEMO:  # another pair is compared each time
        pairs = by_pairs(made, example)
    assert not made._by_border
    assert "every pair is tokenised whole" in caplog.text
    whole = made._ids([made.prompts.one_shot(example, DEMO[0]) + made.prompts.target(DEMO[0])])[0]
    assert pairs[0][0] == whole


@pytest.mark.parametrize("words", ["Nothing special.", "Speak of <|endoftext|> here."])
def test_what_counts_of_a_task_does_not_depend_on_the_example_before_it(words):
    """Where only some tasks' first letters merge with the query, and where an example holds a control token."""
    rows = demo_rows("train")
    made = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(split), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([f"{r['instruction']} {r['input']} {r['output']}" for r in rows], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")
    query = "Instruction: {{ instruction | flat }}\nResponse: "  # its last space merges with a word, not with a digit
    ours = Prompts({**Templates().model_dump(), "query": query, "target": "{{ output | flat }}"})
    answers = ["46", "The capital is Paris.", "the Danube is one of the largest", "56", "7 rivers"]
    tasks = [{"id": str(n), "instruction": f"Question {n}?", "input": "", "output": a} for n, a in enumerate(answers)]
    alone = [encode(tokenizer, ours.query(t), ours.target(t)) for t in tasks]
    merges = [one.n_context < len(token_ids(tokenizer, ours.query(t))) for one, t in zip(alone, tasks, strict=True)]
    assert set(merges) == {True, False}
    shots = OneShots(tokenizer, ours, tasks)
    for number, row in enumerate(rows[:6]):
        example = {**row, "id": str(number), "instruction": words if number % 2 else row["instruction"]}
        prefix, suffixes = shots.encode(example, range(len(tasks)))
        for task, suffix, one in zip(tasks, suffixes, alone, strict=True):
            assert prefix + suffix.ids == token_ids(tokenizer, ours.one_shot(example, task) + ours.target(task))
            assert suffix.ids[suffix.first :] == one.ids[one.n_context :]
