"""The judge that compares letters: whose response is closer to the gold answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sacrebleu import sentence_chrf

from icprobe.evaluation.judges import BASE, DRAW, RESPONSE, Pair, require_gold


def reference(pairs: list[Pair], settings: dict[str, Any], cache: Path | None = None) -> Iterator[dict[str, Any]]:
    """chrF of each response against the gold answer (sacrebleu's sentence chrF, 0 to 100; Popović 2015).

    The higher one wins; a difference below `draw_margin` points, or none at all, is a draw.
    """
    require_gold({pair.id: pair.gold for pair in pairs})
    for pair in pairs:
        base, response = (sentence_chrf(text, [pair.gold]).score for text in (pair.base, pair.response))
        difference = response - base
        if difference == 0 or abs(difference) < settings["draw_margin"]:
            preference = DRAW
        else:
            preference = RESPONSE if difference > 0 else BASE
        yield {"preference": preference, "chrf_base": base, "chrf_response": response}
