"""Rows that no unit of some layer sees have no gradient: no way of searching moves them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from drocc_ext import SearchConfig, adversarial_search

NARROW = ([2, 16, 2, 64, 64], [3, 20, 3, 96, 96], [2, 8, 2, 8, 2])


def narrow(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("widths", NARROW, ids=str)
def test_rows_that_lose_their_gradient_stay(
    widths: list[int], dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    dead = 0
    for _ in range(12):
        model = narrow(widths).to(dtype)
        x = 2 * torch.randn(200, widths[0], dtype=dtype)
        ends = []
        for method in ("autograd", "auto"):
            config = SearchConfig.from_relative_step(1.0, num_steps=7, method=method)  # type: ignore[arg-type]
            generator = torch.Generator().manual_seed(seed)
            ends.append(adversarial_search(model, x, config, generator=generator))
        at = ends[0].clone().requires_grad_()
        model(at).sum().backward()
        assert at.grad is not None
        lost = (at.grad == 0).all(1)
        dead += int(lost.sum())
        torch.testing.assert_close(ends[1][lost], ends[0][lost], rtol=1e-5, atol=1e-5)
    assert dead > 20  # or the test sees nothing
