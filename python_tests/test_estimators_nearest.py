"""The distance to the nearest training row beside the logit, and searches that swap values."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from drocc_ext import SearchConfig, adversarial_search
from drocc_ext.estimators import DROCC, DROCCOutlierDetector
from drocc_ext.estimators.calibration import held_out_rows, marks_of
from drocc_ext.estimators.nearest import distance_to_others
from drocc_ext.models.networks import MLP, MLPEnsemble
from drocc_ext.search.noise import row_factor, swaps

FEW = {"max_steps": 12, "network": (16, 16)}


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("count", [30, 1500])
def test_distances_to_the_others_against_all_pairs(count, rng):
    rows = torch.from_numpy(rng.normal(size=(count, 4))).float()
    rows[3] = rows[5]  # copies, for no two rows of such a table are equal by chance
    own = torch.arange(count)
    pairs = torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist")
    pairs[3, 5] = pairs[5, 3] = torch.inf
    expected = pairs.fill_diagonal_(torch.inf).min(1).values.float()
    torch.testing.assert_close(distance_to_others(rows, rows, own), expected)
    few = torch.from_numpy(rng.integers(3, size=(count, 4))).float()
    pairs = torch.cdist(few, few, compute_mode="donot_use_mm_for_euclid_dist")
    expected = pairs.fill_diagonal_(torch.inf).min(1).values
    torch.testing.assert_close(distance_to_others(few, few, own), expected)  # of two, the other
    away = rows[:7] + 0.5
    expected = torch.cdist(away.double(), rows.double()).min(1).values.float()
    torch.testing.assert_close(distance_to_others(away, rows, torch.full((7,), -1)), expected)
    assert distance_to_others(rows[:1], rows[:1], own[:1]).tolist() == [0.0]
    # Some are among them, in any order, others are not; no two are equal.
    kept, order = rows[6:], torch.from_numpy(rng.permutation(count))
    points = torch.cat([kept, away])[order[: count + 1]]
    places = torch.cat([torch.arange(count - 6), torch.full((7,), -1)])[order[: count + 1]]
    pairs = torch.cdist(points.double(), kept.double(), compute_mode="donot_use_mm_for_euclid_dist")
    here = torch.nonzero(places >= 0)[:, 0]
    pairs[here, places[here]] = torch.inf
    expected = pairs.min(1).values.float()
    torch.testing.assert_close(distance_to_others(points, kept, places), expected)


def test_the_score_is_logit_and_distance_in_units_of_normal_rows(rng):
    x, fresh = rng.normal(size=(300, 3)), rng.normal(size=(300, 3))
    fitted = DROCC(random_state=0, **FEW).fit(x)
    network = fitted.network_
    center, spread, near, wide = network.units.double().numpy()
    inputs = fitted._scaler.transform(fresh)
    with torch.no_grad():
        logits = network.logits(torch.from_numpy(inputs).float())[:, 0].double().numpy()
    rows = fitted._scaler.transform(x)
    distance = np.linalg.norm(inputs[:, None] - rows, axis=2).min(1)
    expected = np.maximum((distance - near) / wide, 0) - (logits - center) / spread
    np.testing.assert_allclose(fitted.decision_function(fresh), expected, rtol=1e-4, atol=1e-4)
    pairs = np.linalg.norm(rows[:, None] - rows, axis=2) + np.diag(np.full(300, np.inf))
    low, middle, high = np.quantile(pairs.min(1), [0.25, 0.5, 0.75])
    expected_wide = max(high - low, 0.1 * fitted.radius_)
    np.testing.assert_allclose([near, wide], [middle, expected_wide], rtol=1e-4)
    # A training row scores by its distance to the others, a fresh one by that to all rows.
    assert (fitted.decision_scores_ >= fitted.decision_function(x) - 1e-4).all()
    assert (fitted.decision_scores_ > fitted.decision_function(x) + 0.1).any()
    alone = DROCC(random_state=0, nearest=False, **FEW).fit(x)
    np.testing.assert_allclose(alone.decision_function(fresh), -logits, rtol=1e-4, atol=1e-5)


def test_far_from_all_rows_is_anomalous_whatever_the_network_says(rng):
    x = rng.normal(size=(300, 3))
    far = 12 * np.sign(rng.normal(size=(50, 3))) + rng.normal(size=(50, 3))
    fitted = DROCC(random_state=0, max_steps=1).fit(x)  # it has learned next to nothing
    scores = fitted.decision_function(np.r_[x, far])
    assert roc_auc_score(np.repeat([0, 1], [300, 50]), scores) > 0.99


def test_no_more_than_4096_rows_are_measured_from(rng):
    x = rng.normal(size=(4500, 2))
    fitted = DROCC(random_state=0, max_steps=2, network=4).fit(x)
    assert fitted.network_.rows.shape == (4096, 2)
    assert len(fitted.decision_scores_) == 4500
    assert fitted.partial_fit(x[:100]).network_.rows.shape == (4096, 2)
    assert len(fitted.decision_scores_) == 100
    small = DROCC(random_state=0, **FEW).fit(x[:60]).partial_fit(x[60:90])
    assert small.network_.rows.shape == (90, 2)


def test_modules_and_the_mahalanobis_metric_have_the_logit_alone(rng):
    x = rng.normal(size=(60, 3))
    assert isinstance(DROCC(metric="mahalanobis", **FEW).fit(x).network_, MLPEnsemble)
    assert isinstance(DROCC(network=nn.Linear(3, 1), max_steps=2).fit(x).network_, nn.Linear)


def test_a_table_of_copies_has_finite_scores(rng):
    patterns = rng.normal(size=(20, 3))
    x = patterns[rng.integers(20, size=600)]
    scores = DROCC(random_state=0, **FEW).fit(x).decision_function(np.r_[x[:5], x[:5] + 30])
    assert np.isfinite(scores).all() and scores[5:].min() > scores[:5].max()


# ---- noise that swaps values -------------------------------------------------------------------


def test_a_swap_takes_values_of_one_other_row(generator):
    x = torch.randn(500, 8, generator=generator)
    rows = torch.arange(1.0, 41.0)[:, None] * 100 + torch.arange(8.0)
    reached = x + swaps(x, rows, generator=generator)
    taken = (reached - x).abs() > 1
    assert taken.any(1).all()
    nearest = ((reached[:, None] - rows).abs() < 0.05) | ~taken[:, None]
    assert nearest.all(2).any(1).all()  # each point: all its new values stand in one row
    share = taken.float().mean(1)
    assert 0.2 < share.mean() < 0.45  # 1/4 of the columns, and one for certain
    same = swaps(x[:1], x[:1].expand(9, -1), generator=generator)
    assert 0 < same.abs().max() < 0.01  # both rows agree, and yet there is a direction


def test_blended_noise_is_half_of_each(generator):
    rows = torch.randn(300, 6, generator=generator) * torch.tensor([9.0, 1, 1, 1, 1, 0.1])
    search = SearchConfig(
        1.0,
        step_size=0.0,
        num_steps=0,
        gamma=math.inf,
        noise="blend",
        noise_factor=row_factor(rows),
        noise_rows=rows,
    )
    x = rows[:200]
    h = adversarial_search(MLP(6, [4]), x, search, generator=generator) - x
    untouched = (h.abs() < 0.05).float().mean(1)
    assert untouched[100:].mean() > 0.5 > untouched[:100].mean() + 0.1
    again = adversarial_search(MLP(6, [4]), x[:0], search, generator=generator)
    assert again.shape == (0, 6)


@pytest.mark.parametrize(("noise", "missing"), [("swaps", "noise_rows"), ("blend", "noise_factor")])
def test_noise_needs_its_rows(noise, missing):
    with pytest.raises(TypeError, match=f"noise '{noise}' needs {missing}, a tensor"):
        SearchConfig(1.0, step_size=0.1, num_steps=1, noise=noise)
    search = SearchConfig(
        1.0, step_size=0.1, num_steps=1, noise="swaps", noise_rows=torch.zeros(3, 2)
    )
    with pytest.raises(ValueError, match=r"noise_rows must have shape \[N, \*\]"):
        adversarial_search(MLP(4, [3]), torch.zeros(2, 4), search)


@pytest.mark.parametrize("kind", ["again", "twice", "drawn", "patterns", "few values"])
def test_thresholds_of_rows_that_repeat(kind, rng):
    def rows(count):
        if kind == "few values":
            return rng.integers(0, 3, size=(count, 5)).astype(float)
        if kind == "patterns":
            return patterns[rng.integers(40, size=count)]
        return rng.normal(size=(count, 5))

    patterns = rng.normal(size=(40, 5))
    flagged = []
    for seed in range(3):
        x = rows(400)
        given = {"twice": np.repeat(x, 2, axis=0), "drawn": x[rng.integers(400, size=400)]}
        detector = DROCC(random_state=seed, max_steps=40).fit(given.get(kind, x))
        for _ in range(3 if kind == "again" else 0):
            detector.partial_fit(x)
        assert len(detector.network_.rows) <= 400
        flagged.append(detector.predict(rows(2000)).mean())
    assert np.mean(flagged) < 0.25


def test_a_partial_fit_on_few_rows_is_warned_of(rng):
    detector = DROCC(random_state=0, **FEW).fit(rng.normal(size=(120, 3)))
    with pytest.warns(UserWarning, match=r"^DROCC\.partial_fit: threshold .* and 5 are few: "):
        detector.partial_fit(rng.normal(size=(5, 3)))


def test_fit_predict_labels_rows_as_if_each_had_not_been_there(rng):
    x = np.r_[rng.normal(size=(285, 4)), rng.uniform(-8, 8, size=(15, 4))]
    settings = {"random_state": 0, "max_steps": 60, "contamination": 0.1}
    found = DROCCOutlierDetector(**settings).fit_predict(x)
    np.testing.assert_array_equal(found == -1, DROCC(**settings).fit_predict(x) == 1)
    assert (found[285:] == -1).sum() > 10


@pytest.mark.parametrize("how", ["same", "rolling", "warm"])
def test_rows_that_were_learned_do_not_calibrate(how, rng):
    """A network knows the rows it was trained on; 36 % of fresh ones were flagged, not 10."""
    flagged = []
    for _ in range(3):
        x = rng.normal(size=(500, 20))
        detector = DROCC(network=(32, 32), warm_start=how == "warm", max_steps=200).fit(x)
        for _ in range(4):
            if how == "rolling":
                x = np.concatenate([x[100:], rng.normal(size=(100, 20))])
            if how == "warm":
                detector.fit(x)
            else:
                detector.partial_fit(x)
        flagged.append(detector.predict(rng.normal(size=(2000, 20))).mean())
    assert np.mean(flagged) < 0.19, flagged


def test_learned_rows_calibrate_with_a_warning_where_there_are_no_others(rng, tmp_path):
    x = rng.normal(size=(400, 3))
    detector = DROCC(random_state=0, **FEW).fit(x)
    learned = x[np.isin(marks_of(x), detector._learned)]
    assert len(learned) == 320
    detector.save(tmp_path)
    for fitted in (detector, DROCC.load(tmp_path)):
        with pytest.warns(UserWarning, match="from 64 rows, of which the network had learned 64 "):
            fitted.partial_fit(learned)
    # A fit from the beginning has learned nothing.
    detector.fit(learned)
    assert len(detector._learned) == 256


def test_which_rows_are_held_out(rng):
    count = 500

    def held(unlearned, calibration="auto"):
        found = held_out_rows(count, calibration, np.random.RandomState(3), unlearned)
        assert (np.diff(found) > 0).all()
        return found

    there = np.arange(count)
    np.testing.assert_array_equal(held(None), held(there >= 0))
    for new, expected in ((500, 100), (180, 100), (100, 100), (85, 85), (70, 35), (42, 21)):
        found = held(there >= count - new)
        assert len(found) == expected
        assert (found >= count - new).all()
    for new in (0, 5, 30):  # too few: learned ones too
        found = held(there >= count - new)
        assert len(found) == 100 and (found >= count - new).sum() == new // 2
    assert len(held(there < 0, "training")) == 0


def test_marks_are_of_values(rng):
    x = rng.normal(size=(2000, 5)).astype(np.float32)
    marks = marks_of(x)
    assert len(np.unique(marks)) == 2000
    np.testing.assert_array_equal(marks, marks_of(np.asfortranarray(x.astype(np.float64))))
    np.testing.assert_array_equal(marks[7], marks_of(x[7:8])[0])
    assert (marks_of(x[:, ::-1]) != marks).mean() > 0.99
    x[:, 1] = 0.0
    np.testing.assert_array_equal(marks_of(x), marks_of(np.where(x == 0, -0.0, x)))
    assert len(marks_of(rng.integers(0, 3, size=(400, 5)))) == 0  # copies may be chance


def test_rows_of_few_values_are_new_though_they_are_equal(rng):
    patterns = rng.normal(size=(40, 5))
    detector = DROCC(random_state=0, **FEW).fit(patterns[rng.integers(40, size=400)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.partial_fit(patterns[rng.integers(40, size=400)])
    assert len(detector._calibration.scores) == 80


@pytest.mark.parametrize("kind", ["twice", "three times", "drawn"])
def test_copies_of_rows_that_calibrate_are_not_trained_on(kind, rng):
    """58 to 84 % of fresh rows were flagged where 10 were asked."""
    flagged = []
    for seed in range(3):
        base = rng.normal(size=(300, 8))
        rows = {
            "twice": np.repeat(base, 2, axis=0),
            "three times": np.repeat(base[:200], 3, axis=0),
            "drawn": base[rng.integers(300, size=600)],
        }[kind]
        detector = DROCC(random_state=seed, max_steps=200).fit(rows)
        learned = np.isin(marks_of(rows), detector._learned)
        assert len(np.unique(rows[~learned], axis=0)) == len(detector._calibration.scores)
        flagged.append(detector.predict(rng.normal(size=(2000, 8))).mean())
    assert np.mean(flagged) < 0.2, flagged
