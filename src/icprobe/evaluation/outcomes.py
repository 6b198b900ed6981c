"""How likely base and fine-tuned models find held-out answers: what training has changed, and no judge asked."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedModel

from icprobe import artifacts, jsonl
from icprobe.engine.batching import split_by_size
from icprobe.engine.capabilities import Capabilities
from icprobe.engine.checkpoints import load_fine_tuned
from icprobe.engine.likelihood import Suffix, packed_log_likelihoods
from icprobe.engine.models import load_model, set_precision
from icprobe.engine.network import Network
from icprobe.errors import DataError, several, some
from icprobe.progress import Progress
from icprobe.tables.checking import records
from icprobe.texts.chat import Chat
from icprobe.texts.prompts import Encoded, Prompts, encode

logger = logging.getLogger(__name__)

# A fixed number: which answers share a row must depend on nothing that differs between models that are compared.
ROW_TOKENS = 4096
# A fine-tuned model may differ from its base by less than bfloat16 can tell.
DTYPE = "float32"
TYPES = {"id": "object", "set": "object", "log_likelihood": "float64", "n_tokens": "int32"}


@dataclass(frozen=True)
class Answer:
    """A task's answer or an eval prompt's gold answer behind its query, as token ids; set: "tasks" or "eval"."""

    id: str
    set: str
    encoded: Encoded


def held_out_answers(
    tables: Mapping[str, pd.DataFrame], prompts: Prompts | Chat, tokenizer: Any, limit: int | None
) -> list[Answer]:
    """Tokenises the answers of the tables {"tasks", "eval": rows}, in the order of the rows.

    Prompts without an output are left out, and so is an answer that has no token or does not fit the context of `limit`
    tokens; the log says of how many. (A task like that is refused when its tokens are counted.)
    """
    answers, silent, unfit, bound = [], 0, [], prompts.of(tokenizer)
    for name, table in tables.items():
        for row in records(table):
            if not row["output"].strip():
                silent += 1
                continue
            encoded = encode(tokenizer, bound.query(row), bound.target(row))
            fits = limit is None or len(encoded.ids) <= limit
            if fits and min(encoded.n_context, encoded.n_target) > 0:
                answers.append(Answer(row["id"], name, encoded))
            else:
                unfit.append(row["id"])
    if silent:
        logger.info("%s without an output: left out", several(silent, "eval prompt"))
    if unfit:
        what = several(len(unfit), "answer")
        logger.warning("%s left out, without a token or beyond the context's %s: %s", what, limit, some(unfit))
    return answers


def outcomes(
    base: str | Path, checkpoint: str | Path | None, answers: Sequence[Answer], device: str, journal: Path
) -> pd.DataFrame:
    """The log-likelihood of each answer by a fine-tuned model, or by the base model itself (checkpoint: None).

    Zero-shot, summed over the answer's tokens, in nats, always in float32; an adapter is merged into its base. Returns
    `id`, `set`, `log_likelihood`, `n_tokens`, one row for each answer and in their order; none of a model that was not
    trained because its bin is empty. journal: where finished rows are kept, so that a killed job goes on there; how
    answers share rows depends on no kill.
    """
    if checkpoint and artifacts.read_manifest(checkpoint).get("empty"):
        return table_of([])
    parts = _parts(answers)
    done = {(row["set"], row["id"]): row for row in jsonl.recover(journal)}
    network = None
    with Progress(total=len(answers), desc=_name(checkpoint), unit="answer") as progress:
        for part in parts:
            if all((answer.set, answer.id) in done for answer in part):
                progress.found(len(part))
                continue
            network = network or _network(base, checkpoint, device)
            values = _of_part(network, part)
            if not all(map(math.isfinite, values)):
                why = (
                    "its training has diverged; lower finetune.learning_rate"
                    if checkpoint
                    else "its weights are damaged, or too large for float32; fetch the model again"
                )
                raise DataError(f"{_name(checkpoint)} gives answers a likelihood of NaN or 0: {why}.")
            new = [_row(answer, value) for answer, value in zip(part, values, strict=True)]
            jsonl.append(journal, new)
            done |= {(row["set"], row["id"]): row for row in new}
            progress.update(len(part))
    return table_of([done[answer.set, answer.id] for answer in answers])


def log_likelihoods(network: Network, answers: Sequence[Answer]) -> list[float]:
    """Log-likelihood of each answer by a model that is loaded, as in `outcomes`, in nats and in their order."""
    found = {}
    for part in _parts(answers):
        found |= zip(((answer.set, answer.id) for answer in part), _of_part(network, part), strict=True)
    return [found[answer.set, answer.id] for answer in answers]


def table_of(rows: list[dict[str, Any]], **columns: str) -> pd.DataFrame:
    """The table that `outcomes` returns, of its rows as mappings; columns: the types of others before these."""
    types = {**columns, **TYPES}
    return pd.DataFrame(rows, columns=list(types)).astype(types)


def network_of(base: str | Path, model: PreTrainedModel) -> Network:
    """The network of a base model or of one fine-tuned from it; what the engines can do with it, training leaves."""
    return Network(model, Capabilities.of(base), forward_only=True)


def _network(base: str | Path, checkpoint: str | Path | None, device: str) -> Network:
    set_precision(tf32=False)
    options = {"dtype": DTYPE, "device": device}
    return network_of(base, load_fine_tuned(checkpoint, base, **options) if checkpoint else load_model(base, **options))


def _parts(answers: Sequence[Answer]) -> list[list[Answer]]:
    """The answers that share a row."""
    ordered = sorted(answers, key=lambda answer: len(answer.encoded.ids))  # stable
    parts = split_by_size([len(answer.encoded.ids) for answer in ordered], ROW_TOKENS)
    return [[ordered[place] for place in part] for part in parts]


def _of_part(network: Network, answers: Sequence[Answer]) -> list[float]:
    suffixes = [Suffix(answer.encoded.ids, answer.encoded.n_context) for answer in answers]
    return packed_log_likelihoods(network, [((), suffixes)])[0].tolist()


def _row(answer: Answer, value: float) -> dict[str, Any]:
    return {"id": answer.id, "set": answer.set, "log_likelihood": value, "n_tokens": answer.encoded.n_target}


def _name(checkpoint: str | Path | None) -> str:
    return "base model" if checkpoint is None else " ".join(Path(checkpoint).parts[-3:])
