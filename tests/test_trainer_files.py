"""Subsets are files that trl's trainer takes as they are, and trains on with the token ids of our own fine-tuning."""

import re
from pathlib import Path

import pandas as pd
import pytest
from chats import CONVERSATIONS, chat, row
from datasets import load_dataset
from test_finetuning import ROWS, make_base
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from icprobe import jsonl
from icprobe.config.templates import Templates
from icprobe.texts.chat import prompts_of
from icprobe.texts.tokenizing import load_tokenizer
from icprobe.training import subsets
from icprobe.training.fine_tune import IGNORED, tokenize

# SmolLM2's template, with the assistant's turns marked.
MARKED = re.search("```jinja\n(.*?)\n```", Path("docs/training.md").read_text(encoding="utf-8"), re.DOTALL)[1]
THEIRS = ("input_ids", "labels")
CHAT = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
CHAT += "{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture(scope="module")
def prompts():
    return prompts_of(Templates().model_dump(include={"query", "target"}))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("models") / "tiny-llama", "llama")


@pytest.fixture(scope="module")
def files(prompts, tmp_path_factory):
    """A subset as prompts and completions, and as messages."""
    table = pd.DataFrame(ROWS).fillna({"input": ""}).set_index("id", drop=False)
    paths = [tmp_path_factory.mktemp("subsets") / name for name in ("gt-0.80.jsonl", "gt-0.80.messages.jsonl")]
    subsets.write_subset(table, list(table.index), dict.fromkeys(table.index, 0.9), prompts, *paths)
    return paths


def trainer(file, base, folder, **options):
    """trl's, with the file as it is and one step to train."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = CHAT
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        args=SFTConfig(str(folder), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, **options),
        train_dataset=load_dataset("json", data_files=str(file), cache_dir=str(folder), split="train"),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("form", [0, 1])
def test_trl_trains_a_step_from_the_file_as_it_is(form, files, base, tmp_path):
    found = trainer(files[form], base, tmp_path)
    assert len(found.train_dataset) == len(ROWS)
    assert found.train().training_loss > 0


def test_trl_learns_the_token_ids_that_our_own_fine_tuning_learns_from_the_same_file(files, prompts, base, tmp_path):
    found = trainer(files[0], base, tmp_path).train_dataset
    ours, _ = tokenize(load_tokenizer(base), jsonl.read(files[0]), prompts, 10_000)
    before, _ = tokenize(load_tokenizer(base), ROWS, prompts, 10_000)
    assert ours == before, "the rows of the file give other ids than the table's"
    assert list(found["input_ids"]) == [example["input_ids"] for example in ours]
    assert list(found["labels"]) == [example["labels"] for example in ours]
    assert all(IGNORED in labels for labels in found["labels"])


def test_trl_learns_every_turn_of_the_assistant_that_our_own_fine_tuning_learns_from_the_messages(
    base, spoken, tmp_path
):
    tokenizer, model = spoken(MARKED), AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    for saved in (tokenizer, model):
        saved.save_pretrained(tmp_path / "model")
    rows = [{**row(CONVERSATIONS[name]), "id": name, "score": 0.5} for name in ("several", "system", "one")]
    table, template = pd.DataFrame(rows).set_index("id", drop=False), tmp_path / "smollm2.jinja"
    template.write_text(MARKED, encoding="utf-8")
    prompts, files = chat(MARKED), [tmp_path / "top.jsonl", tmp_path / "top.messages.jsonl"]
    subsets.write_subset(table, list(table.index), table["score"].to_dict(), prompts, *files)
    ours, _ = tokenize(tokenizer, subsets.read_subset(files[0]), prompts, 10_000)
    options = {"assistant_only_loss": True, "chat_template_path": str(template)}
    found = trainer(files[1], tmp_path / "model", tmp_path, **options)
    for theirs, labels, example in zip(*map(found.train_dataset.__getitem__, THEIRS), ours, strict=True):
        n = len(example["input_ids"])  # they keep the line break behind the last turn, without a loss
        assert list(theirs[:n]) == example["input_ids"]
        assert list(labels) == example["labels"] + [IGNORED] * (len(theirs) - n)
        assert any(label != IGNORED for label in labels)
    assert found.train().training_loss > 0
    plain = chat(re.sub("{% (end)?generation %}", "", MARKED))
    assert ours == tokenize(tokenizer, subsets.read_subset(files[0]), plain, 10_000)[0], "the marks change a token"
