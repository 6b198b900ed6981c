"""The model that answers, known by its files: its tokenizer, its ends, its context. Its weights are not loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from icprobe import artifacts
from icprobe.evaluation.generation import ends_of
from icprobe.evaluation.stopping import Stops
from icprobe.texts.chat import Chat
from icprobe.texts.prompts import Prompts
from icprobe.texts.tokenizing import load_tokenizer


@dataclass(frozen=True)
class Model:
    """The model that answers: a prepared one, or a checkpoint of it; its tokenizer, and what ends its responses."""

    base: Path
    checkpoint: Path | None
    tokenizer: Any
    ends: frozenset[int]  # ids that the tokenizer or the model names
    stops: Stops
    limit: int | None  # tokens of its context
    vocabulary: int

    @classmethod
    def of(cls, base: str | Path, checkpoint: str | Path | None, prompts: Prompts | Chat) -> "Model":
        """Of the directories; no weights are loaded."""
        tokenizer, manifest = load_tokenizer(base), artifacts.read_manifest(base)
        adapters = checkpoint and artifacts.read_manifest(checkpoint)["kind"] == "lora"
        named = _named_ends(Path(base if adapters or not checkpoint else checkpoint), trusts(base))
        return cls(
            Path(base),
            Path(checkpoint) if checkpoint else None,
            tokenizer,
            ends_of(tokenizer, named),
            Stops.of(prompts, tokenizer),
            manifest["max_positions"],
            manifest["vocabulary"],
        )

    @property
    def last(self) -> frozenset[int]:
        """Every id that the model can say and with which a response ends."""
        return frozenset(end for end in self.ends | self.stops.tokens if end < self.vocabulary)


def trusts(base: str | Path) -> bool:
    """Whether a prepared model's own code may run."""
    return bool(artifacts.read_manifest(base).get("source", {}).get("trust_remote_code"))


def _named_ends(folder: Path, trusted: bool) -> int | list[int] | None:
    """The end tokens that a saved model names, as transformers finds them when it loads the model."""
    try:
        return GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
        return GenerationConfig.from_model_config(config).eos_token_id
