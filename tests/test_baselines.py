"""Random data sets that a selection is compared with: as large in their own sense, drawn by seed, name, ids alone."""

import numpy as np
import pandas as pd
import pytest

from icprobe.analysis import selecting

SEEDS = range(8)
IDS = [f"x{i}" for i in range(3000)]
BASELINES = ("random", "random_tokens", "random_length")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_baseline_is_as_large_in_its_own_sense_and_has_no_example_twice(seed):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 500, size=3000)
    chosen = np.argsort(-lengths + draw.normal(0, 100, size=3000))[:400]  # long ones
    strata = selecting.baseline_strata(lengths)
    drawn = {kind: selecting.baseline("mine", kind, chosen, IDS, lengths, seed) for kind in BASELINES}
    assert all(len({*found}) == len(found) for found in drawn.values())
    assert len(drawn["random"]) == 400
    tokens = lengths[chosen].sum()
    assert abs(lengths[drawn["random_tokens"]].sum() - tokens) <= lengths.max() / 2
    assert np.bincount(strata[drawn["random_length"]], minlength=100).tolist() == (
        np.bincount(strata[chosen], minlength=100).tolist()
    )
    # As long as the selection within a percent, where the plain one is shorter by a third.
    assert abs(lengths[drawn["random_length"]].mean() / lengths[chosen].mean() - 1) < 0.01
    assert lengths[drawn["random"]].mean() < 0.8 * lengths[chosen].mean()


def test_strata_of_baselines_have_ten_examples_or_more_and_are_a_hundred_at_most():
    draw = np.random.default_rng(0)
    for lengths in (
        np.maximum(1, draw.lognormal(3, 1, 1000)).astype(int),
        np.maximum(1, draw.lognormal(5, 1, 20_000)).astype(int),
        np.array([5] * 39 + [9]),
        np.array([5] * 30 + [9] * 10 + [7] * 60),
        np.arange(29),
        np.arange(7),
    ):
        strata = selecting.baseline_strata(lengths)
        sizes = np.bincount(strata)
        assert len(sizes) <= 100
        assert sizes.min() >= min(10, len(lengths)), sizes
        assert (np.diff(strata[np.argsort(lengths)]) >= 0).all(), "a stratum is a range of lengths"
        assert pd.Series(strata).groupby(lengths).nunique().max() == 1
    assert np.bincount(selecting.baseline_strata(np.array([5] * 30 + [9] * 10 + [7] * 60))).tolist() == [30, 60, 10]
    assert len(np.bincount(selecting.baseline_strata(np.arange(20_000)))) == 100


def test_a_baseline_of_few_tokens_has_an_example():
    lengths = np.array([400] * 50 + [3] * 5)
    drawn = [selecting.baseline("best", "random_tokens", np.array([50, 51]), IDS[:55], lengths, s) for s in range(9)]
    assert {len(found) for found in drawn} >= {1}
    assert all(len(found) for found in drawn)


@pytest.mark.parametrize("kind", BASELINES)
def test_a_baseline_does_not_depend_on_the_order_of_the_rows(kind):
    draw = np.random.default_rng(1)
    lengths, order = draw.integers(1, 90, size=300), draw.permutation(300)
    ids, chosen = np.array(IDS[:300]), np.arange(40)
    drawn = selecting.baseline("a", kind, chosen, ids, lengths, 0)
    again = selecting.baseline("a", kind, np.argsort(order)[chosen], ids[order], lengths[order], 0)
    assert ids[drawn].tolist() == ids[order][again].tolist()


def test_a_baseline_is_drawn_by_the_seed_the_selection_s_name_and_the_ids_alone():
    lengths, chosen = np.arange(1, 101), np.arange(10)

    def drawn(name, seed, kind="random"):
        return selecting.baseline(name, kind, chosen, IDS[:100], lengths, seed).tolist()

    assert drawn("a", 0) == drawn("a", 0)
    assert len({tuple(drawn(name, seed)) for name in "ab" for seed in (0, 1)}) == 4
    assert drawn("a", 0, "random_length") != drawn("b", 0, "random_length")


def test_every_example_is_as_likely_to_be_drawn_as_any_other():
    counts = np.zeros(20)
    for seed in range(2000):
        counts[selecting.baseline("a", "random", np.arange(5), IDS[:20], None, seed)] += 1
    assert abs(counts / 2000 - 0.25).max() < 0.05  # five standard errors
