"""The lines that show a method's best and worst examples while others compute."""

import numpy as np
import pandas as pd

from icprobe.analysis import extremes
from icprobe.tables import parquet


def table(tmp_path, n, **columns):
    train = pd.DataFrame({"id": [f"e{i}" for i in range(n)], **columns})
    parquet.write_parquet(train, tmp_path / "train.parquet")
    return tmp_path / "train.parquet"


def test_the_three_best_and_the_three_worst_are_shown_with_rank_score_and_text(tmp_path):
    n = 11
    train = table(
        tmp_path,
        n,
        instruction=["Ask 0 \x1b[2J", *(f"Ask\n {i}" for i in range(1, n))],
        output=[None, "long " * 30, *["so"] * 9],
    )
    scores = pd.DataFrame({"id": [f"e{i}" for i in range(n)], "score": [float(i) for i in range(n)]})
    scores.loc[10, "score"] = np.nan  # not evaluated
    shown = extremes.lines(scores, train)
    assert shown[0] == "   1. e9 (9) Ask 9 → so"
    assert shown[3] == "   8. e2 (2) Ask 2 → so"
    assert shown[4].startswith("   9. e1 (1) Ask 1 → long long")
    assert shown[4].endswith("…")
    assert shown[5] == r"  10. e0 (0) Ask 0 \x1b[2J"
    assert len(shown[4]) < 80


def test_equal_scores_are_ordered_by_mean_effect_and_texts_may_be_absent(tmp_path):
    train = table(tmp_path, 6)
    scores = pd.DataFrame({"id": [f"e{i}" for i in range(6)], "score": 1.0, "mean_effect": [3, 5, 1, 0, 2, 4]})
    assert [line.split()[1] for line in extremes.lines(scores, train)] == ["e1", "e5", "e0", "e4", "e2", "e3"]
    assert extremes.lines(scores.head(5), train) == []
