"""Mixed precision: each step of a search sees its own points, whatever casts autocast keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drocc_ext import DROCCLoss, SearchConfig, Trainer, adversarial_search, networks
from drocc_ext.compat import _search

RADIUS = 3.0
CONFIG = SearchConfig(RADIUS, 0.4 * RADIUS, 6)


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 1))


def convolutional() -> nn.Module:
    layers = (nn.Conv2d(1, 6, 2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 1))
    return nn.Sequential(*layers)


def perceptron() -> nn.Module:
    return networks.MLP(12, (16, 8))


def case(make: Callable[[], nn.Module], seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():  # strongly curved
            parameter.mul_(3)
    return model, torch.randn(40, *((1, 4, 3) if make is convolutional else (12,)))


def by_plain_torch(model: nn.Module, x: Tensor, start: Tensor, dtype: torch.dtype) -> Tensor:
    def norm(rows: Tensor) -> Tensor:
        return rows.flatten(1).norm(dim=1).view(-1, *[1] * (rows.dim() - 1))

    h = start
    for _ in range(CONFIG.num_steps):
        leaf = (x + h).requires_grad_()
        with torch.autocast("cpu", dtype):
            logits = model(leaf)
        (grad,) = torch.autograd.grad(logits.sum(), leaf)
        h = h + CONFIG.step_size * grad / norm(grad)
        h = h * norm(h).clamp(RADIUS, CONFIG.gamma * RADIUS) / norm(h)
    return x + h


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", [linear, convolutional, perceptron])
def test_a_search_is_algorithm_1_in_autocast(
    make: Callable[[], nn.Module], dtype: torch.dtype, seed: int
) -> None:
    model, x = case(make, seed)
    start = adversarial_search(
        model, x, CONFIG, num_steps=0, generator=torch.Generator().manual_seed(seed)
    )
    with torch.autocast("cpu", dtype):
        found = adversarial_search(model, x, CONFIG, generator=torch.Generator().manual_seed(seed))
    expected = by_plain_torch(model, x, start - x, dtype)
    # Single rows may part where rounding decides; with the first step's gradients most do.
    parted = (found - expected).flatten(1).norm(dim=1) > 1e-3 * RADIUS
    assert parted.float().mean() < 0.2


def searched(model: nn.Module, x: Tensor) -> Tensor:
    return adversarial_search(model, x, CONFIG)


def searched_by_metric(model: nn.Module, x: Tensor) -> Tensor:
    return adversarial_search(model, x, CONFIG, sigma=torch.linspace(0.5, 2, 12).view(x.shape[1:]))


def searched_by_compat(model: nn.Module, x: Tensor) -> Tensor:
    return _search.l2_search(model, x, radius=RADIUS, gamma=2.0, step_size=1.0, num_steps=12)


def searched_by_metric_in_compat(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return _search.metric_search(
        model,
        x,
        _search.loss_gradient(model, leaf, 1),
        radius=RADIUS,
        gamma=2.0,
        step_size=1.0,
        num_steps=12,
    )


def losses(metric: Any) -> Callable[[nn.Module, Tensor], Tensor]:
    def of(model: nn.Module, x: Tensor) -> Tensor:
        terms = DROCCLoss(CONFIG, metric=metric)(model, x, None)
        terms.total.backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return torch.cat([terms.clean.reshape(1), terms.adversarial.reshape(1), *grads]).detach()

    return of


@pytest.mark.parametrize("make", [linear, convolutional, perceptron])
@pytest.mark.parametrize(
    "call",
    [
        *(searched, searched_by_metric, searched_by_compat, searched_by_metric_in_compat),
        *(losses("l2"), losses("mahalanobis")),
    ],
)
@pytest.mark.filterwarnings("ignore:DROCCLoss")  # start_epoch
def test_casts_that_autocast_keeps_change_nothing(
    call: Callable[[nn.Module, Tensor], Tensor], make: Callable[[], nn.Module], seed: int
) -> None:
    model, x = case(make, seed)
    found = []
    for kept in (True, False):
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=kept):
            call(model, x)  # what autocast keeps of one call meets the next
            found.append(call(model, x))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("make", [linear, convolutional, perceptron])
def test_a_trainer_in_mixed_precision(make: Callable[[], nn.Module], seed: int) -> None:
    found = []
    for kept in (True, False):
        model, x = case(make, seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        fitted = Trainer(
            model, DROCCLoss(CONFIG), optimizer, autocast_dtype=torch.bfloat16, progress=False
        )
        former = torch.is_autocast_cache_enabled()
        try:
            torch.set_autocast_cache_enabled(kept)
            history = fitted.fit(x, validation=x, epochs=2, batch_size=20, seed=seed)
        finally:
            torch.set_autocast_cache_enabled(former)
        found.append([record[key] for record in history for key in ("loss", "monitor")])
    assert found[0] == found[1]
