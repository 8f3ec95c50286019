"""The operators in an attack of one's own: perturbations in a shell, an ellipsoid, a ball.

`python examples/pgd_attack.py`
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from drocc_ext import ops

Project = Callable[[Tensor], Tensor]


def attack(model: nn.Module, x: Tensor, y: Tensor, project: Project, steps: int = 10) -> Tensor:
    """Projected gradient ascent on the cross-entropy, as anyone writes it."""
    h = project(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    for _ in range(steps):
        point = (x + h).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(point), y), point)
        # A row whose gradient is 0 stays where it is, where g / ||g|| would be NaN.
        h = project(ops.normalized_ascent(h, gradient, 0.3))
    return x + h


def main() -> None:
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels).float() / 8 - 1, torch.from_numpy(digits)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x[:1000]), y[:1000]).backward()
        optimizer.step()
    x, y = x[1000:], y[1000:]

    radius = 1.0
    # Moving a pixel that hardly varies costs more, so that the attack leaves blank borders alone.
    sigma = 1 / (x.var(dim=0) + 0.05)
    sigma = sigma / sigma.mean()
    projections: dict[str, Project] = {
        # no closer than the radius, no further than 1.5 of it
        "shell": lambda h: ops.project_l2_shell(h, radius, 1.5),
        # sum of sigma h^2 <= radius^2: the inner bound is next to nothing
        "ellipsoid": lambda h: ops.project_mahalanobis_shell(h, sigma, 1e-3 * radius, 1e3),
        "ball": lambda h: ops.project_l2_shell(h, 1e-3 * radius, 1e3),
    }
    with torch.no_grad():
        print(f"{'none':<10} accuracy {(model(x).argmax(1) == y).float().mean():.3f}")
    for name, project in projections.items():
        found = attack(model, x, y, project)
        with torch.no_grad():
            accuracy = (model(found).argmax(1) == y).float().mean()
        h = found - x
        size = ops.mahalanobis_norm(h, sigma) if name == "ellipsoid" else h.norm(dim=1)
        print(f"{name:<10} accuracy {accuracy:.3f}, sizes {size.min():.2f} to {size.max():.2f}")


if __name__ == "__main__":
    main()
