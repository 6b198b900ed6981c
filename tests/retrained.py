"""An experiment whose truth numpy knows: linear regression, trained exactly on random subsets of the examples."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd


class Known(NamedTuple):
    """The files of an experiment, as tables or paths."""

    subsets: pd.DataFrame
    outcomes: pd.DataFrame
    matrices: dict[str, Path]
    scores: dict[str, Path]
    lengths: pd.DataFrame
    reference: str | None = None


def experiment(
    folder: Path, examples=200, tasks=40, subsets=64, train="one step", share=0.5, seed=0, left_out=False
) -> Known:
    """Outcomes: −½(y − xθ)² of each task, after training on each subset; one seed. influence is exact; random is not.

    train: "one step" of gradient descent from 0, or "ridge", the minimum over the subset. left_out: the subsets are
    single examples, and the outcome is by how much less training on all others gives.
    """
    rng = np.random.default_rng(seed)
    dimension, eta, damping = 10, 1e-6, 20.0
    truth = rng.normal(size=dimension)
    x, at = rng.normal(size=(examples, dimension)), rng.normal(size=(tasks, dimension))
    y = x @ truth + rng.normal(size=examples)
    wanted = at @ truth + 3.0
    ids, names = [f"e{i}" for i in rng.permutation(examples)], [f"t{j}" for j in range(tasks)]

    def fit(rows: np.ndarray) -> np.ndarray:
        if train == "one step":
            return eta * x[rows].T @ y[rows]
        return np.linalg.solve(x[rows].T @ x[rows] + damping * np.eye(dimension), x[rows].T @ y[rows])

    def outcome(rows: np.ndarray) -> np.ndarray:
        return -0.5 * (wanted - at @ fit(rows)) ** 2

    everything = np.arange(examples)
    start = np.zeros(dimension) if train == "one step" else fit(everything)
    gradients = x * (y - x @ start)[:, None]  # of each example's log-likelihood
    hessian = np.eye(dimension) if train == "one step" else x.T @ x + damping * np.eye(dimension)
    influence = gradients @ np.linalg.solve(hessian, (at * (wanted - at @ start)[:, None]).T)  # [N, M]

    if left_out:
        members = {f"without-{ids[i]}": np.array([i]) for i in rng.permutation(examples)[:subsets]}
        outcomes = {"all": outcome(everything)}
        outcomes |= {name: outcome(np.delete(everything, rows)) for name, rows in members.items()}
    else:
        size = int(share * examples)
        members = {f"subset-{r}": rng.permutation(examples)[:size] for r in range(subsets)}
        outcomes = {name: outcome(rows) for name, rows in members.items()}
    matrices, scores = {}, {}
    for method, values in {"influence": influence, "random": rng.normal(size=influence.shape)}.items():
        matrices[method] = folder / f"{method}.parquet"
        table = pd.DataFrame(values, columns=names)
        table.insert(0, "id", ids)
        table.to_parquet(matrices[method])
    lengths = pd.DataFrame(
        {"id": ids, "n_query": rng.integers(5, 50, examples), "n_target": rng.integers(5, 50, examples)}
    )
    scores["length"] = folder / "length.parquet"
    lengths[["id"]].assign(score=lengths["n_target"].astype(float)).to_parquet(scores["length"])
    rows = [(name, 0, "tasks", task, v, 7) for name, of in outcomes.items() for task, v in zip(names, of, strict=True)]
    columns = ["subset", "seed", "set", "id", "log_likelihood", "n_tokens"]
    listed = pd.DataFrame([(name, ids[i]) for name, of in members.items() for i in of], columns=["subset", "id"])
    if left_out:
        listed = pd.concat([pd.DataFrame({"subset": ["all"], "id": [None]}), listed], ignore_index=True)
    reference = "all" if left_out else None
    return Known(listed, pd.DataFrame(rows, columns=columns), matrices, scores, lengths, reference)


def noisy(outcomes: pd.DataFrame, noise: float, seeds: int, seed: int = 0) -> pd.DataFrame:
    """The same outcomes with several seeds, each with noise of its own; noise: in standard deviations over subsets."""
    rng = np.random.default_rng(seed)
    spread = outcomes.groupby("id")["log_likelihood"].transform("std")
    return pd.concat(
        [
            outcomes.assign(
                seed=number, log_likelihood=outcomes["log_likelihood"] + noise * spread * rng.normal(size=len(outcomes))
            )
            for number in range(seeds)
        ],
        ignore_index=True,
    )
