"""Loads the tokenizers of prepared models, without torch where they need no code of their own, and trains new ones."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from icprobe import artifacts
from icprobe.errors import ArtifactError, ModelError, reason
from icprobe.texts.prompts import token_ids
from icprobe.texts.readers import Reader

END = "<|endoftext|>"
# Texts on which tokenizers differ: digits, contractions, spaces and line ends, letters of all kinds.
TEXTS = [
    "Instruction: Add 12 and 34.\n\n\tResponse:  46",
    "In 2024 it cost 12345.67, i.e. 1,000,000 more; 3x²=½",
    "it's don't I'LL We've they'd 'quoted' \"twice\" (a-b_c) camelCase HTTPServer() /* x */ a==b!=c",
    " one  two   three\tfour \n five\n\n\n  six\r\nseven \n",
    "  Grüße, 世界! مرحبا 🙂👩\u200d👩\u200d👧\u2028\r\n",
    "e\u0301 é ﬁ Ⅷ ｆｕｌｌ สวัสดี हिन्दी 안녕하세요 Привет ﷺ ǅ\u00a0\u3000.",
]
PROBES = [*TEXTS, f" it's <s> {END}</s> [PAD]"]


def load_tokenizer(directory: str | Path) -> Any:
    """Loads the tokenizer of a prepared model. Raises ArtifactError where a file is damaged, weights apart."""
    manifest = artifacts.verify(directory, contents=lambda name: not name.endswith(".safetensors"))
    try:
        trusted = bool(manifest.get("source", {}).get("trust_remote_code"))
        tokenizer = open_tokenizer(directory, bool(manifest.get("plain_tokenizer")), trusted)
    except (OSError, ValueError) as error:
        raise ModelError(f"{directory}: its tokenizer cannot be loaded: {reason(error)}") from None
    # Lengths are checked against the model by us, with the rows' ids; this silences a warning without them.
    tokenizer.model_max_length = sys.maxsize
    return tokenizer


def open_tokenizer(directory: str | Path, plain: bool, trusted: bool) -> Any:
    """Opens the tokenizer of a saved model in its directory; plain: from its tokenizer.json alone, without torch."""
    if plain:
        return PreTrainedTokenizerFast.from_pretrained(directory)
    from transformers import AutoTokenizer  # imports torch

    return AutoTokenizer.from_pretrained(directory, trust_remote_code=trusted)


def check_same_tokens(wanted: Callable[[str], Sequence[int]], tokenizer: Any, where: str, what: str) -> None:
    """Raises ModelError where a tokenizer gives a text other ids than are wanted.

    transformers rebuilds some tokenizers by the type of the model, with other rules for digits or spaces than the
    file's. where, what: whose tokenizer it is, and how the other ids came about, for the message.
    """
    for text in TEXTS:
        seen, right = token_ids(tokenizer, text), tuple(wanted(text))
        if seen != right:
            raise ModelError(
                f"{where}: its {type(tokenizer).__name__} makes {len(seen)} tokens of {text!r}, but {what} it has "
                f"{len(right)} others: transformers has rules of its own for this type of model; choose another model."
            )


def ids_by_file(path: str | Path) -> Callable[[str], Sequence[int]]:
    """Opens a tokenizer.json by itself: text → ids, with no special tokens added."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def is_plain(tokenizer: Any, directory: str | Path) -> bool:
    """Tells whether tokenizer.json, saved in `directory`, gives the same tokens without the tokenizer's own class."""
    if not Path(directory, "tokenizer.json").is_file():
        return False
    bare = PreTrainedTokenizerFast.from_pretrained(directory)
    return all(token_ids(bare, text) == token_ids(tokenizer, text) for text in PROBES) and all(
        getattr(bare, name) == getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id", "chat_template")
    )


def reader(directory: str | Path) -> Reader:
    """Opens a prepared model to read texts with; its weights are not loaded."""
    manifest = artifacts.read_manifest(directory)
    if "max_positions" not in manifest:
        raise ArtifactError(f"{directory}: is not a prepared model. Remove it to have it rebuilt.")
    # The digest of its source, which ends the directory's name, tells a reader of messages nothing.
    name = re.sub(r"-[0-9a-f]{12}$", "", Path(directory).name)
    return Reader(name, load_tokenizer(directory), manifest["max_positions"], manifest["vocabulary"])


def train_tokenizer(corpus: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer on a corpus; any text can be encoded and decoded with it."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=END)
