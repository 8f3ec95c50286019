"""The search of DROCC-LF, in the Mahalanobis metric."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from search_cases import SETTINGS, assert_in_shell, generator, network, rows, weights
from torch import Tensor, nn

from drocc_ext.ops import mahalanobis_norm, project_mahalanobis_shell
from drocc_ext.search import SearchConfig, adversarial_search


def algorithm_2(
    model: nn.Module,
    x: Tensor,
    sigma: Tensor,
    *,
    radius: float | Tensor,
    step_size: float,
    num_steps: int,
    gamma: float = 2.0,
    project_every: int = 1,
    noise_scale: float = 1.0,
    project_start: bool = True,
    seed: int,
    **solver: Any,
) -> Tensor:
    h = torch.randn(x.shape, generator=generator(seed), dtype=x.dtype) * noise_scale
    if project_start or num_steps == 0:
        h = project_mahalanobis_shell(h, sigma, radius, gamma, **solver)
    for i in range(1, num_steps + 1):
        at = (x + h).requires_grad_()
        (grad,) = torch.autograd.grad(model(at).sum(), at)
        h = h + step_size * grad / grad.flatten(1).norm(dim=1)[:, None]
        if i % project_every == 0 or i == num_steps:
            h = project_mahalanobis_shell(h, sigma, radius, gamma, **solver)
    return x + h


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_steps": 0},
        {"num_steps": 0, "project_start": False},
        {"project_start": False},
        {"num_steps": 7, "project_every": 3},
        {"num_steps": 2, "project_every": 10},
        {"gamma": 1.0},
        {"gamma": math.inf, "step_size": 3.0},
        {"noise_scale": 0.1, "gamma": 1.2},
        {"solver": "grid", "grid_points": 9, "noise_scale": 0.3},
        {"radius": torch.linspace(0.5, 4, 9).double()},
    ],
    ids=str,
)
@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "per_row"])
def test_matches_algorithm_2(changes: dict[str, Any], per_row: bool, seed: int) -> None:
    model, x = network(seed), rows(seed, 9, 6)
    sigma = weights(seed, *((9, 6) if per_row else (6,)))
    settings = {**SETTINGS, **changes}
    expected = algorithm_2(model, x, sigma, seed=seed, **settings)
    found = adversarial_search(model, x, sigma=sigma, generator=generator(seed), **settings)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_equal_weights_are_the_l2_shell(seed: int) -> None:
    model, x = network(seed), rows(seed, 20, 6)
    expected = adversarial_search(model, x, **SETTINGS, generator=generator(seed))
    found = adversarial_search(
        model, x, **SETTINGS, sigma=torch.ones(6).double(), generator=generator(seed)
    )
    torch.testing.assert_close(found, expected)
    narrower = adversarial_search(
        model, x, **SETTINGS, sigma=weights(seed, 6), generator=generator(seed)
    )
    assert (narrower - expected).abs().max() > 1e-3


def test_search_leaves_parameters_and_sigma_alone(seed: int) -> None:
    model, x, sigma = network(seed), rows(seed, 5, 6), weights(seed, 6).requires_grad_()
    before = sigma.detach().clone()
    found = adversarial_search(model, x, **SETTINGS, sigma=sigma)
    assert found.grad_fn is None
    assert not found.requires_grad
    assert sigma.grad is None
    assert torch.equal(sigma, before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.5, -1e-30])
@pytest.mark.parametrize("num_steps", [0, 3])
def test_a_bad_sigma_spoils_its_row_only(bad: float, num_steps: int, seed: int) -> None:
    model, x, sigma = network(seed), rows(seed, 6, 6), weights(seed, 6, 6)
    settings = {**SETTINGS, "num_steps": num_steps}
    clean = adversarial_search(model, x, **settings, sigma=sigma, generator=generator(seed))
    sigma[2, 4] = bad
    found = adversarial_search(model, x, **settings, sigma=sigma, generator=generator(seed))
    assert found[2].isnan().all()
    keep = [0, 1, 3, 4, 5]
    assert torch.equal(found[keep], clean[keep])
    assert found[keep].isfinite().all()


def test_zero_sigma_leaves_a_row_unprojected(seed: int) -> None:
    model, x, sigma = network(seed), rows(seed, 4, 6), weights(seed, 4, 6)
    sigma[1] = 0
    found = adversarial_search(
        model, x, **{**SETTINGS, "num_steps": 0}, sigma=sigma, generator=generator(seed)
    )
    noise = torch.randn(4, 6, generator=generator(seed), dtype=x.dtype)
    assert torch.equal(found[1], (x + noise)[1])
    assert_in_shell((found - x)[[0, 2, 3]], sigma[[0, 2, 3]])
    found = adversarial_search(
        model, x, **SETTINGS, sigma=torch.zeros(6).double(), generator=generator(seed)
    )
    assert found.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 6), (1, 6)])
def test_search_of_no_row_and_of_one(shape: tuple[int, int], seed: int) -> None:
    x = rows(seed, *shape)
    for sigma in (weights(seed, 6), weights(seed, *shape)):
        found = adversarial_search(network(seed), x, **SETTINGS, sigma=sigma)
        assert found.shape == shape
        if shape[0]:
            assert_in_shell(found - x, sigma)


def test_search_of_images(seed: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 1)).double()
    x, sigma = rows(seed, 2, 3, 6, 6), weights(seed, 3, 6, 6)
    expected = adversarial_search(model, x, **SETTINGS, sigma=sigma, generator=generator(seed))
    assert_in_shell(expected - x, sigma)
    strided = x.to(memory_format=torch.channels_last)
    found = adversarial_search(
        model, strided, **SETTINGS, sigma=sigma.transpose(1, 2), generator=generator(seed)
    )
    assert_in_shell(found - x, sigma.transpose(1, 2))
    found = adversarial_search(model, strided, **SETTINGS, sigma=sigma, generator=generator(seed))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("inference", [False, True])
def test_search_under_autocast(inference: bool, seed: int) -> None:
    model, x = network(seed, dtype=torch.float32), rows(seed, 50, 6, dtype=torch.float32)
    with torch.inference_mode(inference), torch.autocast("cpu", torch.bfloat16):
        sigma = weights(seed, 6, dtype=torch.float32)
        found = adversarial_search(model, x, **SETTINGS, sigma=sigma)
    assert found.dtype == torch.float32
    lengths = mahalanobis_norm(found - x, sigma)
    assert lengths.min() >= 2 * (1 - 1e-5)
    assert lengths.max() <= 4 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("sigma", "error", "message"),
    [
        (2.0, TypeError, "sigma must be a floating-point tensor, got float"),
        ([1.0] * 6, TypeError, "sigma must be a floating-point tensor, got list"),
        (torch.ones(6).long(), TypeError, r"sigma must be a floating-point tensor, got torch\.int"),
        (torch.ones(6), TypeError, r"sigma must have the dtype of x, torch.float64, got torch.flo"),
        (torch.ones(()).double(), ValueError, r"sigma must have shape \(6,\).* got \(\)$"),
        (
            torch.ones(4).double(),
            ValueError,
            r"sigma must have shape \(6,\), one for all rows, or ",
        ),
        (torch.ones(1, 6).double(), ValueError, r" or \(4, 6\), got \(1, 6\)$"),
        (torch.ones(6, device="meta").double(), ValueError, "on the device of x, cpu, got meta$"),
    ],
)
def test_sigma_that_does_not_fit(
    sigma: Any, error: type[Exception], message: str, seed: int
) -> None:
    with pytest.raises(error, match=f"^adversarial_search: .*{message}"):
        adversarial_search(network(seed), rows(seed, 4, 6), **SETTINGS, sigma=sigma)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"solver": "bisect"}, ValueError, "solver must be one of newton, grid, got 'bisect'"),
        ({"solver": None}, ValueError, "solver must be one of newton, grid, got None"),
        ({"grid_points": 1}, ValueError, "grid_points must be >= 2, got 1"),
        ({"grid_points": 9.0}, TypeError, "grid_points must be an integer, got 9.0"),
    ],
)
def test_settings_of_the_solver(
    changes: dict[str, Any], error: type[Exception], message: str, seed: int
) -> None:
    settings = {**SETTINGS, **changes}
    with pytest.raises(error, match=f"^adversarial_search: {message}$"):
        adversarial_search(network(seed), rows(seed, 2, 6), **settings, sigma=weights(seed, 6))
    with pytest.raises(error, match=f"^SearchConfig: {message}$"):
        SearchConfig(**settings)
