"""The default detector: thresholds, p-values, explanations, arrays, warm starts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

import drocc_ext
from drocc_ext.estimators import DROCC, DROCCOutlierDetector
from drocc_ext.estimators.calibration import Calibration, held_out_rows
from drocc_ext.estimators.explanation import contributions, plot_explanation

FEW = {"max_steps": 12, "network": (16, 16)}


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


# ---- thresholds --------------------------------------------------------------------------------


def test_conformal_thresholds_against_their_definition(rng):
    calibration = Calibration(np.sort(rng.normal(size=99)), unseen=True)
    for share in (0.01, 0.05, 0.1, 0.5):
        threshold = calibration.threshold(share)
        fresh = np.concatenate([calibration.scores, rng.normal(size=100)])
        np.testing.assert_array_equal(fresh > threshold, calibration.p_value(fresh) <= share)
    assert calibration.p_value(np.array([-np.inf, np.inf])).tolist() == [1.0, 0.01]
    low, high = np.quantile(calibration.scores, [0.25, 0.75])
    assert calibration.threshold("auto") == pytest.approx(high + 1.5 * (high - low))


def test_rows_held_out():
    sizes = {3: 0, 4: 1, 50: 16, 100: 20, 200: 40, 600: 100, 1000: 100, 2000: 200}
    for count, size in sizes.items():
        held = held_out_rows(count, "auto", np.random.RandomState(0))
        assert len(held) == size and len(set(held)) == size
        assert len(held_out_rows(count, "training", np.random.RandomState(0))) == 0
    assert len(held_out_rows(40, 0.25, np.random.RandomState(0))) == 10


@pytest.mark.parametrize("kind", ["gauss", "clusters", "skewed", "wide", "ring"])
@pytest.mark.parametrize("count", [50, 200, 1000])
def test_fresh_normal_rows_are_flagged_as_promised(kind, count, seed):
    """Mean shares of several fits against what order statistics of the calibration promise."""
    rng = np.random.default_rng(seed)

    def draw(size):
        if kind == "gauss":
            return rng.normal(size=(size, 6))
        if kind == "clusters":
            return rng.normal(size=(size, 3)) + 6 * rng.integers(3, size=(size, 1))
        if kind == "skewed":
            return rng.lognormal(size=(size, 4))
        if kind == "wide":
            return rng.normal(size=(size, 80))
        angle = rng.uniform(0, 2 * np.pi, size)
        return np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(0, 0.05, (size, 2))

    fits, flagged = 6, {0.05: [], 0.1: []}
    for number in range(fits):
        fitted = DROCC(random_state=number, max_steps=20, network=(32, 32)).fit(draw(count))
        scores = fitted.decision_function(draw(1000))
        for share, shares in flagged.items():
            shares.append((scores > fitted.set_params(contamination=share).threshold_).mean())
    size = len(held_out_rows(count, "auto", np.random.RandomState(0)))
    for share, shares in flagged.items():
        # Of n calibrating rows the threshold is the k-th: the share above it is Beta(k, n + 1 - k).
        above = max(1, math.floor((size + 1) * share + 1e-9))
        chances = rng.beta(above, size + 1 - above, size=(100_000, fits))
        promised = rng.binomial(1000, chances).mean(axis=1) / 1000
        assert promised.min() <= np.mean(shares) <= promised.max()
        assert 0.5 * share <= above / (size + 1) <= 2 * share


def test_contamination_can_change_and_a_chosen_threshold_is_kept(rng, tmp_path):
    x = rng.normal(size=(100, 3))
    fitted = DROCC(0.1, random_state=0, **FEW).fit(x)
    scores, loose = fitted.decision_scores_, fitted.threshold_
    fitted.set_params(contamination=0.3)
    assert fitted.threshold_ < loose
    np.testing.assert_array_equal(fitted.labels_, scores > fitted.threshold_)
    fitted.set_params(contamination="auto")
    assert np.isfinite(fitted.threshold_)
    other = DROCCOutlierDetector(0.1, random_state=0, **FEW).fit(x)
    for wrong in (7, 0, -0.1, math.nan):
        for detector, shown in ((fitted, "threshold_"), (other, "offset_")):
            detector.set_params(contamination=wrong)
            with pytest.raises(ValueError, match=r"contamination must be in \(0, 0.5\], got"):
                getattr(detector, shown)
    fitted.set_params(contamination=0.3)
    fitted.threshold_ = 1.25
    fitted.save(tmp_path)
    for kind in (DROCC, DROCCOutlierDetector):
        loaded = kind.load(tmp_path)
        shown = loaded.threshold_ if kind is DROCC else -loaded.offset_
        assert shown == 1.25
        np.testing.assert_array_equal(loaded.p_value(x), fitted.p_value(x))
        np.testing.assert_allclose(loaded.explain(x[:3]), fitted.explain(x[:3]))
    assert fitted.fit(x).threshold_ != 1.25


# ---- explanations ------------------------------------------------------------------------------


def test_contributions_of_a_linear_network_are_its_terms(rng):
    network = nn.Linear(3, 1).double()
    rows = torch.from_numpy(rng.normal(size=(6, 3)))
    usual = float(network(rows).detach().max()) + 0.5
    given = rows.clone()
    parts = contributions(network, rows, usual, radius=10.0)
    assert torch.equal(rows, given)
    weight = network.weight.detach()[0]
    gain = usual - network(rows).detach().reshape(6, 1)
    torch.testing.assert_close(parts, gain * weight.square() / weight.square().sum())


def test_explanations_name_the_column_and_add_up(rng):
    x = rng.normal(size=(600, 6))
    fitted = DROCC(random_state=0, max_steps=150).fit(x)
    odd = x[:20].copy()
    odd[:, 4] = 7.0
    parts = fitted.explain(odd)
    assert parts.shape == odd.shape
    assert (parts.argmax(1) == 4).mean() > 0.9
    usual = np.median(fitted._calibration.scores)
    fall = np.maximum(fitted.decision_function(odd) - usual, 0)
    np.testing.assert_allclose(parts.sum(1), fall, rtol=1e-4, atol=1e-4)
    # From far away the gradient may lead to a summit that is none of the normal rows'.
    far = 2 * rng.normal(size=(60, 6))
    fall = np.maximum(fitted.decision_function(far) - usual, 0)
    np.testing.assert_allclose(fitted.explain(far).sum(1), fall, rtol=1e-4, atol=1e-4)


def test_plot_of_an_explanation():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    ax = plot_explanation([0.1, -2.0, 1.0], ["a", "b", "c"], most=2)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["c", "b"]
    with pytest.raises(ValueError, match="names must be 2"):
        plot_explanation([1.0, 2.0], ["a"])


# ---- networks, training ------------------------------------------------------------------------


def test_arrays_and_a_module_of_ones_own(rng, tmp_path):
    class Series(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv1d(2, 4, 3)
            self.logit = nn.Linear(4, 1)

        def forward(self, x):
            return self.logit(torch.relu(self.inner(x)).mean(2))

    x = rng.normal(size=(90, 2, 12))
    module = Series()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fitted = DROCC(network=module, random_state=0, max_steps=10).fit(x)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    scores = fitted.decision_function(x)
    assert scores.shape == (90,)
    assert fitted.explain(x[:3]).shape == (3, 2, 12)
    fitted.save(tmp_path)
    with pytest.raises(ValueError, match="pass"):
        DROCC.load(tmp_path)
    np.testing.assert_allclose(
        DROCC.load(tmp_path, network=Series()).decision_function(x), scores, rtol=1e-6
    )


def test_validation_history_and_patience(rng):
    x = rng.normal(size=(700, 4))
    settings = {"validation_fraction": 0.2, "random_state": 0, "max_steps": 40, "network": 8}
    fitted = DROCC(**settings).fit(x)
    assert all("monitor" in record for record in fitted.history_)
    # Ten times as long: no rows let such steps lead to something better in every epoch.
    settings["max_steps"] *= 10
    stopped = DROCC(**settings, patience=1, learning_rate=5.0).fit(x)
    assert len(stopped.history_) < 10 * len(fitted.history_)
    assert len(DROCC(random_state=0, **FEW).fit(x[:50]).history_) == 3  # one for each network


def test_warm_starts_and_further_rows_go_on_from_the_weights(rng):
    x, other = rng.normal(size=(600, 4)), rng.normal(size=(600, 4))
    fitted = DROCC(random_state=0, warm_start=True, **FEW).fit(x)
    cold = DROCC(random_state=0, **FEW).fit(x)

    def weight(estimator):
        return estimator.network_.logits.members[0].logit.weight

    weights = weight(fitted).clone()
    radius = fitted.radius_
    fitted.set_params(learning_rate=1e-12).fit(x)
    torch.testing.assert_close(weight(fitted), weights, rtol=0, atol=1e-6)
    fitted.partial_fit(other)
    torch.testing.assert_close(weight(fitted), weights, rtol=0, atol=1e-6)
    assert fitted.radius_ == radius
    assert (weight(cold.partial_fit(other)) != weights).any()
    with pytest.raises(ValueError, match="expecting 4 features"):
        fitted.partial_fit(x[:, :3])
    small = DROCC(random_state=0, **FEW).partial_fit(x[:60])
    assert len(small.partial_fit(other[:60]).network_.logits.members) == 3


@pytest.mark.parametrize("mode", ["float64", "float16", "meta", "cpu", "no_grad", "inference_mode"])
def test_torch_defaults_and_modes_around_a_fit_change_nothing(mode, rng):
    x = rng.normal(size=(520, 3))
    expected = DROCC(random_state=0, **FEW).fit(x).decision_function(x)
    before = torch.get_default_dtype()
    try:
        if mode.startswith("float"):
            torch.set_default_dtype(getattr(torch, mode))
            scores = DROCC(random_state=0, **FEW).fit(x).decision_function(x)
        else:
            is_device = mode in ("meta", "cpu")
            with torch.device(mode) if is_device else getattr(torch, mode)():
                scores = DROCC(random_state=0, **FEW).fit(x).decision_function(x)
    finally:
        torch.set_default_dtype(before)
    exactly = {"rtol": 0, "atol": 0}
    np.testing.assert_allclose(
        scores, expected, **({"rtol": 1e-5, "atol": 1e-6} if mode.startswith("float") else exactly)
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"hidden": 8}, {"hidden": None}),
        ({"hidden": 8}, {"hidden": 16}),
        ({"hidden": 8}, {"hidden": None, "network": (7,)}),
        ({"metric": "mahalanobis", "network": (8, 8)}, {"metric": "l2"}),
        ({"nearest": False, "network": (8, 8)}, {"nearest": True}),
        ({"network": (8, 8)}, {"network": nn.Linear(3, 1)}),
    ],
)
def test_training_does_not_go_on_with_another_network(before, after, rng):
    x = rng.normal(size=(60, 3))
    detector = DROCC(random_state=0, max_steps=2, **before).fit(x)
    scores = detector.decision_function(x)
    detector.set_params(**after)
    with pytest.raises(ValueError, match="partial_fit: network, hidden, metric and nearest must"):
        detector.partial_fit(x)
    detector.set_params(**{name: before.get(name) for name in after if name != "metric"})
    np.testing.assert_array_equal(detector.decision_function(x), scores)


def test_a_subclass_with_fewer_parameters(rng):
    class Mine(DROCC):
        def __init__(self, extra=1, random_state=None):
            super().__init__(random_state=random_state, **FEW)
            self.extra = extra

    x = rng.normal(size=(40, 2))
    expected = DROCC(random_state=0, **FEW).fit(x).decision_function(x)
    np.testing.assert_array_equal(Mine(random_state=0).fit(x).decision_function(x), expected)


@pytest.mark.parametrize(
    ("kind", "name"), [(DROCC, "threshold_"), (DROCCOutlierDetector, "offset_")]
)
def test_a_threshold_that_is_no_number_is_refused(kind, name, rng):
    detector = kind(random_state=0, **FEW).fit(rng.normal(size=(40, 2)))
    with pytest.raises(ValueError, match=f"{name} must be a number, got nan"):
        setattr(detector, name, math.nan)
    with pytest.raises(TypeError, match=f"{name} must be a number, got 'a'"):
        setattr(detector, name, "a")


# ---- what it finds -----------------------------------------------------------------------------


@pytest.mark.slow
def test_far_along_the_widest_directions_is_anomalous(seed):
    rng = np.random.default_rng(seed)
    axes = (
        np.linalg.qr(rng.normal(size=(20, 20)))[0] * np.r_[np.full(2, 8.0), np.full(18, 0.3)] ** 0.5
    )
    normal = rng.normal(size=(900, 20)) @ axes.T
    z = rng.normal(size=(50, 20))
    z[:, :2] *= 8 / np.linalg.norm(z[:, :2], axis=1, keepdims=True)
    test = np.concatenate([normal[600:], z @ axes.T])
    scores = DROCC(random_state=0).fit(normal[:600]).decision_function(test)
    assert roc_auc_score(np.repeat([0, 1], [300, 50]), scores) > 0.97


def test_names_are_public():
    assert drocc_ext.DROCC is DROCC


# ---- fits that fail ----------------------------------------------------------------------------


@pytest.mark.parametrize("former", [True, False], ids=["fitted", "not fitted"])
def test_a_fit_that_fails_leaves_the_estimator_as_it_was(former, rng):
    x = rng.normal(size=(60, 3))
    detector = DROCC(random_state=0, **FEW)
    if former:
        scores = detector.fit(x).decision_function(x)
    detector.set_params(learning_rate=1e20)
    with pytest.raises(FloatingPointError, match=r"not finite|must be finite"):
        detector.fit(1000 * x + 5)
    if former:
        np.testing.assert_array_equal(detector.decision_function(x), scores)
    else:
        with pytest.raises(NotFittedError):
            detector.decision_function(x)


def test_what_the_last_step_has_left_is_checked(rng):
    detector = DROCC(random_state=0, learning_rate=1e20, max_steps=1, network=(8, 8))
    with pytest.raises(FloatingPointError, match="scores of training rows must be finite, got nan"):
        detector.fit(rng.normal(size=(60, 3)))


@pytest.mark.parametrize("own", [False, True])
def test_an_optimizer_that_stands_still_is_told(own, rng):
    """Its mean of squares is infinite, so that it divides every gradient by infinity."""
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)) if own else (8, 8)
    detector = DROCC(random_state=0, max_steps=4, network=network, weight_decay=1e30)
    with pytest.raises(FloatingPointError, match="exp_avg_sq of the optimizer must be finite"):
        detector.fit(rng.normal(size=(60, 3)))


class BeyondTen(nn.Module):
    """A logit that is NaN for one row alone."""

    def __init__(self):
        super().__init__()
        self.logit = nn.Linear(2, 1)

    def forward(self, x):
        logits = self.logit(x)
        return torch.where(x[:, :1] > 5, torch.nan, logits)


def test_nan_from_a_network_passes_for_nothing(rng):
    x = rng.normal(size=(60, 2))
    # Near the rows, where adversarial points stay, it is a number.
    detector = DROCC(network=BeyondTen(), max_steps=2, radius=0.3, random_state=0).fit(x)
    far = np.concatenate([x, [[1e3, 0.0]]])
    for method in (detector.predict, detector.decision_function):
        with pytest.raises(FloatingPointError, match="got nan from the network for row 60"):
            method(far)
    scores, anomalous = detector.to_module()(torch.from_numpy(far))
    assert bool(scores[-1].isnan())
    assert bool(anomalous[-1])


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"radius": "x"}, TypeError, "DROCC: radius must be a number, got 'x'"),
        ({"radius": True}, TypeError, "DROCC: radius must be a number, got True"),
        ({"radius": 1e39}, ValueError, r"radius must be from 1.18e-38 to .* got 1e\+39"),
        ({"radius": 1e-45}, ValueError, "radius must be from 1.18e-38 to .* got 1e-45"),
        ({"learning_rate": 3e38}, ValueError, r"learning_rate must be at most 1e\+37, .* 3e\+38"),
        (
            {"learning_rate": 10**400},
            ValueError,
            "learning_rate must fit a float64, got an integer",
        ),
        ({"mu": 10**400}, ValueError, "mu must fit a float64, got an integer beyond it"),
        ({"mu": 1e39}, ValueError, r"DROCC: mu must fit float32, got 1e\+39"),
        ({"device": None}, TypeError, "DROCC: device must be a device or its name, got None"),
        ({"radius_range": (1,)}, TypeError, r"radius_range must be two numbers .* got \(1,\)"),
        ({"radius_range": (2, 1)}, ValueError, r"radius_range must have first <= second"),
        ({"radius_range": (1e-50, 1)}, ValueError, "radius_range must be from .* got 1e-50"),
        (
            {"radius_range": (1, 1e20), "radius": 1e20},
            ValueError,
            "radius times radius_range must be from .* got 1e.40",
        ),
    ],
)
def test_parameters_that_cannot_be(parameters, error, message, rng):
    with pytest.raises(error, match=message):
        DROCC(**{**FEW, **parameters}).fit(rng.normal(size=(30, 2)))


def test_what_a_masked_array_hides_is_missing(rng):
    x = rng.normal(size=(30, 2))
    detector = DROCC(random_state=0, **FEW).fit(np.ma.masked_array(x))
    hidden = np.ma.masked_array(x, mask=np.arange(60).reshape(30, 2) == 3)
    with pytest.raises(ValueError, match="Column 1 has missing values"):
        detector.decision_function(hidden)
    np.testing.assert_array_equal(detector.decision_function(np.ma.masked_array(x)).shape, (30,))


class AlwaysDropout(nn.Module):
    """Draws in eval mode too."""

    def forward(self, x):
        return F.dropout(x, training=True)


def test_dropout_of_a_module_follows_from_the_random_state(rng):
    x = rng.normal(size=(60, 3))
    module = nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 1))
    before = torch.get_rng_state()
    fits = [DROCC(network=module, max_steps=5, random_state=0).fit(x) for _ in range(2)]
    np.testing.assert_array_equal(fits[0].decision_function(x), fits[1].decision_function(x))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_module_of_the_wrong_width_is_named(rng):
    x = rng.normal(size=(60, 3))
    module, before = nn.Sequential(AlwaysDropout(), nn.Linear(4, 1)), torch.get_rng_state()
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"^network must take float32 rows of shape \(3,\), .*: mat1"
        ):
            DROCC(network=module, max_steps=5, random_state=0).fit(x)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_larger_than_the_data_takes_no_room(rng):
    x = rng.normal(size=(60, 3))
    scores = [
        DROCC(batch_size=size, random_state=0, **FEW).fit(x).decision_function(x)
        for size in (60, 2**62, 2**70)
    ]
    np.testing.assert_array_equal(scores[1], scores[0])
    np.testing.assert_array_equal(scores[2], scores[0])


def test_sizes_that_are_numpys(rng):
    x = rng.normal(size=(60, 3))
    for settings in ({"hidden": np.int64(8)}, {"network": (np.uint8(200), np.int8(100))}):
        fitted = DROCC(max_steps=np.uint8(7), batch_size=np.int8(100), random_state=0, **settings)
        same = DROCC(max_steps=7, batch_size=100, random_state=0, **settings)
        found = [estimator.fit(x).decision_function(x) for estimator in (fitted, same)]
        np.testing.assert_array_equal(*found)
