"""Judges: which of two responses to an eval prompt is better, the base model's or the fine-tuned one's.

A judge is a function `(pairs, settings, cache) -> iterator of verdicts`, named in JUDGES. A verdict holds a preference
in [1, 2] (1 the base model's response, 2 the fine-tuned model's, 1.5 a draw, None where the judge gave no answer that
can be read) and what else the judge said. Pairs may be judged in any way, many at a time; verdicts keep their order.
"""

import importlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icprobe import execution
from icprobe.errors import ConfigError, DataError, several, some
from icprobe.masking import keep_secret
from icprobe.progress import Progress

logger = logging.getLogger(__name__)

BASE, DRAW, RESPONSE = 1.0, 1.5, 2.0


@dataclass(frozen=True)
class Pair:
    """An eval prompt with the responses of the base model and of a fine-tuned model, and its gold answer."""

    id: str
    subset: str | None
    instruction: str
    base: str
    response: str
    gold: str | None = None


Judge = Callable[[list[Pair], dict[str, Any], Path | None], Iterator[dict[str, Any]]]

# The registry: a judge is one module, with a function of the judge's name, and one line here (its name stands in the
# configuration's `evaluation.judge` too). Imported by name, so that only its users depend on its code.
JUDGES = {"reference": "icprobe.evaluation.judges.reference", "llm": "icprobe.evaluation.judges.llm"}


def pair_up(
    rows: Iterable[dict[str, Any]], base: Iterable[dict[str, Any]], responses: Iterable[dict[str, Any]]
) -> list[Pair]:
    """The pairs of the eval prompts that have a response, in the prompts' order.

    rows: the eval table (its `output` is the gold answer); base, responses: rows with `id`, `instruction`, `output`.
    Without responses (an empty subset) there are no pairs; otherwise a prompt without one is a DataError.
    """
    base_by_id, by_id = ({row["id"]: row for row in table} for table in (base, responses))
    if not by_id:
        return []
    pairs = []
    for row in rows:
        for what, table in (("base model", base_by_id), ("fine-tuned model", by_id)):
            if row["id"] not in table:
                raise DataError(
                    f"Eval prompt {row['id']!r} has no response of the {what}. Generate the responses again."
                )
        found = by_id[row["id"]]
        pairs.append(
            Pair(
                id=row["id"],
                subset=row.get("subset"),
                instruction=found["instruction"],
                base=base_by_id[row["id"]]["output"],
                response=found["output"],
                gold=row.get("output"),
            )
        )
    return pairs


def judge(
    name: str, pairs: list[Pair], settings: dict[str, Any], cache: str | Path | None = None
) -> list[dict[str, Any]]:
    """Judgements of the pairs: id, subset, preference, judge, order, both lengths in characters, what the judge said.

    settings: the configuration's `evaluation` as plain values; cache: a folder shared by all jobs of an experiment, for
    judges that ask and pay for answers. Raises ConfigError for an unknown judge.
    """
    if name not in JUDGES:
        raise ConfigError(f"config: evaluation.judge: {name!r} is not a judge; use one of {', '.join(JUDGES)}")
    verdict_of: Judge = getattr(importlib.import_module(JUDGES[name]), name)
    judgements = []
    with Progress(total=len(pairs), desc=f"judging ({name})", unit="pair") as progress:
        verdicts = verdict_of(pairs, settings, Path(cache) if cache else None) if pairs else []
        for pair, verdict in zip(pairs, verdicts, strict=True):
            judgements.append(
                {
                    "id": pair.id,
                    "subset": pair.subset,
                    "judge": name,
                    "order": None,
                    "length_base": len(pair.base),
                    "length_response": len(pair.response),
                    **verdict,
                }
            )
            progress.update()
    read = [row["preference"] for row in judgements if row["preference"] is not None]
    if len(read) < len(judgements):
        logger.warning(
            "%d of the judge's %d answers cannot be read; these judgements have no preference",
            len(judgements) - len(read),
            len(judgements),
        )
    if read:
        rate, draws = 100 * (sum(read) / len(read) - 1), read.count(DRAW)
        logger.info("%d pairs judged: win rate %.1f%%, %d draws", len(read), rate, draws)
    return judgements


def completed(settings: dict[str, Any]) -> dict[str, Any]:
    """A job's settings with those that say how a judge is asked: concurrency, prices, and what else changes no answer.

    These are no params (`icprobe.execution`), for as params they would repeat judgements.
    """
    if "llm" not in settings:
        return settings
    return settings | {"llm": settings["llm"] | execution.settings("evaluation")["llm"]}


def key(variable: str | None, section: str = "llm", whose: str = "judge") -> str:
    """The judge's key, from the environment variable of this name; "none" for an endpoint without keys.

    section: of the configuration's `evaluation` that names it; whose: the key is, for the message. From now on it is
    masked. Raises ConfigError where the variable is not set.
    """
    if variable and not os.environ.get(variable):
        raise ConfigError(
            f"config: evaluation.{section}.key_variable: the environment variable {variable} is not set. Put the "
            f"{whose}'s key into it, or leave key_variable out for an endpoint without keys."
        )
    return keep_secret(os.environ[variable]) if variable else "none"


def require_gold(golds: dict[str, str | None]) -> None:
    """Raises DataError where an eval prompt has no gold answer; golds: the answer of each by the prompt's id."""
    missing = [prompt for prompt, gold in golds.items() if not (gold or "").strip()]
    if missing:
        raise DataError(
            f"{several(len(missing), 'eval prompt')} without a gold answer to compare responses with: "
            f"{some(missing)}. Give each an output, or choose another evaluation.judge."
        )


def require_some_base_response(outputs: Iterable[str | None]) -> None:
    """Raises DataError where the eval table gives no output at all: a base model whose every response is empty."""
    if not any((output or "").strip() for output in outputs):
        raise DataError(
            "No eval prompt has an output, which evaluation.base_responses: given takes for the base model's response. "
            "Give them (data.eval.columns names their column), or set base_responses: generate."
        )
