"""What the report shows of training itself: held-out gains of fine-tuned models, and the tail patch."""

from typing import Any

import pandas as pd

from icprobe.analysis import headline, tail_patch
from icprobe.evaluation.tabulation import SIGNIFICANT
from icprobe.report import verdicts
from icprobe.report.findings import Findings
from icprobe.report.wording import compared

SIZES = {str(tail_patch.NUMBER), tail_patch.SHARE.removeprefix("top ")}  # of the tail patch, that are no bin's
SETS = {"tasks": "tasks", "eval": "eval prompts"}


def held_out_sets(model: Findings) -> dict[str, str]:
    """Set -> what its answers answer, of those that the table has."""
    return {name: words for name, words in SETS.items() if name in set(model.held_out["set"])}


def held_out_rows(model: Findings) -> list[dict[str, Any]]:
    """One row for each method and bin, over all answers and seeds; of bins that hold the same examples one."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    seen = set()
    for row in headline.overall(model.held_out).itertuples():
        same = (row.method, model.bin_names(row.bin), row.set)
        if same not in seen:
            seen.add(same)
            rows.setdefault((row.method, row.bin), {})[row.set] = row
    return [{"method": method, "bin": bin_, "of": found} for (method, bin_), found in rows.items()]


def every_held_out_row(model: Findings) -> list[Any]:
    """Every subset and every seed."""
    return list(model.held_out.itertuples())


def tail_patch_unit(model: Findings) -> str:
    """What the effects of the tail patch are in."""
    return headline.tail_patch_unit(model.tail_patch)


def tail_patch_rows(model: Findings) -> list[dict[str, Any]]:
    """One row for each method and size: how many, in words, and best, worst and random -> row of the table."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in model.tail_patch.itertuples():
        rows.setdefault((row.method, str(row.k)), {})[row.which] = row
    return [
        {"method": method, "size_of": k if k in SIZES else f"as many as bin {k} holds", "n": of["best"].n, "of": of}
        for (method, k), of in rows.items()
    ]


def seen(repeated: pd.DataFrame | None) -> str:
    """Whether the models have been trained on what their held-out answers answer; "" where nobody has looked.

    repeated: data/repeated.csv.
    """
    if repeated is None:
        return ""
    rows = repeated[(repeated["table"] == "train") & repeated["also_in"].isin(SETS)]
    by = {(row.also_in, row.same): row for row in rows.itertuples()}
    told = [
        f"{by[name, 'prompt'].n} of them {'ask' if by[name, 'prompt'].n > 1 else 'asks'} what one of the {words} asks "
        f"({by[name, 'row'].n or 'none'} with the same answer, too)"
        for name, words in SETS.items()
        if (name, "prompt") in by and by[name, "prompt"].n
    ]
    if not told:
        alike = " or ".join(words for name, words in SETS.items() if (name, "prompt") in by)
        return f"No training example asks what one of the {alike} asks, white space aside." if alike else ""
    return (
        f"The {rows['n_rows'].max()} training examples are not all apart from these answers: {' and '.join(told)}. "
        "What a model has seen in training is no measure of it; data/repeated.csv counts such rows."
    )


def held_out_sentences(model: Findings) -> list[str]:
    """Which fine-tuned models find held-out answers likelier than the base model does, and whether methods differ."""
    sentences = []
    for name, words in held_out_sets(model).items():
        trained = [row["of"][name] for row in held_out_rows(model) if row["of"][name].n]
        if not trained:
            continue
        rows = pd.DataFrame(trained)
        up, down = int((rows["low"] > 0).sum()), int((rows["high"] < 0).sum())
        sentences.append(
            f"Of {len(rows)} fine-tuned models {up or 'none'} find the answers of the {rows['n'].max()} {words} "
            f"likelier than the base model does, and {down or 'none'} less likely, by intervals that exclude 0."
        )
    differences = model.held_out_differences
    tested = pd.DataFrame() if differences is None else differences[differences["p_value_holm"].notna()]
    if len(tested):
        apart = int((tested["p_value_holm"] < SIGNIFICANT).sum())
        sentences.append(
            f"Of {len(tested)} comparisons of {compared(tested)} {apart or 'none'} "
            f"{'are' if apart > 1 else 'is'} significant (sign-flip test, Holm, 5%)."
        )
    return sentences + verdicts.hardly_trained(headline.overall(model.held_out))
