"""Columns of the default detector: scales, sentinels, rare deviations, what is no number."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from drocc_ext.estimators import DROCC
from drocc_ext.estimators.columns import ColumnScaler

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
    np.testing.assert_allclose(after[::2] - before[::2], np.log(96 + 2))  # 24 of 120 rows calibrate
    np.testing.assert_array_equal(after[1::2], before[1::2])


def test_more_rare_deviations_than_any_training_row_count(rng):
    x = rng.normal(size=(1000, 30))
    x[:, 10:] = rng.random((1000, 20)) < 0.004
    fitted = ColumnScaler.fit("test", x)
    assert fitted.rare.tolist() == list(range(10, 30))
    assert (fitted.penalty(x) > 0).mean() < 0.02
    far = x[:5].copy()
    far[:, 10:] = 1
    assert (fitted.penalty(far) > 3).all()
    parts = fitted.to_columns(np.zeros((5, fitted.width)), far)
    np.testing.assert_allclose(parts.sum(1), fitted.penalty(far))


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
