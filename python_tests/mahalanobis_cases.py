"""The Mahalanobis operators' share of the table of cases: draws, calls and exact solutions.

The exact solutions share no line with the package: they bisect for the multiplier of Proposition 1,
or try every point of the paper's grid, in numpy's widest float (80 bits on x86, which has 19 digits
and no range to run out of).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cases import IMPLEMENTATIONS, Operator, on_cuda, unit
from torch import Tensor

import drocc_ext
from drocc_ext import ops

WIDE = np.longdouble
# Where longdouble is float64 (macOS, Windows) it can not judge float64 to the last bits.
IS_WIDE = np.finfo(WIDE).eps < 1e-18


@dataclass(frozen=True)
class MetricOperator(Operator):
    """An operator of cases.py with a metric."""

    def arguments(  # type: ignore[override]
        self, h: Any, grad: Any, sigma: Any, step_size: Any, radius: Any, gamma: Any
    ) -> list[Any]:
        ascent = [step_size] if self.ascends else []
        return [h, *([grad] if self.ascends else []), sigma, *ascent, radius, gamma]

    def __str__(self) -> str:
        return self.name


PROJECT = MetricOperator("project_mahalanobis_shell", ascends=False, projects=True)
STEP = MetricOperator("mahalanobis_shell_step", ascends=True, projects=True)
OPERATORS = (PROJECT, STEP)
GRIDS = (0, 17)  # 0 is Newton


def run(
    implementation: str,
    op: MetricOperator,
    h: Tensor,
    grad: Tensor | None,
    sigma: Tensor,
    step_size: float,
    radius: float | Tensor,
    gamma: float,
    grid_points: int = 0,
    in_place: bool = False,
) -> Tensor:
    """One call by one implementation; the arguments the operator lacks are ignored."""
    name = op.name + "_" * in_place
    if implementation == "cuda":
        copies = on_cuda(h, grad, sigma, radius)
        rest = (step_size, copies[3], gamma, grid_points, in_place)
        moved = run("native", op, *copies[:3], *rest)
        return h.copy_(moved) if in_place else moved.cpu()
    if implementation == "operator":
        rows = radius if isinstance(radius, Tensor) else None
        pair = (1.0 if rows is not None else radius, rows)
        ascent = [grad] if op.ascends else []
        size = [step_size] if op.ascends else []
        function = getattr(torch.ops.drocc, name)
        result = function(h, *ascent, sigma, *size, *pair, gamma, grid_points)
        return h if in_place else result
    public: Callable[..., Tensor] = getattr(ops, name)
    solver = {"solver": "grid", "grid_points": grid_points} if grid_points else {}
    with drocc_ext.use_backend(implementation):
        return public(*op.arguments(h, grad, sigma, step_size, radius, gamma), **solver)


def norm_of(implementation: str, h: Tensor, sigma: Tensor) -> Tensor:
    """`mahalanobis_norm` by one implementation."""
    if implementation == "cuda":
        return norm_of("native", *on_cuda(h, sigma)).cpu()
    if implementation == "operator":
        result: Tensor = torch.ops.drocc.mahalanobis_norm(h, sigma)
        return result
    with drocc_ext.use_backend(implementation):
        return ops.mahalanobis_norm(h, sigma)


# ---- draws -------------------------------------------------------------------------------------


def draw(
    seed: int,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    spread: float = 1.5,
    ratios: tuple[float, float] = (1e-3, 1e3),
    radius: float = 1.75,
) -> tuple[Tensor, Tensor, Tensor]:
    """h, grad and sigma, `[B, *]` each.

    log sigma is uniform in +-spread, and ||h||_S / radius log-uniform between the ratios.
    """
    generator = torch.Generator().manual_seed(seed)
    sigma = (spread * (2 * torch.rand(shape, generator=generator).double() - 1)).exp().to(dtype)
    h = torch.randn(shape, generator=generator, dtype=torch.float64)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    length = (sigma.double() * h * h).flatten(1).sum(1).sqrt()
    low, high = np.log(ratios)
    wanted = radius * torch.linspace(low, high, shape[0]).double().exp() / length
    h = h * wanted.reshape(-1, *[1] * (h.dim() - 1))
    return h.to(dtype), grad.to(dtype), sigma


def lengths(x: Tensor, sigma: Tensor) -> Tensor:
    """||x||_S per row, float64, computed wide."""
    rows, weights = _wide_rows(x), _wide_rows(sigma.expand(x.shape))
    result = np.sqrt((weights * rows * rows).sum(1))
    return torch.from_numpy(result.astype(np.float64))


def _wide_rows(t: Tensor) -> Any:
    return t.detach().double().flatten(1).numpy().astype(WIDE)


# ---- exact solutions ---------------------------------------------------------------------------


def ascended(h: Tensor, grad: Tensor, step_size: float) -> Tensor:
    """h + step_size * grad / ||grad|| in float64."""
    rows = zip(h.double().flatten(1).tolist(), grad.double().flatten(1).tolist(), strict=True)
    moved = [
        [a + step_size * b for a, b in zip(row, unit(direction), strict=True)]
        for row, direction in rows
    ]
    return torch.tensor(moved, dtype=torch.float64).reshape(h.shape)


def exact(
    op: MetricOperator,
    h: Tensor,
    grad: Tensor | None,
    sigma: Tensor,
    step_size: float,
    radius: float | Tensor,
    gamma: float,
    grid_points: int = 0,
) -> Tensor:
    """What an operator should give for finite rows, float64."""
    d = h.double() if grad is None or not op.ascends else ascended(h, grad, step_size)
    if h.numel() == 0:
        return d
    inner = torch.as_tensor(radius, dtype=torch.float64).expand(h.shape[0]).numpy().astype(WIDE)
    problem = Problem(_wide_rows(d), _wide_rows(sigma.expand(h.shape)), inner, gamma)
    x = problem.on_grid(grid_points)[0] if grid_points else problem.nearest()
    return torch.from_numpy(x.astype(np.float64)).reshape(h.shape)


def undecided(
    h: Tensor, sigma: Tensor, radius: float, gamma: float, grid_points: int
) -> tuple[Tensor, Tensor]:
    """Rows `[B]` where rounding decides which grid point wins; rows where none is feasible."""
    inner = np.full(h.shape[0], radius, dtype=WIDE)
    problem = Problem(_wide_rows(h), _wide_rows(sigma.expand(h.shape)), inner, gamma)
    _, close, found = problem.on_grid(grid_points)
    return torch.from_numpy(close), torch.from_numpy(problem.outside & ~found)


class Problem:
    """Rows d and sigma `[B, D]`, radii `[B]`, in units in which largest |d| and sigma are 1."""

    def __init__(self, d: Any, sigma: Any, inner: Any, gamma: float) -> None:
        top = sigma.max(1, keepdims=True)
        self.flat = top[:, 0] == 0
        top = np.where(top > 0, top, 1)
        size = np.abs(d).max(1, keepdims=True)
        self.size = np.where(size > 0, size, 1)
        self.d, self.w = d / self.size, sigma / top
        self.rest = (top - sigma) / top  # 1 - w without cancellation
        self.inner = inner / np.sqrt(top[:, 0]) / self.size[:, 0]
        self.gamma = gamma
        length = np.sqrt((self.w * self.d * self.d).sum(1))
        self.near = (length < self.inner) & ~self.flat
        self.far = (length > gamma * self.inner) & ~self.flat
        self.outside = self.near | self.far
        self.length = length

    @property
    def bound(self) -> Any:
        return np.where(
            self.far, self.inner * (self.gamma if self.gamma < np.inf else 1), self.inner
        )

    def length_at(self, denominators: Any) -> Any:
        x = self.d / denominators
        return np.sqrt((self.w * x * x).sum(1))

    def near_denominators(self, t: Any) -> Any:
        """1 + tau sigma, for tau = (t - 1) / max sigma."""
        return self.rest + t[:, None] * self.w

    def far_denominators(self, tau: Any) -> Any:
        return 1 + tau[:, None] * self.w

    def nearest(self) -> Any:
        """By bisection, in logarithms: of 1 + tau below the shell, of tau above it."""
        least = WIDE(np.log(np.finfo(WIDE).tiny)) + 10
        low = np.full(len(self.d), least)
        high = np.where(self.near, WIDE(0), -least)

        def denominators(y: Any) -> Any:
            z = np.exp(y)
            return np.where(self.near[:, None], self.near_denominators(z), self.far_denominators(z))

        with np.errstate(over="ignore", under="ignore"):
            hard = self.near & (self.length_at(denominators(low)) < self.bound)
            for _ in range(86 if IS_WIDE else 66):
                middle = (low + high) / 2
                longer = self.length_at(denominators(middle)) > self.bound
                low, high = np.where(longer, middle, low), np.where(longer, high, middle)
            x = self.d / denominators(high)
        x = np.where(hard[:, None], self._hard(), x)
        return np.where(self.outside[:, None], x, self.d) * self.size

    def _hard(self) -> Any:
        """No multiplier reaches the shell: those of largest sigma take what is missing."""
        tied = self.rest == 0
        others = np.where(tied, 0, self.d / np.where(tied, 1, self.rest))
        missing = np.sqrt(np.maximum(self.inner**2 - (self.w * others**2).sum(1), 0))
        along = np.where(tied, self.d, 0)
        first = np.arange(tied.shape[1])[None] == tied.argmax(1)[:, None]
        along = np.where((along == 0).all(1, keepdims=True), first, along)
        along = along / np.abs(along).max(1, keepdims=True)
        along = along / np.sqrt((along * along).sum(1, keepdims=True))
        return np.where(tied, missing[:, None] * along, others)

    def on_grid(self, points: int) -> tuple[Any, Any, Any]:
        """Every point of the paper's grid: the nearest feasible one, or else the exact answer.

        Returns:
            x; whether rounding may decide a point's feasibility; whether a point was feasible.
        """
        best = self.nearest() / self.size
        least = np.full(len(self.d), np.inf, dtype=WIDE)
        close = np.zeros(len(self.d), dtype=bool)
        a = self.bound / np.where(self.far, self.length, 1)
        for k in range(1, points):
            fraction = WIDE(k) / (points - 1)
            # 1 / tau, in units of max sigma
            inverse = fraction * a / np.where(self.far & (a < 1), 1 - a, 1)
            denominators = np.where(
                self.near[:, None],
                self.near_denominators(np.full(len(a), fraction)),
                self.far_denominators(1 / np.where(self.far, inverse, 1)),
            )
            x, length = self.d / denominators, self.length_at(denominators) / self.bound
            close |= np.abs(length**2 - 1) < 1e-5
            distance = ((x - self.d) ** 2).sum(1)
            feasible = np.where(self.near, length >= 1 - 1e-15, length <= 1 + 1e-15)
            better = self.outside & feasible & (distance <= least)
            # A grid point respects one bound only.
            length = np.where(better, length * self.bound / self.inner, 1)
            scale = np.clip(length, 1, self.gamma) / length
            x = np.where(self.w > 0, x * scale[:, None], x)
            best = np.where(better[:, None], x, best)
            least = np.where(better, distance, least)
        x = np.where(self.outside[:, None], best, self.d) * self.size
        return x, close & self.outside, least < np.inf


def relative_error(actual: Tensor, wanted: Tensor) -> Tensor:
    """||actual - wanted|| / ||wanted|| per row, without overflow; infinite where one is NaN."""
    rows, right = _wide_rows(actual), _wide_rows(wanted)
    scale = np.abs(right).max(1, keepdims=True)
    scale = np.where(scale > 0, scale, 1)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.sqrt((((rows - right) / scale) ** 2).sum(1))
        length = np.sqrt(((right / scale) ** 2).sum(1))
        error = (difference / np.where(length > 0, length, 1)).astype(np.float64)
    return torch.from_numpy(error).nan_to_num(torch.inf)


def shell_error(x: Tensor, sigma: Tensor, radius: float | Tensor, gamma: float) -> Tensor:
    """How far each row lies outside the shell, relative to the bound it misses."""
    length = lengths(x, sigma).nan_to_num(torch.inf)
    inner = torch.as_tensor(radius, dtype=torch.float64)
    below = 1 - length / inner
    above = length / (gamma * inner) - 1
    flat = (sigma.expand(x.shape).flatten(1) == 0).all(1)  # no length, nowhere to go
    return torch.where(flat, 0.0, torch.maximum(below, above).clamp_min(0))


# Rounding of the result alone: 2^-24 and 2^-53 of each coordinate.
TIGHT = {torch.float32: 1e-7, torch.float64: 2e-14}
# Kernels for a GPU compute float32 rows in float32: a few roundings of sums of a row besides. To
# the exact solution they keep 1e-6, where their bar is 1e-5.
FLOAT_ARITHMETIC = {"cuda": 1e-6, "triton": 5e-7}


def tight(dtype: torch.dtype, implementation: str) -> float:
    """How near the shell an implementation comes, relative to the row."""
    in_float = implementation in FLOAT_ARITHMETIC and dtype == torch.float32
    return FLOAT_ARITHMETIC[implementation] if in_float else TIGHT[dtype]


def assert_nearest(
    actual: Tensor,
    wanted: Tensor,
    sigma: Tensor,
    radius: float | Tensor,
    gamma: float,
    condition: float = 1.0,
    implementation: str = IMPLEMENTATIONS[-1],
) -> None:
    """In the shell and at the exact solution, every row, to the rounding of float32 or float64."""
    assert actual.shape == wanted.shape
    allowed = tight(actual.dtype, implementation)
    outside = shell_error(actual, sigma, radius, gamma)
    assert bool((outside <= allowed).all()), (
        f"{outside.max()} off the shell, row {outside.argmax()}"
    )
    error = relative_error(actual, wanted)
    in_float = implementation in FLOAT_ARITHMETIC and actual.dtype == torch.float32
    near = 1e-6 if in_float else allowed
    assert bool((error <= condition * near).all()), (
        f"{error.max()} from the solution, row {error.argmax()}"
    )
