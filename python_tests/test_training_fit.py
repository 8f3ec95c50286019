"""A fit: learning, history, steps that are not finite, schedulers, callbacks, limits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_cases import (
    CONFIG,
    Log,
    assert_same_state,
    labelled,
    network,
    rows,
    scripted,
    state_of,
    trainer,
)

from drocc_ext.search import SearchConfig
from drocc_ext.training.callbacks import Callback
from drocc_ext.training.checkpoint import read_checkpoint
from drocc_ext.training.loss import DROCCLoss
from drocc_ext.training.trainer import History, Trainer


def test_learns_a_ring(seed: int) -> None:
    torch.manual_seed(seed)
    angle = 2 * math.pi * torch.rand(400)
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    normal, held_out, fresh = (ring + 0.02 * torch.randn(400, 2)).split([256, 64, 80])
    anomalies = torch.cat([0.4 * fresh[:40], 1.6 * fresh[40:]])
    test = (torch.cat([fresh, anomalies]), torch.tensor([1] * 80 + [0] * 80))
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1))
    loss = DROCCLoss(SearchConfig(radius=0.4, step_size=0.1, num_steps=2), mu=0.5)
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


class LastStepTooLarge(torch.optim.SGD):
    """The second step leaves infinity in the weights."""

    steps = 0

    def step(self, closure: Any = None) -> None:
        self.steps += 1
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(math.inf if self.steps == 2 else 0.0)


def test_weights_of_the_last_step_are_checked(seed: int, tmp_path: Path) -> None:
    model = network(seed)
    optimizer = LastStepTooLarge(model.parameters(), lr=0.1)
    fitted = Trainer(model, DROCCLoss(CONFIG), optimizer, progress=False)
    data = rows(seed)
    with pytest.raises(FloatingPointError, match=r"weights must be finite, .* after step 2"):
        fitted.fit(data, epochs=2, batch_size=len(data), checkpoint_dir=tmp_path)
    saved = read_checkpoint(tmp_path / "checkpoint.pt")
    assert saved["fit"]["epoch"] == 1
    assert all(bool(value.isfinite().all()) for value in saved["model"].values())


def test_a_fit_without_gradients_is_refused(seed: int) -> None:
    fitted = trainer(network(seed))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), pytest.raises(RuntimeError, match="gradients must be enabled"):
            fitted.fit(rows(seed), epochs=1)


def test_a_layer_that_the_processor_lacks_in_a_short_type(seed: int) -> None:
    class Lacking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logit = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError(
                    "could not create a primitive descriptor for the LSTM forward propagation "
                    "primitive. Run workload with environment variable ONEDNN_VERBOSE=all"
                )
            logits: Tensor = self.logit(x)
            return logits

    fitted = trainer(Lacking(), autocast_dtype=torch.float16)
    with pytest.raises(ValueError, match=r"autocast_dtype must be .* got torch.float16 \(oneDNN"):
        fitted.fit(rows(seed), epochs=1)
    with pytest.raises(ValueError, match=r"autocast_dtype must be .* got torch.float16 \(oneDNN"):
        fitted.score(rows(seed))
