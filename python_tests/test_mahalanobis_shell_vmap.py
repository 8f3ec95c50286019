"""The Mahalanobis operators under vmap, against one call after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import lay_out
from mahalanobis_cases import GRIDS, OPERATORS, STEP, MetricOperator, draw, norm_of, run
from torch import Tensor

operators = pytest.mark.parametrize("op", OPERATORS, ids=str)
grids = pytest.mark.parametrize("points", GRIDS)
shared_or_not = pytest.mark.parametrize("shared", [False, True])
backends = pytest.mark.parametrize("implementation", ["eager", "auto"])


def _draw(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Any:
    return draw(seed, shape, dtype, ratios=(0.2, 5))


# h, grad, sigma, radius are [V, B, 5, 6] and [V, B]; sigma also [V, 5, 6] ("rows") and [5, 6].
IN_DIMS = [
    (0, 0, 0, 0),
    (0, None, None, None),
    (None, 0, None, None),
    (None, None, 0, None),
    (0, 0, None, 0),
    (1, 0, 3, 1),
    (2, 3, 1, None),
]


@backends
@grids
@shared_or_not
@pytest.mark.parametrize(
    "op, in_dims",
    [
        (op, dims)
        for op in OPERATORS
        for dims in IN_DIMS
        if op is STEP or dims[:3] != (None, 0, None)  # nothing that PROJECT takes is mapped
    ],
    ids=str,
)
def test_vmap(
    op: MetricOperator,
    points: int,
    shared: bool,
    in_dims: tuple[int | None, ...],
    implementation: str,
    seed: int,
) -> None:
    """Against one call after another."""
    h, grad, sigma = (t.reshape(3, 4, 5, 6) for t in _draw(seed, (12, 5, 6)))
    sigma = sigma[:, 1] if shared else sigma
    radius = torch.linspace(1.0, 3.0, 12).reshape(3, 4)

    def step(*tensors: Tensor) -> Tensor:
        return run(implementation, op, *tensors[:3], 0.25, tensors[3], 1.5, points)

    in_dims = tuple(
        None if dim is None else min(dim, t.dim() - 1)
        for dim, t in zip(in_dims, (h, grad, sigma, radius), strict=True)
    )
    moved = [
        t[0] if dim is None else t.movedim(0, dim).contiguous()
        for t, dim in zip((h, grad, sigma, radius), in_dims, strict=True)
    ]
    out = torch.vmap(step, in_dims)(*moved)
    for index in range(3):
        one = [
            t if dim is None else t.select(dim, index)
            for t, dim in zip(moved, in_dims, strict=True)
        ]
        torch.testing.assert_close(out[index], step(*one), rtol=1e-6, atol=1e-6)


@backends
@shared_or_not
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (2, 1)], ids=str)
def test_vmap_of_the_norm(
    shared: bool, in_dims: tuple[int | None, ...], implementation: str, seed: int
) -> None:
    h, _, sigma = (t.reshape(3, 4, 5, 6) for t in _draw(seed, (12, 5, 6)))
    sigma = sigma[:, 1] if shared else sigma
    moved = [
        t[0] if dim is None else t.movedim(0, dim)
        for t, dim in zip((h, sigma), in_dims, strict=True)
    ]
    out = torch.vmap(lambda h, s: norm_of(implementation, h, s), in_dims)(*moved)
    for index in range(3):
        one = [
            t if dim is None else t.select(dim, index)
            for t, dim in zip(moved, in_dims, strict=True)
        ]
        torch.testing.assert_close(out[index], norm_of(implementation, *one), rtol=1e-6, atol=0)


@backends
@operators
@shared_or_not
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (1, 0, 1), (3, 2, 0)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "sliced", "transposed"])
def test_vmap_in_place(
    op: MetricOperator,
    shared: bool,
    in_dims: tuple[int | None, ...],
    layout: str,
    implementation: str,
    seed: int,
) -> None:
    tensors = [t.reshape(3, 4, 5, 6) for t in _draw(seed, (12, 5, 6))]
    tensors[2] = tensors[2][:, 1] if shared else tensors[2]
    h, *rest = [
        t[0] if dim is None else t.clone().movedim(0, dim)
        for t, dim in zip(tensors, in_dims, strict=True)
    ]
    target = lay_out(h.contiguous().clone(), layout)
    before = target.clone()

    def step(h: Tensor, grad: Tensor, sigma: Tensor) -> Tensor:
        return run(implementation, op, h, grad, sigma, 0.25, 1.75, 1.5, in_place=True)

    version = target._version
    torch.vmap(step, in_dims)(target, *rest)
    assert target._version > version
    for index in range(3):
        one = [
            t if dim is None else t.select(dim, index)
            for t, dim in zip((before, *rest), in_dims, strict=True)
        ]
        expected = run(implementation, op, *one, 0.25, 1.75, 1.5)
        actual = target.select(in_dims[0], index)
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@operators
def test_vmap_in_place_refuses_an_unbatched_h(op: MetricOperator, seed: int) -> None:
    h, grad, sigma = _draw(seed, (3, 5))
    step = torch.vmap(
        lambda h, g, s: run("auto", op, h, g, s, 1.0, 2.0, 1.5, in_place=True), (None, None, 0)
    )
    with pytest.raises(RuntimeError, match=r"h must be mapped too|vmap: .*in-place"):
        step(h, grad, sigma.expand(2, 3, 5))


@backends
@operators
@shared_or_not
def test_gradients_through_vmap(
    op: MetricOperator, shared: bool, implementation: str, seed: int
) -> None:
    h, grad, sigma = (t.reshape(3, 4, 5) for t in _draw(seed, (12, 5), torch.float64))
    sigma = sigma[:, 1].clone() if shared else sigma
    leaves = [t.requires_grad_() for t in (h, grad, sigma)]

    def step(*tensors: Tensor) -> Tensor:
        return run(implementation, op, *tensors, 0.25, 1.75, 1.5)

    taken = leaves if op is STEP else [leaves[0], leaves[2]]
    mapped = torch.autograd.grad(torch.vmap(step)(*leaves).sin().sum(), taken)
    stacked = torch.stack([step(*one) for one in zip(*leaves, strict=True)])
    torch.testing.assert_close(mapped, torch.autograd.grad(stacked.sin().sum(), taken))
