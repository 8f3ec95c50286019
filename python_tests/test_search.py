"""adversarial_search against Algorithm 1 written out, and the memory that it takes."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from search_cases import SETTINGS, generator, network, rows
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from drocc_ext.search import adversarial_search


def project_row(h: Tensor, radius: float, gamma: float) -> Tensor:
    norm = float(h.norm())
    alpha = min(max(norm, radius), gamma * radius)
    return h * (alpha / norm)


def algorithm_1(
    model: nn.Module,
    x: Tensor,
    *,
    radius: Tensor,
    step_size: float,
    num_steps: int,
    gamma: float = 2.0,
    project_every: int = 1,
    noise_scale: float = 1.0,
    project_start: bool = True,
    seed: int,
) -> Tensor:
    """One row at a time, with the gradient of the loss at the anomalous label, as in the paper."""
    noise = torch.randn(x.shape, generator=generator(seed), dtype=x.dtype) * noise_scale
    found = []
    for row, h, r in zip(x, noise, radius.tolist(), strict=True):
        if project_start or num_steps == 0:
            h = project_row(h, r, gamma)
        for i in range(1, num_steps + 1):
            h = h.detach().requires_grad_()
            logit = model((row + h)[None]).reshape(())
            loss = F.binary_cross_entropy_with_logits(logit, torch.zeros_like(logit))
            (grad,) = torch.autograd.grad(loss, h)
            h = h.detach() + step_size * grad / grad.norm()
            if i % project_every == 0 or i == num_steps:
                h = project_row(h, r, gamma)
        found.append(row + h.detach())
    return torch.stack(found)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_steps": 1},
        {"num_steps": 0},
        {"num_steps": 0, "project_start": False},
        {"project_start": False},
        {"num_steps": 7, "project_every": 3},
        {"num_steps": 2, "project_every": 10},
        {"gamma": 1.0},
        {"gamma": math.inf, "step_size": 3.0},
        {"noise_scale": 0.1, "gamma": 1.2},
        {"step_size": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("per_row", [False, True], ids=["float", "per_row"])
def test_matches_algorithm_1(changes: dict[str, Any], per_row: bool, seed: int) -> None:
    model, x = network(seed), rows(seed, 9, 6)
    settings = {**SETTINGS, **changes}
    radius = torch.full((9,), 2.0, dtype=x.dtype)
    if per_row:
        radius = 1 + 3 * torch.rand(9, generator=generator(seed), dtype=x.dtype)
    expected = algorithm_1(model, x, seed=seed, **{**settings, "radius": radius})
    settings["radius"] = radius if per_row else 2.0
    found = adversarial_search(model, x, generator=generator(seed), **settings)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_ends_in_the_shell(dtype: torch.dtype, seed: int) -> None:
    model, x = network(seed, 40, dtype), torch.zeros(64, 40, dtype=dtype)
    found = adversarial_search(model, x, radius=3.0, gamma=1.5, step_size=1.0, num_steps=4)
    assert found.dtype == dtype
    assert found.shape == x.shape
    norms = found.double().norm(dim=1)
    slack = 4 * torch.finfo(dtype).eps
    assert norms.min() >= 3.0 * (1 - slack)
    assert norms.max() <= 4.5 * (1 + slack)


def test_raises_the_logit(seed: int) -> None:
    model, x = network(seed), rows(seed, 200, 6)
    start = adversarial_search(model, x, **{**SETTINGS, "num_steps": 0}, generator=generator(seed))
    end = adversarial_search(model, x, **{**SETTINGS, "num_steps": 10}, generator=generator(seed))
    assert (model(end) > model(start)).double().mean() > 0.95


def test_generator_decides_the_noise(seed: int) -> None:
    model, x = network(seed), rows(seed, 5, 6)
    before = torch.get_rng_state()
    first = adversarial_search(model, x, **SETTINGS, generator=generator(seed))
    assert torch.equal(torch.get_rng_state(), before)
    again = adversarial_search(model, x, **SETTINGS, generator=generator(seed))
    other = adversarial_search(model, x, **SETTINGS, generator=generator(seed + 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(seed)
    assert torch.equal(adversarial_search(model, x, **SETTINGS), first)


def test_rows_do_not_touch_each_other(seed: int) -> None:
    # A dead ReLU gives row 1 an exactly zero gradient, NaN spoils row 2 alone.
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    x = rows(seed, 4, 4)
    clean = adversarial_search(model, x, **SETTINGS, generator=generator(seed))
    with torch.no_grad():
        model[0].bias.fill_(0.1)
        model[0].weight.copy_(model[0].weight.abs())
    x[1] = -1e6
    x[2, 3] = math.nan
    found = adversarial_search(model, x, **SETTINGS, generator=generator(seed))
    assert found[2].isnan().any()
    keep = [0, 1, 3]
    assert found[keep].isfinite().all()
    norms = (found - x)[keep].norm(dim=1)
    assert ((norms >= 2 - 1e-6) & (norms <= 4 + 1e-6)).all()
    assert clean.isfinite().all()


def test_leaves_x_and_parameters_alone(seed: int) -> None:
    model, x = network(seed), rows(seed, 5, 6)
    before, weights = x.clone(), [p.detach().clone() for p in model.parameters()]
    marks = [torch.full_like(p, 7.0) for p in model.parameters()]
    for parameter, mark in zip(model.parameters(), marks, strict=True):
        parameter.grad = mark

        def refuse(_: Tensor) -> None:
            raise AssertionError("a parameter gradient was computed")

        parameter.register_hook(refuse)
    x.requires_grad_()
    found = adversarial_search(model, x, **SETTINGS)
    assert not found.requires_grad
    assert found.grad_fn is None
    assert x.grad is None
    assert torch.equal(x.detach(), before)
    assert found.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    for parameter, weight, mark in zip(model.parameters(), weights, marks, strict=True):
        assert parameter.grad is mark
        assert (mark == 7.0).all()
        assert torch.equal(parameter.detach(), weight)


class Bytes(TorchDispatchMode):
    """Counts the bytes of living storages that operators made, and the reads by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.living: dict[int, int] = {}
        self.peak = 0
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.reads += 1
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                key = storage._cdata
                if key not in self.living:
                    self.living[key] = storage.nbytes()
                    weakref.finalize(storage, self.living.pop, key, None)
        self.peak = max(self.peak, sum(self.living.values()))
        return result


def wide_network() -> nn.Module:
    # Activations outweigh x, as in real networks, so that the peak is the model's.
    return nn.Sequential(nn.Linear(32, 512), nn.Tanh(), nn.Linear(512, 1))


def peak_of_search(model: nn.Module, x: Tensor, num_steps: int) -> int:
    with Bytes() as count:
        adversarial_search(model, x, radius=1.0, step_size=0.1, num_steps=num_steps)
    assert count.reads == 0
    return count.peak


def test_memory_does_not_grow_with_the_steps() -> None:
    model, x = wide_network(), torch.randn(64, 32)
    with Bytes() as count:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(model(leaf).sum(), leaf)
    of_x = x.numel() * x.element_size()
    one_pass = count.peak - of_x  # the leaf is one of the search's two buffers
    peaks = [peak_of_search(model, x, n) for n in (2, 3, 40)]
    assert peaks[0] == peaks[1] == peaks[2]
    of_logits = x.shape[0] * x.element_size()  # held until the backward pass is over
    assert peaks[0] <= one_pass + 2 * of_x + of_logits


def test_nothing_of_the_graph_survives() -> None:
    outputs = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = wide_network()

        def forward(self, x: Tensor) -> Tensor:
            assert all(output() is None for output in outputs), "an earlier step is alive"
            hidden: Tensor = self.inner(x)
            outputs.append(weakref.ref(hidden))
            return hidden

    adversarial_search(Spy(), torch.randn(8, 32), **SETTINGS)
    assert len(outputs) == 3
    assert all(output() is None for output in outputs)
