"""Bins against sorted Python lists."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from icprobe.analysis.binning import bins, borders, check_bins, coarse, members, overlaps, ranks, size_of
from icprobe.analysis.headline import distinct_bins
from icprobe.errors import ConfigError, ScoreError
from icprobe.formatting import bin_label, bin_name, bin_of, bin_words, parse_bin

THRESHOLDS = ["<=0.5", ">0.5", ">0.8", ">0.85", ">0.9"]


def table(scores, ids=None):
    ids = [f"e{i}" for i in range(len(scores))] if ids is None else ids
    return pd.DataFrame({"id": ids, "score": np.asarray(list(scores), dtype=np.float64)})


def naive_bin(icp, other, threshold):
    """The design's sentence, word for word."""
    if threshold.startswith("<="):
        k = sum(score <= float(threshold[2:]) for score in icp.values())
        return sorted(other, key=lambda id_: (other[id_], id_))[:k]
    k = sum(score > float(threshold[1:]) for score in icp.values())
    return sorted(other, key=lambda id_: (-other[id_], id_))[:k]


scored = st.dictionaries(
    st.text("0129aé-", min_size=1, max_size=3),
    st.tuples(st.integers(0, 20).map(lambda k: k / 20), st.integers(-2, 2).map(float)),
    min_size=1,
    max_size=25,
)


@given(scored, st.randoms())
@settings(max_examples=100, deadline=None)
def test_bins_are_those_of_sorted_lists(examples, random):
    icp, other = ({id_: pair[k] for id_, pair in examples.items()} for k in (0, 1))
    shuffled = list(examples)
    random.shuffle(shuffled)
    icp_table = table(icp.values(), list(icp))
    other_table = table([other[id_] for id_ in shuffled], shuffled)
    found, own = bins(icp_table, other_table, THRESHOLDS), bins(icp_table, None, THRESHOLDS)
    for threshold in THRESHOLDS:
        assert found[threshold] == naive_bin(icp, other, threshold)
        assert own[threshold] == naive_bin(icp, icp, threshold)
        assert members(other_table, threshold, icp_table) == found[threshold]
        limit = float(threshold.lstrip("<=>"))
        met = {id_ for id_, s in icp.items() if (s <= limit if threshold[0] == "<" else s > limit)}
        assert set(own[threshold]) == met


@given(scored, st.randoms())
@settings(max_examples=60, deadline=None)
def test_overlaps_count_what_both_bins_hold(examples, random):
    icp, other = ({id_: pair[k] for id_, pair in examples.items()} for k in (0, 1))
    shuffled = list(examples)
    random.shuffle(shuffled)
    scores = {"other": pd.Series({id_: other[id_] for id_ in shuffled}), "icp": pd.Series(icp)}
    found = overlaps(scores, THRESHOLDS)
    assert found["bin"].tolist() == THRESHOLDS
    for row in found.itertuples():
        mine, theirs = naive_bin(icp, other, row.bin), naive_bin(icp, icp, row.bin)
        assert (row.method, row.n, row.n_overlap) == ("other", len(mine), len(set(mine) & set(theirs)))
        assert np.isclose(row.overlap, row.n_overlap / row.n if row.n else np.nan, equal_nan=True)
        assert row.chance == len(theirs) / len(icp)


def test_an_overlaps_interval_covers_the_truth_for_small_bins_too():
    """ICP's threshold is fixed, so that both bins' sizes change with the examples."""
    rng, n, limit = np.random.default_rng(0), 108, 0.93
    ids = [f"e{i:03}" for i in range(n)]

    def draw(size):
        return norm.cdf(rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], size))

    both = draw(400_000)
    truth = (both[both[:, 0] > limit, 1] > limit).mean()
    covered = []
    for icp, other in (draw(n).T for _ in range(300)):
        row = overlaps({"icp": pd.Series(icp, ids), "x": pd.Series(other, ids)}, [f">{limit}"]).iloc[0]
        assert np.isnan(row["overlap"]) or row["low"] <= row["overlap"] <= row["high"]
        covered.append(row["low"] <= truth <= row["high"])
    assert np.mean(covered) >= 0.93, np.mean(covered)


def test_an_overlap_of_none_or_all_of_a_few_is_not_certain():
    icp, same = (pd.Series([0.9, 0.8, 0.2, 0.1], list("abcd")) for _ in range(2))
    table = overlaps({"icp": icp, "same": same, "opposite": -same}, [">0.5"]).set_index("method")
    assert table.loc["same", ["overlap", "high"]].tolist() == [1, 1]
    assert table.loc["opposite", ["overlap", "low"]].tolist() == [0, 0]
    # Wilson: 2 of 2 leave 1/(1 + 1.96²/2) below.
    assert table.loc["same", "low"] == pytest.approx(1 / (1 + norm.ppf(0.975) ** 2 / 2))
    assert table.loc["opposite", "high"] == pytest.approx(1 - table.loc["same", "low"])


def test_ids_are_compared_as_strings():
    icp = table([1.0, 1.0, 0.0, 0.0], ["9", "10", "2", "100"])
    assert bins(icp, table([0.0] * 4, ["9", "10", "2", "100"]), [">0.5"]) == {">0.5": ["10", "100"]}


def test_a_score_on_the_threshold_is_below_it():
    icp = table([17 / 20, 85 / 100, 0.86])
    assert bins(icp, None, ["<=0.85", ">0.85"]) == {"<=0.85": ["e0", "e1"], ">0.85": ["e2"]}


def test_an_empty_bin_is_empty_and_its_row_says_zero():
    icp = table([0.1, 0.2])
    assert bins(icp, table([5.0, 6.0]), [">0.9"]) == {">0.9": []}
    row = overlaps({"icp": icp.set_index("id")["score"], "x": pd.Series({"e0": 1.0, "e1": 2.0})}, [">0.9"]).iloc[0]
    assert (row["n"], row["n_overlap"], row["chance"]) == (0, 0, 0)
    assert row[["overlap", "low", "high"]].isna().all()


@pytest.mark.parametrize(
    ("threshold", "name"),
    [
        *[("<=0.5", "le-0.50"), (">0.85", "gt-0.85"), (">0.9", "gt-0.90"), (">0.875", "gt-0.875")],
        *[("top 20%", "top-20pct"), ("bottom 2.5%", "bottom-2.5pct"), ("top 0.05%", "top-0.05pct")],
        *[("top 100%", "top-100pct"), ("top 1000", "top-1000"), ("bottom 10", "bottom-10")],
    ],
)
def test_a_bins_name_leads_back_to_it(threshold, name):
    assert bin_name(threshold) == name
    assert bin_of(name) == threshold
    assert bin_label(name) == bin_label(threshold) == threshold
    assert bin_words(name) == bin_words(threshold)


@pytest.mark.parametrize(
    ("threshold", "name"),
    [
        *[("<= 0.50", "le-0.50"), (">1", "gt-1.00"), ("<=0", "le-0.00"), (">.5", "gt-0.50")],
        *[("Top 20.0 %", "top-20pct"), ("top20%", "top-20pct"), (" bottom  010 ", "bottom-10")],
    ],
)
def test_equal_bins_have_one_name_however_they_are_written(threshold, name):
    assert bin_name(threshold) == name
    assert str(parse_bin(threshold)) == bin_of(name)


@pytest.mark.parametrize(
    "threshold",
    [
        *["0.5", ">=0.5", "<0.5", ">1.5", ">-0.1", ">", ">1e-1", ">0.5.1", ">nan", "", ">٠.٥", ">20%", "first 20%"],
        *["top 0%", "top 200%", "top 100.5%", "top 0.001%", "top 0", "top -3", "top 1.5", "top 1.0", "top 1e3", "top"],
    ],
)
def test_what_is_no_bin_is_refused(threshold):
    with pytest.raises(ConfigError, match="bins:"):
        bin_name(threshold)


@pytest.mark.parametrize(
    "name",
    ["all", "gt-0.9", "ge-0.90", "gt-9.00", "gt-0.90/..", "gt--0.90", "top-20%", "top-0pct", "top 20%", "le-20pct"],
)
def test_what_is_no_bins_name_is_refused(name):
    with pytest.raises(ConfigError):
        bin_of(name)


def test_two_thresholds_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="same bin"):
        check_bins([">0.5", "<=0.5", ">0.50"])


def test_examples_that_differ_are_refused():
    icp = table([0.1, 0.9])
    for other in (table([1.0]), table([1.0, 2.0], ["e0", "e7"])):
        with pytest.raises(ScoreError, match="same examples"):
            members(other, ">0.5", icp)
        with pytest.raises(ScoreError, match="scores of x"):
            overlaps({"icp": icp.set_index("id")["score"], "x": other.set_index("id")["score"]}, [">0.5"])


def test_an_icp_score_that_is_missing_is_refused():
    with pytest.raises(ScoreError, match="1 of 2 ICP scores are NaN"):
        bins(table([0.1, np.nan]), None, [">0.5"])
    with pytest.raises(ScoreError, match="Bins need the scores of icp"):
        overlaps({"x": pd.Series({"a": 1.0})}, [">0.5"])


@pytest.mark.parametrize(("threshold", "best"), [("<=0.5", ["e3"]), (">0.5", ["e1"])])
def test_an_example_that_was_not_evaluated_is_in_no_bin(threshold, best):
    icp = table([0.1, 0.9, 0.2, 0.8])
    partly = table([np.nan, 2.0, np.nan, 1.0])
    few = table([0.1, 0.9, 0.6, 0.6]) if threshold == "<=0.5" else table([0.1, 0.9, 0.2, 0.2])
    assert members(partly, threshold, few) == best
    row = overlaps({"icp": few.set_index("id")["score"], "x": partly.set_index("id")["score"]}, [threshold]).iloc[0]
    assert row["n"] == 1
    short = table([np.nan, np.nan, np.nan, 1.0])
    with pytest.raises(ScoreError, match=r"holds 2 examples of ICP, but the other method has evaluated 1 of 4"):
        members(short, threshold, icp)
    row = overlaps({"icp": icp.set_index("id")["score"], "x": short.set_index("id")["score"]}, [threshold]).iloc[0]
    assert (row["n"], row["n_overlap"], row["chance"]) == (1, int(threshold == ">0.5"), 0.5)


# --- bins by share or number ----------------------------------------------------------------------------------------


def naive_end(scores, effects, bin, k):
    """The first k by the score, then by the mean effect, then by the id."""
    sign = -1 if bin.startswith("top") else 1
    return sorted(scores, key=lambda id_: (sign * scores[id_], sign * effects.get(id_, 0), id_))[:k]


@given(scored, st.sampled_from(["top", "bottom"]), st.integers(1, 25), st.booleans())
@settings(max_examples=100, deadline=None)
def test_bins_by_number_are_those_of_sorted_lists(examples, end, k, with_effects):
    k, bin = min(k, len(examples)), f"{end} {min(k, len(examples))}"
    scores, effects = ({id_: pair[i] for id_, pair in examples.items()} for i in (1, 0))
    one = table(scores.values(), list(scores))
    if with_effects:
        one = one.assign(mean_effect=list(effects.values()))
    assert members(one, bin) == naive_end(scores, effects if with_effects else {}, bin, k)


@pytest.mark.parametrize(
    ("bin", "n", "size"),
    [
        *[("top 20%", 108, 22), ("bottom 20%", 24, 5), ("top 50%", 5, 3), ("top 0.1%", 24, 1), ("top 100%", 7, 7)],
        *[("top 7", 7, 7), ("bottom 1", 7, 1), ("top 20%", 0, 0)],
    ],
)
def test_a_share_is_rounded_half_up_and_holds_one_example_at_least(bin, n, size):
    assert size_of(bin, n) == size


def test_more_examples_than_there_are_is_refused_in_one_sentence():
    with pytest.raises(ScoreError, match=r"^bins: 'top 8' asks for more examples than there are \(7\)\. Take fewer"):
        members(table(range(7)), "top 8")


def test_a_bin_by_share_needs_no_icp_and_a_threshold_does():
    one = table([3.0, -1.0, 2.0, 0.5, 7.0])
    assert bins(None, one, ["top 40%", "bottom 2"]) == {"top 40%": ["e4", "e0"], "bottom 2": ["e1", "e3"]}
    with pytest.raises(ScoreError, match=r"Bin >0\.5 is a threshold on the icp score, which is absent"):
        members(one, ">0.5")


def test_every_method_is_compared_with_icps_own_bin_of_the_same_share():
    scores = {
        "icp": pd.Series([1.0, 0.5, 0.0, 0.25], list("abcd")),
        "x": pd.Series([9.0, -1.0, 3.0, 2.0], list("abcd")),
    }
    found = overlaps(scores, ["top 50%", "bottom 1"]).set_index("bin")
    assert found["n"].tolist() == [2, 1]
    assert found["n_overlap"].tolist() == [1, 0]
    assert found["chance"].tolist() == [0.5, 0.25]


def test_equal_scores_go_by_mean_effect_then_by_id():
    icp = table([1.0, 1.0, 1.0, 1.0, 0.0]).assign(mean_effect=[0.1, 0.4, 0.3, 0.4, 0.0])
    assert members(icp, "top 3") == ["e1", "e3", "e2"]
    assert members(icp, "top 4") == ["e1", "e3", "e2", "e0"], "within the bin, too"
    assert members(icp, "bottom 3") == ["e4", "e0", "e2"]
    assert members(icp.drop(columns="mean_effect"), "top 3") == ["e0", "e1", "e2"]
    # Another method's bin of a threshold has icp's size, and its border may fall among ties.
    reference = table([0.9, 0.9, 0.1, 0.1, 0.1])
    assert members(icp, ">0.5", reference) == ["e1", "e3"]
    scores = {"icp": reference, "one_step": icp}
    found = overlaps(
        {method: one.set_index("id")["score"] for method, one in scores.items()},
        [">0.5"],
        mean_effects={"one_step": icp.set_index("id")["mean_effect"]},
    )
    assert found["n_overlap"].tolist() == [1]


def test_examples_of_one_score_have_one_rank():
    score = pd.Series([1.0, 0.5, 1.0, np.nan, 0.0])
    assert ranks(score).tolist()[:3] == [1, 3, 1]
    assert np.isnan(ranks(score)[3])
    assert ranks(pd.Series([1.0] * 16 + [0.5] * 4)).value_counts().to_dict() == {1: 16, 17: 4}


def test_a_score_that_is_too_coarse_for_a_bin_is_warned_of():
    ids = [f"e{i:02}" for i in range(20)]
    scores = {"icp": pd.Series([1.0] * 16 + [0.5] * 4, ids), "influence": pd.Series(np.arange(20.0), ids)}
    found = borders(scores, ["bottom 20%", "top 20%", ">0.8"]).set_index(["method", "bin"])
    assert found.loc[("icp", "top 20%")].tolist() == [4, 1.0, 16, 4, 2]
    assert found.loc[("icp", "bottom 20%")].tolist() == [4, 0.5, 4, 4, 2], "all that are tied are in it"
    assert found.loc[("influence", "top 20%")].tolist() == [4, 16.0, 1, 1, 20]
    assert found.loc[("influence", ">0.8"), "n"] == 16
    (warning,) = coarse(found.reset_index())
    assert warning.startswith(
        "icp, bin top 20%: 16 examples share the score 1 at its border, and 4 of them are among its 4"
    )
    assert "it takes 2 values. If it is a share of tasks helped, more tasks or their mean" in warning


def test_ties_of_a_few_at_the_border_of_a_large_bin_are_not_warned_of():
    score = pd.Series([*np.arange(100.0), 80.0], [f"e{i:03}" for i in range(101)])
    found = borders({"length": score}, ["top 20"])
    assert found.loc[0, ["n_tied", "n_tied_inside"]].tolist() == [2, 1]
    assert coarse(found) == []


def test_an_empty_bin_has_no_border():
    icp = pd.Series([0.1, 0.2], ["a", "b"])
    row = borders({"icp": icp}, [">0.9"]).iloc[0]
    assert (row["n"], row["n_tied"], row["n_tied_inside"]) == (0, 0, 0)
    assert np.isnan(row["border"])


def test_thresholds_are_on_shares_of_tasks_alone():
    nats = table([0.2, -3.0, 7.5])
    with pytest.raises(ScoreError, match=r"a threshold on shares of tasks, but the icp scores go from −3 to 7\.5"):
        members(nats, ">0.5", nats)
    assert len(members(nats, "top 2")) == 2


def test_bins_of_other_sizes_are_others_though_icp_has_evaluated_fewer():
    scores = {"icp": table([4.0, 3.0, 2.0, 1.0, *[np.nan] * 6]), "influence": table(np.arange(10.0))}
    scores = {name: one.set_index("id")["score"] for name, one in scores.items()}
    names = ["top 50%", "top 60%"]
    found = overlaps(scores, names).assign(domain="all")
    assert found["n"].tolist() == [4, 4]
    assert [*distinct_bins(found, borders(scores, names))] == names
    assert [*distinct_bins(found)] == names[:1], "by overlaps alone it cannot be told"
