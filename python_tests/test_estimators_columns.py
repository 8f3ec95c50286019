"""Columns of the default detector: scales, sentinels, rare deviations, what is no number."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch

from drocc_ext.estimators import DROCC
from drocc_ext.estimators.columns import ColumnScaler
from drocc_ext.estimators.moments import _without_sentinels, robust_moments
from drocc_ext.models.persistence import checksum

FEW = {"max_steps": 12, "network": (16, 16)}


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def test_one_sentinel_does_not_ruin_a_column(rng):
    x = rng.normal(3, 2, size=(400, 2))
    clean = ColumnScaler.fit("test", x[1:])
    x[0, 0] = -999_999
    fitted = ColumnScaler.fit("test", x)
    np.testing.assert_allclose(fitted.scale[0], clean.scale[0], rtol=0.2)
    assert abs(fitted.mean[0] - clean.mean[0]) < 0.2 * clean.scale[0]
    assert np.abs(fitted.transform(x)).max() < 25


@pytest.mark.parametrize("rows", [7, 12, 60, 101, 130, 400])
def test_gross_values_do_not_ruin_a_column_of_few_rows_either(rows, rng):
    """Of N values none is more than sqrt(N - 1) deviations away."""
    x = rng.normal(3, 2, size=(rows, 2))
    clean = ColumnScaler.fit("test", x[1:])
    for gross in (1e4, -999_999.0, 1e38, -1e300):
        x[0, 0] = gross
        fitted = ColumnScaler.fit("test", x)
        assert clean.scale[0] / 2 < fitted.scale[0] < 4 * clean.scale[0]
        # It counts as one at ten deviations.
        assert abs(fitted.mean[0] - clean.mean[0]) < (0.5 + 12 / rows) * clean.scale[0]
        np.testing.assert_allclose(fitted.scale[1], x[:, 1].std(), rtol=1e-12)


def test_one_gross_row_leaves_the_others_their_order(rng):
    x = np.concatenate([rng.normal(size=(70, 3)), np.full((1, 3), 1e38)])
    detector = DROCC(random_state=0, **FEW).fit(x)
    scores = detector.decision_function(rng.normal(size=(50, 3)) * np.linspace(0.1, 6, 50)[:, None])
    assert len(np.unique(scores)) > 40
    assert scores[-10:].mean() > scores[:10].mean()


def test_a_column_without_far_values_is_standardized_as_usual(rng):
    x = rng.normal(3, 2, size=(300, 4)) * [1e-6, 1, 1e6, 3]
    fitted = ColumnScaler.fit("test", x)
    np.testing.assert_allclose(fitted.mean, x.mean(0))
    np.testing.assert_allclose(fitted.scale, x.std(0))
    assert np.mean(fitted.weight**2) == pytest.approx(1)
    expected = (x - x.mean(0)) / x.std(0)
    np.testing.assert_allclose(
        fitted.transform(x),
        expected
        * np.ptp(expected, axis=0) ** -0.5
        / np.sqrt(np.mean(np.ptp(expected, axis=0) ** -1.0)),
    )


def test_a_deviation_in_a_constant_column_is_anomalous_and_told(rng):
    pandas = pytest.importorskip("pandas")
    x = pandas.DataFrame(rng.normal(size=(120, 4)), columns=list("abcd"))
    x["c"] = 7.0
    fitted = DROCC(random_state=0, **FEW).fit(x)
    changed = x.copy()
    changed.loc[::2, "c"] = 7.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = fitted.decision_function(x)
    with pytest.warns(UserWarning, match="constant in training.*'c'$") as told:
        after = fitted.decision_function(changed)
    assert len(told) == 1
    scores = fitted._calibration.scores  # of 24 of the 120 rows
    unit = max(1.0, np.ptp(scores) / np.log(25))
    np.testing.assert_allclose(after[::2] - before[::2], unit * np.log(96 + 2))
    np.testing.assert_array_equal(after[1::2], before[1::2])


def test_more_rare_deviations_than_any_training_row_count(rng):
    x = rng.normal(size=(1000, 30))
    x[:, 10:] = rng.permuted(np.arange(1000)[:, None] + np.zeros((1, 20)), axis=0) < 4
    fitted = ColumnScaler.fit("test", x)
    assert fitted.rare.tolist() == list(range(10, 30))
    assert (fitted.penalty(x) > 0).mean() < 0.02
    far = x[:5].copy()
    far[:, 10:] = 1
    assert (fitted.penalty(far) > 3).all()
    surplus = np.array([0.0, 1.0, 2.0, 3.0, 1e9])
    parts = fitted.to_columns(np.zeros((5, fitted.width)), far, surplus)
    np.testing.assert_allclose(parts.sum(1), np.maximum(fitted.penalty(far) - surplus, 0))


@pytest.mark.parametrize("trained", [np.float64, np.float32])
def test_a_table_of_another_type_holds_the_same_values(trained, rng):
    x = rng.normal(size=(600, 5)).astype(np.float32)
    x = x.astype(np.float64)
    x[:, 1] = 0.1
    x[:, 2] = np.where(rng.permutation(600) < 5, 0.7, -1e-3)
    x[:, 3] = 16_777_217.0  # no number of float32
    detector = DROCC(random_state=0, **FEW).fit(x.astype(trained))
    expected = detector.decision_function(x if trained is np.float64 else x.astype(trained))
    if trained is np.float32:
        x[:, 3] = 16_777_216.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in (np.float64, np.float32):
            found = detector.decision_function(x.astype(kind))
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
            module = detector.to_module()
            scores, _ = module(torch.from_numpy(x.astype(kind)))
            np.testing.assert_allclose(scores.numpy(), found, rtol=1e-6, atol=1e-6)
        usual = x.copy()
        usual[:, 1:3] = usual[:, 1:3].astype(np.float16)
        np.testing.assert_allclose(
            detector.decision_function(usual[:, :]), expected, rtol=1e-6, atol=1e-6
        )
    for change in (1.0, 1e-6 if trained is np.float64 else 1e-5):
        odd = x[:5].copy()
        odd[:, 1] += change
        with pytest.warns(UserWarning, match="constant in training"):
            assert (detector.decision_function(odd) > expected[:5] + 1).all()


@pytest.mark.parametrize("hidden", [None, 8])
def test_a_column_that_varies_by_rounding_is_constant(hidden, rng):
    """Such as means of groups of one number."""
    x = rng.normal(size=(500, 4))
    x[:, 1] = [np.mean(np.full(count, 0.7)) for count in rng.integers(1, 60, 500)]
    x[:, 2] = [np.sum(np.full(count, 1e6 / 3)) / count for count in rng.integers(1, 60, 500)]
    assert len(np.unique(x[:, 1])) > 3
    detector = DROCC(random_state=0, hidden=hidden, max_steps=12).fit(x[:400])
    expected = detector.decision_function(x[400:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in (np.float32, np.float64):
            rows = x[400:].astype(kind)
            scores, _ = detector.to_module()(torch.from_numpy(rows))
            for found in (detector.decision_function(rows), scores.numpy()):
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    odd = x[400:].copy()
    odd[:, 1] = 0.70001
    if hidden is None:
        with pytest.warns(UserWarning, match="constant in training"):
            assert (detector.decision_function(odd) > expected + 1).all()
    # What varies by more is an input; float32 has no room for it.
    x[:, 1] = 0.7 + 1e-11 * rng.normal(size=500)
    detector = DROCC(random_state=0, hidden=hidden, max_steps=12).fit(x[:400])
    with pytest.warns(UserWarning, match=r"in float32, .*; pass float64 \(from 0\): 1$"):
        detector.decision_function(x[400:].astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.decision_function(x[400:])
        x[400:, 1] = 0.7
        detector.decision_function(x[400:])


def test_explanations_of_deviations_add_up(rng):
    x = rng.normal(size=(400, 4))
    x[:, 3] = 0
    x[:, 2] = rng.permutation(400) < 2
    detector = DROCC(random_state=0, max_steps=100, network=(16, 16)).fit(x)
    odd = x[:200].copy()
    odd[:150, 3] = 1
    odd[100:, 2] = 5.0
    usual = np.median(detector._calibration.scores)
    with pytest.warns(UserWarning, match="constant in training"):
        fall = np.maximum(detector.decision_function(odd) - usual, 0)
    parts = detector.explain(odd)
    assert (fall > 0.1).sum() > 100
    np.testing.assert_allclose(parts.sum(1), fall, rtol=1e-4, atol=1e-4)


def test_dates_and_columns_of_one_name(rng):
    pandas = pytest.importorskip("pandas")
    days = np.arange(40).astype("datetime64[D]")
    with pytest.raises(ValueError, match=r"^DROCC: X must hold numbers, got datetime64\[D\]$"):
        DROCC(**FEW).fit(days[:, None])
    frame = pandas.DataFrame({"size": rng.normal(size=40), "day": days})
    with pytest.raises(ValueError, match=r"^DROCC: column 'day' must hold numbers, got dates"):
        DROCC(**FEW).fit(frame)
    twice = pandas.DataFrame(rng.normal(size=(40, 3)), columns=["a", "a", "b"]).astype(object)
    for kind in (object, np.float64):
        with pytest.raises(ValueError, match=r"^DROCC: columns must have names .* got 'a' twice$"):
            DROCC(**FEW).fit(twice.astype(kind))


@pytest.mark.parametrize("settings", [{}, {"nearest": False}, {"hidden": 8}])
def test_a_score_does_not_depend_on_the_other_rows(settings, rng):
    x = rng.normal(size=(300, 5))
    parameters = {"max_steps": 12, **({} if "hidden" in settings else {"network": (16, 16)})}
    detector = DROCC(random_state=0, **parameters, **settings).fit(x)
    scores = detector.decision_function(x)
    for rows in (slice(42, 43), slice(7, 20), slice(0, 299)):
        np.testing.assert_array_equal(detector.decision_function(x[rows]), scores[rows])
    assert len(np.unique(detector.decision_function(np.tile(x[:1] * 1.3, (33, 1))))) == 1


def test_many_copies_fit_without_a_radius(rng):
    patterns = rng.normal(size=(64, 5))
    x = patterns[rng.integers(64, size=2000)]
    fitted = DROCC(random_state=0, **FEW).fit(x)
    assert fitted.radius_ > 0
    assert np.isfinite(fitted.decision_function(x[:50])).all()


def test_what_is_no_number_is_named(rng):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"size": rng.normal(size=40), "color": ["red", "blue"] * 20})
    with pytest.raises(ValueError, match=r"column 'color' must hold numbers.*OneHotEncoder"):
        DROCC(**FEW).fit(frame)
    with pytest.raises(ValueError, match="column 'color' must hold numbers"):
        DROCC(**FEW).fit(frame.astype({"color": "category"}))
    numbers = pandas.DataFrame(rng.normal(size=(40, 2)), columns=["size", "weight"])
    numbers.loc[3, "weight"] = np.nan
    with pytest.raises(ValueError, match=r"NaN.*Column 'weight' has missing.*SimpleImputer"):
        DROCC(**FEW).fit(numbers)


@pytest.mark.parametrize("size", [1e-160, 3e-162])
@pytest.mark.parametrize("hidden", [None, 8])
def test_deviations_whose_squares_underflow_are_refused(size, hidden, rng):
    x = rng.normal(size=(60, 2))
    x[:, 1] *= size
    with pytest.raises(ValueError, match="column 1 are too large or too close to standardize"):
        DROCC(max_steps=5, hidden=hidden).fit(x)


@pytest.mark.parametrize("count", [1000, 2000])
def test_what_no_row_had_is_flagged_at_any_contamination(count, rng):
    def table(rows, usual, seldom):
        return np.column_stack([rng.normal(size=(rows, 4)), np.full(rows, usual), seldom])

    some = np.where(rng.permutation(count) < count // 150, rng.integers(1, 4, count), 0)
    detector = DROCC(random_state=0, max_steps=60).fit(table(count, 0.0, some))
    fresh, zeros = table(500, 0.0, np.zeros(500)), np.zeros(500)
    usual = detector.decision_function(fresh)
    for contamination in (0.1, 0.05, 0.01):
        detector.contamination = contamination
        with pytest.warns(UserWarning, match="constant in training, which raises their scores"):
            assert detector.predict(table(500, 1e6, zeros)).mean() > 0.95
        for value in (1e6, -1.0):
            assert detector.predict(table(500, 0.0, np.full(500, value))).mean() > 0.95
        known = detector.decision_function(
            np.column_stack([fresh[:, :5], np.full(500, some.max())])
        )
        np.testing.assert_allclose(known, usual)  # a single deviation that some rows had
    odd = table(60, 1.0, np.r_[np.zeros(30), np.full(30, 9.0)])
    with pytest.warns(UserWarning, match="constant in training"):
        found = detector.decision_function(odd)
    scores, _ = detector.to_module()(torch.from_numpy(odd))
    np.testing.assert_allclose(scores.numpy(), found, rtol=1e-6)
    parts = detector.explain(odd)
    fall = found - np.median(detector._calibration.scores)
    np.testing.assert_allclose(parts.sum(1), fall, rtol=1e-4, atol=1e-4)
    assert (parts[:, 4] > 1).all() and (parts[30:, 5] > 1).all()


@pytest.mark.parametrize("share", [0.005, 0.02, 0.05, 0.15])
@pytest.mark.parametrize("count", [300, 3000])
def test_sentinels_are_no_part_of_a_columns_scale(count, share, rng):
    x = rng.normal(37, 0.5, size=(count, 3))
    chosen = rng.random(count) < share
    x[chosen, 0] = 99_999.0
    x[chosen, 1] = np.where(rng.random(chosen.sum()) < 0.5, -1e9, 1e9)
    mean, scale = robust_moments(x)
    share = chosen.mean()
    for column in range(2):
        # A share at ten deviations, or fewer, on one side or on both.
        assert 0.4 < scale[column] < 0.5 * np.sqrt(1 + 100 * max(share, 2 / count)) + 0.3
        assert abs(mean[column] - 37) < 0.5 + 5 * share
    expected = robust_moments(x[:, 2:])
    np.testing.assert_allclose([mean[2:], scale[2:]], expected)


def test_long_tails_and_few_values_are_no_sentinels(rng):
    count = 3000
    x = np.column_stack(
        [
            rng.lognormal(0, 2, count),
            rng.standard_cauchy(count),
            np.round(rng.lognormal(3, 1.5, count)),
            rng.poisson(0.5, count),
            rng.integers(0, 2, count) * 1000.0,
            np.minimum(rng.exponential(1.0, count), 2.0),
        ]
    )
    assert list(_without_sentinels(x)) == []


def test_a_table_trained_in_float16(rng):
    x = np.column_stack([rng.normal(size=(400, 3)), np.full(400, 0.1), np.full(400, 19.99)])
    detector = DROCC(random_state=0, **FEW).fit(x.astype(np.float16))
    found = [detector.predict(x.astype(kind)).mean() for kind in (np.float16, np.float32, float)]
    module = detector.to_module()
    found += [module(torch.from_numpy(x.astype(kind)))[1].double().mean() for kind in ("f4", "f8")]
    assert max(found) < 0.3
    with pytest.warns(UserWarning, match="constant in training"):
        detector.predict(x + 0.01)
    # A large integer is another where the table was of float64, and the same where of float32.
    for kind, differs in (("f4", False), ("f8", True)):
        x[:, 3] = 123_456_789.0
        detector.fit(x.astype(kind))
        x[:, 3] = 123_456_790.0
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            detector.predict(x)
        assert bool(told) is differs


def test_a_file_of_a_former_version(rng, tmp_path):
    count = 1000
    x = np.column_stack([rng.normal(size=(count, 3)), np.zeros(count), rng.permutation(count) < 8])
    detector = DROCC(random_state=0, **FEW).fit(x)
    saved = tmp_path / "model"
    detector.save(saved)
    description = json.loads((saved / "config.json").read_text())
    former = description["config"]["estimator"]
    for name in ("low", "high", "never", "digits", "unit", "learned"):
        del former[name]
    description.pop("checksum")
    description["checksum"] = checksum(description)
    (saved / "config.json").write_text(json.dumps(description))
    loaded = DROCC.load(saved)
    np.testing.assert_array_equal(loaded.decision_function(x), detector.decision_function(x))
    odd = x[:5].copy()
    odd[:, 3] = 1.0
    with pytest.warns(UserWarning, match="constant in training"):
        rise = loaded.decision_function(odd) - loaded.decision_function(x[:5])
    np.testing.assert_allclose(rise, np.log(900 + 2), rtol=1e-6)  # 100 calibrate


@pytest.mark.parametrize("sentinel", [99_999.0, 98.0, -1e9])
@pytest.mark.parametrize("count", [300, 3000])
def test_sentinels_in_columns_with_a_usual_value(count, sentinel, rng):
    """Counts that are mostly 0, and flags."""
    counts = np.where(rng.random(count) < 0.85, 0, rng.poisson(2, count))
    flags = (rng.random(count) < 0.1).astype(float)
    x = np.column_stack([counts, flags])
    clean = x.std(axis=0)
    chosen = np.arange(count) % 50 == 7
    x[chosen] = sentinel
    _, scale = robust_moments(x)
    assert (scale < 2.5 * clean).all()
    # One alone, among few rows.
    x = np.column_stack([counts, flags])[:60]
    x[0] = -999_999.0
    x[1:7] = 1.0
    assert (robust_moments(x)[1] < 10).all()


def test_integers_are_not_rounded(rng):
    """Limits, dates as numbers and account numbers differ by one."""
    for usual, others in ((10_000, (9996, 10_003)), (20_240_104, (20_240_103, 20_240_105))):
        x = np.column_stack([rng.integers(0, 100, size=(500, 3)), np.full(500, usual)])
        detector = DROCC(random_state=0, **FEW).fit(x)
        for other in others:
            odd = x[:3].copy()
            odd[:, 3] = other
            with pytest.warns(UserWarning, match="constant in training"):
                detector.decision_function(odd)


@pytest.mark.parametrize("count", [20, 60, 101, 110, 300])
@pytest.mark.parametrize("away", [40, 200, 2000])
def test_one_value_far_away_among_any_number_of_rows(count, away, rng):
    x = rng.normal(50, 5, size=(count, 2))
    clean = x.std(axis=0)
    x[3, 0] = 50 - 5 * away
    _, scale = robust_moments(x)
    assert (scale < 4 * clean).all()  # what ten deviations in one row of twenty make


def test_one_row_of_float64_is_not_taken_for_float32(rng):
    x = np.column_stack([1.7e9 + np.arange(300.0), rng.normal(size=300)])
    detector = DROCC(random_state=0, **FEW).fit(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for row in x:
            detector.decision_function(row[None])


def test_rows_of_a_shape_that_the_network_does_not_take(rng):
    x = rng.normal(size=(40, 1, 8, 8))
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 1)
    )
    detector = DROCC(network=network, max_steps=3, random_state=0).fit(x)
    with pytest.raises(
        ValueError, match=r"^DROCC: the network cannot score rows of shape \(1, 8, 7"
    ):
        detector.predict(x[..., :7])
