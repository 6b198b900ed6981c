"""Judgements that exist already, as AlpacaEval writes them: annotations.json, or the same rows as JSONL."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from icprobe.errors import DataError, shown
from icprobe.evaluation.judges import DRAW
from icprobe.tables import checking, reading

LENGTHS = {"length_base": ("output_1", "len_1"), "length_response": ("output_2", "len_2")}


def read_annotations(paths: Sequence[str | Path], generator: str | None = None) -> list[dict[str, Any]]:
    """Judgements of one model's responses (generator_2) against another's (generator_1), in the order of the files.

    A row has `instruction` and `preference` in [1, 2] (0 is AlpacaEval's old word for a draw; null, no answer that
    could be read), and where given `dataset` (the subset), `annotator`, and `output_1`, `output_2` or their lengths in
    characters, `len_1`, `len_2`. generator: which generator_2 to take; needed where the files hold several. A prompt's
    id is a digest of its instruction (and its `input`), so that other models' annotations of it are of one prompt.

    Raises DataError for files that cannot be read, a row that cannot be used, a prompt that is judged twice, several
    generators without a choice, or several whose responses these were held against (`against` in each judgement).
    """
    rows = [row for path in paths for row in checking.records(reading.read_file(path))]
    if generator is not None:
        rows = [row for row in rows if row.get("generator_2") == generator]
        if not rows:
            raise DataError(f"{paths[0]}: no row has the generator_2 {shown(generator)}; see evaluation.annotations.")
    found = list(dict.fromkeys(str(_present(row.get("generator_2")) or "") for row in rows))
    if len(found) > 1:
        names = ", ".join(shown(name) if name else "one without a name" for name in found[:3])
        raise DataError(
            f"{paths[0]}: holds responses of {len(found)} models ({names}); choose one as `generator` in "
            "evaluation.annotations."
        )
    against = list(dict.fromkeys(str(given) for row in rows if (given := _present(row.get("generator_1")))))
    if len(against) > 1:
        names = ", ".join(shown(name) for name in against[:3])
        raise DataError(
            f"{paths[0]}: its responses are compared with those of {len(against)} models (generator_1: {names}), where "
            "a win rate is against one; give each a file of its own, and an entry of its own in evaluation.annotations."
        )
    judgements = []
    seen: dict[str, str] = {}
    for row in rows:
        instruction = row.get("instruction")
        if not isinstance(instruction, str):
            raise DataError(f"{row[reading.WHERE]}: an annotation needs its instruction.")
        given = _present(row.get("input"))
        prompt = instruction if given is None or given == "" else f"{instruction}\0{given}"
        if prompt in seen:
            raise DataError(
                f"{row[reading.WHERE]}: its prompt is judged at {seen[prompt]}, too, and would count twice; make "
                "each annotator's judgements an annotation of its own, with another seed."
            )
        seen[prompt] = row[reading.WHERE]
        digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        judgements.append(
            {
                "id": digest,
                "subset": _subset(row),
                "preference": _preference(row),
                "judge": _present(row.get("annotator")) or "annotations",
                "order": None,
                "against": next(iter(against), None),
                **{name: _length(row, *columns) for name, columns in LENGTHS.items()},
            }
        )
    return judgements


def check_reference(judgements: Mapping[str, Iterable[dict[str, Any]]]) -> None:
    """Raises DataError where annotations, by what they are called, are held against different models' responses."""
    found: dict[str, str] = {}
    for name, rows in judgements.items():
        for against in filter(None, (row.get("against") for row in rows)):
            found.setdefault(against, name)
    if len(found) > 1:
        (ours, one), (theirs, other), *_ = found.items()
        raise DataError(
            f"evaluation.annotations: those of {one} are held against the responses of {shown(ours)}, those of {other} "
            f"against {shown(theirs)} (generator_1), so that their win rates cannot be compared; make two experiments."
        )


def _subset(row: dict[str, Any]) -> str | None:
    subset = checking.label(row.get("subset")) or checking.label(row.get("dataset"))
    checking.check_group(row[reading.WHERE], "subset", subset)
    return subset


def _present(value: Any) -> Any:
    return None if value is None or value != value else value


def _preference(row: dict[str, Any]) -> float | None:
    value = _present(row.get("preference"))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or 1 <= value <= 2):
        raise DataError(
            f"{row[reading.WHERE]}: the preference is {shown(value)}; it must be between 1 (generator_1 is better) and "
            "2, or 0 or 1.5 for a draw."
        )
    return DRAW if value == 0 else float(value)


def _length(row: dict[str, Any], text: str, length: str) -> int | None:
    if isinstance(row.get(text), str):
        return len(row[text])
    value = row.get(length)
    if value is None or value != value:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise DataError(f"{row[reading.WHERE]}: {length} is {shown(value)}; it must be a number of characters.")
    return int(value)
