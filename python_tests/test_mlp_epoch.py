"""Epochs that one operator takes, against the loop that they replace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler

from drocc_ext import DROCCLoss, SearchConfig
from drocc_ext.models.networks import MLP
from drocc_ext.ops import _library
from drocc_ext.training.callbacks import Callback
from drocc_ext.training.mlp_epoch import (
    MLPTraining,
    find_training,
    train_together,
)
from drocc_ext.training.trainer import Trainer

pytestmark = pytest.mark.skipif(
    _library.native_error("cpu") is not None, reason="the operator has no eager form"
)

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "adam": lambda p: Adam(p, lr=3e-3, weight_decay=1e-2),
    "adamw": lambda p: AdamW(p, lr=3e-3, betas=(0.8, 0.9), eps=1e-6),
    "fused": lambda p: Adam(p, lr=3e-3, fused=True),
    "sgd": lambda p: SGD(p, lr=0.05),
    "momentum": lambda p: SGD(p, lr=0.02, momentum=0.9, dampening=0.3, weight_decay=1e-2),
    "nesterov": lambda p: SGD(p, lr=0.02, momentum=0.8, nesterov=True),
}
SCHEDULERS: dict[str, Callable[[Optimizer], LRScheduler | None]] = {
    "none": lambda optimizer: None,
    "linear": lambda optimizer: LinearLR(optimizer, 1.0, 0.1, total_iters=20),
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda step: 1 - step / 40),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 15),
}


def search(**settings: Any) -> SearchConfig:
    given = {"radius": 1.2, "step_size": 0.3, "num_steps": 4, "gamma": 1.5}
    return SearchConfig(**{**given, **settings})


class EachBatch(Callback):
    """Asks for a loop over batches."""

    def on_batch_end(self, *_: Any) -> None:
        pass


class Fit:
    """One fit of a new network, by the loop or as it is chosen."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        loop: bool,
        model: nn.Module,
        optimizer: str = "adam",
        scheduler: str = "lambda",
        interval: Any = "step",
        config: SearchConfig | None = None,
        clip_norm: float | None = None,
        soft: bool = False,
        **fit: Any,
    ) -> None:
        self.model = copy.deepcopy(model)
        # As `Trainer` makes them: frozen parameters are among the optimizer's.
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)
        self.trainer = Trainer(
            self.model,
            DROCCLoss(
                config or search(),
                mu=0.7,
                labels="distance" if soft else "hard",
                rows=x if soft else None,
            ),
            self.optimizer,
            scheduler=self.scheduler,
            scheduler_interval=interval,
            clip_norm=clip_norm,
            callbacks=[EachBatch() if loop else Callback()],
            progress=False,
        )
        self.error: FloatingPointError | None = None
        try:
            data = x if y is None else (x, y)
            self.history = self.trainer.fit(data, **{"epochs": 3, "seed": 5, **fit})
        except FloatingPointError as error:
            self.error = error

    def states(self) -> list[Tensor]:
        found = [p.detach() for p in self.model.parameters()]
        for parameter in self.model.parameters():
            state = self.optimizer.state.get(parameter, {})
            found += [torch.as_tensor(v) for _, v in sorted(state.items()) if v is not None]
        found.append(torch.tensor(self.optimizer.param_groups[0]["lr"]))
        return found


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the epochs that one operator takes."""
    counted: list[int] = []
    whole = MLPTraining.run_epoch

    def run_epoch(self: MLPTraining, *args: Any, **kwargs: Any) -> Any:
        counted.append(1)
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(MLPTraining, "run_epoch", run_epoch)
    return counted


def assert_same(one: Fit, other: Fit, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    torch.testing.assert_close(one.states(), other.states(), rtol=rtol, atol=atol)
    assert len(one.history) == len(other.history)
    for ours, theirs in zip(one.history, other.history, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"seconds"}:
            assert ours[name] == pytest.approx(theirs[name], rel=max(rtol, 1e-8), abs=1e-10), name


def rows(count: int, columns: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, columns, dtype=dtype)


def network(hidden: Any = (16, 12), columns: int = 5, dtype: Any = torch.float64) -> nn.Module:
    return MLP(columns, hidden if isinstance(hidden, int) else list(hidden)).to(dtype)


@pytest.mark.parametrize("hidden", [16, (16, 12), (9, 8, 7), (6, 6, 6, 6)], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("labels", [False, True])
def test_the_loop_is_followed(
    hidden: Any, optimizer: str, labels: bool, calls: list[int], seed: int
) -> None:
    torch.manual_seed(seed)
    x, model = rows(101), network(hidden)
    y = (torch.rand(101) < 0.7).long() if labels else None
    settings = {"model": model, "optimizer": optimizer, "batch_size": 32}
    one = Fit(x, y, loop=False, **settings)
    assert len(calls) == 3
    assert_same(one, Fit(x, y, loop=True, **settings))
    assert len(calls) == 3
    moved = max(
        (p - q).abs().max() for p, q in zip(model.parameters(), one.model.parameters(), strict=True)
    )
    assert moved > 1e-3


VARIANTS: dict[str, dict[str, Any]] = {
    "warm-up": {"warmup_epochs": 2},
    "within an epoch": {"epochs": None, "max_steps": 6},
    "one row left": {"batch_size": 25},
    "clipped": {"clip_norm": 0.05},
    "linear": {"scheduler": "linear"},
    "cosine by epochs": {"scheduler": "cosine", "interval": "epoch"},
    "no scheduler": {"scheduler": "none"},
    "no steps": {"config": search(num_steps=0)},
    "as in the paper": {"config": search(project_start=False, project_every=2, noise_scale=0.3)},
    "no last projection": {"config": search(project_every=3, project_last=False)},
    "one batch": {"batch_size": 500},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, calls: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    x, model = rows(101), network()
    settings = {"batch_size": 32, "model": model, **VARIANTS[name]}
    one = Fit(x, loop=False, **settings)
    assert calls
    assert_same(one, Fit(x, loop=True, **settings))


def test_few_numbers_and_many(calls: list[int], seed: int) -> None:
    """Noise of fewer than 16 numbers and of more than 4096, in float32, is the loop's."""
    torch.manual_seed(seed)
    for count, columns, size in ((67, 3, 32), (65, 40, 200)):
        model, x = network(8, columns, torch.float32), rows(count, columns, torch.float32)
        settings = {"model": model, "batch_size": size, "config": search(num_steps=0)}
        one = Fit(x, loop=False, **settings)
        assert_same(one, Fit(x, loop=True, **settings), rtol=2e-3, atol=2e-5)


def test_edges(calls: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    model = network()
    x = rows(40)
    for y in (torch.zeros(40), torch.ones(40), (torch.arange(40) == 7).long()):
        one = Fit(x, y, loop=False, model=model, batch_size=16)
        assert_same(one, Fit(x, y, loop=True, model=model, batch_size=16))
    one = Fit(x[:1], loop=False, model=model)
    assert_same(one, Fit(x[:1], loop=True, model=model))
    assert len(calls) == 12
    with pytest.raises(ValueError, match=r"labels must be 1 \(normal\) or 0 \(negative\), got 2"):
        Fit(x, torch.full((40,), 2), loop=False, model=model)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_frozen_layers_stay(layer: int, calls: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    model = network()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)][layer]
    linear.weight.requires_grad_(False)
    x = rows(50)
    one = Fit(x, loop=False, model=model, batch_size=16)
    assert len(calls) == 3
    assert_same(one, Fit(x, loop=True, model=model, batch_size=16))
    found = [m for m in one.model.modules() if isinstance(m, nn.Linear)][layer]
    assert torch.equal(found.weight, linear.weight)
    assert not torch.equal(found.bias, linear.bias)


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
@pytest.mark.parametrize("bad_batch", [1, 4])
def test_a_bad_row_stops_before_its_batch(optimizer: str, bad_batch: int, seed: int) -> None:
    torch.manual_seed(seed)
    model, x = network(), rows(96)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(5))
    x[order[16 * bad_batch - 3], 2] = torch.nan
    settings = {"model": model, "optimizer": optimizer, "batch_size": 16, "scheduler": "linear"}
    one = Fit(x, loop=False, **settings)
    other = Fit(x, loop=True, **settings)
    assert one.error is not None
    assert str(one.error) == str(other.error)
    assert f"epoch 1, batch {bad_batch} are not finite" in str(one.error)
    torch.testing.assert_close(one.states(), other.states(), rtol=1e-9, atol=1e-11)
    assert one.scheduler is not None
    assert other.scheduler is not None
    assert one.scheduler.state_dict() == other.scheduler.state_dict()
    if bad_batch == 1:
        for ours, theirs in zip(one.model.parameters(), model.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_a_gradient_too_large_stops(seed: int) -> None:
    torch.manual_seed(seed)
    model = network((8, 8), dtype=torch.float32)
    x = 1e30 * rows(32, dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    one = Fit(x, loop=False, model=model, optimizer="sgd", config=search(num_steps=0))
    assert one.error is not None
    torch.testing.assert_close(one.model.state_dict(), before, rtol=0, atol=0)


def test_tiny_weights(calls: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    model, x = network(), rows(40)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-22)
    one = Fit(x, loop=False, model=model, batch_size=16)
    assert_same(one, Fit(x, loop=True, model=model, batch_size=16), rtol=1e-6, atol=1e-9)


def test_selection_and_resumption(calls: list[int], tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model, x = network(), rows(80)
    settings = {"model": model, "batch_size": 32, "validation": rows(30), "loop": False}
    whole = Fit(x, epochs=5, **settings)
    assert_same(whole, Fit(x, epochs=5, **{**settings, "loop": True}))
    Fit(x, epochs=2, checkpoint_dir=tmp_path, **settings)
    again = Fit(x, epochs=5, checkpoint_dir=tmp_path, resume=True, **settings)
    torch.testing.assert_close(again.states(), whole.states(), rtol=0, atol=0)


def test_versions_and_gradients(seed: int) -> None:
    torch.manual_seed(seed)
    x = rows(40)
    one = Fit(x, loop=False, model=network(), epochs=1)
    for parameter in one.model.parameters():
        assert parameter._version > 0
        assert parameter.grad is None
        assert not parameter.is_inference()


def found(model: nn.Module, x: Tensor, optimizer: Optimizer, **given: Any) -> MLPTraining | None:
    loss = given.get("loss", DROCCLoss(search()))
    return find_training(model, loss, optimizer, given.get("scheduler"), None, x)


def test_what_goes_step_by_step(seed: int) -> None:
    torch.manual_seed(seed)
    x, model = rows(30), network()
    parameters = list(model.parameters())
    plain = Adam(parameters)
    assert found(model, x, plain) is not None
    first, second = parameters[:2], parameters[2:]
    others: list[Optimizer] = [
        Adam(parameters, amsgrad=True),
        Adam(parameters, maximize=True),
        Adam(parameters, lr=torch.tensor(1e-3)),
        Adam([{"params": first}, {"params": second}]),
        Adam(first),
        Adam([*parameters, nn.Parameter(torch.zeros(3))]),
        torch.optim.RMSprop(parameters),
    ]
    for other in others:
        assert found(model, x, other) is None, other
    hooked = Adam(parameters)
    hooked.register_step_post_hook(lambda *_: None)
    assert found(model, x, hooked) is None
    uneven = Adam(parameters)
    uneven.state[parameters[0]] = {
        "step": torch.tensor(3.0),
        "exp_avg": torch.zeros_like(parameters[0]),
        "exp_avg_sq": torch.zeros_like(parameters[0]),
    }
    assert found(model, x, uneven) is None
    for given in (x.float(), x[:, :4], x[:, :, None], x.requires_grad_()):
        assert found(model, given, plain) is None or given is x
    x = x.detach()
    for loss in (
        DROCCLoss(search(), metric="mahalanobis"),
        DROCCLoss(search(method="autograd")),
        DROCCLoss(search(radius=torch.ones(30))),
        DROCCLoss(search(noise="rows", noise_factor=rows(0))),
        DROCCLoss(search(noise="rows", noise_factor=rows(3, 4))),
        DROCCLoss(search(noise="swaps", noise_rows=rows(0))),
        DROCCLoss(search(noise="swaps", noise_rows=rows(3).float())),
        DROCCLoss(search(), labels="distance", rows=rows(3, 4)),
        type("Other", (DROCCLoss,), {})(search()),
    ):
        assert found(model, x, plain, loss=loss) is None
    with torch.no_grad():
        assert found(model, x, plain) is None
    plateau = torch.optim.lr_scheduler.OneCycleLR(plain, 0.1, total_steps=9)
    assert found(model, x, plain, scheduler=plateau) is None


def test_networks_that_go_step_by_step(seed: int) -> None:
    torch.manual_seed(seed)
    x = rows(30, 6)
    tied = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1))
    tied[2].weight = tied[0].weight
    hooked = network(columns=6)
    next(hooked.parameters()).register_hook(lambda grad: 2 * grad)
    dropping = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 1))
    norm = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1)).eval()
    turned = nn.Sequential(nn.Linear(6, 5), nn.LeakyReLU(-0.5), nn.Linear(5, 1))
    smooth = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
    for model in (tied, hooked, dropping, norm, turned, smooth):
        model.double()
        assert found(model, x, Adam(model.parameters())) is None, model


def test_together_is_alone(seed: int) -> None:
    """Networks that are trained together get, bit by bit, what each would get alone."""
    torch.manual_seed(seed)
    x, count = rows(70, 7, torch.float32), 4
    models = [network((20, 11), 7, torch.float32) for _ in range(count)]
    orders = torch.stack([torch.randperm(70) for _ in range(count)])

    def trained(chosen: list[int]) -> tuple[list[list[Tensor]], list[Any], list[Tensor]]:
        copies = [copy.deepcopy(models[i]) for i in chosen]
        trainings = [found(model, x, Adam(model.parameters(), lr=1e-2)) for model in copies]
        generators = [torch.Generator().manual_seed(seed % 1000 + i) for i in chosen]
        records = train_together(
            [t for t in trainings if t is not None],
            x,
            None,
            orders[chosen],
            16,
            generators,
            adversarial=True,
        )
        weights = [[p.detach() for p in model.parameters()] for model in copies]
        return weights, records, [generator.get_state() for generator in generators]

    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            together = trained(list(range(count)))
            alone = [trained([i]) for i in range(count)]
            for i, (weights, records, states) in enumerate(alone):
                torch.testing.assert_close(weights[0], together[0][i], rtol=0, atol=0)
                assert records[0] == together[1][i]
                assert torch.equal(states[0], together[2][i])
    finally:
        torch.set_num_threads(before)
    one = found(models[0], x, Adam(models[0].parameters()))
    other_model = network((20, 12), 7, torch.float32)
    other = found(other_model, x, Adam(other_model.parameters()))
    assert one is not None
    assert other is not None
    with pytest.raises(ValueError, match="networks must have one shape"):
        train_together(
            [one, other], x, None, orders[:2], 16, [torch.Generator()] * 2, adversarial=True
        )


def test_threads_agree(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = network((200, 150), 20, torch.float32), rows(600, 20, torch.float32)
    fits = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            fits.append(Fit(x, loop=False, model=model, batch_size=300, epochs=2))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(fits[0].states(), fits[1].states(), rtol=0, atol=0)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("noise", ["isotropic", "rows", "mixed", "swaps", "blend"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("radius_range", [None, (0.4, 2.5), (0.7, 0.7)])
def test_what_the_detector_adds(
    labels: bool, noise: Any, soft: bool, radius_range: Any, calls: list[int], seed: int
) -> None:
    """Noise of the rows' shape, drawn radii and targets by distance are the loop's."""
    torch.manual_seed(seed)
    x, model = rows(101), network()
    y = (torch.rand(101) < 0.7).long() if labels else None
    factor = rows(3) if noise in ("rows", "mixed", "blend") else None
    others = rows(7) if noise in ("swaps", "blend") else None
    config = search(noise=noise, noise_factor=factor, noise_rows=others, radius_range=radius_range)
    settings = {"model": model, "batch_size": 33, "config": config, "soft": soft}
    one = Fit(x, y, loop=False, **settings)
    assert len(calls) == 3
    assert_same(one, Fit(x, y, loop=True, **settings))


def test_what_the_detector_adds_in_single(calls: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    x, model = rows(300, 40, torch.float32), network((16, 16), 40, torch.float32)
    settings = {"model": model, "batch_size": 128, "soft": True, "optimizer": "sgd"}
    noise = {"noise": "blend", "noise_factor": rows(40, 40, torch.float32) / 40**0.5}
    noise["noise_rows"] = x
    settings["config"] = search(radius=6.0, step_size=2.0, radius_range=(0.4, 2.5), **noise)
    one = Fit(x, loop=False, **settings)
    assert calls
    assert_same(one, Fit(x, loop=True, **settings), rtol=2e-3, atol=2e-5)


def test_arguments_are_refused(seed: int) -> None:
    torch.manual_seed(seed)
    x, model = rows(9), network()
    training = found(model, x, Adam(model.parameters()))
    assert training is not None
    generator = torch.Generator().manual_seed(1)

    def run(**given: Any) -> None:
        settings = {"x": x, "is_normal": None, "orders": torch.arange(9)[None], "batch_size": 4}
        train_together(
            [training], **{**settings, **given}, generators=[generator], adversarial=True
        )

    for given, words in (
        ({"orders": torch.tensor([[0, 9]])}, "order must hold positions of the 9 rows, got 9"),
        ({"orders": torch.tensor([[0.0, 1.0]])}, "order must be contiguous of its type"),
        ({"is_normal": torch.ones(9)}, "is_normal must be boolean"),
        ({"is_normal": torch.ones(8, dtype=torch.bool)}, "is_normal must be boolean"),
        ({"x": x[:, :4]}, r"weights must have shape \[units, 4\], got \[16, 5\]"),
    ):
        with pytest.raises(RuntimeError, match=f"_mlp_train: {words}"):
            run(**given)
