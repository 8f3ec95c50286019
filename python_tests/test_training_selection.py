"""Which epoch is kept, when a fit stops early, and the scores that decide it."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from training_cases import (
    Rows,
    assert_same_state,
    labelled,
    network,
    rows,
    scripted,
    state_of,
    trainer,
)

from drocc_ext import metrics
from drocc_ext.training.callbacks import Callback
from drocc_ext.training.trainer import Trainer


def test_loss_monitor_sees_no_anomalies_and_no_noise(seed: int) -> None:
    x = rows(seed)
    y = torch.cat([torch.ones(30), torch.zeros(10)])
    values = []
    for held_out in (x[:30], (x, y), (torch.cat([x[:30], 1e6 + x[30:]]), y)):
        model = network(seed)
        torch.manual_seed(seed)
        history = trainer(model).fit(x, validation=held_out, epochs=2, seed=seed)
        values.append([record["monitor"] for record in history])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert values[1] == values[2]
    still = trainer(network(seed), lr=0.0)

    class Eval(Callback):
        def on_fit_start(self, trainer: Trainer) -> None:
            trainer.model.eval()

    still.callbacks = (Eval(),)
    first, second = still.fit(x, validation=x, epochs=2)
    assert first["monitor"] == second["monitor"]


def test_monitor_leaves_modes_and_statistics_alone(seed: int) -> None:
    x, states = rows(seed), []
    for held_out in (None, rows(seed + 5)):
        model = network(seed)
        model[3].eval()
        torch.manual_seed(seed)
        options: dict[str, Any] = {"epochs": 2, "seed": seed, "restore_best": False}
        trainer(model).fit(x, validation=held_out, **options)
        states.append(state_of(model))
        assert all(module.training for module in model.modules())
    assert_same_state(*states)


class Snapshots(Callback):
    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        self.states.append(state_of(trainer.model))


@pytest.mark.parametrize("restore_best", [True, False])
def test_best_epoch(restore_best: bool, seed: int) -> None:
    model, snapshots = network(seed), Snapshots()
    history = trainer(model, callbacks=[snapshots]).fit(
        rows(seed),
        validation=labelled(seed),
        epochs=5,
        warmup_epochs=1,
        monitor=scripted([9.0, 1.0, 3.0, 3.0, 2.0]),
        restore_best=restore_best,
    )
    assert (history.best_epoch, history.best_value) == (3, 3.0)
    assert_same_state(state_of(model), snapshots.states[2 if restore_best else -1])


def test_patience(seed: int) -> None:
    history = trainer(network(seed)).fit(
        rows(seed),
        validation=labelled(seed),
        epochs=50,
        warmup_epochs=3,
        patience=2,
        monitor=scripted([9, 9, 9, 1, 1, 2, 2, 1, 5]),
    )
    assert len(history) == 8  # three warm-up epochs, best at 6, two stale ones


def test_auc_monitor(seed: int) -> None:
    model = network(seed)
    x, y = labelled(seed)
    fitted = trainer(model)
    history = fitted.fit(rows(seed), validation=(x, y), epochs=2, monitor="auc")
    assert history.best_value == max(record["monitor"] for record in history)
    assert history.best_value == metrics.roc_auc(fitted.score(x), y)
    steps = []

    class Steps(Callback):
        def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
            steps.append(step)

    fitted.callbacks = (Steps(),)
    for bad, message in (
        (x, "labels are needed, got data without labels"),
        ((x, torch.ones(10)), "labels of both classes are needed, got only label 1"),
        ((x, torch.zeros(10)), "labels of both classes are needed, got only label 0"),
        ((x[:0], y[:0]), "labels of both classes are needed, got no rows"),
        ((x, y - 1), "labels must be 1 .* or 0"),
    ):
        with pytest.raises(ValueError, match=f"^Trainer.fit: validation: {message}"):
            fitted.fit(rows(seed), validation=bad, epochs=1, monitor="auc")
    assert steps == []  # said before training
    with pytest.raises(ValueError, match="validation in epoch 1: labels of both classes"):
        fitted.fit(rows(seed), validation=[(x, torch.ones(10))], epochs=1, monitor="auc")


def test_monitor_function_gets_scores_and_labels(seed: int) -> None:
    got: list[Any] = []

    def monitor(scores: Any, labels: Any) -> float:
        got.append((scores, labels))
        return 1.0

    x, y = labelled(seed)
    fitted = trainer(network(seed))
    fitted.fit(rows(seed), validation=(x, y[:, None].bool()), epochs=1, monitor=monitor)
    scores, labels = got[0]
    np.testing.assert_array_equal(scores, fitted.score(x).numpy())
    np.testing.assert_array_equal(labels, y.numpy())


def test_validation_without_normal_rows(seed: int) -> None:
    with pytest.raises(ValueError, match="validation in epoch 1: normal rows are needed"):
        trainer(network(seed)).fit(rows(seed), validation=(rows(seed), torch.zeros(40)), epochs=1)


def test_monitored_nan(seed: int) -> None:
    with pytest.raises(FloatingPointError, match=r"validation in epoch 2: .* is nan"):
        trainer(network(seed)).fit(
            rows(seed), validation=labelled(seed), epochs=3, monitor=scripted([1, math.nan])
        )


def test_score(seed: int) -> None:
    model, x = network(seed), rows(seed, 103)
    model[3].eval()
    fitted = trainer(model)
    flags, state = [m.training for m in model.modules()], state_of(model)
    scores = fitted.score(x, batch_size=10)
    assert [m.training for m in model.modules()] == flags
    assert_same_state(state_of(model), state)
    assert scores.shape == (103,)
    assert not scores.requires_grad
    torch.testing.assert_close(scores, fitted.score(x))
    torch.testing.assert_close(scores, fitted.score(x.double().numpy(), batch_size=7))
    torch.testing.assert_close(scores, fitted.score(DataLoader(Rows(x), batch_size=9)))
    torch.testing.assert_close(scores, copy.deepcopy(model).eval()(x)[:, 0].detach())
    assert fitted.score(x[:0]).shape == (0,)
    with torch.inference_mode():
        torch.testing.assert_close(scores, fitted.score(x))
    with pytest.raises(ValueError, match=r"^Trainer\.score: batch_size must be >= 1, got 0"):
        fitted.score(x, batch_size=0)


def test_evaluate(seed: int) -> None:
    fitted, (x, y) = trainer(network(seed)), labelled(seed)
    scores = fitted.score(x)
    assert fitted.evaluate((x, y[:, None]), batch_size=3) == {
        "auc": metrics.roc_auc(scores, y),
        "recall_at_fpr_3": metrics.recall_at_fpr(scores, y, 0.03),
        "recall_at_fpr_5": metrics.recall_at_fpr(scores, y, 0.05),
        "f1_top_n": metrics.f1_top_n(scores, y),
    }
    with pytest.raises(ValueError, match=r"^Trainer\.evaluate: test: labels are needed"):
        fitted.evaluate(x)
