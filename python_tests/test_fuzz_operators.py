"""Operators on rows of every size, scale and kind, against their definitions in wider numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import budget
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from drocc_ext import ops

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, for extreme rows

ROWS = 50  # of each example

SHAPES = st.one_of(
    st.integers(1, 70).map(lambda d: (d,)),
    st.sampled_from([(1, 1), (3, 5), (2, 3, 4), (257,), (513,), (1, 8, 8)]),
)
DTYPES = st.sampled_from(
    [torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16]
)
SEEDS = st.integers(0, 2**32 - 1)
RADII = st.one_of(st.floats(0.01, 100), st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e30]))
GAMMAS = st.one_of(st.floats(1, 5), st.sampled_from([1.0, float("inf"), 1e30]))
STEPS = st.one_of(st.floats(-10, 10), st.sampled_from([0.0, 1e-30, 1e30]))


def rows(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype, scale: float
) -> Tensor:
    """Rows of many kinds: some of every example are extreme."""
    x = rng.standard_normal((ROWS, *shape))
    x *= scale * 10.0 ** rng.choice([0, 0, 0, -3, 3, -12, 12, -30, 30], (ROWS,) + (1,) * len(shape))
    flat = x.reshape(ROWS, -1)
    flat[rng.random(flat.shape) < 0.1] = 0
    for row in range(ROWS):
        kind = rng.integers(12)
        at = rng.integers(flat.shape[1])
        if kind == 0:
            flat[row] = 0
        elif kind == 1:
            flat[row, at] = rng.choice([np.nan, np.inf, -np.inf])
        elif kind == 2:
            flat[row] = 0
            flat[row, at] = x.reshape(-1)[0] if np.isfinite(x.reshape(-1)[0]) else 1
        elif kind == 3:
            flat[row] *= 10.0 ** rng.integers(-300 if dtype is torch.float64 else -44, -30)
    return torch.from_numpy(x).to(dtype)


def laid_out(rng: np.random.Generator, x: Tensor) -> Tensor:
    """The same values in another layout."""
    kind = rng.integers(3)
    if kind == 1:
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    if kind == 2:
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    return x


def wide(x: Tensor) -> np.ndarray[Any, Any]:
    """[B, D] in long double, whose range holds the squares of every float64."""
    return x.double().reshape(x.shape[0], -1).numpy().astype(np.longdouble)


def norm(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.sqrt((x * x).sum(1))


def finite_rows(*parts: Tensor) -> np.ndarray[Any, Any]:
    return np.logical_and.reduce([np.isfinite(wide(part)).all(1) for part in parts])


def tolerance(dtype: torch.dtype, width: int) -> float:
    return float(torch.finfo(dtype).eps) * (4 if dtype.itemsize < 8 else 4 + width**0.5)


def compare(out: Tensor, expected: np.ndarray[Any, Any], good: Any, scale: Any) -> None:
    """Rows that are good are as expected, relative to a scale per row; the others are NaN."""
    limit = np.longdouble(torch.finfo(out.dtype).max)
    tiny = np.longdouble(torch.finfo(out.dtype).smallest_normal)
    got = wide(out)
    bound = tolerance(out.dtype, got.shape[1]) * (scale[:, None] + tiny)
    # What the type cannot hold is not asked for.
    fits = good & (np.abs(expected) + bound <= limit).all(1)
    error = np.abs(got - expected)
    wrong = ~((error <= bound) | (expected == got))
    assert not wrong[fits].any(), (
        got[fits][wrong[fits].any(1)],
        expected[fits][wrong[fits].any(1)],
    )
    assert np.isnan(got[~good]).all()


def ascent(h: Any, grad: Any, step: float) -> Any:
    length = norm(grad)[:, None]
    return h + np.where(length > 0, np.longdouble(step) * grad / np.where(length > 0, length, 1), 0)


def shell(h: Any, radius: Any, gamma: float) -> Any:
    length = norm(h)
    radius = np.broadcast_to(np.asarray(radius, dtype=np.longdouble), length.shape)
    wanted = np.clip(length, radius, radius * np.longdouble(gamma))
    moved = h * np.where(length > 0, wanted / np.where(length > 0, length, 1), 0)[:, None]
    zero = length == 0
    moved[zero] = 0
    moved[zero, 0] = radius[zero]
    return moved


@given(shape=SHAPES, dtype=DTYPES, seed=SEEDS, radius=RADII, gamma=GAMMAS, per_row=st.booleans())
@budget(40)
def test_l2_shell(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    seed: int,
    radius: float,
    gamma: float,
    per_row: bool,
) -> None:
    rng = np.random.default_rng(seed)
    if dtype in (torch.float16, torch.bfloat16):
        radius = min(max(radius, 0.01), 100.0)
    h = rows(rng, shape, dtype, radius)
    radii: Any = radius
    if per_row:
        kind = torch.float64 if dtype is torch.float64 else torch.float32
        radii = (torch.rand(ROWS, dtype=kind) + 0.5) * radius
        radii[rng.integers(ROWS)] = rng.choice([np.nan, 0.0, -1.0, np.inf])
    out = ops.project_l2_shell(laid_out(rng, h), radii, gamma)
    assert out.shape == h.shape
    assert out.dtype == dtype
    good = finite_rows(h)
    exact: Any = np.longdouble(radius)
    if per_row:
        exact = radii.numpy().astype(np.longdouble)
        good &= np.isfinite(exact) & (exact > 0)
        exact = np.where(good, exact, 1)
    expected = shell(np.where(good[:, None], wide(h), 1), exact, gamma)
    compare(out, expected, good, norm(expected))
    in_place = laid_out(rng, h.clone())
    assert ops.project_l2_shell_(in_place, radii, gamma) is in_place
    torch.testing.assert_close(in_place, out, rtol=0, atol=0, equal_nan=True)


@given(shape=SHAPES, dtype=DTYPES, seed=SEEDS, radius=RADII, gamma=GAMMAS, step=STEPS)
@budget(40)
def test_steps(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int, radius: float, gamma: float, step: float
) -> None:
    rng = np.random.default_rng(seed)
    if dtype is not torch.float64:  # a step is a number of the type that is computed in
        step = float(np.float32(step))
    if dtype in (torch.float16, torch.bfloat16):
        radius, step = min(max(radius, 0.01), 100.0), min(step, 100.0)
    h, grad = rows(rng, shape, dtype, radius), rows(rng, shape, dtype, 1.0)
    good = finite_rows(h, grad)
    moved = ascent(wide(h), wide(grad), step)
    out = ops.normalized_ascent(laid_out(rng, h), laid_out(rng, grad), step)
    moved[~good] = 1
    compare(out, moved, good, np.abs(moved).max(1) + abs(step))
    out = ops.l2_shell_step(laid_out(rng, h), laid_out(rng, grad), step, radius, gamma)
    # Where h and the step cancel, digits of both are lost.
    lost = (norm(np.where(good[:, None], wide(h), 1)) + abs(np.longdouble(step))) / norm(moved)
    expected = shell(moved, np.longdouble(radius), gamma)
    sure = good & (lost < 1e3)
    compare(out[sure], expected[sure], np.ones(sure.sum(), bool), (norm(expected) * lost)[sure])
    assert np.isnan(wide(out)[~good]).all()


@given(shape=SHAPES, dtype=DTYPES, seed=SEEDS)
@budget(30)
def test_influence(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    rng = np.random.default_rng(seed)
    grad = rows(rng, shape, dtype, 1.0)
    good = finite_rows(grad)
    out = ops.influence(laid_out(rng, grad))
    sizes = np.abs(np.where(good[:, None], wide(grad), 1))
    mean = sizes.mean(1, keepdims=True)
    expected = np.where(mean > 0, sizes / np.where(mean > 0, mean, 1), 1)
    compare(out, expected, good, expected.max(1))


@given(
    shape=SHAPES,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=SEEDS,
    radius=st.floats(0.01, 100),
    gamma=GAMMAS,
    shared=st.booleans(),
    solver=st.sampled_from(["newton", "newton", "grid"]),
)
@budget(40)
def test_mahalanobis_shell(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    seed: int,
    radius: float,
    gamma: float,
    shared: bool,
    solver: Any,
) -> None:
    rng = np.random.default_rng(seed)
    h = rows(rng, shape, dtype, radius)
    size = shape if shared else (ROWS, *shape)
    sigma = torch.from_numpy(rng.exponential(size=size) * 10.0 ** rng.integers(-3, 4, size)).to(
        dtype
    )
    sigma[torch.from_numpy(rng.random(size)) < 0.1] = 0
    if not shared:
        sigma[rng.integers(ROWS)] = float(rng.choice([-1.0, np.nan, np.inf, 0.0]))
    weights = wide(sigma.expand_as(h))
    good = finite_rows(h) & np.isfinite(weights).all(1) & (weights >= 0).all(1)
    out = ops.project_mahalanobis_shell(laid_out(rng, h), sigma, radius, gamma, solver, 16)
    got, start = wide(out), wide(h)
    assert np.isnan(got[~good]).all()
    # float32 rows beyond 1e30 radii, and what underflows, are promised no digits.
    length = np.sqrt((weights * start * start).sum(1))
    usual = good & (weights.max(1) > 0) & (length < 1e15 * radius)
    reached = np.sqrt((weights * got * got).sum(1))
    eps = float(torch.finfo(dtype).eps) * 40
    assert (reached[usual] >= radius * (1 - eps)).all()
    assert (reached[usual] <= radius * np.longdouble(gamma) * (1 + eps)).all()
    inside = usual & (length >= radius) & (length <= radius * np.longdouble(gamma))
    np.testing.assert_array_equal(got[inside], start[inside])
    zero = good & (weights.max(1) == 0)
    np.testing.assert_array_equal(got[zero], start[zero])
    # A coordinate of weight 0 does not move.
    still = (weights == 0) & good[:, None]
    np.testing.assert_array_equal(got[still], start[still])


@given(shape=SHAPES, dtype=DTYPES, seed=SEEDS, op=st.integers(0, 4))
@budget(30)
def test_no_row_touches_another(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int, op: int
) -> None:
    rng = np.random.default_rng(seed)
    h, grad = rows(rng, shape, dtype, 1.0), rows(rng, shape, dtype, 1.0)
    sigma = grad.abs()

    def call(at: Any) -> Tensor:
        if op == 0:
            return ops.l2_shell_step(h[at], grad[at], 0.1, 1.0, 2.0)
        if op == 1:
            return ops.project_l2_shell(h[at], 1.0, 2.0)
        if op == 2:
            return ops.influence(grad[at])
        if op == 3:
            return ops.mahalanobis_shell_step(h[at], grad[at], sigma[at], 0.1, 1.0, 2.0)
        return ops.mahalanobis_norm(h[at], sigma[at])[:, None]

    together = call(slice(None))
    order = torch.from_numpy(rng.permutation(ROWS))
    torch.testing.assert_close(call(order), together[order], rtol=0, atol=0, equal_nan=True)
    row = int(rng.integers(ROWS))
    one = slice(row, row + 1)
    torch.testing.assert_close(call(one), together[one], rtol=0, atol=0, equal_nan=True)


@given(data=st.data(), dtype=DTYPES)
@budget(40)
def test_arguments_of_every_kind(data: st.DataObject, dtype: torch.dtype) -> None:
    """A result, or an error of one sentence that begins with the operator's name."""
    shapes = st.lists(st.integers(0, 4), min_size=0, max_size=3).map(tuple)
    tensors = st.one_of(
        shapes.map(lambda shape: torch.ones(shape, dtype=dtype)),
        st.sampled_from([torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64), torch.ones(2)]),
        st.sampled_from([None, 1.0, "rows", [1.0, 2.0], np.ones((2, 3))]),
    )
    numbers = st.one_of(
        st.floats(), st.integers(-3, 3), st.sampled_from([None, "1", True, 10**400, torch.ones(2)])
    )
    name, kinds = data.draw(
        st.sampled_from(
            [
                ("normalized_ascent", "ttn"),
                ("project_l2_shell", "tnn"),
                ("l2_shell_step", "ttnnn"),
                ("normalized_ascent_", "ttn"),
                ("project_l2_shell_", "tnn"),
                ("l2_shell_step_", "ttnnn"),
                ("influence", "t"),
                ("mahalanobis_norm", "tt"),
                ("project_mahalanobis_shell", "ttnn"),
                ("mahalanobis_shell_step", "tttnnn"),
            ]
        )
    )
    arguments = [data.draw(tensors if kind == "t" else numbers) for kind in kinds]
    try:
        out = getattr(ops, name)(*arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        said = str(error)
        assert said.startswith(f"{name}: "), (type(error), said)
        assert "\n" not in said
    else:
        assert isinstance(out, Tensor)
        assert isinstance(arguments[0], Tensor)
