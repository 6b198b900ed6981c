"""Budgeted ICP on real effects: how much of the top decile is found for how much of the cost.

icp_budget's own elimination runs on the signs of a published matrix of 23,112 examples × 100 tasks (the authors'
signed-log influence; their ICP matrix was published as scores alone): a simulation of what it would have asked for.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from icprobe.attribution.icp_budget import eliminate

SHARE = 0.1
CONFIDENCES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
ROUND_TASKS = (5, 10, 20)


def budgeted(folder: Path, say: Any, seed: int = 0) -> dict[str, Any]:
    """Record of the comparison `budget`: for each setting and for as many random tasks for all, cost and recovery."""
    record: dict[str, Any] = {"comparison": "budget", "title": "Budgeted ICP", "rows": []}
    path = folder / "published" / "scores_part.npz"
    if not path.is_file():
        say("budget: the data folder holds no published/scores_part.npz, so there is no real matrix to simulate on")
        return {**record, "cannot": "no published matrix beside the data"}
    with np.load(path) as file:
        effects = file["influence"] > 0
    n, m = effects.shape
    record["settings"] = {"examples": n, "tasks": m, "share": SHARE}
    full = effects.mean(axis=1)
    for round_tasks in ROUND_TASKS:
        for confidence in CONFIDENCES:
            began = time.perf_counter()
            scores, tried = eliminate(
                n, m, lambda rows, tasks: effects[np.ix_(rows, tasks)], SHARE, round_tasks, confidence, seed
            )
            row = {
                "round_tasks": round_tasks,
                "confidence": confidence,
                "cost": float(tried.mean() / m),
                "recovered": recovered(full, scores),
                "recovered_bottom": recovered(-full, -scores),
                "seconds": time.perf_counter() - began,
            }
            record["rows"].append(row)
    order = np.random.default_rng(seed).permutation(m)
    record["same_for_all"] = [
        {"cost": k / m, "recovered": recovered(full, effects[:, order[:k]].mean(axis=1))} for k in range(5, m + 1, 5)
    ]
    best = max((r for r in record["rows"] if r["recovered"] >= 0.95), key=lambda r: -r["cost"], default=None)
    if best:
        say(f"budget: {best['recovered']:.0%} of the top decile for {best['cost']:.0%} of the cost")
    return record


def recovered(full: np.ndarray, scores: np.ndarray) -> float:
    """Share of the k that `scores` puts first whose full score is among the k best, ties at the border included."""
    k = max(1, round(SHARE * len(full)))
    border = np.sort(full)[::-1][k - 1]
    chosen = np.argsort(-scores, kind="stable")[:k]
    return float((full[chosen] >= border).mean())
