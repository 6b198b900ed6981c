"""Maximal marginal relevance by lazy comparisons, held against comparing all with all."""

from itertools import islice

import numpy as np
import pandas as pd
import pytest

from icprobe.analysis import diversity, selecting
from icprobe.config.selections import Selection
from icprobe.errors import ScoreError


def points(seed, n, d=6, clusters=5):
    """Unit vectors in clusters, some of them twice."""
    draw = np.random.default_rng(seed)
    found = draw.normal(size=(clusters, d))[draw.integers(0, clusters, n)] + draw.normal(scale=0.4, size=(n, d))
    found[n // 2 : n // 2 + n // 10] = found[: n // 10]
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def naive(relevant, vectors, weight, k):
    """Compares all with all, in float64, which holds sums of products of vectors on the grid to the last bit."""
    on_grid = np.rint(vectors * diversity.GRID).astype(np.float64) / float(diversity.GRID)
    cosines, chosen = on_grid @ on_grid.T, []
    while len(chosen) < k:
        value = (1 - weight) * relevant - weight * (cosines[:, chosen].max(axis=1) if chosen else 0)
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))  # the first of equal ones
    return chosen


@pytest.fixture
def small(monkeypatch):
    """Windows, blocks and groups so small that all of them are left and filled many times."""
    sizes = {"WINDOW": 25, "FIRST_BLOCK": 2, "LARGEST_BLOCK": 8, "TOGETHER": 3, "CHOSEN_AT_ONCE": 7}
    for name, size in sizes.items():
        monkeypatch.setattr(diversity, name, size)


@pytest.mark.parametrize("weight", [0.1, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_lazy_comparisons_choose_what_comparing_all_with_all_does(seed, weight, small):
    n = 120
    vectors = points(seed, n)
    score = -np.sort(-np.random.default_rng(seed).integers(0, 15, n).astype(float))
    relevant = diversity.relevance(score)
    found = [*diversity.marginal(relevant, lambda rows: vectors[rows], weight)]
    assert found == naive(relevant, vectors, weight, n)


def test_equal_examples_are_chosen_in_their_order(small):
    same = np.repeat(points(0, 1), 80, axis=0)
    assert [*diversity.marginal(np.ones(80), lambda rows: same[rows], 0.5)] == [*range(80)]


@pytest.mark.parametrize("copies", [1, 20])
def test_largest_cosines_are_exact_where_many_are_almost_equal(copies):
    draw = np.random.default_rng(copies)
    near = np.repeat(points(3, 40, d=300), copies, axis=0) + draw.normal(scale=1e-6, size=(40 * copies, 300))
    near = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    near = np.rint(near * diversity.GRID) / diversity.GRID
    rows, others = near[::3], near[1::2]
    exact = (rows.astype(np.float64) @ others.T.astype(np.float64)).max(axis=1)
    assert (diversity.largest_cosine(rows, others, np.full(len(rows), diversity.LEAST)) == exact).all()
    least = exact + np.where(np.arange(len(rows)) % 2, 1e-9, -1e-9)
    assert (diversity.largest_cosine(rows, others, least) == np.maximum(exact, least)).all()


def test_every_example_comes_once_and_then_no_more():
    vectors = points(0, 30)
    found = [*diversity.marginal(np.linspace(1, 0, 30), lambda rows: vectors[rows], 0.5)]
    assert sorted(found) == [*range(30)]


def test_most_pairs_are_not_compared(monkeypatch):
    n, k, pairs, compare = 20_000, 1000, 0, diversity.largest_cosine

    def counted(rows, others, least):
        nonlocal pairs
        pairs += len(rows) * len(others)
        return compare(rows, others, least)

    monkeypatch.setattr(diversity, "largest_cosine", counted)
    vectors = points(1, n, d=16, clusters=50)
    places = diversity.marginal(np.linspace(1, 0, n), lambda rows: vectors[rows], 0.3)
    assert len({*islice(places, k)}) == k
    assert k * k / 2 < pairs < n * k / 5


def test_relevance_is_the_rank_from_one_to_nought_and_equal_scores_share_it():
    assert diversity.relevance(np.array([5.0, 3.0, 3.0, 3.0, 1.0])).tolist() == [1, 0.5, 0.5, 0.5, 0]
    assert diversity.relevance(np.array([2.0])).tolist() == [1]


def chosen(score, vectors, lengths=None, **keys):
    rule = Selection(method="icp", diverse={"by": "embedding", "weight": 0.4}, **keys).model_dump(mode="json")
    table = pd.DataFrame({"id": [f"x{i:03}" for i in range(len(score))], "score": score})
    return selecting.select("mine", rule, table, lengths, vectors=lambda rows: vectors[rows]).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_a_diverse_selection_is_of_evaluated_rows_the_best_or_the_worst_and_fits_its_tokens(seed):
    draw = np.random.default_rng(seed)
    score, vectors, lengths = draw.normal(size=60), points(seed, 60), draw.integers(1, 9, 60)
    score[:5] = np.nan
    for best, keys in ((True, {"top": 12}), (False, {"bottom": 12}), (True, {"tokens": 50})):
        order = np.argsort(-score if best else score, kind="stable")[:55]
        wanted = order[naive(np.linspace(1, 0, 55), vectors[order], 0.4, 55)]
        n = 12 if "tokens" not in keys else int((np.cumsum(lengths[wanted]) <= 50).sum())
        assert chosen(score, vectors, lengths, **keys) == wanted[:n].tolist()
    with pytest.raises(ScoreError, match="it asks for 56 examples, but there are only 55"):
        chosen(score, vectors, lengths, top=56)
    with pytest.raises(ScoreError, match="it asks for 999 tokens, but the examples with a score have only"):
        chosen(score, vectors, lengths, tokens=999)


def test_embeddings_are_read_by_the_place_of_each_score_in_the_file(tmp_path):
    np.save(tmp_path / "embeddings.npy", points(0, 20))
    rows = np.random.default_rng(0).permutation(20)
    read = selecting.vectors_of(tmp_path / "embeddings.npy", rows)
    assert (read(np.array([3, 0, 19])) == points(0, 20)[rows[[3, 0, 19]]]).all()
