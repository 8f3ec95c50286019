"""Trainer: learning, selection, exact resume, and what happens when something goes wrong."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from drocc_ext import metrics
from drocc_ext.search import SearchConfig
from drocc_ext.training import checkpoint
from drocc_ext.training.callbacks import Callback
from drocc_ext.training.loss import DROCCLoss
from drocc_ext.training.trainer import History, Trainer

CONFIG = SearchConfig(radius=1.0, step_size=0.2, num_steps=2)


def rows(seed: int, count: int = 40, features: int = 4) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed + 1))


def network(seed: int) -> nn.Sequential:
    """BatchNorm has statistics, dropout draws from the global generator: both must resume."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1)
        )


def trainer(model: nn.Module, lr: float = 0.01, **options: Any) -> Trainer:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=1e-4)
    return Trainer(model, DROCCLoss(CONFIG), optimizer, **{"progress": False, **options})


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


class Rows(Dataset[Any]):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        # The third element, as published loaders have it, is to be ignored.
        return self.x[index], 1, "ignored"


class Stream(IterableDataset[Tensor]):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.x)


class OwnLoader:
    """Not a DataLoader, with a generator and a wish to know the epoch."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.generator = torch.Generator().manual_seed(4)
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.x), generator=self.generator)
        return iter(self.x[order].split(12 + self.epochs[-1]))


def test_learns_a_ring(seed: int) -> None:
    torch.manual_seed(seed)
    angle = 2 * math.pi * torch.rand(400)
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    normal, held_out, fresh = (ring + 0.02 * torch.randn(400, 2)).split([256, 64, 80])
    anomalies = torch.cat([0.4 * fresh[:40], 1.6 * fresh[40:]])
    test = (torch.cat([fresh, anomalies]), torch.tensor([1] * 80 + [0] * 80))
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1))
    loss = DROCCLoss(SearchConfig(radius=0.4, step_size=0.1, num_steps=5), mu=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    fitted = Trainer(model, loss, optimizer, progress=False)
    before = fitted.evaluate(test)["auc"]
    history = fitted.fit(normal, validation=held_out, epochs=150, batch_size=128, seed=seed)
    after = fitted.evaluate(test)
    assert after["auc"] > max(0.9, before)
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(0 <= value <= 1 for value in after.values())


def test_history(seed: int) -> None:
    fitted = trainer(network(seed))
    history = fitted.fit(
        rows(seed, 41), validation=rows(seed + 1), epochs=3, batch_size=16, warmup_epochs=1
    )
    assert isinstance(history, History)
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert [record["step"] for record in history] == [3, 6, 9]
    assert [record["adversarial"] > 0 for record in history] == [False, True, True]
    for record in history:
        assert record["loss"] == pytest.approx(record["clean"] + record["adversarial"])
        assert record["lr"] == 0.01
        assert record["seconds"] > 0
        assert math.isfinite(record["monitor"])
    best = min(history[1:], key=lambda record: record["monitor"])  # not the warm-up epoch
    assert (history.best_epoch, history.best_value) == (best["epoch"], best["monitor"])


def test_epoch_loss_is_the_mean_over_rows(seed: int) -> None:
    model, x = network(seed), rows(seed, 5)
    model[3].p = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    fitted = Trainer(model, DROCCLoss(CONFIG), optimizer, progress=False)

    class Eval(Callback):  # a callback's modes stay
        def on_fit_start(self, trainer: Trainer) -> None:
            trainer.model.eval()

    fitted.callbacks = (Eval(),)
    (record,) = fitted.fit(x, epochs=1, batch_size=4, warmup_epochs=1)
    assert not model.training
    expected = nn.functional.softplus(-model(x)).mean()
    assert record["clean"] == pytest.approx(expected.item(), rel=1e-5)


# --- data ---------------------------------------------------------------------------------------


def test_kinds_of_data_agree(seed: int) -> None:
    x, y = rows(seed), torch.ones(40, dtype=torch.int64)
    y[::3] = 0
    batches = list(zip(x.split(16), y.split(16), strict=True))
    kinds: dict[str, Any] = {
        "loader": DataLoader(TensorDataset(x, y), batch_size=16),
        "triples": [(a, b, "extra") for a, b in batches],
        "arrays": [(a.double().numpy(), b.numpy()) for a, b in batches],
        "columns": [[a, b[:, None].bool()] for a, b in batches],
    }
    states = {}
    for name, data in kinds.items():
        model = network(seed)
        model[3].p = 0.0  # a DataLoader moves the global generator, dropout's
        trainer(model).fit(data, epochs=2, seed=seed)
        states[name] = state_of(model)
    for state in states.values():
        assert_same_state(state, states["loader"])


@pytest.mark.parametrize(
    "data",
    [
        lambda x: x.numpy(),
        lambda x: x.double().numpy()[::-1],
        lambda x: (x, None),
        lambda x: (x.numpy(), [1] * 40),
        lambda x: TensorDataset(x),
        lambda x: TensorDataset(x, torch.ones(40), torch.zeros(40)),
        Rows,
        Stream,
        lambda x: DataLoader(Stream(x), batch_size=8),
        lambda x: list(x.split(8)),
    ],
    ids=["array", "reversed", "none", "list_y", "td1", "td3", "map", "stream", "loader", "list"],
)
def test_kinds_of_data_train_and_score(data: Any, seed: int) -> None:
    model, x = network(seed), rows(seed)
    fitted = trainer(model)
    history = fitted.fit(data(x), epochs=2, batch_size=16)
    assert len(history) == 2
    assert fitted.score(data(x)).shape == (40,)


def test_tensors_are_shuffled_anew_each_epoch(seed: int) -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            logits: Tensor = self.inner(x)
            return logits

    x = torch.arange(50.0)[:, None]
    trainer(Spy()).fit(x, epochs=2, batch_size=20, warmup_epochs=2, seed=seed)
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert [len(batch) for batch in seen] == [20, 20, 10] * 2
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(0).values, x)
    assert torch.equal(second.sort(0).values, x)


def test_labels_follow_their_rows(seed: int) -> None:
    pairs: list[tuple[Tensor, Tensor]] = []

    class Spy(DROCCLoss):
        def forward(self, model: nn.Module, x: Tensor, y: Any = None, **options: Any) -> Any:
            pairs.append((x, y))
            return super().forward(model, x, y, **options)

    x = torch.arange(30.0)[:, None]
    y = (torch.arange(30) % 3 == 0).int()
    model = nn.Linear(1, 1)
    Trainer(model, Spy(CONFIG), torch.optim.SGD(model.parameters()), progress=False).fit(
        (x, y), epochs=1, batch_size=7, seed=seed
    )
    for batch, labels in pairs:
        assert torch.equal(labels, (batch[:, 0].int() % 3 == 0).int())


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.zeros(0, 4), ValueError, "train must hold rows in every epoch, got none in epoch 1"),
        ([], ValueError, "train must hold rows in every epoch, got none in epoch 1"),
        (torch.zeros(4, 4).int(), TypeError, "train: x must be floating point, got torch.int32"),
        (torch.tensor(1.0), ValueError, "train: x must have a batch dimension"),
        ((torch.zeros(4, 4), torch.ones(3)), ValueError, "labels must be one per row, got shape"),
        ((torch.zeros(4, 4),) * 3, TypeError, r"a tuple must be \(x, y\), got 3 elements"),
        ("text", TypeError, "data must be a tensor, .* got str"),
        (3, TypeError, "data must be a tensor, .* got int"),
        ((torch.zeros(4, 4), torch.full((4,), -1)), ValueError, "labels must be 1 .* got -1"),
    ],
)
def test_bad_data(data: Any, error: type[Exception], message: str, seed: int) -> None:
    with pytest.raises(error, match=message):
        trainer(network(seed)).fit(data, epochs=1)


def test_loader_is_told_the_epoch(seed: int) -> None:
    loader = OwnLoader(rows(seed))
    trainer(network(seed)).fit(loader, epochs=3)
    assert loader.epochs == [0, 1, 2]


def test_one_shot_iterator(seed: int) -> None:
    with pytest.raises(ValueError, match=r"got none in epoch 2 \(an iterator serves one epoch"):
        trainer(network(seed)).fit(iter(rows(seed).split(8)), epochs=2)


# --- selection ----------------------------------------------------------------------------------


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


def scripted(values: list[float]) -> Any:
    remaining = iter(values)
    return lambda scores, labels: next(remaining)


def labelled(seed: int) -> tuple[Tensor, Tensor]:
    return rows(seed, 10), torch.tensor([1] * 6 + [0] * 4)


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


# --- scores -------------------------------------------------------------------------------------


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


# --- steps --------------------------------------------------------------------------------------


def poisoned(seed: int) -> list[Tensor]:
    batches = list(rows(seed).split(8))
    batches[2] = batches[2].clone()
    batches[2][3, 1] = math.nan
    return batches


def test_loss_not_finite(seed: int) -> None:
    model = network(seed)
    after: list[dict[str, Tensor]] = []

    class Keep(Callback):
        def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
            after.append(state_of(trainer.model))

    message = "loss nan .* in epoch 1, batch 3 .*weights are as before.*x holds NaN"
    with pytest.raises(FloatingPointError, match=message):
        trainer(model, callbacks=[Keep()]).fit(poisoned(seed), epochs=2)
    assert len(after) == 2
    assert_same_state(state_of(model), after[-1])  # BatchNorm statistics too
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(value.isfinite().all() for value in state_of(model).values())


def test_gradient_not_finite(seed: int) -> None:
    class Root(nn.Module):
        """Finite at 0, where its derivative is not."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight.abs().sum().sqrt() * x.square().sum(1)

    model = Root()
    with pytest.raises(FloatingPointError, match="gradient norm nan in epoch 1, batch 1"):
        trainer(model).fit(rows(seed), epochs=1, warmup_epochs=1)
    assert (model.weight == 0).all()


def test_clip_norm(seed: int) -> None:
    moved = {}
    for clip_norm in (None, 1e-3):
        model = network(seed)
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        fitted = Trainer(model, DROCCLoss(CONFIG), optimizer, clip_norm=clip_norm, progress=False)
        fitted.fit(rows(seed), max_steps=1)
        after = nn.utils.parameters_to_vector(model.parameters()).detach()
        moved[clip_norm] = float((after - before).norm())
    assert moved[None] > 2e-3
    assert moved[1e-3] == pytest.approx(1e-3, rel=0.05)


def test_clip_norm_with_loss_scaling(seed: int) -> None:
    model = network(seed)
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    fitted = Trainer(
        model,
        DROCCLoss(CONFIG),
        torch.optim.SGD(model.parameters(), lr=1.0),
        clip_norm=1e-3,
        autocast_dtype=torch.float16,
        progress=False,
    )
    fitted.fit(rows(seed), max_steps=8)  # scaling may leave some of them out
    after = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert 5e-4 < (after - before).norm() < 8.1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, seed: int) -> None:
    model = network(seed)
    fitted = trainer(model, autocast_dtype=dtype, clip_norm=1.0)
    history = fitted.fit(rows(seed), validation=rows(seed + 1), epochs=3, batch_size=16)
    assert all(math.isfinite(record["loss"]) for record in history)
    assert fitted.score(rows(seed)).dtype == torch.float32
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("interval", "steps"), [("epoch", 2), ("step", 6)])
def test_scheduler_interval(interval: Any, steps: int, seed: int) -> None:
    model = network(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    Trainer(
        model,
        DROCCLoss(CONFIG),
        optimizer,
        scheduler=scheduler,
        scheduler_interval=interval,
        progress=False,
    ).fit(rows(seed), epochs=2, batch_size=16)
    assert optimizer.param_groups[0]["lr"] == 0.5**steps


def test_plateau_scheduler_follows_the_monitor(seed: int) -> None:
    model = network(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", patience=0, factor=0.1)
    history = Trainer(model, DROCCLoss(CONFIG), optimizer, scheduler=scheduler, progress=False).fit(
        rows(seed), validation=labelled(seed), epochs=3, monitor=scripted([3, 2, 4])
    )
    assert [record["lr"] for record in history] == pytest.approx([1.0, 1.0, 0.1])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_seed(seed: int) -> None:
    def run(fit_seed: int | None, global_seed: int) -> dict[str, Tensor]:
        model = network(seed)
        model[3].p = 0.0  # dropout is the global generator's
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        trainer(model).fit(rows(seed), epochs=2, batch_size=16, seed=fit_seed)
        if fit_seed is not None:
            assert torch.equal(torch.get_rng_state(), before)
        return state_of(model)

    reference = run(seed, 0)
    assert_same_state(reference, run(seed, 1))
    assert not torch.equal(reference["0.weight"], run(seed + 1, 0)["0.weight"])
    assert_same_state(run(None, 5), run(None, 5))
    assert not torch.equal(run(None, 5)["0.weight"], run(None, 6)["0.weight"])


# --- callbacks and limits -----------------------------------------------------------------------


class Log(Callback):
    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[str] = []
        self.stop_at = stop_at

    def on_fit_start(self, trainer: Trainer) -> None:
        self.events.append("fit")

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        self.events.append(f"epoch {epoch}")

    def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
        assert losses["loss"] == pytest.approx(losses["clean"] + losses["adversarial"])
        self.events.append(f"step {step}")
        trainer.should_stop = step == self.stop_at

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        self.events.append(f"end {record['epoch']}")

    def on_fit_end(self, trainer: Trainer, history: History) -> None:
        self.events.append(f"fitted {len(history)}")


@pytest.mark.parametrize(
    ("limits", "stop_at", "events"),
    [
        ({"epochs": 1}, None, "fit|epoch 1|step 1|step 2|end 1|fitted 1"),
        ({"max_steps": 3}, None, "fit|epoch 1|step 1|step 2|end 1|epoch 2|step 3|end 2|fitted 2"),
        ({"max_steps": 2}, None, "fit|epoch 1|step 1|step 2|end 1|fitted 1"),
        ({"epochs": 1, "max_steps": 9}, None, "fit|epoch 1|step 1|step 2|end 1|fitted 1"),
        ({"epochs": 9}, 1, "fit|epoch 1|step 1|end 1|fitted 1"),
    ],
)
def test_events(limits: dict[str, int], stop_at: int | None, events: str, seed: int) -> None:
    log = Log(stop_at)
    trainer(network(seed), callbacks=[log]).fit(rows(seed), batch_size=20, **limits)
    assert log.events == events.split("|")


def test_progress(seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    trainer(network(seed)).fit(rows(seed), epochs=2, batch_size=10)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    trainer(network(seed), progress=True).fit(rows(seed), epochs=2, batch_size=10)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "8/8" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "epochs or max_steps must be given, got neither"),
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"max_steps": -1}, "max_steps must be >= 1, got -1"),
        ({"epochs": 1, "batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"epochs": 1, "warmup_epochs": -1}, "warmup_epochs must be >= 0, got -1"),
        ({"epochs": 1, "seed": -1}, "seed must be >= 0, got -1"),
        ({"epochs": 1, "patience": 3}, "patience needs validation data, got 3"),
        ({"epochs": 1, "resume": True}, "resume needs a checkpoint_dir, got None"),
        ({"epochs": 1, "monitor": "f1"}, "monitor must be 'loss', 'auc' or a function, got 'f1'"),
    ],
)
def test_bad_fit_arguments(arguments: dict[str, Any], message: str, seed: int) -> None:
    with pytest.raises(ValueError, match=rf"^Trainer\.fit: {message}$"):
        trainer(network(seed)).fit(rows(seed), **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler_interval": "batch"}, "scheduler_interval must be 'epoch' or 'step'"),
        ({"clip_norm": 0.0}, "clip_norm must be > 0 and finite, got 0.0"),
        ({"autocast_dtype": torch.float64}, "autocast_dtype must be float16 or bfloat16"),
    ],
)
def test_bad_trainer_arguments(options: dict[str, Any], message: str, seed: int) -> None:
    with pytest.raises(ValueError, match=f"^Trainer: {message}"):
        trainer(network(seed), **options)


def test_a_data_frame_is_refused(seed: int) -> None:
    pandas = pytest.importorskip("pandas", reason="the refusal needs a DataFrame to refuse")
    with pytest.raises(TypeError, match=r"^Trainer\.fit: train: data must be .* got DataFrame"):
        trainer(network(seed)).fit(pandas.DataFrame(rows(seed).numpy()), epochs=1)


def test_radii_by_position_are_refused(seed: int) -> None:
    """Rows are shuffled: a tensor of radii would go to the wrong rows."""
    model = network(seed)
    loss = DROCCLoss(SearchConfig(radius=torch.full((40,), 5.0), step_size=1.0, num_steps=1))
    with pytest.raises(ValueError, match=r"^Trainer: the loss's radius must be a number"):
        Trainer(model, loss, torch.optim.SGD(model.parameters()))


def test_short_travel_is_warned_of(seed: int) -> None:
    model = network(seed)
    loss = DROCCLoss(SearchConfig(radius=5.0, step_size=0.001, num_steps=50))
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.warns(UserWarning, match="travel") as caught:
        Trainer(model, loss, optimizer, progress=False).fit(rows(seed), epochs=1, batch_size=40)
    assert caught[0].filename == __file__


# --- checkpoints --------------------------------------------------------------------------------

DATA: dict[str, Any] = {
    "tensor": lambda x: x,
    "labelled": lambda x: (x, (torch.arange(40) % 4 > 0).long()),
    "dataset": Rows,
    "loader": lambda x: DataLoader(Rows(x), batch_size=12, shuffle=True),
    "own_loader": OwnLoader,
    "loader_with_generator": lambda x: DataLoader(
        Rows(x), batch_size=12, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
}


class GlobalNoise(Callback):
    """Changes the weights by numpy's and python's global generators."""

    def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
        with torch.no_grad():
            trainer.model[0].bias += 1e-3 * float(np.random.standard_normal())
            trainer.model[0].bias += 1e-3 * random.random()


class Fail(Callback):
    def __init__(self, step: int, error: BaseException) -> None:
        self.step = step
        self.error = error

    def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
        if step == self.step:
            raise self.error


class Run:
    """One process: everything is made anew, as after a restart."""

    def __init__(self, seed: int, data: str, *callbacks: Callback, **options: Any) -> None:
        self.model = network(seed)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.97**step)
        self.trainer = Trainer(
            self.model,
            DROCCLoss(CONFIG),
            optimizer,
            scheduler=scheduler,
            scheduler_interval="step",
            callbacks=[GlobalNoise(), *callbacks],
            progress=False,
            **options,
        )
        self.seed = seed
        self.data = DATA[data](rows(seed))

    def fit(self, directory: Path, **arguments: Any) -> History:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(self.seed)
        return self.trainer.fit(
            self.data,
            validation=rows(self.seed + 9),
            checkpoint_dir=directory,
            **{"batch_size": 12, "warmup_epochs": 1, "restore_best": False, **arguments},
        )


def disturb() -> None:
    """Another process has other global generators."""
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)


def assert_same_run(first: Run, second: Run) -> None:
    assert_same_state(state_of(first.model), state_of(second.model))
    one, two = (run.trainer.optimizer.state_dict() for run in (first, second))
    assert one["param_groups"] == two["param_groups"]
    for key, state in one["state"].items():
        assert_same_state(state, two["state"][key])


@pytest.mark.parametrize("fit_seed", [None, 11])
@pytest.mark.parametrize("data", DATA)
def test_resume_is_exact(data: str, fit_seed: int | None, tmp_path: Path, seed: int) -> None:
    straight = Run(seed, data)
    expected = straight.fit(tmp_path / "a", epochs=5, seed=fit_seed)
    Run(seed, data).fit(tmp_path / "b", epochs=2, seed=fit_seed)
    disturb()
    resumed = Run(seed, data)
    history = resumed.fit(tmp_path / "b", epochs=5, resume=True, seed=fit_seed)
    assert_same_run(straight, resumed)
    assert without_seconds(history) == without_seconds(expected)
    assert (history.best_epoch, history.best_value) == (expected.best_epoch, expected.best_value)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("crash")], ids=repr)
@pytest.mark.parametrize("step", [1, 4, 11])
def test_resume_after_a_crash(error: BaseException, step: int, tmp_path: Path, seed: int) -> None:
    straight = Run(seed, "loader_with_generator")
    straight.fit(tmp_path / "a", epochs=4)
    with pytest.raises(type(error)):
        Run(seed, "loader_with_generator", Fail(step, error)).fit(tmp_path / "b", epochs=4)
    content = checkpoint.read_checkpoint(tmp_path / "b" / "checkpoint.pt")
    assert content["fit"]["epoch"] == (step - 1) // 4
    disturb()
    resumed = Run(seed, "loader_with_generator")
    resumed.fit(tmp_path / "b", epochs=4, resume=True)
    assert_same_run(straight, resumed)


def test_resume_within_an_epoch(tmp_path: Path, seed: int) -> None:
    straight = Run(seed, "tensor")
    expected = straight.fit(tmp_path / "a", max_steps=11)
    Run(seed, "tensor").fit(tmp_path / "b", max_steps=6)
    resumed = Run(seed, "tensor")
    history = resumed.fit(tmp_path / "b", max_steps=11, resume=True)
    assert_same_run(straight, resumed)
    assert without_seconds(history) == without_seconds(expected)


def test_resume_of_loss_scaling(tmp_path: Path, seed: int) -> None:
    straight = Run(seed, "tensor", autocast_dtype=torch.float16)
    straight.fit(tmp_path / "a", epochs=3)
    Run(seed, "tensor", autocast_dtype=torch.float16).fit(tmp_path / "b", epochs=1)
    resumed = Run(seed, "tensor", autocast_dtype=torch.float16)
    resumed.fit(tmp_path / "b", epochs=3, resume=True)
    assert_same_run(straight, resumed)
    one, two = (checkpoint.read_checkpoint(tmp_path / name / "checkpoint.pt") for name in "ab")
    assert one["scaler"] == two["scaler"]
    with pytest.raises(ValueError, match="loss scaling was True and is False"):
        Run(seed, "tensor").fit(tmp_path / "b", epochs=3, resume=True)


def test_resume_keeps_best_weights_and_patience(tmp_path: Path, seed: int) -> None:
    arguments: dict[str, Any] = {"restore_best": True, "patience": 2, "warmup_epochs": 0}

    class Worse(Callback):
        """The first epoch stays the best one."""

        def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
            if epoch > 1:
                with torch.no_grad():
                    trainer.model[-1].bias -= 50.0

    straight = Run(seed, "tensor", Worse())
    expected = straight.fit(tmp_path / "a", epochs=9, **arguments)
    assert (len(expected), expected.best_epoch) == (3, 1)
    Run(seed, "tensor", Worse()).fit(tmp_path / "b", epochs=2, **arguments)
    for _ in range(2):  # the second finds the fit at its end
        resumed = Run(seed, "tensor", Worse())
        history = resumed.fit(tmp_path / "b", epochs=9, resume=True, **arguments)
        assert without_seconds(history) == without_seconds(expected)
        assert_same_state(state_of(resumed.model), state_of(straight.model))


def test_resume_without_a_checkpoint_starts_anew(tmp_path: Path, seed: int) -> None:
    first, second = Run(seed, "tensor"), Run(seed, "tensor")
    first.fit(tmp_path / "a", epochs=2)
    second.fit(tmp_path / "new" / "b", epochs=2, resume=True)
    assert_same_run(first, second)


def test_without_resume_a_checkpoint_is_overwritten(tmp_path: Path, seed: int) -> None:
    first, second = Run(seed, "tensor"), Run(seed, "tensor")
    first.fit(tmp_path, epochs=2)
    history = second.fit(tmp_path, epochs=2)
    assert len(history) == 2
    assert_same_run(first, second)


def test_checkpoint_is_plain_and_atomic(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(seed, "tensor")
    run.fit(tmp_path, epochs=1)
    path = tmp_path / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    assert content["fit"]["epoch"] == 1
    before = path.read_bytes()

    def fail(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        Run(seed, "tensor").fit(tmp_path, epochs=3, resume=True)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_checkpoint_that_could_not_be_read_back_is_refused_at_once(
    tmp_path: Path, seed: int
) -> None:
    run, log = Run(seed, "tensor"), Log()
    run.trainer.callbacks = (log,)
    run.trainer.scheduler.extra = Log()
    with pytest.raises(
        ValueError, match=r"\.pt: the checkpoint cannot hold scheduler\['extra'\], a .*Log"
    ):
        run.fit(tmp_path, epochs=1)
    assert log.events == ["fit"]


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 no zip", bytes(range(256))])
def test_damaged_checkpoint(content: bytes, tmp_path: Path, seed: int) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"checkpoint\.pt: the checkpoint cannot be read"
    ) as caught:
        Run(seed, "tensor").fit(tmp_path, epochs=1, resume=True)
    assert "\n" not in str(caught.value)


def test_truncated_or_foreign_checkpoint(tmp_path: Path, seed: int) -> None:
    Run(seed, "tensor").fit(tmp_path, epochs=1)
    path = tmp_path / "checkpoint.pt"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        Run(seed, "tensor").fit(tmp_path, epochs=2, resume=True)
    torch.save({"format": "other"}, path)
    with pytest.raises(ValueError, match=r"not a checkpoint of drocc_ext\.checkpoint"):
        Run(seed, "tensor").fit(tmp_path, epochs=2, resume=True)
    torch.save({"format": "drocc_ext.checkpoint", "version": 99}, path)
    with pytest.raises(ValueError, match="must be of format version 1, got 99"):
        Run(seed, "tensor").fit(tmp_path, epochs=2, resume=True)


def test_checkpoint_of_another_fit(tmp_path: Path, seed: int) -> None:
    Run(seed, "tensor").fit(tmp_path, epochs=1)
    other = Run(seed, "tensor")
    other.trainer = trainer(nn.Sequential(nn.Linear(4, 1)))
    before = state_of(other.trainer.model)
    with pytest.raises(ValueError, match="the weights do not fit Sequential"):
        other.fit(tmp_path, epochs=2, resume=True)
    assert_same_state(state_of(other.trainer.model), before)
    other.trainer = trainer(network(seed))
    with pytest.raises(ValueError, match="a scheduler was True and is False"):
        other.fit(tmp_path, epochs=2, resume=True)
    with pytest.raises(ValueError, match="number of generators was 1 and is 2"):
        Run(seed, "loader_with_generator").fit(tmp_path, epochs=2, resume=True)
    run = Run(seed, "tensor")
    with pytest.raises(ValueError, match="monitor was 'loss' and is 'auc'"):
        run.trainer.fit(
            run.data,
            validation=labelled(seed),
            monitor="auc",
            epochs=2,
            checkpoint_dir=tmp_path,
            resume=True,
        )
