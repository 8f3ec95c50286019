"""Both estimators with known anomalies, and in the Mahalanobis metric."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch.optim.lr_scheduler import LinearLR

from drocc_ext.estimators import DROCC, DROCCOutlierDetector
from drocc_ext.models.networks import MLP
from drocc_ext.models.persistence import load_model, save_model
from drocc_ext.radius import suggest_radius
from drocc_ext.search import SearchConfig
from drocc_ext.training.loss import DROCCLoss
from drocc_ext.training.trainer import Trainer

ESTIMATORS = [DROCC, DROCCOutlierDetector]
METRICS = ["l2", "mahalanobis"]
TINY = {"max_steps": 3, "hidden": 4, "num_steps": 1, "random_state": 0}


def raw_scores(estimator, X):
    """The logits of either estimator."""
    if isinstance(estimator, DROCC):
        return -estimator.decision_function(X)
    return estimator.score_samples(X)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("metric", METRICS)
def test_negatives_are_only_trained_on(estimator, metric, rng):
    X, negatives = rng.normal(size=(60, 3)), rng.normal(5, 3, size=(7, 3))
    plain = estimator(metric=metric, **TINY).fit(X)
    fitted = estimator(metric=metric, **TINY).fit(X, X_negative=negatives)
    assert fitted.radius_ == plain.radius_
    for name in ("kept", "mean", "scale"):
        np.testing.assert_array_equal(
            getattr(fitted._standardizer, name), getattr(plain._standardizer, name)
        )
    logits = raw_scores(fitted, X)
    assert (logits != raw_scores(plain, X)).any()
    if estimator is DROCC:
        np.testing.assert_array_equal(fitted.decision_scores_, -logits)
        assert fitted.threshold_ == np.quantile(-logits, 0.9)
        assert fitted.labels_.shape == (60,)
    else:
        assert fitted.offset_ == np.quantile(logits, 0.1)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_metric_matters_and_y_does_not(estimator, rng):
    X, negatives = rng.normal(size=(60, 3)), rng.normal(size=(7, 3))
    scores = {
        metric: raw_scores(estimator(metric=metric, **TINY).fit(X, X_negative=negatives), X)
        for metric in METRICS
    }
    assert (scores["l2"] != scores["mahalanobis"]).any()
    with_y = estimator(metric="mahalanobis", **TINY).fit(X, np.zeros(60), X_negative=negatives)
    np.testing.assert_array_equal(raw_scores(with_y, X), scores["mahalanobis"])
    default = estimator(**TINY).fit(X, X_negative=negatives)
    np.testing.assert_array_equal(raw_scores(default, X), scores["l2"])


@pytest.mark.parametrize("metric", METRICS)
def test_training_is_the_documented_recipe(metric, rng):
    X = rng.normal(size=(60, 3)) * [1, 2, 30] + 5
    negatives = rng.normal(size=(9, 3)) * 1e4  # clipped
    fitted = DROCC(
        metric=metric, hidden=8, max_steps=9, batch_size=25, step_size=0.3, random_state=0
    ).fit(X, X_negative=negatives)

    seed = np.random.RandomState(0).randint(2**31 - 1)
    scaled = [np.clip((a - X.mean(0)) / X.std(0), -10, 10) for a in (X, negatives)]
    rows = [torch.tensor(a, dtype=torch.float32) for a in scaled]
    radius = suggest_radius(rows[0])
    torch.manual_seed(seed)
    network = MLP(3, hidden=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    search = SearchConfig(radius=radius, step_size=0.3 * radius, num_steps=5)
    trainer = Trainer(
        network,
        DROCCLoss(search, mu=2.0, metric=metric),
        optimizer,
        scheduler=LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=9),
        scheduler_interval="step",
        progress=False,
    )
    labels = torch.tensor([1.0] * 60 + [0.0] * 9)
    trainer.fit((torch.cat(rows), labels), max_steps=9, batch_size=25, seed=seed)
    np.testing.assert_allclose(
        fitted.decision_function(X), -trainer.score(rows[0]).numpy(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("metric", ["l2", pytest.param("mahalanobis", marks=pytest.mark.slow)])
def test_a_few_known_anomalies_help_on_real_data(metric, seed):
    data = load_breast_cancer()
    rng = np.random.default_rng(seed)
    benign = rng.permutation(data.data[data.target == 1])
    malignant = rng.permutation(data.data[data.target == 0])
    test = np.concatenate([benign[214:], malignant[20:]])
    labels = np.repeat([0, 1], [len(benign) - 214, len(malignant) - 20])
    auc = [
        roc_auc_score(
            labels,
            DROCC(metric=metric, random_state=0)
            .fit(benign[:214], X_negative=negatives)
            .decision_function(test),
        )
        for negatives in (None, malignant[:20])
    ]
    assert auc[1] > auc[0]
    assert auc[1] > 0.88


@pytest.mark.parametrize("metric", METRICS)
def test_fit_predict(metric, rng):
    X, negatives = rng.normal(size=(50, 3)), rng.normal(size=(4, 3))
    for estimator in ESTIMATORS:
        fitted = estimator(metric=metric, **TINY).fit(X, X_negative=negatives)
        other = estimator(metric=metric, **TINY)
        labels = other.fit_predict(X, X_negative=negatives)
        np.testing.assert_array_equal(labels, fitted.predict(X))
        np.testing.assert_array_equal(raw_scores(other, X), raw_scores(fitted, X))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_forms_of_negatives(estimator, rng):
    pandas = pytest.importorskip("pandas")
    X, negatives = rng.normal(size=(50, 3)), rng.normal(size=(4, 3))
    forms = [negatives, negatives.tolist(), torch.tensor(negatives), np.asfortranarray(negatives)]
    scores = [raw_scores(estimator(**TINY).fit(X, X_negative=form), X) for form in forms]
    for other in scores[1:]:
        np.testing.assert_array_equal(other, scores[0])
    frame = pandas.DataFrame(X, columns=list("abc"))
    known = pandas.DataFrame(negatives, columns=list("abc"))
    fitted = estimator(**TINY).fit(frame, X_negative=known)
    np.testing.assert_array_equal(raw_scores(fitted, frame), scores[0])
    assert list(fitted.feature_names_in_) == list("abc")
    with pytest.raises(ValueError, match=r"\.fit: X_negative: The feature names should match"):
        estimator(**TINY).fit(frame, X_negative=known[["b", "a", "c"]])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_bad_negatives_are_named(estimator, rng):
    scipy_sparse = pytest.importorskip("scipy.sparse")
    X = rng.normal(size=(30, 3))
    for bad, error, message in (
        (X[:0], ValueError, r"must hold at least one row, got shape \(0, 3\); leave it out where"),
        (X[:, :2], ValueError, "X has 2 features, but .* is expecting 3 features"),
        (X[0], ValueError, "Expected 2D array"),
        (np.where(X.mean() < X, np.nan, X), ValueError, "NaN"),
        (X + np.inf, ValueError, "infinity"),
        (X + 1j, ValueError, "Complex data not supported"),
        ([["a", "b", "c"]], ValueError, "could not convert string"),
        (scipy_sparse.csr_matrix(X), TypeError, "[Ss]parse"),
    ):
        fresh = estimator(**TINY)
        with pytest.raises(error, match=rf"^{estimator.__name__}\.fit: X_negative.*{message}"):
            fresh.fit(X, X_negative=bad)
        assert not hasattr(fresh, "network_")
    estimator(**TINY).fit(X, X_negative=X[:1])  # one row will do


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_more_negatives_than_a_batch(estimator, rng):
    """Most batches then hold no normal row."""
    X, negatives = rng.normal(size=(3, 2)), rng.normal(size=(200, 2))
    fitted = estimator(metric="mahalanobis", batch_size=2, **{**TINY, "max_steps": 110})
    fitted.fit(X, X_negative=negatives)
    assert np.isfinite(raw_scores(fitted, X)).all()


def test_grid_search_and_pipeline(rng):
    X, negatives = rng.normal(size=(60, 3)), rng.normal(size=(5, 3))
    y = np.tile([1, 1, 1, 1, -1], 12)
    pipeline = make_pipeline(FunctionTransformer(), DROCCOutlierDetector(**TINY))
    grid = {"droccoutlierdetector__metric": METRICS}
    search = GridSearchCV(pipeline, grid, scoring="roc_auc", cv=2, error_score="raise")
    search.fit(X, y, droccoutlierdetector__X_negative=negatives)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = DROCCOutlierDetector(**{**TINY, "metric": search.best_params_[next(iter(grid))]})
    best.fit(X, X_negative=negatives)
    np.testing.assert_array_equal(search.best_estimator_.score_samples(X), best.score_samples(X))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_metadata_routing(estimator, rng):
    sklearn = pytest.importorskip("sklearn")
    X, negatives = rng.normal(size=(60, 3)), rng.normal(size=(5, 3))
    expected = estimator(**TINY).fit(X, X_negative=negatives)
    with sklearn.config_context(enable_metadata_routing=True):
        wanted = estimator(**TINY).set_fit_request(X_negative=True)
        fitted = make_pipeline(FunctionTransformer(), wanted).fit(X, X_negative=negatives)
    np.testing.assert_array_equal(raw_scores(fitted[-1], X), raw_scores(expected, X))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_save_load_and_clone_keep_the_metric(estimator, rng, tmp_path):
    X, negatives = rng.normal(size=(60, 3)), rng.normal(size=(5, 3))
    fitted = estimator(metric="mahalanobis", **TINY).fit(X, X_negative=negatives)
    assert clone(fitted).metric == "mahalanobis"
    fitted.save(tmp_path)
    loaded = estimator.load(tmp_path)
    assert loaded.get_params() == fitted.get_params()
    np.testing.assert_array_equal(raw_scores(loaded, X), raw_scores(fitted, X))
    again = loaded.fit(X, X_negative=negatives)
    np.testing.assert_array_equal(raw_scores(again, X), raw_scores(fitted, X))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_models_of_the_first_version_load(estimator, rng, tmp_path):
    X = rng.normal(size=(60, 3))
    fitted = estimator(**TINY).fit(X)
    fitted.save(tmp_path)
    network, config = load_model(tmp_path)
    del config["estimator"]["parameters"]["metric"]  # it did not exist
    save_model(tmp_path, network, config)
    loaded = estimator.load(tmp_path)
    assert loaded.metric == "l2"
    np.testing.assert_array_equal(raw_scores(loaded, X), raw_scores(fitted, X))


def test_negatives_that_differ_where_a_column_is_dropped_are_told() -> None:
    rows = np.random.default_rng(0).normal(size=(300, 3))
    rows[:, 1] = 7.0
    anomalies = rows[:9].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DROCC(hidden=4, max_steps=1).fit(rows, X_negative=anomalies)
    anomalies[:, 1] = 8.0
    with pytest.warns(UserWarning, match=r"columns that are dropped .*: 1$"):
        DROCC(hidden=4, max_steps=1).fit(rows, X_negative=anomalies)


@pytest.mark.parametrize("kind", [np.asarray, list, lambda rows: rows.tolist(), torch.from_numpy])
def test_negatives_in_the_place_of_labels_are_refused(kind, rng):
    X = rng.normal(size=(30, 3))
    detector = DROCC(**TINY)
    for method in (detector.fit, detector.fit(X).partial_fit):
        with pytest.raises(ValueError, match=r"y is not used and must not be a table, got shape"):
            method(X, kind(X[:5] + 4))
    column = np.ones((30, 1))
    for y in (None, [], column, column.tolist(), ["a"] * 30):
        detector.fit(X, y)
