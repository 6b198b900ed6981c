"""Figures: that they show the numbers given, keep text apart, and are the same bytes for the same numbers."""

import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from icprobe.figures.chain import chain_curves
from icprobe.figures.distributions import distributions
from icprobe.figures.drawing import save
from icprobe.figures.heat_map import heat_map
from icprobe.figures.lengths import length_scatter
from icprobe.figures.overlaps import overlap_curve
from icprobe.figures.scatter import scatter
from icprobe.figures.style import density, limits, look, tick
from icprobe.figures.sweep import sweep_points
from icprobe.figures.win_rates import win_rate_points
from icprobe.formatting import DIVERGING, OKABE_ITO, fixed
from icprobe.report import charts

METHODS = ["icp", "influence", "influence_log", "one_step", "length", "random", "another_method", "judge"]
AXES = {"icp": "icp score (share of tasks helped)", "influence": "influence score (nats² per task, mean)"}
BINS = ["<=0.5", ">0.5", ">0.8", ">0.85", ">0.9"]


def score_set(n, methods):
    rng = np.random.default_rng(0)
    ids = [f"e{i}" for i in range(n)]
    scores = {method: pd.Series(rng.standard_normal(n), index=ids) for method in METHODS[:methods]}
    scores["icp"] = (scores["icp"].rank(pct=True) * 12).round() / 12
    scores["influence"] = np.exp(3 * scores["influence"]) * 500
    return scores, pd.Series(rng.integers(3, 900, n), index=ids)


def correlation_table(methods):
    rows = [
        (a, b, statistic, 0.9 - 0.05 * k, 0.1, 0.95)
        for k, (a, b) in enumerate(itertools.combinations(METHODS[:methods], 2))
        for statistic in ("spearman", "spearman_partial_length")
    ]
    return pd.DataFrame(rows, columns=["method_a", "method_b", "statistic", "value", "low", "high"])


def overlap_table(methods):
    rows = [
        (m, b, 90 - 10 * k, 5, 0.9 - 0.1 * k, 0.5 - 0.1 * k, 0.85 - 0.1 * k, 0.95 - 0.1 * k)
        for m in METHODS[1:methods]
        for k, b in enumerate(BINS)
    ]
    rows += [(m, ">1", 0, 0, np.nan, 0.0, np.nan, np.nan) for m in METHODS[1:methods]]
    return pd.DataFrame(rows, columns=["method", "bin", "n", "n_overlap", "overlap", "chance", "low", "high"])


def win_rate_rows(methods):
    rows = [
        (m, b, 40.0 + 3 * k, 35.0 + 3 * k, 47.0 + 3 * k)
        for k, b in enumerate(["le-0.50", "gt-0.90"])
        for m in METHODS[:methods]
    ]
    rows += [(m, "gt-1.00", np.nan, np.nan, np.nan) for m in METHODS[:methods]] + [("all", "all", 55.0, 50.0, 60.0)]
    table = pd.DataFrame(rows, columns=["method", "bin", "win_rate", "low", "high"])
    other = table.assign(subset="koala", win_rate=1.0)
    return pd.concat([table.assign(subset="overall"), other]).assign(seed="all")


def chain_rows(steps):
    """Rows of chain.csv: the first link at 0.5, the second at 0.9; an error that falls with η and rises at the last."""
    rows = []
    for level, n in (("element", 360), ("example", 30)):
        rows.append(("icp~influence", level, np.nan, "spearman", 0.4, 0.3, 0.55, n))
        for eta in steps:
            for link, value in (("icp~one_step", 0.5), ("one_step~influence", 0.9)):
                rows.append((link, level, eta, "spearman", value, value - 0.2, value + 0.05, n))
    for k, eta in enumerate(sorted(steps)):
        error = 0.02 * 10 ** abs(k - 1)
        rows.append(("one_step~influence", "element", eta, "relative_error", error, error / 2, error * 1.5, 360))
    return pd.DataFrame(rows, columns=["link", "level", "learning_rate", "statistic", "value", "low", "high", "n"])


def sweep_rows(models, domains):
    """A table of `sweep_table`: in-domain and out-of-domain tasks in turn, the last domain undefined."""
    rows = []
    for m in range(models):
        for k, domain in enumerate(["all", *(f"domain {d}" for d in range(domains))]):
            kind = "all" if not k else ("out-of-domain", "in-domain")[k % 2]
            value = np.nan if k == domains > 0 else 0.8 - 0.1 * k + 0.05 * m
            rows.append((f"model-with-a-name-{m}", domain, kind, 3, value, value - 0.1, value + 0.1, 108))
    return pd.DataFrame(rows, columns=["model", "domain", "kind", "n_tasks", "value", "low", "high", "n"])


def all_figures(n, methods):
    scores, n_target = score_set(n, methods)
    kinds = pd.Series(np.resize(["sound", "mismatched", None], n), index=n_target.index, name="planted")
    table = correlation_table(methods)
    yield "scatter", scatter(scores, "icp", "influence", kinds, table, AXES)
    yield "distributions", distributions(scores, AXES)
    yield "length_scatter", length_scatter(scores, n_target, AXES, dict.fromkeys(scores, 0.5))
    yield "heat_map", heat_map(table, above="spearman_partial_length")
    yield "overlap_curve", overlap_curve(overlap_table(methods))
    yield "win_rate_points", win_rate_points(win_rate_rows(methods))
    yield "chain_curves", chain_curves(chain_rows([1e-6, 1e-5, 1e-4, 1e-3][: methods - 1]))
    yield "sweep_points", sweep_points(sweep_rows(methods - 1, methods))


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("n", "methods"), [(96, 2), (3000, 8)])
def test_texts_lie_inside_the_figure_and_apart(n, methods):
    for name, figure in all_figures(n, methods):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer, page = canvas.get_renderer(), figure.bbox
        boxes = {}
        for axes in figure.axes:
            drawn = [axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title, *axes.texts]
            ticks = [*axes.get_xticklabels(), *axes.get_yticklabels()] if name != "heat_map" else []
            low_x, high_x = sorted(axes.get_xlim())
            low_y, high_y = sorted(axes.get_ylim())
            for k, label in enumerate(ticks):
                x, y = label.get_position()
                if (low_x <= x <= high_x) and (low_y <= y <= high_y):
                    boxes[id(axes), "tick", k, label.get_text()] = label.get_window_extent(renderer)
            for k, text in enumerate(drawn):
                if text.get_text().strip() and text.get_visible():
                    # The title's empty lines are where the note stands.
                    kind = "title" if text is axes._left_title else "text"
                    boxes[id(axes), kind, k, text.get_text()] = text.get_window_extent(renderer)
        for legend in figure.legends:
            boxes["legend", "text", 0, "legend"] = legend.get_window_extent(renderer)
        for key, box in boxes.items():
            if key[3].strip():
                inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1
                assert inside, f"{name}: {key[3]!r} leaves the figure: {box} in {page}"
        for (one, box), (other, box2) in itertools.combinations(boxes.items(), 2):
            if not one[3].strip() or not other[3].strip() or (one[0] == other[0] and "title" in (one[1], other[1])):
                continue
            overlap = box.x0 < box2.x1 - 1 and box2.x0 < box.x1 - 1 and box.y0 < box2.y1 - 1 and box2.y0 < box.y1 - 1
            assert not overlap, f"{name}: {one[3]!r} and {other[3]!r} overlap"


def test_the_same_figure_is_the_same_file_beside_its_numbers(tmp_path):
    numbers = overlap_table(4)
    for name in ("one", "two"):
        save(overlap_curve(numbers), tmp_path / f"{name}.svg", numbers)
    first = (tmp_path / "one.svg").read_bytes()
    assert first == (tmp_path / "two.svg").read_bytes()
    assert b"<dc:date>" not in first
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "one.csv"), numbers)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [0, 1, 3, 2500])
def test_missing_and_constant_scores_are_drawn_without_a_warning(n, tmp_path):
    scores = {"same": pd.Series(np.ones(n)), "none": pd.Series(np.full(n, np.nan)), "any": pd.Series(np.arange(n) / 7)}
    for pair in itertools.permutations(scores, 2):
        save(scatter(scores, *pair), tmp_path / "scatter.svg", pd.DataFrame())
    save(distributions(scores), tmp_path / "distributions.svg", pd.DataFrame())
    lengths = pd.Series(np.full(n, 7))
    save(length_scatter(scores, lengths), tmp_path / "lengths.svg", pd.DataFrame())
    assert len(list(tmp_path.glob("*.svg"))) == len(list(tmp_path.glob("*.csv"))) == 3


@pytest.mark.filterwarnings("error")
def test_empty_tables_are_drawn_without_a_warning(tmp_path):
    empty = (
        correlation_table(1),
        overlap_table(1),
        win_rate_rows(1).iloc[:0],
        chain_rows([]).iloc[:0],
        sweep_rows(0, 0),
    )
    drawn = (heat_map, overlap_curve, win_rate_points)
    for draw, table in zip((*drawn, chain_curves, sweep_points), empty, strict=True):
        assert table.empty
        save(draw(table), tmp_path / f"{draw.__name__}.svg", table)
    assert len(list(tmp_path.glob("*.svg"))) == 5


def test_a_dense_scatter_counts_every_example():
    scores, _ = score_set(3000, 2)
    scores["influence"] = pd.Series(np.arange(3000.0), index=scores["icp"].index)
    scores["influence"].iloc[:500] = np.nan
    axes = scatter(scores, "icp", "influence").axes[0]
    (cells,) = [artist for artist in axes.collections if isinstance(artist, QuadMesh)]
    assert cells.get_array().sum() == 2500


def test_a_sparse_scatter_shows_every_example_with_its_label():
    scores, _ = score_set(96, 2)
    kinds = pd.Series(["sound"] * 60 + [None] * 36, index=scores["icp"].index, name="planted")
    figure = scatter(scores, "icp", "influence", kinds, colors=["#123456"])
    points = [artist for artist in figure.axes[0].collections if isinstance(artist, PathCollection)]
    assert sorted(len(artist.get_offsets()) for artist in points) == [36, 60]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["unlabelled (36)", "sound (60)"]


def test_the_pairs_correlations_stand_under_the_title():
    scores, _ = score_set(30, 3)
    table = correlation_table(3)
    table.loc[(table["method_a"] == "icp") & (table["method_b"] == "influence_log"), "value"] = [
        -0.123,
        np.nan,
    ]
    for a, b in (("icp", "influence_log"), ("influence_log", "icp")):
        notes = " ".join(texts(scatter(scores, a, b, correlations=table)))
        assert "Spearman −0.12 [0.10, 0.95], given length –" in notes


def test_a_long_tail_is_cut_and_counted():
    rng = np.random.default_rng(0)
    values = np.append(rng.uniform(-1, 1, 1000), [1e6, -1e6, 3e5])
    scores = {"x": pd.Series(values), "y": pd.Series(rng.uniform(-1, 1, 1003))}
    for figure in (scatter(scores, "x", "y"), distributions(scores)):
        assert figure.axes[0].get_xlim()[1] < 10
        assert any("3 outside" in text for text in texts(figure))
    assert limits(values[:1000]) == (values[:1000].min(), values[:1000].max())


def test_a_histogram_of_few_levels_has_a_bar_for_each():
    scores = {"icp": pd.Series(np.repeat([0.0, 0.25, 1.0], [5, 3, 2]))}
    bars = distributions(scores).axes[0].patches
    assert [bar.get_height() for bar in bars] == [5, 3, 2]
    assert np.allclose([bar.get_x() + bar.get_width() / 2 for bar in bars], [0, 0.25, 1])


def test_levels_that_rounding_tells_apart_are_one():
    rng = np.random.default_rng(0)
    rated = rng.integers(1, 6, (300, 3)).astype(float)
    levels, counts = np.unique(rated @ [20, 30, 50], return_counts=True)  # whole numbers: exact
    values = rated @ [0.2, 0.3, 0.5]
    assert len(np.unique(values)) > len(levels), "nothing was rounded"
    bars = distributions({"rated": pd.Series(values)}).axes[0].patches
    assert [bar.get_height() for bar in bars] == counts.tolist()
    assert min(bar.get_width() for bar in bars) > 0.05
    mesh = density(Figure().subplots(), values, values)
    assert mesh.get_array().sum() == len(values)
    assert (np.diff(mesh.get_coordinates()[0, :, 0]) > 0.05).all()


def test_scores_that_rounding_alone_tells_apart_are_one_bar():
    for values in ([0.3] * 50 + [0.1 + 0.2] * 50, [1e6] * 100, [0.0] * 100):
        axes = distributions({"rated": pd.Series(values)}).axes[0]
        assert max(bar.get_height() for bar in axes.patches) == 100


def test_the_heat_map_puts_each_number_in_its_cells():
    table = correlation_table(4)
    axes = heat_map(table, methods=["length", "icp", "one_step"][1:], above="spearman_partial_length").axes[0]
    value = table[(table["method_a"] == "icp") & (table["method_b"] == "one_step")]["value"].iloc[0]
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 1), fixed(value)),
        ((1, 0), fixed(value)),
    }
    table.loc[table["statistic"] == "spearman", "value"] = np.nan
    axes = heat_map(table, methods=["one_step", "icp"], above="spearman_partial_length").axes[0]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 1): "–",
        (1, 0): fixed(value),
    }


def test_overlap_curves_leave_empty_bins_out():
    axes = overlap_curve(overlap_table(3)).axes[0]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert list(lines) == ["influence", "influence_log"]
    assert np.allclose(lines["influence"], [0.9, 0.8, 0.7, 0.6, 0.5, np.nan], equal_nan=True)
    *intervals, chance = ([ends[:, 1] for ends in drawn.get_segments() if len(ends)] for drawn in axes.collections)
    assert np.allclose(chance[:5], np.tile([[0.5], [0.4], [0.3], [0.2], [0.1]], 2))
    assert all(np.allclose(ends[:5], [[0.85 - 0.1 * k, 0.95 - 0.1 * k] for k in range(5)]) for ends in intervals)
    assert [text.get_text() for text in axes.get_xticklabels()][::5] == ["≤ 0.5\n90", "> 1\n0"]


def test_equal_bins_are_one_place_on_the_axis():
    table = overlap_table(3)
    table.loc[table["bin"] == ">0.85", ["n", "chance"]] = table.loc[table["bin"] == ">0.8", ["n", "chance"]].to_numpy()
    axes = overlap_curve(table).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()][2:4] == ["> 0.8\n> 0.85\n70", "> 0.9\n50"]


def test_a_method_looks_alike_in_every_figure():
    table, methods = overlap_table(4), METHODS[:4]
    axes = (
        overlap_curve(table, methods=methods).axes[0],
        win_rate_points(win_rate_rows(4).query("method != 'icp'"), known=methods).axes[0],
    )
    scores, lengths = score_set(30, 4)
    for k, method in enumerate(methods[1:], start=1):
        expected = look(k, OKABE_ITO)
        (curve,) = [line for line in axes[0].lines if line.get_label() == method]
        (points,) = [bar.lines[0] for bar in axes[1].containers if bar.get_label() == method]
        for line in (curve, points):
            assert {"color": line.get_color(), "marker": line.get_marker()} == expected
        panel = length_scatter(scores, lengths).axes[k].collections[0]
        assert to_hex(panel.get_facecolor()[0]).upper() == expected["color"]


def test_the_report_has_the_colours_and_shapes_of_the_figures():
    rows = pd.DataFrame({"method": ["influence", "all"], "condition": ["i", "all data"], "win_rate": 50.0})
    chart = json.dumps(charts.win_rates(rows.assign(low=40.0, high=60.0), METHODS, "m"))
    expected = look(1, OKABE_ITO)
    assert {expected["color"], "square"} <= set(re.findall(r'"([^"]*)"', chart))
    assert (expected["marker"], OKABE_ITO[0] in chart) == ("s", False)
    map_ = charts.heat_map(correlation_table(3), METHODS[:3], "m")
    assert map_["layer"][0]["encoding"]["color"]["scale"]["range"] == list(DIVERGING)
    image = heat_map(correlation_table(3)).axes[0].images[0]
    assert [to_hex(image.cmap(image.norm(value))) for value in (-1, 1)] == [DIVERGING[0], DIVERGING[-1]]


def test_win_rates_show_the_chosen_subset_and_say_what_is_empty():
    axes = win_rate_points(win_rate_rows(2)).axes[0]
    rates = [rate for points in axes.containers for rate in points.lines[0].get_ydata()]
    assert np.allclose(rates, [40, 43, np.nan] * 2, equal_nan=True)
    assert [text.get_text() for text in axes.texts] == ["none judged", "none judged"]
    segments = [line.get_segments() for line in axes.collections]
    assert np.allclose(segments[0][0][:, 1], [35, 47])
    assert [line.get_ydata()[0] for line in axes.lines if line.get_label() in ("draw", "all data")] == [
        50,
        55,
    ]
    selected = pd.DataFrame([{"method": "best", "bin": "selected", "win_rate": 60.0, "low": 50.0, "high": 70.0}])
    both = pd.concat([win_rate_rows(2), selected.assign(subset="overall", seed="all")], ignore_index=True)
    texts = [text.get_text() for text in win_rate_points(both).axes[0].texts]
    assert texts == [text.get_text() for text in axes.texts], "what nobody trained is not empty"
    koala = win_rate_points(win_rate_rows(2), subset="koala").axes[0]
    assert koala.containers[0].lines[0].get_ydata()[0] == 1


def test_the_chain_is_drawn_by_step_size_with_intervals_and_the_error_on_log_axes():
    by_cells, by_scores, error = chain_curves(chain_rows([1e-4, 1e-6, 1e-5])).axes
    for axes in (by_cells, by_scores):
        drawn = {bar.get_label(): bar.lines[0].get_xydata() for bar in axes.containers}
        assert np.allclose(drawn["icp – one_step"], [[1e-6, 0.5], [1e-5, 0.5], [1e-4, 0.5]])
        assert np.allclose(drawn["one_step – influence"][:, 1], 0.9)
        ends = [line for line in axes.lines if line.get_label() == "icp – influence"]
        assert ends[0].get_ydata()[0] == 0.4
    assert np.allclose(error.containers[0].lines[0].get_xydata(), [[1e-6, 0.2], [1e-5, 0.02], [1e-4, 0.2]])
    assert np.allclose(error.containers[0].lines[2][0].get_segments()[1][:, 1], [0.01, 0.03])
    assert (error.get_xscale(), error.get_yscale()) == ("log", "log")
    assert "least at η\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}1e-05, rounding below" in texts(error.figure)


def test_a_sweep_tells_in_domain_tasks_from_others_by_colour_and_marker():
    figure = sweep_points(sweep_rows(2, 4))
    assert [axes._left_title.get_text().split("\n")[0] for axes in figure.axes] == [
        f"model-with-a-name-{m}" for m in (0, 1)
    ]
    axes = figure.axes[0]
    points = {line.get_label(): line for line in axes.lines if line.get_linestyle() == "None"}
    kinds = ["all tasks", "in-domain tasks", "out-of-domain tasks"]
    assert len({(points[kind].get_color(), points[kind].get_marker()) for kind in kinds}) == 3
    assert len({points[kind].get_marker() for kind in kinds}) == 3
    assert np.allclose(points["in-domain tasks"].get_xydata(), [[0.7, 1], [0.5, 3]])
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["all (3)", "domain 0 (3)"]
    assert "undefined" in texts(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == kinds


@pytest.mark.parametrize("n", range(1, 11))
def test_methods_stay_apart_when_colours_begin_again(n):
    """Seven colours and eight shapes: the eighth method had those of the first."""
    colors = [f"#{k:06x}" for k in range(n)]
    looks = [tuple(look(k, colors).values()) for k in range(8 * n)]
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize(
    ("value", "largest", "text"),
    [
        (8000, 9000, "8000"),
        (8000, 24000, "8k"),
        (-1.2e6, 2e6, "−1.2M"),
        (0, 1e6, "0"),
        (0.30000000000000004, 1, "0.3"),
    ],
)
def test_ticks_are_short(value, largest, text):
    assert tick(value, largest) == text


def test_a_tiny_negative_correlation_is_no_minus_zero():
    assert (fixed(-0.001), fixed(-0.25), fixed(np.nan)) == ("0.00", "−0.25", "–")
