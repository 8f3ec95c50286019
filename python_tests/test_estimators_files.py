"""Saved estimators: as they were fitted; whatever somebody else wrote wrong is one ValueError."""

from __future__ import annotations

import copy
import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import drocc_ext
from drocc_ext.estimators import DROCC, DROCCOutlierDetector
from drocc_ext.models.networks import MNISTLeNet
from drocc_ext.models.persistence import load_model, save_model
from drocc_ext.training.trainer import History

ESTIMATORS = [DROCC, DROCCOutlierDetector]
TINY = {"max_steps": 3, "hidden": 4, "num_steps": 1}


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


HUGE = 10**400


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (["mean"], [[None] * 3, ["1", 0.0, 0.0], [0.0], None, 3, [math.nan] * 3, [HUGE, 0, 0]]),
        (["mean"], [[0.0] * 4, [[0.0]] * 3, [True] * 3, {"0": 1.0}]),
        (["kept"], [[0, 1, -1], [0, 1, 1], [0, 1, 3], [2, 1, 0], [0.0, 0.5, 1], [0, 1, HUGE]]),
        (["scale"], [0, [0.0, 1.0, 1.0], [-1.0, 1.0, 1.0], [1.0, math.inf, 1.0], [1.0]]),
        (["training_logits"], [None, [], [math.nan], [math.inf], "12", [[1.0]], 0.5, [None]]),
        (["n_features_in"], [0, -1, 2, 3.5, "3", None, True, HUGE]),
        (["feature_names_in"], [["a"], ["a", "a", "b"], [1, 2, 3], "abc", {"a": 1}]),
        (["radius"], [0, -1.0, math.nan, math.inf, None, "1", HUGE, [1.0]]),
        (["parameters"], [None, [], {"surprise": 1}, {"hidden": 10**30}]),
        (["parameters", "contamination"], [0, 0.6, "0.1", None, math.nan]),
        (["parameters", "hidden"], [0, 2.5, True, None]),
        (["parameters", "num_steps"], [-1, 1.5, "5"]),  # None is the recipe's own
        (["parameters", "gamma"], [0.5, "2", HUGE, math.nan]),
        (["parameters", "step_size"], [-1.0, math.inf, [0.1]]),
        (["parameters", "mu"], [-1.0, "2", math.nan]),
        (["parameters", "weight_decay"], [-1.0, math.inf, {}, HUGE]),
        (["parameters", "learning_rate"], [-1.0, HUGE]),
        (["parameters", "radius"], [0.0, "1", []]),
        (["parameters", "metric"], ["l1", None, 3, []]),
        (["parameters", "device"], [None, 3]),
        (["parameters", "random_state"], [-1, 2**32, "0", 1.5]),
        (["parameters", "verbose"], [None, "no"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value[0], str) and len(value) < 3 else "to",
)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_load_refuses_what_is_no_value(estimator, path, values, saved, tmp_path):
    network, config = saved
    for value in values:
        broken = json.loads(json.dumps(config))
        place = broken["estimator"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        save_model(tmp_path, network, broken)
        with pytest.raises(ValueError, match=r"load: .* holds no saved estimator: ") as caught:
            estimator.load(tmp_path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_load_refuses_a_scaler_that_makes_no_scores(rng, tmp_path):
    DROCC(random_state=0, max_steps=2, network=(4, 4)).fit(rng.normal(size=(30, 3))).save(tmp_path)
    network, config = load_model(tmp_path)
    for key, values in (("most", [-1.0, math.nan, None]), ("spread", [0.0, -1.0, math.inf])):
        for value in values:
            broken = json.loads(json.dumps(config))
            place = broken["estimator"]
            place = place if key in place else place["scaler"]
            place[key] = value
            save_model(tmp_path, network, broken)
            with pytest.raises(ValueError, match=f"holds no saved estimator: .*{key}"):
                DROCC.load(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    rows = np.random.default_rng().normal(size=(30, 3))
    DROCC(random_state=0, **TINY).fit(rows).save(directory)
    return load_model(directory)


def test_load_refuses_a_network_that_cannot_score(saved, tmp_path):
    network, config = saved
    with torch.no_grad():
        for change, message in (
            (lambda other: other.float(), "must be in float64"),
            (lambda other: other.hidden.bias.fill_(math.nan), "must have finite weights"),
        ):
            change(other := copy.deepcopy(network))
            save_model(tmp_path, other, config)
            with pytest.raises(ValueError, match=f"holds no saved estimator: .*{message}"):
                DROCC.load(tmp_path)
    save_model(tmp_path, MNISTLeNet(), config)
    with pytest.raises(ValueError, match="holds no saved estimator: the network is a MNISTLeNet"):
        DROCC.load(tmp_path)


def test_models_of_the_first_version_load(rng, tmp_path):
    X = rng.normal(size=(30, 3))
    fitted = DROCC(random_state=0, **TINY).fit(X)
    fitted.save(tmp_path)
    path = tmp_path / "config.json"
    description = json.loads(path.read_text())
    assert description["library"] == f"drocc_ext {drocc_ext.__version__}"
    for name in ("library", "checksum"):
        del description[name]
    description["version"] = 1
    old = f"weights-{description['sha256'][:16]}.safetensors"
    (tmp_path / description["weights"]).rename(tmp_path / old)
    description["weights"] = old
    for name in ("metric", "noise_scale"):
        del description["config"]["estimator"]["parameters"][name]
    path.write_text(json.dumps(description))
    loaded = DROCC.load(tmp_path)
    np.testing.assert_array_equal(loaded.decision_function(X), fitted.decision_function(X))


ROWS = np.random.default_rng(0).normal(size=(60, 3))
QUICK = {"max_steps": 3, "network": (8,), "random_state": 0}


@pytest.mark.parametrize(
    "odd",
    [
        {"warm_start": 0},
        {"warm_start": 1},
        {"verbose": None},
        {"verbose": 0.0},
        {"random_state": True},
        {"network": (np.int64(8),)},
        {"network": range(4, 6)},
        {"radius": Fraction(1, 2)},
        {"radius_range": (np.float32(0.4), 2)},
    ],
    ids=str,
)
def test_what_fits_can_be_saved_and_loaded(odd, tmp_path):
    fitted = DROCC(**{**QUICK, **odd}).fit(ROWS)
    fitted.save(tmp_path)
    loaded = DROCC.load(tmp_path)
    np.testing.assert_array_equal(loaded.decision_function(ROWS), fitted.decision_function(ROWS))


@pytest.mark.parametrize(
    "changed",
    [
        {"hidden": 64, "network": None},
        {"network": nn.Linear(4, 1)},
        {"contamination": 5},
        {"radius": -1.0},
        {"max_steps": "a"},
        {"metric": "x"},
    ],
    ids=str,
)
def test_parameters_that_have_changed_since_the_fit_are_not_saved(changed, tmp_path):
    DROCC(**QUICK).fit(ROWS).save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fitted = DROCC(**QUICK).fit(ROWS[:50]).set_params(**changed)
    with pytest.raises(ValueError, match=r"^DROCC.save: parameters must be those of the fit"):
        fitted.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    DROCC.load(tmp_path)


def test_a_module_that_weights_are_loaded_for_stays_as_it_is(tmp_path):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    options = {"network": net, "random_state": 0, "max_steps": 3}
    first, second = DROCC(**options).fit(ROWS), DROCC(**options).fit(2 * ROWS[:40])
    again = first.decision_function(ROWS)
    first.save(tmp_path / "first")
    second.save(tmp_path / "second")
    one = DROCC.load(tmp_path / "first", network=net)
    DROCC.load(tmp_path / "second", network=net)
    np.testing.assert_array_equal(one.decision_function(ROWS), again)
    assert one.network is net and one.network_ is not net
    np.testing.assert_array_equal(first.fit(ROWS).decision_function(ROWS), again)


@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_the_history_is_one_again(validation, tmp_path):
    options = {**QUICK, "max_steps": 20, "validation_fraction": validation}
    for rows in (ROWS, np.concatenate([ROWS] * 9) + 1e-3 * np.arange(540)[:, None]):
        fitted = DROCC(**options).fit(rows)
        fitted.save(tmp_path)
        ours, theirs = fitted.history_, DROCC.load(tmp_path).history_
        pairs = [(ours, theirs)] if isinstance(ours, History) else zip(ours, theirs, strict=True)
        for one, other in pairs:
            assert isinstance(other, History) and other == one
            assert (other.best_epoch, other.best_value) == (one.best_epoch, one.best_value)


class Preset(DROCC):
    def __init__(self, gamma=1.5):
        super().__init__(gamma=gamma, **QUICK)


def test_a_subclass_with_fewer_parameters_is_saved_whole(tmp_path):
    fitted = Preset(gamma=2.0).fit(ROWS)
    fitted.save(tmp_path)
    for cls in (Preset, DROCC):
        loaded = cls.load(tmp_path)
        assert (loaded.gamma, loaded.max_steps, loaded.random_state) == (2.0, 3, 0)
        np.testing.assert_array_equal(
            loaded.decision_function(ROWS), fitted.decision_function(ROWS)
        )


class Extended(DROCC):
    def __init__(self, season, gamma=1.5, weights=(1.0, 2.0)):
        super().__init__(gamma=gamma, **QUICK)
        self.season = season
        self.weights = weights


def test_parameters_of_a_subclass_are_saved(tmp_path):
    fitted = Extended("winter", weights={"a": [np.float64(0.5)]}).fit(ROWS)
    with pytest.raises(ValueError, match=r"Extended\.save: weights, .* got a set"):
        Extended("winter", weights={1}).fit(ROWS).save(tmp_path)
    assert not list(tmp_path.iterdir())
    fitted.save(tmp_path)
    loaded = Extended.load(tmp_path)
    assert (loaded.season, loaded.weights) == ("winter", {"a": [0.5]})
    assert loaded.max_steps == 3
    assert not hasattr(DROCC.load(tmp_path), "season")
    Preset().fit(ROWS).save(tmp_path)
    with pytest.raises(ValueError, match=r"no saved estimator: .*'season'"):
        Extended.load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_module_of_another_type_scores_as_before(dtype, tmp_path, rng):
    x = rng.normal(size=(60, 4))
    module = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1)).to(dtype)
    fitted = DROCC(network=module, random_state=0, max_steps=9).fit(x)
    fitted.save(tmp_path)
    loaded = DROCC.load(tmp_path, network=module)
    np.testing.assert_array_equal(loaded.decision_function(x), fitted.decision_function(x))
    assert next(module.parameters()).dtype is dtype


def test_compiled_and_lazy_modules(tmp_path, rng):
    x = rng.normal(size=(60, 4))
    module = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    fitted = DROCC(network=torch.compile(module, backend="eager"), max_steps=3, random_state=0)
    fitted.fit(x).save(tmp_path)
    loaded = DROCC.load(tmp_path, network=module)
    np.testing.assert_allclose(loaded.decision_function(x), fitted.decision_function(x), rtol=1e-6)
    lazy = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(1))
    with pytest.raises(ValueError, match=r"^DROCC\.save: network must have .* got a lazy module"):
        DROCC(network=lazy, max_steps=3).fit(x).save(tmp_path)
