"""What tests of the search and of DROCC-LF share: rows, weights, networks, influence by hand."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from drocc_ext.ops import mahalanobis_norm
from drocc_ext.search import SearchConfig
from drocc_ext.training.loss import DROCCLoss

SETTINGS: dict[str, Any] = {"radius": 2.0, "step_size": 0.5, "num_steps": 3}

CONFIG = SearchConfig(**SETTINGS)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed + 1), dtype=dtype)


def weights(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A sigma: uneven, positive."""
    return torch.rand(*shape, generator=generator(seed + 2), dtype=torch.float64).to(dtype) + 0.05


def network(seed: int, features: int = 6, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, 1))
        return layers.to(dtype)


def regular_network(seed: int, features: int = 6) -> nn.Sequential:
    """Batch statistics and dropout, which the influence must not see."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(
            nn.Linear(features, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.5)
        )
        return layers.append(nn.Linear(16, 1)).double()


def influence_by_hand(model: nn.Module, x: Tensor) -> Tensor:
    """Row by row, in a copy in eval mode."""
    model = copy.deepcopy(model).eval()
    found = []
    for row in x:
        leaf = row.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(leaf[None]).sum(), leaf)
        found.append(grad.abs() / grad.abs().mean())
    return torch.stack(found)


def lf(**options: Any) -> DROCCLoss:
    return DROCCLoss(CONFIG, metric="mahalanobis", **options)


class Spy(nn.Module):
    """Records its inputs; the last one of a loss is the joint batch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        output: Tensor = self.inner(x)
        return output


def assert_in_shell(h: Tensor, sigma: Tensor, radius: float = 2.0, gamma: float = 2.0) -> None:
    lengths = mahalanobis_norm(h, sigma)
    assert lengths.min() >= radius * (1 - 1e-9)
    assert lengths.max() <= gamma * radius * (1 + 1e-9)


def adversarial_rows(loss: DROCCLoss, model: Spy, x: Tensor, y: Tensor | None = None) -> Tensor:
    """The adversarial points that one call of the loss made."""
    loss(model, x, y)
    return model.seen[-1][len(x) :]
