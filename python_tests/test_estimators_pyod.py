"""The contract of PyOD's detectors, as its users rely on it."""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

base = pytest.importorskip("pyod.models.base", reason="needs pyod")

import drocc_ext  # noqa: E402
from drocc_ext.estimators.pyod import DROCC  # noqa: E402

Rows = Any
# One small network that has learned something, soon.
SMALL: dict[str, Any] = {
    "hidden": 32,
    "max_steps": 100,
    "learning_rate": 1e-2,
    "calibration": "auto",
    "random_state": 0,
}


@pytest.fixture
def rows(rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Normal rows to train on; normal and then anomalous ones, 40 and 20, to look at."""
    normal = rng.normal(size=(240, 4))
    return normal[:200], np.concatenate([normal[200:], rng.normal(6.0, 1.0, size=(20, 4))])


def fitted(rows: Rows, **settings: Any) -> DROCC:
    return DROCC(**{**SMALL, **settings}).fit(rows)


def test_it_is_one_of_pyods_detectors(rows: tuple[Rows, Rows]) -> None:
    detector = DROCC()
    assert isinstance(detector, base.BaseDetector) and isinstance(detector, drocc_ext.DROCC)
    assert detector.contamination == 0.1
    with pytest.raises(NotFittedError):
        detector.predict(rows[0])
    with pytest.raises(NotFittedError):
        detector.predict_confidence(rows[0])
    methods = {name for name in dir(base.BaseDetector) if not name.startswith("_")}
    assert methods <= set(dir(detector))


def test_scores_are_those_of_the_plain_estimator(rows: tuple[Rows, Rows]) -> None:
    train, test = rows
    detector = fitted(train)
    plain = drocc_ext.DROCC(**SMALL).fit(train)
    np.testing.assert_array_equal(detector.decision_function(test), plain.decision_function(test))
    np.testing.assert_array_equal(detector.predict(test), plain.predict(test))
    assert detector.threshold_ == plain.threshold_


def test_training_attributes(rows: tuple[Rows, Rows]) -> None:
    detector = fitted(rows[0])
    assert detector.decision_scores_.shape == detector.labels_.shape == (200,)
    assert set(np.unique(detector.labels_)) <= {0, 1}
    over = (detector.decision_scores_ > detector.threshold_).astype(int)
    np.testing.assert_array_equal(detector.labels_, over)
    assert detector._mu == pytest.approx(detector.decision_scores_.mean())
    assert detector._sigma == pytest.approx(detector.decision_scores_.std())


def test_scores_tell_anomalies(rows: tuple[Rows, Rows]) -> None:
    train, test = rows
    detector = fitted(train)
    scores, labels = detector.decision_function(test), detector.predict(test)
    assert scores.shape == labels.shape == (60,)
    assert np.median(scores[40:]) > np.quantile(scores[:40], 0.9)
    assert labels[40:].mean() > labels[:40].mean()


@pytest.mark.parametrize("method", ["linear", "unify"])
def test_shares_add_up(rows: tuple[Rows, Rows], method: str) -> None:
    train, test = rows
    detector = fitted(train)
    shares = detector.predict_proba(test, method=method)
    assert shares.shape == (60, 2) and shares.min() >= 0 and shares.max() <= 1
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    order = np.argsort(detector.decision_function(test))
    assert (np.diff(shares[order, 1]) >= 0).all()
    both, confidence = detector.predict_proba(test, method=method, return_confidence=True)
    np.testing.assert_array_equal(both, shares)
    assert confidence.shape == (60,)
    with pytest.raises(ValueError, match="method"):
        detector.predict_proba(test, method="other")


def test_confidence_is_the_chance_of_the_same_label(
    rows: tuple[Rows, Rows], rng: np.random.Generator
) -> None:
    """Against its definition: the label of a row under training scores drawn anew."""
    train, test = rows
    detector = fitted(train, contamination=0.2)
    labels, confidence = detector.predict(test, return_confidence=True)
    np.testing.assert_array_equal(labels, detector.predict(test))
    np.testing.assert_array_equal(confidence, detector.predict_confidence(test))
    assert confidence.min() >= 0 and confidence.max() <= 1
    count, scores = 200, detector.decision_function(test)
    below = (detector.decision_scores_[:, None] <= scores).sum(axis=0)
    chance = (1 + below) / (2 + count)
    # The row is labelled anomalous where at most the share 0.2 of the drawn scores is above it.
    drawn = rng.binomial(count, chance, size=(20_000, len(test)))
    anomalous = (drawn > count - int(count * 0.2)).mean(axis=0)
    wanted = np.where(labels == 1, anomalous, 1 - anomalous)
    np.testing.assert_allclose(confidence, wanted, atol=0.02)


@pytest.mark.parametrize("contamination", [0.1, "auto"])
def test_rejection(rows: tuple[Rows, Rows], contamination: float | str) -> None:
    train, test = rows
    detector = fitted(train, contamination=contamination)
    settings = {"T": 5, "c_r": 0.1}
    labels, stats = detector.predict_with_rejection(test, return_stats=True, **settings)
    assert labels.shape == (60,) and set(np.unique(labels)) <= {0, 1, -2}
    kept = labels != -2
    np.testing.assert_array_equal(labels[kept], detector.predict(test)[kept])
    np.testing.assert_array_equal(labels, detector.predict_with_rejection(test, **settings))
    np.testing.assert_allclose(stats, detector.compute_rejection_stats(**settings))
    assert 0 <= stats[0] <= stats[1] and 0 < detector.rejection_threshold_ < 1
    all_kept = detector.predict_with_rejection(test, T=0.5, c_r=0.1)
    assert (all_kept == -2).sum() <= (labels == -2).sum()
    assert detector.contamination == contamination


def test_confidence_follows_what_is_labelled(rows: tuple[Rows, Rows]) -> None:
    train, test = rows
    detector = fitted(train, contamination="auto")
    share = float(np.clip(detector.labels_.mean(), 1 / 200, 0.5))
    confidence = detector.predict_confidence(test)
    detector.threshold_ = detector.threshold_
    detector.contamination = share
    np.testing.assert_array_equal(confidence, detector.predict_confidence(test))


def test_ranks_and_labels_of_other_code(rows: tuple[Rows, Rows]) -> None:
    train, test = rows
    detector = fitted(train)
    ranks = detector._predict_rank(test, normalized=True)
    assert ranks.min() >= 0 and ranks.max() == 1
    scores = detector.decision_function(test)
    assert (np.diff(ranks[np.argsort(scores)]) >= 0).all()
    np.testing.assert_array_equal(fitted(train).fit_predict(train), detector.labels_)


def test_copies(rows: tuple[Rows, Rows], tmp_path: Path) -> None:
    train, test = rows
    detector = fitted(train, contamination=0.3)
    fresh = clone(detector)
    assert type(fresh) is DROCC and fresh.get_params() == detector.get_params()
    assert not hasattr(fresh, "network_")
    assert "contamination=0.3" in repr(detector)
    pickled = pickle.loads(pickle.dumps(detector))
    detector.save(tmp_path)
    for other in (pickled, DROCC.load(tmp_path)):
        np.testing.assert_array_equal(
            other.predict_confidence(test), detector.predict_confidence(test)
        )


@pytest.mark.parametrize("contamination", [0.0, 0.6, -1.0])
def test_shares_out_of_range(rows: tuple[Rows, Rows], contamination: float) -> None:
    with pytest.raises(ValueError, match=r"contamination must be in \(0, 0.5\]"):
        fitted(rows[0], contamination=contamination)
    with pytest.raises(TypeError, match="contamination must be a number"):
        fitted(rows[0], contamination=torch.nn.Identity())


@pytest.mark.parametrize("ensemble", ["lscp", "feature_bagging"])
def test_pyods_ensembles_take_it(rows: tuple[Rows, Rows], ensemble: str) -> None:
    train, test = rows
    detector = DROCC(**SMALL)
    if ensemble == "lscp":
        from pyod.models.lscp import LSCP

        whole = LSCP([detector, clone(detector).set_params(random_state=1)], random_state=0)
    else:
        pytest.importorskip("combo", reason="PyOD's feature bagging needs combo")
        from pyod.models.feature_bagging import FeatureBagging

        whole = FeatureBagging(detector, n_estimators=2, random_state=0)
    scores = whole.fit(train).decision_function(test)
    assert np.isfinite(scores).all()
    assert np.median(scores[40:]) > np.median(scores[:40])


def test_without_pyod_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyod.models.base", None)
    monkeypatch.delitem(sys.modules, "drocc_ext.estimators.pyod")
    with pytest.raises(ImportError, match=r"needs PyOD, pip install drocc-ext\[pyod\]"):
        importlib.import_module("drocc_ext.estimators.pyod")
