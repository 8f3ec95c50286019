"""Peers of the Mahalanobis projection: vectorised PyTorch, and the published solver."""

from __future__ import annotations

import torch
from torch import Tensor

PUBLISHED_DRAWS = 40
GRID_POINTS = 40
BISECTIONS = 60


def length(h: Tensor, sigma: Tensor) -> Tensor:
    """||h||_S per row, [B, 1]."""
    return (sigma * h * h).sum(1, keepdim=True).sqrt()


def bisection(h: Tensor, sigma: Tensor, radius: float, gamma: float) -> Tensor:
    """Proposition 1 for all rows at once: 60 halvings of the multiplier's interval."""
    norm = length(h, sigma)
    near, far = norm < radius, norm > gamma * radius
    target = torch.where(near, radius, gamma * radius)
    largest = sigma.amax(1, keepdim=True)
    # tau lies in (-1 / largest, 0) near; far out the ellipsoid's length is at most
    # ||h / sqrt(sigma)|| / tau, which bounds tau from above.
    low = torch.where(near, -1 / largest, torch.zeros_like(largest))
    reach = (h.abs() / (sigma.clamp_min(1e-12).sqrt() * target)).amax(1, keepdim=True)
    high = torch.where(near, torch.zeros_like(largest), reach * h.shape[1] ** 0.5)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        x = h / (1 + middle * sigma)
        too_long = (sigma * x * x).sum(1, keepdim=True) > target * target
        low = torch.where(too_long, middle, low)
        high = torch.where(too_long, high, middle)
    x = h / (1 + torch.where(near, low, high) * sigma)
    return torch.where(near | far, x, h)


def grid(h: Tensor, sigma: Tensor, radius: float, gamma: float) -> Tensor:
    """The paper's grid for all rows and points at once: [B, K, D] intermediates."""
    norm = length(h, sigma)
    near, far = norm < radius, norm > gamma * radius
    target = torch.where(near, radius, gamma * radius)
    largest = sigma.amax(1, keepdim=True)
    k = torch.arange(1, GRID_POINTS, device=h.device) / (GRID_POINTS - 1)
    tau = torch.where(near, (k - 1) / largest, (norm / target - 1) / (k * largest))  # [B, K - 1]
    x = h[:, None] / (1 + tau[:, :, None] * sigma[:, None])
    lengths = (sigma[:, None] * x * x).sum(2)
    tolerance = 1e-5
    feasible = torch.where(
        near, lengths >= target**2 * (1 - tolerance), lengths <= target**2 * (1 + tolerance)
    )
    distance = torch.where(feasible, (x - h[:, None]).square().sum(2), torch.inf)
    best = distance.argmin(1)
    chosen = x[torch.arange(len(h)), best]
    return torch.where(near | far, chosen, h)


def published(h: Tensor, sigma: Tensor, radius: float, gamma: float) -> Tensor:
    """The published solver's arithmetic, written anew.

    Row by row, 40 uniform draws of the multiplier (or its inverse) between the paper's bounds; of
    those that keep their bound the one of least objective; a row without one keeps tau = 0 (near)
    or infinity's inverse (far).
    """
    norm = length(h, sigma)[:, 0]
    lowest = -1 / sigma.amax(1) + sigma.amin(1) * 1e-4
    share = gamma * radius / norm
    highest = share / (1 - share) * sigma.amax(1)
    result = h.clone()
    for row in range(len(h)):
        d, s = h[row], sigma[row]
        if norm[row] < radius:
            best, tau = torch.inf, 0.0
            for _ in range(PUBLISHED_DRAWS):
                draw = torch.empty(()).uniform_(float(lowest[row]), 0.0)
                square = (1 + draw * s) ** 2 + 1e-10
                if torch.sum(d**2 * s / square) > radius**2:
                    value = torch.sum(d**2 * draw**2 * s**2 / square)
                    if value < best:
                        best, tau = value, draw
            result[row] = d / (1 + tau * s)
        elif norm[row] > gamma * radius:
            best, inverse = torch.inf, torch.inf
            for _ in range(PUBLISHED_DRAWS):
                draw = torch.empty(()).uniform_(0.0, float(highest[row]))
                square = (draw + s) ** 2 + 1e-10
                if torch.sum(d**2 * (s * draw**2) / square) < (gamma * radius) ** 2:
                    value = torch.sum(d**2 * s**2 / square)
                    if value < best:
                        best, inverse = value, draw
            result[row] = d / (1 + s / inverse)
    return result
