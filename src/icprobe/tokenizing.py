"""Tokenizers: of prepared models, without loading torch where the tokenizer needs no code of its own, and new ones."""

import re
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from icprobe import artifacts
from icprobe.errors import ArtifactError, ModelError, reason
from icprobe.fitting import Reader
from icprobe.prompts import token_ids

END = "<|endoftext|>"
PROBES = [
    "Instruction: Add 12 and 34.\n\n\tResponse:  46",
    "  Grüße, 世界! مرحبا 🙂\u2028\r\n",
    f" it's <s> {END}</s> [PAD]",
]


def load_tokenizer(directory: str | Path) -> Any:
    """The tokenizer of a prepared model. Raises ArtifactError where a file is damaged (weights are not looked at)."""
    manifest = artifacts.verify(directory, contents=lambda name: not name.endswith(".safetensors"))
    try:
        if manifest.get("plain_tokenizer"):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        else:
            from transformers import AutoTokenizer  # imports torch

            trusted = bool(manifest.get("source", {}).get("trust_remote_code"))
            tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trusted)
    except (OSError, ValueError) as error:
        raise ModelError(f"{directory}: its tokenizer cannot be loaded: {reason(error)}") from None
    # Lengths are checked against the model by us, with the rows' ids; this silences a warning without them.
    tokenizer.model_max_length = sys.maxsize
    return tokenizer


def is_plain(tokenizer: Any, directory: str | Path) -> bool:
    """Whether tokenizer.json, saved in `directory`, gives the same tokens without the tokenizer's own class."""
    if not Path(directory, "tokenizer.json").is_file():
        return False
    bare = PreTrainedTokenizerFast.from_pretrained(directory)
    return all(token_ids(bare, text) == token_ids(tokenizer, text) for text in PROBES) and all(
        getattr(bare, name) == getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id", "chat_template")
    )


def reader(directory: str | Path) -> Reader:
    """A prepared model as far as texts are concerned; its weights are not loaded."""
    manifest = artifacts.read_manifest(directory)
    if "max_positions" not in manifest:
        raise ArtifactError(f"{directory}: is no prepared model. Remove it so that it is made anew.")
    # The digest of its source, which ends the directory's name, tells a reader of messages nothing.
    name = re.sub(r"-[0-9a-f]{12}$", "", Path(directory).name)
    return Reader(name, load_tokenizer(directory), manifest["max_positions"])


def train_tokenizer(corpus: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on a corpus; any text can be encoded and decoded with it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

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
