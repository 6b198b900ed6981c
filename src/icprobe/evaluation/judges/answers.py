"""What a judge's answer says: the preference in it, or that it cannot be read. Nothing is guessed."""

import json
import math
import re
from typing import Any

FIRST, SECOND = "m", "M"  # names under which the judge sees the two answers, in the order in which they stand
TIE = "draw"
VERDICTS = {FIRST: 0.0, SECOND: 1.0, TIE: 0.5}
# A thinking model's, before its answer, as different ones write them: <think>, <thinking>, [THINK], ◁think▷.
THOUGHTS = re.compile(r"[<\[◁](/?)(?:think|thinking|thought|thoughts|reasoning)[>\]▷]", re.IGNORECASE)


def share(answer: dict[str, Any], order: str, least_mass: float) -> float | None:
    """How far the answer prefers the fine-tuned model's response, from 0 to 1; None where it cannot be read.

    answer: `mode` and `said`, as `llm_judge.ask` gives them; least_mass: see `mass`.
    """
    second = _weighted(answer["said"], least_mass) if answer["mode"] == "weighted" else _plain(answer["said"])
    if second is None:
        return None
    return second if order == "base_first" else 1 - second


def mass(tokens: list[list[Any]] | None, names: tuple[str, ...] = (FIRST, SECOND)) -> float:
    """The probability, among the likeliest tokens [[token, logprob], …], of those that are one of the names."""
    return sum(math.exp(logprob) for token, logprob in tokens or [] if token.strip() in names)


def _weighted(tokens: list[list[Any]] | None, least_mass: float) -> float | None:
    """p(M) / (p(m) + p(M)) of the likeliest tokens; one that is not among them counts as 0.

    None where p(m) + p(M) is below least_mass: the judge was about to say something else ("<think>", "The"), and a
    ratio of what is left is no preference.
    """
    total = mass(tokens)
    return mass(tokens, (SECOND,)) / total if total and total >= least_mass else None


def _plain(text: str | None) -> float | None:
    """The one verdict of the JSON objects in a text, whatever stands around them; None where there is none, or two.

    Thoughts do not count, nor do those that the limit on tokens has cut off.
    """
    marks = list(THOUGHTS.finditer(text or ""))
    if marks and not marks[-1][1]:
        return None  # the last thought has no end
    verdicts = {_verdict(better) for better in _values((text or "")[marks[-1].end() if marks else 0 :], "better")}
    return verdicts.pop() if len(verdicts) == 1 else None


def _verdict(better: Any) -> float | None:
    name = better.strip() if isinstance(better, str) else None
    return VERDICTS.get(TIE if name and name.lower() == TIE else name)


def _values(text: str, key: str) -> list[Any]:
    """The values of a key in all JSON objects that stand in a text."""
    values: list[Any] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values.extend(value for name, value in pairs if name == key)
        return dict(pairs)

    decoder = json.JSONDecoder(object_pairs_hook=keep)
    start = text.find("{")
    while start >= 0:
        try:
            _, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)
    return values
