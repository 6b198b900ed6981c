"""The best and the worst examples of a method, in lines for people who watch a run."""

from pathlib import Path

import pandas as pd

from icprobe.analysis.binning import Ranking
from icprobe.errors import printable
from icprobe.formatting import number
from icprobe.tables import parquet

SHOWN = 3  # at each end
WIDTH = 60  # characters of an example
FIELDS = ["instruction", "output"]


def lines(scores: pd.DataFrame, train: str | Path) -> list[str]:
    """Shows the examples with the highest and the lowest scores, one a line; nothing where there are not enough.

    scores: `id`, `score`, and `mean_effect` where there is one. train: examples, whose texts may be absent.
    """
    ranking = Ranking(scores["score"], scores.get("mean_effect"))
    if ranking.evaluated < 2 * SHOWN:
        return []
    order = ranking.first("top 100%", ranking.evaluated)
    ends = scores.iloc[[*order[:SHOWN], *order[-SHOWN:]]]
    fields = [name for name in FIELDS if name in parquet.column_names(train)]
    texts = parquet.read_parquet(train, columns=["id", *fields], filters=[("id", "in", ends["id"].tolist())])
    texts = texts.set_index("id").fillna("")
    shown = []
    for place, row in enumerate(ends.itertuples()):
        rank = place + 1 if place < SHOWN else ranking.evaluated - 2 * SHOWN + place + 1
        text = printable(" ".join(" → ".join(filter(None, map(str, texts.loc[row.id, fields]))).split()))
        text = text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"
        shown.append(
            f"  {rank:>{len(str(ranking.evaluated))}}. {printable(row.id)} ({number(row.score)}) {text}".rstrip()
        )
    return shown
