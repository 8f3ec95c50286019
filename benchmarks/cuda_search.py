"""Searches and training steps on a GPU: native, eager operators, and the published arithmetic.

Part of `benchmarks.bench_cuda`. The data are drawn, in the shapes of thyroid (6 columns), of
embeddings (768, 3072) and of CIFAR images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import drocc_ext
from drocc_ext.models.networks import MLP, CIFARLeNet
from drocc_ext.search import adversarial_search

Seconds = Callable[[list[Callable[[], Any]], float], float]
BATCH = 256
# name -> (network, shape of a row, steps of the search)
TRAININGS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "thyroid, MLP 6-128-1, 50 steps": (lambda: MLP(6, 128), (6,), 50),
    "embeddings, MLP 768-128-1, 50 steps": (lambda: MLP(768, 128), (768,), 50),
    "CIFAR, LeNet, 50 steps": (CIFARLeNet, (3, 32, 32), 50),
    "CIFAR, LeNet, 5 steps": (CIFARLeNet, (3, 32, 32), 5),
}


def published_points(model: nn.Module, x: Tensor, radius: float, step: float, steps: int) -> Tensor:
    """The published trainer's search: BCE gradient, projection every 10 steps, graph kept."""
    at = torch.randn(x.shape).to(x.device).requires_grad_() + x
    ones = [1] * (x.dim() - 1)
    for k in range(steps):
        with torch.enable_grad():
            target = torch.zeros(len(x), 1).to(x.device).squeeze().to(torch.float)
            loss = binary_cross_entropy_with_logits(model(at).squeeze(1), target)
            (grad,) = torch.autograd.grad(loss, [at])
            length = torch.norm(grad, p=2, dim=tuple(range(1, grad.dim())))
            direction = grad / length.view(-1, *ones)
        with torch.no_grad():
            at.add_(step * direction)
        if (k + 1) % 10 == 0:
            h = at - x
            length = torch.sqrt(torch.sum(h**2, dim=tuple(range(1, h.dim()))))
            wanted = torch.clamp(length, radius, 2.0 * radius).to(x.device)
            at = x + (wanted / length).view(-1, *ones) * h
    return at


def training_steps(
    seconds: Seconds, device: str, names: list[str] | None = None
) -> dict[str, dict[str, float]]:
    """Seconds of one optimisation step: search, loss, backward, Adam."""
    table: dict[str, dict[str, float]] = {}
    for name in names or list(TRAININGS):
        make, shape, steps = TRAININGS[name]
        torch.manual_seed(0)
        x = torch.randn(BATCH, *shape, device=device)
        radius = 0.5 * x[0].numel() ** 0.5
        size = 0.1 * radius

        def ours(
            model: nn.Module, x: Tensor, method: str, fixed: Any = (radius, size, steps)
        ) -> Tensor:
            radius, size, steps = fixed
            return adversarial_search(
                model, x, radius=radius, step_size=size, num_steps=steps, method=method
            )

        searches: dict[str, tuple[str, Callable[[nn.Module, Tensor], Tensor]]] = {
            "native": ("native", lambda m, x, f=ours: f(m, x, "auto")),
            "native, autograd": ("native", lambda m, x, f=ours: f(m, x, "autograd")),
            "eager operators": ("eager", lambda m, x, f=ours: f(m, x, "autograd")),
            "published arithmetic": (
                "eager",
                lambda m, x, r=radius, s=size, n=steps: published_points(m, x, r, s, n),
            ),
        }
        row: dict[str, float] = {}
        for provider, (backend, search) in searches.items():
            torch.manual_seed(0)
            model = make().to(device)
            optimizer = torch.optim.Adam(model.parameters())

            def step(
                model: Any = model, optimizer: Any = optimizer, search: Any = search, x: Tensor = x
            ) -> None:
                optimizer.zero_grad()
                clean, apart = model(x), model(search(model, x))
                loss = binary_cross_entropy_with_logits(clean, torch.ones_like(clean))
                loss = loss + binary_cross_entropy_with_logits(apart, torch.zeros_like(apart))
                loss.backward()
                optimizer.step()

            with drocc_ext.use_backend(backend):
                row[provider] = seconds([step], 0.5)
        row["published / native"] = row["published arithmetic"] / row["native"]
        table[name] = row
    return table


def searches(
    seconds: Seconds, device: str, shapes: tuple[tuple[int, int, int, int], ...]
) -> dict[str, dict[str, float]]:
    """Seconds of whole searches of linear - ReLU - linear: (batch, features, units, steps) each."""
    table: dict[str, dict[str, float]] = {}
    for batch, features, units, steps in shapes:
        torch.manual_seed(0)
        model = MLP(features, units).to(device)
        x = torch.randn(batch, features, device=device)
        radius = features**0.5

        def run(
            method: str, model: nn.Module = model, x: Tensor = x, r: float = radius, n: int = steps
        ) -> Tensor:
            return adversarial_search(
                model, x, radius=r, step_size=0.1 * r, num_steps=n, method=method
            )

        with drocc_ext.use_backend("native"):
            norms = (run("hidden") - x).double().norm(dim=1) / radius
            assert bool(((norms > 1 - 1e-4) & (norms < 2 + 1e-4)).all()), "outside the shell"
            row = {"native": seconds([lambda f=run: f("hidden")], 0.3)}
            row["autograd, native step"] = seconds([lambda f=run: f("autograd")], 0.3)
        with drocc_ext.use_backend("eager"):
            row["autograd, eager step"] = seconds([lambda f=run: f("autograd")], 0.3)
        row["eager / native"] = row["autograd, eager step"] / row["native"]
        table[f"{batch} x {features}, {units} units, {steps} steps"] = row
    return table
