"""Budgeted ICP on real effects: how much of the top decile is found for how much of the cost.

icp_budget's own elimination runs on two matrices of 23,112 examples × 100 tasks made from what the paper's authors
published, and asks them what it would have asked the model.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from icprobe.attribution.icp_budget import eliminate

SHARE = 0.1
CONFIDENCES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
ROUND_TASKS = (5, 10, 20)


def matrices(path: Path, seed: int) -> dict[str, np.ndarray]:
    """{source: effects [N, M], true where an example helps a task}.

    "ICP scores": of ICP the authors published scores alone; each example helps as many tasks as its score says, which
    ones is drawn. "influence": their signed-log influence, above each task's median (its sign itself says nothing:
    more than 99% of the entries are positive), so that tasks agree about examples as real tasks do.
    """
    with np.load(path) as file:
        scores, influence = file["icp"], file["influence"]
    n, m = influence.shape
    ranks = np.random.default_rng(seed).random((n, m)).argsort(axis=1)
    return {
        "ICP scores": ranks < np.round(scores * m)[:, None],
        "influence": influence > np.median(influence, axis=0),
    }


def budgeted(folder: Path, say: Any, seed: int = 0) -> dict[str, Any]:
    """Record of the comparison `budget`: cost and recovery of each setting, and of as many random tasks for all."""
    record: dict[str, Any] = {"comparison": "budget", "title": "Budgeted ICP", "rows": [], "same_for_all": []}
    path = folder / "published" / "scores_part.npz"
    if not path.is_file():
        say("budget: the data folder holds no published/scores_part.npz, so there is no real matrix to simulate on")
        return {**record, "cannot": "no published matrix beside the data"}
    for source, effects in matrices(path, seed).items():
        n, m = effects.shape
        record["settings"] = {"examples": n, "tasks": m, "share": SHARE}
        full = effects.mean(axis=1)
        mine = [
            one(source, effects, full, round_tasks, confidence, seed)
            for round_tasks in ROUND_TASKS
            for confidence in CONFIDENCES
        ]
        record["rows"] += mine
        order = np.random.default_rng(seed).permutation(m)
        record["same_for_all"] += [
            {"source": source, "cost": k / m, "recovered": recovered(full, effects[:, order[:k]].mean(axis=1))}
            for k in range(2, m + 1, 2)
        ]
        best = min((row for row in mine if row["recovered"] >= 0.95), key=lambda row: row["cost"])
        say(f"budget, {source}: {best['recovered']:.0%} of the top decile for {best['cost']:.0%} of the cost")
    return record


def one(
    source: str, effects: np.ndarray, full: np.ndarray, round_tasks: int, confidence: float, seed: int
) -> dict[str, Any]:
    """One setting of the elimination on one matrix."""
    n, m = effects.shape
    began = time.perf_counter()
    scores, tried = eliminate(
        n, m, lambda rows, tasks: effects[np.ix_(rows, tasks)], SHARE, round_tasks, confidence, seed
    )
    return {
        "source": source,
        "round_tasks": round_tasks,
        "confidence": confidence,
        "cost": float(tried.mean() / m),
        "recovered": recovered(full, scores),
        "recovered_bottom": recovered(-full, -scores),
        "seconds": time.perf_counter() - began,
    }


def recovered(full: np.ndarray, scores: np.ndarray) -> float:
    """Share of the k that `scores` puts first whose full score is among the k best, ties at the border included."""
    k = max(1, round(SHARE * len(full)))
    border = np.sort(full)[::-1][k - 1]
    chosen = np.argsort(-scores, kind="stable")[:k]
    return float((full[chosen] >= border).mean())
