from __future__ import annotations

import json
import math
import pickle
import random

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.optim.lr_scheduler import LinearLR

from drocc_ext.estimators import DROCC, DROCCOutlierDetector
from drocc_ext.estimators._core import Standardizer
from drocc_ext.models.networks import MLP
from drocc_ext.models.persistence import load_model, save_model
from drocc_ext.radius import suggest_radius
from drocc_ext.search import SearchConfig
from drocc_ext.training.loss import DROCCLoss
from drocc_ext.training.trainer import Trainer

ESTIMATORS = [DROCC, DROCCOutlierDetector]
TINY = {"max_steps": 3, "hidden": 4, "num_steps": 1}


def raw_scores(estimator, X):
    """The logits of either estimator."""
    if isinstance(estimator, DROCC):
        return -estimator.decision_function(X)
    return estimator.score_samples(X)


@parametrize_with_checks(
    [DROCCOutlierDetector(**TINY), DROCCOutlierDetector(metric="mahalanobis", **TINY)]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_clone_and_parameters(estimator):
    original = estimator(0.2, radius=1.5, random_state=3, **TINY)
    copy = clone(original)
    assert copy is not original
    assert copy.get_params() == original.get_params()
    assert copy.get_params()["contamination"] == 0.2
    assert copy.set_params(mu=0.5).mu == 0.5
    with pytest.raises(ValueError, match="Invalid parameter 'lr'"):
        copy.set_params(lr=1)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_same_result_for_arrays_frames_tensors_and_lists(estimator, rng):
    pandas = pytest.importorskip("pandas")
    X = rng.normal(size=(40, 3))
    frame = pandas.DataFrame(X, columns=["a", "b", "c"])
    tensor = torch.tensor(X, requires_grad=True)
    forms = [X, frame, tensor, X.tolist(), np.asfortranarray(X)]
    scores = [raw_scores(estimator(random_state=0, **TINY).fit(form), form) for form in forms]
    for other in scores[1:]:
        np.testing.assert_array_equal(other, scores[0])
    fitted = estimator(random_state=0, **TINY).fit(frame)
    assert list(fitted.feature_names_in_) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="feature names"):
        raw_scores(fitted, frame[["b", "a", "c"]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_other_tensor_types(dtype, rng):
    X = torch.tensor(rng.normal(size=(40, 3)) * 8).to(dtype)
    fitted = DROCC(random_state=0, **TINY).fit(X)
    expected = fitted.decision_function(X.double().numpy())
    np.testing.assert_array_equal(fitted.decision_function(X), expected)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_integer_random_state_repeats_and_none_does_not(estimator, rng):
    X = rng.normal(size=(50, 4))
    first = raw_scores(estimator(random_state=7, **TINY).fit(X), X)
    np.testing.assert_array_equal(raw_scores(estimator(random_state=7, **TINY).fit(X), X), first)
    assert (raw_scores(estimator(random_state=8, **TINY).fit(X), X) != first).any()
    assert (raw_scores(estimator(**TINY).fit(X), X) != first).any()
    shared = [np.random.RandomState(7) for _ in range(2)]
    once, twice = (estimator(random_state=state, **TINY).fit(X) for state in shared)
    np.testing.assert_array_equal(raw_scores(once, X), raw_scores(twice, X))
    assert (raw_scores(once.fit(X), X) != raw_scores(twice, X)).any()  # the state has moved on


def test_global_generators_are_neither_used_nor_changed(seed, rng):
    X = rng.normal(size=(50, 4))
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    python_state = random.getstate()
    scores = DROCC(random_state=0, **TINY).fit(X).decision_function(X)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert random.getstate() == python_state
    torch.manual_seed(seed + 1)
    np.testing.assert_array_equal(DROCC(random_state=0, **TINY).fit(X).decision_function(X), scores)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_scores_do_not_depend_on_the_batch(estimator, rng, monkeypatch):
    X = rng.normal(size=(101, 30))
    fitted = estimator(random_state=0, hidden=64, max_steps=3).fit(X)
    whole = raw_scores(fitted, X)
    single = np.concatenate([raw_scores(fitted, row[None]) for row in X])
    np.testing.assert_allclose(single, whole, rtol=2e-7)
    monkeypatch.setattr("drocc_ext.estimators._core._SCORE_ROWS", 7)
    np.testing.assert_allclose(raw_scores(fitted, X), whole, rtol=2e-7)


def test_thresholds_and_labels_of_both_conventions(rng):
    X = rng.normal(size=(200, 4))
    pyod = DROCC(0.15, random_state=0, **TINY).fit(X)
    sklearn = DROCCOutlierDetector(0.15, random_state=0, **TINY).fit(X)

    np.testing.assert_array_equal(pyod.decision_scores_, pyod.decision_function(X))
    np.testing.assert_array_equal(pyod.labels_, pyod.predict(X))
    assert pyod.labels_.sum() == 30
    assert set(pyod.labels_) == {0, 1}
    assert pyod.decision_scores_[pyod.labels_ == 1].min() > pyod.threshold_
    assert pyod.decision_scores_[pyod.labels_ == 0].max() <= pyod.threshold_
    np.testing.assert_array_equal(DROCC(0.15, random_state=0, **TINY).fit_predict(X), pyod.labels_)

    np.testing.assert_array_equal(sklearn.score_samples(X), -pyod.decision_function(X))
    np.testing.assert_array_equal(
        sklearn.decision_function(X), sklearn.score_samples(X) - sklearn.offset_
    )
    np.testing.assert_array_equal(sklearn.predict(X), np.where(pyod.predict(X) == 1, -1, 1))
    assert sklearn.offset_ == pytest.approx(-pyod.threshold_)


def test_predict_proba(rng):
    X = rng.normal(size=(60, 4))
    fitted = DROCC(random_state=0, **TINY).fit(X)
    scores = fitted.decision_scores_
    linear = fitted.predict_proba(X)
    expected = (scores - scores.min()) / (scores.max() - scores.min())
    np.testing.assert_allclose(linear, np.stack([1 - expected, expected], 1), atol=1e-12)
    unify = fitted.predict_proba(X, method="unify")
    expected = [max(0, math.erf((s - scores.mean()) / scores.std() / 2**0.5)) for s in scores]
    np.testing.assert_allclose(unify[:, 1], expected, atol=1e-12)
    for proba in (linear, unify, fitted.predict_proba(X * 1e3)):
        assert proba.shape == (60, 2)
        np.testing.assert_allclose(proba.sum(1), 1)
        assert proba.min() >= 0
    with pytest.raises(ValueError, match=r"method must be .* got 'sigmoid'"):
        fitted.predict_proba(X, method="sigmoid")


def test_agrees_with_pyod_where_it_is_installed(rng):
    base = pytest.importorskip("pyod.models.base")

    class Reference(base.BaseDetector):
        """PyOD's own thresholds and probabilities over our scores."""

        def __init__(self, scores):
            super().__init__(contamination=0.15)
            self.decision_scores_ = scores
            self._set_n_classes(None)
            self._process_decision_scores()

        def fit(self, X, y=None):
            raise NotImplementedError

        def decision_function(self, X):
            return self.decision_scores_

    X = rng.normal(size=(80, 4))
    fitted = DROCC(0.15, random_state=0, **TINY).fit(X)
    reference = Reference(fitted.decision_scores_)
    assert fitted.threshold_ == pytest.approx(reference.threshold_, rel=1e-12)
    np.testing.assert_array_equal(fitted.labels_, reference.labels_)
    for method in ("linear", "unify"):
        np.testing.assert_allclose(
            fitted.predict_proba(X, method), reference.predict_proba(X, method), atol=1e-12
        )


def test_standardizer_against_its_definition(rng):
    x = rng.normal(3, 5, size=(300, 6))
    x[:, 1] = 7.0  # constant
    x[:297, 4] = 0.0  # one value in 99 % of the rows
    x[:296, 5] = 0.0  # in less
    fitted = Standardizer.fit("test", x)
    assert fitted.kept.tolist() == [0, 2, 3, 5]
    expected = (x[:, fitted.kept] - x[:, fitted.kept].mean(0)) / x[:, fitted.kept].std(0)
    np.testing.assert_allclose(fitted.transform(x), np.clip(expected, -10, 10))
    far = np.array([[1e308, 0, 0, 0, 0, -1e308]])
    assert fitted.transform(far)[0, [0, 3]].tolist() == [10.0, -10.0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_constant_columns_do_not_matter(estimator, rng):
    X = rng.normal(size=(60, 3))
    padded = np.insert(X, 1, 5.0, axis=1)
    new = rng.normal(size=(9, 4))
    plain = estimator(random_state=0, **TINY).fit(X)
    dropped = estimator(random_state=0, **TINY).fit(padded)
    np.testing.assert_array_equal(raw_scores(dropped, new), raw_scores(plain, np.delete(new, 1, 1)))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_units_of_the_columns_do_not_matter(estimator, rng):
    X = rng.normal(size=(60, 3))
    moved = X * [1e-3, 2.0, 1e6] + [0.0, -5.0, 1e6]
    plain = estimator(random_state=0, **TINY).fit(X)
    other = estimator(random_state=0, **TINY).fit(moved)
    assert other.radius_ == pytest.approx(plain.radius_, rel=1e-5)
    np.testing.assert_allclose(raw_scores(other, moved), raw_scores(plain, X), rtol=1e-3, atol=1e-4)


def test_radius_is_suggested_or_taken(rng):
    X = rng.normal(size=(60, 3))
    standardized = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    fitted = DROCC(random_state=0, **TINY).fit(X)
    assert fitted.radius_ == pytest.approx(suggest_radius(standardized), rel=1e-5)
    assert DROCC(radius=2, **TINY).fit(X).radius_ == 2.0
    assert DROCC(random_state=0, **TINY).fit(X[:3]).radius_ > 0  # fewer than five neighbours


def test_training_is_the_documented_recipe(rng):
    """The same training, put together by hand from the public parts."""
    X = rng.normal(size=(60, 3)) * [1, 2, 30] + 5
    parameters = {
        "gamma": 1.5,
        "num_steps": 2,
        "step_size": 0.3,
        "mu": 0.7,
        "hidden": 8,
        "max_steps": 9,
        "batch_size": 25,
        "learning_rate": 0.01,
        "weight_decay": 0.05,
    }
    fitted = DROCC(random_state=0, **parameters).fit(X)

    seed = np.random.RandomState(0).randint(2**31 - 1)
    rows = torch.tensor((X - X.mean(0)) / X.std(0), dtype=torch.float32)
    radius = suggest_radius(rows)
    torch.manual_seed(seed)
    network = MLP(3, hidden=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=0.05)
    search = SearchConfig(radius=radius, step_size=0.3 * radius, num_steps=2, gamma=1.5)
    trainer = Trainer(
        network,
        DROCCLoss(search, mu=0.7),
        optimizer,
        scheduler=LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=9),
        scheduler_interval="step",
        progress=False,
    )
    trainer.fit(rows, max_steps=9, batch_size=25, seed=seed)
    np.testing.assert_allclose(
        fitted.decision_function(X), -trainer.score(rows).numpy(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_finds_anomalies_a_model_of_spread_misses(estimator, seed):
    """Normal rows on a ring: its empty middle is anomalous, though nearest to the mean."""
    rng = np.random.default_rng(seed)

    def ring(count):
        angle = rng.uniform(0, 2 * np.pi, count)
        return np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(0, 0.05, (count, 2))

    middle = rng.normal(0, 0.1, (100, 2))
    outside = ring(100) * 2.5
    fitted = estimator(radius=0.8, max_steps=600, learning_rate=1e-2, random_state=seed)
    fitted.fit(ring(600))
    test = np.concatenate([ring(200), middle, outside])
    assert roc_auc_score(np.repeat([1, 0], 200), raw_scores(fitted, test)) > 0.95


def test_real_data_far_above_chance():
    data = load_breast_cancer()
    benign, malignant = data.data[data.target == 1], data.data[data.target == 0]
    # Ten steps: half the way, the default's, is too short here and gives about 0.75.
    fitted = DROCCOutlierDetector(num_steps=10, random_state=0).fit(benign[:214])
    scores = fitted.score_samples(np.concatenate([benign[214:], malignant]))
    assert roc_auc_score(np.repeat([1, 0], [143, 212]), scores) > 0.85


def test_grid_search_and_pipeline(rng):
    X = rng.normal(size=(60, 3))
    y = np.tile([1, 1, 1, 1, -1], 12)
    pipeline = make_pipeline(FunctionTransformer(), DROCCOutlierDetector(random_state=0, **TINY))
    grid = {"droccoutlierdetector__mu": [0.5, 1.0]}
    search = GridSearchCV(pipeline, grid, scoring="roc_auc", cv=2, error_score="raise").fit(X, y)
    assert np.isfinite(search.best_score_)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_save_and_load(estimator, rng, tmp_path):
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame(rng.normal(size=(60, 3)), columns=list("abc"))
    fitted = estimator(np.float64(0.2), random_state=np.random.RandomState(0), **TINY).fit(X)
    new = pandas.DataFrame(rng.normal(size=(20, 3)), columns=list("abc"))
    fitted.save(tmp_path / "model")
    for kind in ESTIMATORS:
        loaded = kind.load(tmp_path / "model")
        np.testing.assert_array_equal(raw_scores(loaded, new), raw_scores(fitted, new))
    loaded = estimator.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(new), fitted.predict(new))
    expected = {**fitted.get_params(), "random_state": None}
    assert loaded.get_params() == expected
    for name, value in vars(fitted).items():
        if name.endswith("_") and not isinstance(value, torch.nn.Module):
            np.testing.assert_array_equal(getattr(loaded, name), value, err_msg=name)
    assert not any(b"pickle" in f.read_bytes() for f in (tmp_path / "model").iterdir())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_pickle(estimator, rng):
    X = rng.normal(size=(30, 3))
    fitted = estimator(random_state=0, **TINY).fit(X)
    copy = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(raw_scores(copy, X), raw_scores(fitted, X))


def test_load_refuses_what_no_estimator_saved(rng, tmp_path):
    with pytest.raises(FileNotFoundError):
        DROCC.load(tmp_path / "nothing")
    DROCC(random_state=0, **TINY).fit(rng.normal(size=(30, 3))).save(tmp_path)
    network, config = load_model(tmp_path)
    for change in ("parameters", "kept", "n_features_in", "training_logits"):
        broken = json.loads(json.dumps(config))
        del broken["estimator"][change]
        save_model(tmp_path, network, broken)
        with pytest.raises(ValueError, match=r"DROCC\.load: .* holds no saved estimator"):
            DROCC.load(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    description["config"] = config
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="is damaged or was edited"):
        DROCC.load(tmp_path)
    save_model(tmp_path, network)
    with pytest.raises(ValueError, match="holds no saved estimator"):
        DROCC.load(tmp_path)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"contamination": 0.0}, ValueError, r"contamination must be in \(0, 0.5\], got 0.0"),
        ({"contamination": 0.6}, ValueError, r"contamination must be in \(0, 0.5\], got 0.6"),
        ({"contamination": math.nan}, ValueError, "contamination must be .* got nan"),
        ({"contamination": "some"}, TypeError, "contamination must be a number, got 'some'"),
        ({"hidden": 4, "network": 4}, ValueError, "hidden asks for the paper's network"),
        ({"calibration": "none"}, ValueError, "calibration must be 'auto', 'training' or a share"),
        ({"calibration": 1.0}, ValueError, r"calibration must be in \(0, 1\), got 1.0"),
        ({"validation_fraction": 1.0}, ValueError, "validation_fraction must be < 1, got 1.0"),
        ({"patience": 0}, ValueError, "patience must be >= 1, got 0"),
        ({"labels": "soft"}, ValueError, "labels must be one of hard, distance, got 'soft'"),
        (
            {"noise": "pink"},
            ValueError,
            "noise must be one of isotropic, .*, blend, got 'pink'",
        ),
        ({"nearest": 1}, TypeError, "nearest must be True or False, got 1"),
        ({"hidden": 0}, ValueError, "hidden must be >= 1, got 0"),
        ({"max_steps": 0}, ValueError, "max_steps must be >= 1, got 0"),
        ({"max_steps": 2.5}, TypeError, "max_steps must be an integer, got 2.5"),
        ({"batch_size": True}, TypeError, "batch_size must be an integer, got True"),
        ({"step_size": -0.1}, ValueError, "step_size must be >= 0 and finite, got -0.1"),
        ({"learning_rate": math.inf}, ValueError, "learning_rate must be .* got inf"),
        ({"weight_decay": None}, TypeError, "weight_decay must be a number, got None"),
        ({"radius": -1.0}, ValueError, "radius must be > 0"),
        ({"gamma": 0.5}, ValueError, "gamma must be >= 1"),
        ({"num_steps": -1}, ValueError, "num_steps must be >= 0"),
        ({"mu": -1}, ValueError, "mu must be >= 0"),
        ({"metric": "l1"}, ValueError, "metric must be one of l2, mahalanobis, got 'l1'"),
        ({"device": "quantum"}, ValueError, "cannot use device 'quantum'"),
    ],
)
def test_bad_parameters_are_named(estimator, parameters, error, message, rng):
    with pytest.raises(error, match=message):
        estimator(**{**TINY, **parameters}).fit(rng.normal(size=(20, 2)))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_bad_tables_are_named(estimator, rng):
    X = rng.normal(size=(30, 3))
    for bad, message in (
        (X[:1], "1 sample"),
        (X[0], "Expected 2D array"),
        (np.where(X.mean() < X, np.nan, X), "NaN"),
        (torch.tensor(X).fill_(torch.inf), "infinity"),
        (torch.tensor(X) + 1j, "Complex data not supported"),
        (np.ones((30, 2)), r"\.fit: a column must vary to be used, got 2 columns .* 99% of the"),
        (X * 1e300, "column 0 are too large or too close to standardize"),
    ):
        with pytest.raises(ValueError, match=message):
            estimator(**TINY).fit(bad)
    fitted = estimator(**TINY).fit(X)
    with pytest.raises(ValueError, match="expecting 3 features"):
        fitted.predict(X[:, :2])
    with pytest.raises(ValueError, match="NaN"):
        fitted.predict(X * np.nan)


def test_short_search_warns(rng):
    with pytest.warns(UserWarning, match="less than a tenth of the radius"):
        DROCC(**{**TINY, "step_size": 0.01}).fit(rng.normal(size=(30, 2)))
