"""Linear regression in context: closed forms, a transformer that learns it, correlations, figures."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import nn

from icprobe.attribution import METHODS
from icprobe.config import load
from icprobe.config.sections import Synthetic
from icprobe.errors import ConfigError, ModelError
from icprobe.synthetic import closed_forms, figures
from icprobe.synthetic.regressor import batch, draw, regressor, train
from icprobe.synthetic.regressor import load as load_regressor
from icprobe.synthetic.values import icp, predictions, value_points

SETTINGS = Synthetic(
    dimensions=[1, 3], noise=[0.0, 0.5], points=4, functions=20, width=16, layers=2, heads=2, steps=12, batch_size=16
).model_dump(mode="json")


def rng(seed=0):
    return np.random.default_rng(seed)


def points_and_query(d, sigma, functions=6, points=5, seed=0):
    x, y = draw(functions, points + 1, d, sigma, rng(seed))
    return x[:, :-1], y[:, :-1], x[:, -1], y[:, -1]


class Ridge(nn.Module):
    """The best learner there is, called as a Regressor is: the posterior mean in float64, by the normal equations."""

    def forward(self, x, y, noise):
        x, y = x.double(), y.double()
        found = torch.zeros_like(y)
        for row, sigma in enumerate(noise.double()):
            for k in range(1, y.shape[1]):
                precision = x[row, :k].T @ x[row, :k] + sigma**2 * torch.eye(x.shape[2])
                found[row, k] = x[row, k] @ torch.linalg.solve(precision, x[row, :k].T @ y[row, :k])
        return found


# --- closed forms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 5])
def test_influence_is_the_dot_product_of_the_linear_models_gradients(d):
    x, y, query_x, query_y = points_and_query(d, 0.5)

    def gradient(inputs, target):
        w = torch.zeros(d, dtype=torch.float64, requires_grad=True)
        (0.5 * (target - w @ torch.from_numpy(inputs)) ** 2).backward()
        return w.grad

    found = closed_forms.influence(x, y, query_x, query_y)
    for f, p in np.ndindex(y.shape):
        expected = gradient(x[f, p], y[f, p]) @ gradient(query_x[f], query_y[f])
        assert found[f, p] == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("d", [1, 3])
def test_the_closed_form_is_the_gain_of_the_explicit_posterior(d, sigma):
    x, y, query_x, query_y = points_and_query(d, sigma)
    found = closed_forms.closed_form(x, y, query_x, query_y, sigma)
    for f, p in np.ndindex(y.shape):
        covariance = np.linalg.inv(np.eye(d) + np.outer(x[f, p], x[f, p]) / sigma**2)
        mean = covariance @ x[f, p] * y[f, p] / sigma**2
        expected = query_y[f] ** 2 / 2 - (query_y[f] - mean @ query_x[f]) ** 2 / 2
        assert found[f, p] == pytest.approx(expected, rel=1e-9)


def test_the_mean_of_the_closed_form_is_the_variance_that_a_point_takes_away():
    """E over w and noise, given x_z and x_t, is ½(x_z·x_t)²/(σ² + |x_z|²): half of what Var(w·x_t) falls by."""
    d, sigma, n = 3, 0.5, 200_000
    z, t = np.array([1.0, -0.5, 2.0]), np.array([0.3, 1.0, 1.0])
    w, noise = rng(1).standard_normal((n, d)), sigma * rng(2).standard_normal((n, 2))
    given = (np.broadcast_to(z, (n, 1, d)), (w @ z + noise[:, 0])[:, None], np.broadcast_to(t, (n, d)))
    gains = closed_forms.closed_form(*given, w @ t + noise[:, 1], sigma)
    expected = (z @ t) ** 2 / (sigma**2 + z @ z) / 2
    assert abs(gains.mean() - expected) < 4 * gains.std() / np.sqrt(n)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0])
def test_optimal_errors_are_those_of_ridge_regression(sigma):
    x, y = draw(5, 7, 3, sigma, rng())
    found = closed_forms.optimal_errors(x, y, sigma)
    for f, k in np.ndindex(y.shape):
        before, known = x[f, :k], y[f, :k]
        if sigma:
            w = np.linalg.solve(before.T @ before + sigma**2 * np.eye(3), before.T @ known)
        else:
            w = np.linalg.lstsq(before, known)[0]  # of least norm
        assert found[f, k] == pytest.approx((y[f, k] - x[f, k] @ w) ** 2, rel=1e-6, abs=1e-9)


def test_influence_and_the_closed_form_agree_where_noise_dominates():
    """There the update is small and its denominator constant: to first order they are one thing."""

    def correlation(d, sigma):
        points = points_and_query(d, sigma, functions=300, points=8)
        return spearmanr(
            closed_forms.influence(*points).ravel(), closed_forms.closed_form(*points, sigma).ravel()
        ).statistic

    assert correlation(2, 0.0) < 0.95
    assert correlation(2, 50.0) > 0.999


# --- values by a model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_icp_by_the_best_learner_is_the_closed_form(sigma):
    x, y = draw(4, 4, 3, sigma, rng())
    expected = closed_forms.closed_form(x[:, :-1], y[:, :-1], x[:, -1], y[:, -1], sigma)
    found = icp(Ridge(), x, y, sigma)
    assert found.shape == (4, 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        (predictions(Ridge(), x, y, sigma) - y) ** 2, closed_forms.optimal_errors(x, y, sigma), atol=1e-4
    )


def test_a_prediction_depends_on_its_x_and_on_what_stands_before_it_alone():
    model = regressor(SETTINGS, 0)
    x, y = (torch.from_numpy(array).float() for array in draw(2, 5, 3, 0.5, rng()))
    noise = torch.full((2,), 0.5)
    with torch.no_grad():
        plain = model(x, y, noise)
        for k in range(5):
            later_x, later_y = x.clone(), y.clone()
            later_x[:, k + 1 :], later_y[:, k:] = 9.0, 9.0
            torch.testing.assert_close(model(later_x, later_y, noise)[:, : k + 1], plain[:, : k + 1])
        other_x, other_y = x.clone(), y.clone()
        other_x[:, 0], other_y[:, 1] = 9.0, 9.0
        for changed in ((other_x, y, noise), (x, other_y, noise), (x, y, noise + 1)):
            assert not torch.allclose(model(*changed)[:, 2:], plain[:, 2:])


def test_the_table_holds_each_method_for_each_point_and_the_errors_of_each_prompt_length():
    model = regressor(SETTINGS, 0).eval()
    values, learning = value_points(model, SETTINGS, seed=3)
    assert len(values) == 2 * 2 * 20 * 4
    assert len(learning) == 2 * 2 * 5
    again, _ = value_points(model, SETTINGS, seed=3)
    pd.testing.assert_frame_equal(values, again)
    other, _ = value_points(model, SETTINGS, seed=4)
    assert not np.allclose(values["influence"], other["influence"])
    # Nothing is known of a function before its first point: the best prediction is 0, its error the variance of y.
    nothing = learning[learning["n_context"] == 0].set_index(["dimension", "noise"])["optimal_squared_error"]
    for (d, sigma), error in nothing.items():
        assert error == pytest.approx(d + sigma**2, abs=5 * np.sqrt(2 / 20) * (d + 2 + sigma**2))


# --- training ---------------------------------------------------------------------------------------------------


def test_a_batch_depends_on_seed_and_step_and_zeroes_what_lies_beyond_a_functions_dimension():
    x, y, noise, variance = batch(SETTINGS, 0, 5)
    assert x.shape == (16, 5, 3)
    assert y.shape == (16, 5)
    assert set(noise.tolist()) == {0.0, 0.5}
    own = (x != 0).any(dim=1).sum(dim=1)
    assert set(own.tolist()) == {1, 3}
    torch.testing.assert_close(variance, own + noise**2)
    assert all(torch.equal(a, b) for a, b in zip(batch(SETTINGS, 0, 5), (x, y, noise, variance), strict=True))
    assert not torch.equal(batch(SETTINGS, 0, 6)[1], y)
    assert not torch.equal(batch(SETTINGS, 1, 5)[1], y)


def test_a_killed_training_ends_in_the_weights_of_one_that_was_not(tmp_path):
    settings = {**SETTINGS, "steps": 120}
    weights = {}
    for name in ("whole", "again", "other"):
        (tmp_path / name).mkdir()
        train(settings, 1 if name == "other" else 0, tmp_path / name / "model", tmp_path / name)
        weights[name] = (tmp_path / name / "model" / "model.safetensors").read_bytes()
    assert weights["whole"] == weights["again"] != weights["other"]

    def kill(metrics, step):
        if step == 100:
            raise KeyboardInterrupt

    (tmp_path / "killed").mkdir()
    with pytest.raises(KeyboardInterrupt):
        train(settings, 0, tmp_path / "killed" / "model", tmp_path / "killed", kill, checkpoint_seconds=0)
    assert not (tmp_path / "killed" / "model").exists()
    numbers = train(settings, 0, tmp_path / "killed" / "model", tmp_path / "killed")
    assert numbers["resumed_from_step"] == 99
    assert (tmp_path / "killed" / "model" / "model.safetensors").read_bytes() == weights["whole"]


def test_a_training_that_diverges_says_so(tmp_path):
    with pytest.raises(ModelError, match=r"diverges at step \d+ .*lower synthetic.learning_rate, which is 1e\+30"):
        train({**SETTINGS, "learning_rate": 1e30, "steps": 60}, 0, tmp_path / "model", tmp_path)


def test_the_transformer_learns_from_the_points_in_its_prompt(tmp_path):
    """One dimension, without noise: one point tells all. Some hundred steps bring it well below what w = 0 gives."""
    changes = {"dimensions": [1], "noise": [0.0], "points": 3, "width": 32, "steps": 600, "learning_rate": 3e-3}
    settings = {**SETTINGS, **changes, "functions": 300}
    train(settings, 0, tmp_path / "model", tmp_path)
    values, learning = value_points(load_regressor(tmp_path / "model", settings), settings, 0)
    error = learning.set_index("n_context")["squared_error"]
    assert error[3] < 0.6 * error[0], error.to_dict()
    assert spearmanr(values["icp"], values["closed_form"]).statistic > 0.5


# --- correlations -----------------------------------------------------------------------------------------------


def made_up(functions=12, points=5):
    shared = rng(0).standard_normal((functions, points))
    rows = []
    for d, sigma in ((1, 0.5), (2, 0.0)):
        made = {
            m: (shared + k * rng(k + d).standard_normal(shared.shape)).ravel()
            for k, m in enumerate(closed_forms.METHODS)
        }
        index = {"function": np.repeat(np.arange(functions), points), "point": np.tile(np.arange(points), functions)}
        rows.append(pd.DataFrame({"dimension": d, "noise": sigma, **index, **made}))
    return pd.concat(rows, ignore_index=True)


def naive(cell, a, b):
    groups = [spearmanr(g[a], g[b]).statistic for _, g in cell.groupby("function")]
    return {
        "spearman": spearmanr(cell[a], cell[b]).statistic,
        "pearson": pearsonr(cell[a], cell[b]).statistic,
        "spearman_within": np.mean(groups),
    }


def test_correlations_and_intervals_are_those_of_a_naive_bootstrap_over_functions():
    values = made_up()
    table = closed_forms.correlations(values.sample(frac=1, random_state=1), resamples=8, seed=2)
    assert len(table) == 2 * 3 * 3
    assert set(table["n"]) == {60}
    assert set(table["functions"]) == {12}
    for (d, sigma, a, b), rows in table.groupby(["dimension", "noise", "method_a", "method_b"]):
        cell = values[(values["dimension"] == d) & (values["noise"] == sigma)]
        generator = np.random.default_rng([2, d, round(1e6 * sigma)])
        draws = []
        for _ in range(8):
            chosen = generator.integers(0, 12, 12)
            parts = [cell[cell["function"] == f].assign(function=k) for k, f in enumerate(chosen)]
            draws.append(naive(pd.concat(parts), a, b))
        for row in rows.itertuples():
            assert row.value == pytest.approx(naive(cell, a, b)[row.statistic], abs=1e-12)
            expected = np.percentile([one[row.statistic] for one in draws], [2.5, 97.5])
            assert (row.low, row.high) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.filterwarnings("error")
def test_a_constant_method_has_no_correlation_and_fails_nothing():
    table = closed_forms.correlations(made_up().assign(icp=0.0), resamples=5)
    of_icp = table["method_a"] == "icp"
    assert table.loc[of_icp, ["value", "low", "high"]].isna().all(axis=None)
    assert table.loc[~of_icp, "value"].notna().all()


def test_points_that_are_worth_the_same_but_for_rounding_have_no_ranks():
    """In one dimension without noise every point tells all, so the closed form is ½y_t² for each of them."""
    x, y, query_x, query_y = points_and_query(1, 0.0, functions=20)
    worth = closed_forms.closed_form(x, y, query_x, query_y, 0.0)
    np.testing.assert_allclose(worth, np.broadcast_to(query_y[:, None] ** 2 / 2, worth.shape), rtol=1e-9)
    index = {"function": np.repeat(np.arange(20), 5), "point": np.tile(np.arange(5), 20)}
    made = {m: rng(k).standard_normal(100) for k, m in enumerate(closed_forms.METHODS)} | {"closed_form": worth.ravel()}
    table = closed_forms.correlations(pd.DataFrame({"dimension": 1, "noise": 0.0, **index, **made}), resamples=5)
    within = (table["statistic"] == "spearman_within") & (table["method_b"] == "closed_form")
    assert table.loc[within, "value"].isna().all()
    assert table.loc[~within, "value"].notna().all()


# --- figures and configuration ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_figures_show_every_pair_in_a_panel_for_each_value_of_the_other():
    table = closed_forms.correlations(made_up(), resamples=5)
    for against in ("noise", "dimension"):
        figure, shown = figures.correlations(table, against)
        assert len(figure.axes) == 2
        assert set(shown["statistic"]) == {"spearman"}
        drawn = {round(float(y), 9) for axes in figure.axes for line in axes.lines for y in line.get_ydata(orig=False)}
        assert set(shown["value"].round(9)) <= drawn


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"heads": 3}, "heads: 3 heads do not divide a width of 64"),
        ({"noise": [0.5, 0.5]}, "noise: 0.5 appears twice"),
        ({"noise": [-1]}, "greater than or equal to 0"),
        ({"dimensions": []}, "at least 1 item"),
        ({"dimension": [1]}, 'unknown key; did you mean "dimensions"'),
    ],
)
def test_settings_that_cannot_be_are_refused(changed, said):
    raw = {"experiment": "e", "models": ["m"], "model_sources": {"m": {"source": "external"}}, "data": {}}
    raw |= {
        "bins": [],
        "attribution": {"methods": ["random"], "aggregators": {}},
        "finetune": {"methods": [], "all_data": False},
    }
    load({**raw, "synthetic": {}}, METHODS)
    with pytest.raises(ConfigError, match=said):
        load({**raw, "synthetic": changed}, METHODS)
