"""Estimators that several threads fit and use at once."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn

from drocc_ext.estimators import DROCC, DROCCOutlierDetector

FEW = {"max_steps": 12, "network": (16, 16)}


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def test_fits_in_threads_are_the_same_as_alone(rng):
    tables = [rng.normal(size=(520, 3)) for _ in range(3)]
    alone = [DROCC(random_state=0, **FEW).fit(x).decision_function(x) for x in tables]
    state = torch.get_rng_state()
    found = [np.zeros(0)] * 3

    def work(number: int) -> None:
        x = tables[number]
        found[number] = DROCC(random_state=0, **FEW).fit(x).decision_function(x)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scores, expected in zip(found, alone, strict=True):
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("kind", [DROCC, DROCCOutlierDetector])
def test_a_score_is_of_one_fit_while_another_thread_fits(kind, method, rng):
    x, fresh = rng.normal(size=(300, 4)), 2 * rng.normal(size=(20, 4))
    detector = kind(random_state=0, max_steps=4).fit(x)
    fits, seen = [detector.decision_function(fresh)], []
    labels = [detector.predict(fresh)]
    ended = threading.Event()

    def score() -> None:
        while not ended.is_set():
            seen.append((detector.decision_function(fresh), detector.predict(fresh)))

    thread = threading.Thread(target=score)
    thread.start()
    for number in range(6):
        getattr(detector, method)(x * (1 + number % 3) if method == "fit" else x + 0.01 * number)
        fits.append(detector.decision_function(fresh))
        labels.append(detector.predict(fresh))
    ended.set()
    thread.join()
    assert len(seen) > 0
    for scores, predicted in seen:
        assert any(np.array_equal(scores, one) for one in fits)
        assert any(np.array_equal(predicted, one) for one in labels)


def test_what_is_set_during_a_fit_stays(rng):
    x = rng.normal(size=(100, 3))
    detector = DROCC(random_state=0, max_steps=300).fit(x)
    thread = threading.Thread(target=detector.fit, args=(x,))
    thread.start()
    detector.set_params(contamination=0.25)
    detector.note = "mine"
    thread.join()
    assert detector.contamination == 0.25
    assert detector.note == "mine"


def test_labels_are_of_one_fit_too(rng):
    x, other = rng.normal(size=(100, 3)), 3 * rng.normal(size=(100, 3))
    detector = DROCC(random_state=0, max_steps=3).fit(x)
    fits, seen, ended = [detector.labels_], [], threading.Event()

    def look() -> None:
        while not ended.is_set():
            seen.append(detector.labels_)

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(8):
        fits.append(detector.fit((x, other)[number % 2]).labels_)
        setattr(detector, f"note{number}", number)
    ended.set()
    thread.join()
    assert len(seen) > 0
    assert all(any(np.array_equal(labels, one) for one in fits) for labels in seen)


def test_fits_of_modules_that_draw_are_the_same_in_threads(rng):
    x = rng.normal(size=(60, 3))
    module = nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 1))
    alone = DROCC(network=module, max_steps=30, random_state=0).fit(x).decision_function(x)
    found = []

    def work() -> None:
        fitted = DROCC(network=module, max_steps=30, random_state=0).fit(x)
        found.append(fitted.decision_function(x))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for scores in found:
        np.testing.assert_array_equal(scores, alone)
