"""DROCC-LF in the trainer: epochs of sigma, validation, checkpoints, failures, learning."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drocc_ext.search import SearchConfig, adversarial_search
from drocc_ext.training import checkpoint
from drocc_ext.training.callbacks import Callback
from drocc_ext.training.loss import DROCCLoss
from drocc_ext.training.trainer import Trainer

SETTINGS: dict[str, Any] = {"radius": 2.0, "step_size": 0.5, "num_steps": 3}
CONFIG = SearchConfig(**SETTINGS)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed + 1))


def network(seed: int) -> nn.Sequential:
    """Batch statistics and dropout, which the influence must not see."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.5))
        return layers.append(nn.Linear(16, 1))


def lf(**options: Any) -> DROCCLoss:
    return DROCCLoss(CONFIG, metric="mahalanobis", **options)


def labelled(seed: int, count: int = 40) -> tuple[Tensor, Tensor]:
    return rows(seed, count, 6), (torch.arange(count) % 4 > 0).long()


class Record(Callback):
    """Keeps sigma at the start of each epoch's batches, and after each epoch."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.in_epoch: dict[int, list[Tensor | None]] = {}
        self.after: list[dict[str, Tensor]] = []
        self.epoch = 0
        self.fail_at = fail_at

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        self.epoch = epoch
        self.in_epoch[epoch] = []

    def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
        sigma = trainer.loss.sigma
        self.in_epoch[self.epoch].append(None if sigma is None else sigma.clone())
        if step == self.fail_at:
            raise KeyboardInterrupt

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        self.after.append({k: v.clone() for k, v in trainer.loss.state_dict().items()})


def trainer(
    seed: int, *callbacks: Callback, loss: DROCCLoss | None = None, **options: Any
) -> Trainer:
    model = network(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loss = lf() if loss is None else loss
    return Trainer(model, loss, optimizer, callbacks=callbacks, progress=False, **options)


def same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


def test_sigma_changes_between_epochs_only(seed: int) -> None:
    log = Record()
    trainer(seed, log).fit(labelled(seed), epochs=5, warmup_epochs=2, batch_size=16, seed=1)
    # Epochs 1 and 2 are warm-up, in 3 each batch has its own.
    assert all(sigma is None for epoch in (1, 2, 3) for sigma in log.in_epoch[epoch])
    for epoch in (4, 5):
        first, *others = log.in_epoch[epoch]
        assert first is not None
        before = log.after[epoch - 2]
        assert torch.equal(first, before["tracker.influence_sum"] / before["tracker.row_count"])
        assert int(before["tracker.row_count"]) == 30  # the normal ones of 40
        assert all(sigma is not None and torch.equal(sigma, first) for sigma in others)
    assert not torch.equal(log.in_epoch[4][0], log.in_epoch[5][0])  # type: ignore[arg-type]


def test_validation_uses_sigma_and_changes_nothing(seed: int) -> None:
    logs = [Record(), Record()]
    fits = [trainer(seed, log) for log in logs]
    seeds = {"batch_size": 16, "epochs": 3, "seed": 1, "restore_best": False}
    held_out = 50 * rows(seed + 5, 30, 6)
    torch.manual_seed(seed)
    fits[0].fit(labelled(seed), **seeds)
    torch.manual_seed(seed)
    history = fits[1].fit(labelled(seed), validation=held_out, **seeds)
    assert all(same_tensors(a, b) for a, b in zip(logs[0].after, logs[1].after, strict=True))
    assert same_tensors(fits[0].model.state_dict(), fits[1].model.state_dict())
    assert fits[1].loss.training
    # The last value, by hand: noise of seed 0, the sigma of the third epoch.
    model = fits[1].model.eval()
    x_adv = adversarial_search(
        model,
        held_out,
        **SETTINGS,
        sigma=logs[1].after[-1]["tracker.sigma"].float(),
        generator=generator(0),
    )
    softplus = torch.nn.functional.softplus
    expected = softplus(-model(held_out)).mean() + softplus(model(x_adv)).mean()
    assert history[-1]["monitor"] == pytest.approx(expected.item(), rel=1e-5)


def test_loss_mode_is_put_back(seed: int) -> None:
    class Mode(Callback):
        def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
            assert trainer.loss.training

    fitted = trainer(seed, Mode())
    fitted.loss.eval()  # as validation in a loop of one's own leaves it
    fitted.fit(labelled(seed), validation=rows(seed, 9, 6), epochs=2)
    assert fitted.loss.sigma is not None


def test_a_loss_that_served_another_model_starts_anew(seed: int) -> None:
    loss = lf()
    x = rows(seed, 20, 3)
    other = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    Trainer(other, loss, optimizer, progress=False).fit(x, epochs=3)
    assert loss.sigma is not None
    fitted = trainer(seed, loss=loss)
    fitted.fit(labelled(seed), epochs=2, seed=3)
    fresh = trainer(seed)
    torch.manual_seed(seed)  # dropout
    fresh.fit(labelled(seed), epochs=2, seed=3)
    again = trainer(seed, loss=loss)
    torch.manual_seed(seed)
    again.fit(labelled(seed), epochs=2, seed=3)
    assert same_tensors(fresh.model.state_dict(), again.model.state_dict())


@pytest.mark.parametrize("fail_at", [None, 1, 5, 10])
@pytest.mark.parametrize("warmup", [0, 1])
def test_resume_is_exact(warmup: int, fail_at: int | None, tmp_path: Path, seed: int) -> None:
    options: dict[str, Any] = {
        "validation": rows(seed + 9, 12, 6),
        "batch_size": 12,
        "warmup_epochs": warmup,
        "restore_best": False,
    }

    def fit(directory: str, *callbacks: Callback, **changes: Any) -> tuple[Trainer, Any]:
        torch.manual_seed(seed)
        made = trainer(seed, *callbacks)
        history = made.fit(
            labelled(seed), checkpoint_dir=tmp_path / directory, **{**options, **changes}
        )
        return made, history

    straight, expected = fit("a", epochs=5)
    if fail_at is None:
        fit("b", epochs=2)
    else:
        with pytest.raises(KeyboardInterrupt):
            fit("b", Record(fail_at), epochs=5)
    resumed, history = fit("b", epochs=5, resume=True)
    assert same_tensors(straight.model.state_dict(), resumed.model.state_dict())
    assert same_tensors(straight.loss.state_dict(), resumed.loss.state_dict())
    assert [r["monitor"] for r in history] == [r["monitor"] for r in expected]
    content = torch.load(tmp_path / "b" / "checkpoint.pt", weights_only=True)
    assert same_tensors(content["loss"]["state"], straight.loss.state_dict())


def test_checkpoints_of_the_first_version(tmp_path: Path, seed: int) -> None:
    """They have no entry for the loss, which then was of the l2 metric."""

    def fit(epochs: int, directory: str, loss: DROCCLoss, **options: Any) -> Trainer:
        torch.manual_seed(seed)
        made = trainer(seed, loss=loss)
        made.fit(labelled(seed), epochs=epochs, checkpoint_dir=tmp_path / directory, **options)
        return made

    straight = fit(3, "a", DROCCLoss(CONFIG))
    fit(1, "b", DROCCLoss(CONFIG))
    path = tmp_path / "b" / "checkpoint.pt"
    content = checkpoint.read_checkpoint(path)
    del content["loss"]
    torch.save(content, path)
    for way in ("epoch", "sample"):
        with pytest.raises(ValueError, match="the loss's metric was 'l2' and is 'mahalanobis'"):
            fit(3, "b", lf(influence=way), resume=True)
    resumed = fit(3, "b", DROCCLoss(CONFIG), resume=True)
    assert same_tensors(straight.model.state_dict(), resumed.model.state_dict())


def test_checkpoint_of_another_metric(tmp_path: Path, seed: int) -> None:
    trainer(seed).fit(labelled(seed), epochs=2, checkpoint_dir=tmp_path)
    other = trainer(seed + 1, loss=DROCCLoss(CONFIG))
    before = copy.deepcopy(other.model.state_dict())
    for loss, message in (
        (DROCCLoss(CONFIG), "the loss's metric was 'mahalanobis' and is 'l2'"),
        (lf(influence="sample"), "the loss's influence was 'epoch' and is 'sample'"),
    ):
        other.loss = loss
        with pytest.raises(ValueError, match=message):
            other.fit(labelled(seed), epochs=3, checkpoint_dir=tmp_path, resume=True)
        assert same_tensors(other.model.state_dict(), before)


@pytest.mark.parametrize("autocast", [None, torch.float16])
def test_a_loss_that_is_not_finite_leaves_the_state(
    autocast: torch.dtype | None, seed: int
) -> None:
    x = rows(seed, 40, 6)
    x[27, 2] = math.nan
    states: list[dict[str, Tensor]] = []

    class Keep(Callback):
        def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
            states.append({k: v.clone() for k, v in trainer.loss.state_dict().items()})

    fitted = trainer(seed, Keep(), autocast_dtype=autocast)
    with pytest.raises(FloatingPointError, match=r"in epoch 1, batch 4 .*x holds NaN"):
        fitted.fit(list(x.split(8)), epochs=2)
    assert len(states) == 3
    assert same_tensors(fitted.loss.state_dict(), states[-1])
    assert int(states[-1]["tracker.row_count"]) == 24


def test_loss_scaling(seed: int) -> None:
    fitted = trainer(seed, autocast_dtype=torch.float16)
    history = fitted.fit(labelled(seed), epochs=3)
    assert math.isfinite(history[-1]["loss"])
    assert fitted.loss.sigma is not None
    assert fitted.loss.sigma.isfinite().all()


def test_noisy_coordinates_lose_their_weight(seed: int) -> None:
    """Anomalies lie on a circle in 2 of 32 coordinates, known ones on a quarter of it.

    The 30 others are noise. In l2 the shell is far in these, so that its points teach little.
    """
    torch.manual_seed(seed)

    def sample(count: int, arc: float) -> Tensor:
        angle = arc * torch.rand(count)
        signal = torch.stack([angle.cos(), angle.sin()], 1) * (arc > 0)
        return torch.cat([signal + 0.1 * torch.randn(count, 2), torch.randn(count, 30)], 1)

    train = (torch.cat([sample(400, 0), sample(40, math.pi / 2)]), torch.arange(440) < 400)
    test = (torch.cat([sample(400, 0), sample(400, 2 * math.pi)]), torch.arange(800) < 400)
    search = SearchConfig(radius=2.0, gamma=1.5, step_size=0.3, num_steps=5, noise_scale=0.3)
    auc = {}
    for metric in ("l2", "mahalanobis"):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))
        loss = DROCCLoss(search, metric=metric)  # type: ignore[arg-type]
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        fitted = Trainer(model, loss, optimizer, progress=False)
        fitted.fit(train, epochs=60, batch_size=110, warmup_epochs=5, seed=seed)
        auc[metric] = fitted.evaluate(test)["auc"]
    assert loss.sigma is not None
    assert loss.sigma[:2].mean() > 3 * loss.sigma[2:].mean()  # 9.7 at least in 100 runs
    assert auc["mahalanobis"] > 0.98
    assert auc["mahalanobis"] > auc["l2"]  # by 0.02 at least in 70 runs
