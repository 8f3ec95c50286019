"""`nearest_distance`: values against a brute-force float64 search, edge rows, errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import drocc_ext
from drocc_ext.ops import _library
from drocc_ext.ops.nearest import nearest_distance, nearest_row

BACKENDS = ["eager", "native"]
SHAPES = [(1, 1, 1), (3, 5, 2), (130, 33, 7), (257, 1000, 30), (5, 17, 3072), (2, 16, 150_528)]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and _library.cpu_error is not None:
        pytest.skip(_library.cpu_error)
    return str(request.param)


def brute_force(points: Tensor, rows: Tensor) -> Tensor:
    """All distances in float64, `[B, N]`, one point after the other."""
    wide = rows.double().flatten(1)
    return torch.stack([(wide - p).square().sum(1).sqrt() for p in points.double().flatten(1)])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_values(backend: str, shape: tuple[int, int, int], dtype: torch.dtype, seed: int) -> None:
    batch, count, length = shape
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(batch, length, generator=generator).to(dtype)
    rows = torch.randn(count, length, generator=generator).to(dtype)
    rows[-1] = points[0]  # an exact copy: distance 0, whatever the rounding
    with drocc_ext.use_backend(backend):
        distance, index = nearest_row(points, rows)
    all_distances = brute_force(points, rows)
    expected = all_distances.min(1).values
    assert distance.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(distance.double(), expected, rtol=2e-6, atol=0)
    there = all_distances.gather(1, index[:, None]).squeeze(1)
    torch.testing.assert_close(there, expected, rtol=2e-6, atol=0)
    assert distance[0] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_of_equally_near_rows_the_first(backend: str, dtype: torch.dtype, seed: int) -> None:
    """Whatever the lane of a vector that a row comes to lie in."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(9, 3, generator=generator).to(dtype)
    different = torch.randn(40, 3, generator=generator).to(dtype)
    places = torch.randint(40, (200,), generator=generator)
    with drocc_ext.use_backend(backend):
        _, index = nearest_row(points, different[places])
    for found in index.tolist():
        assert found == (places == places[found]).nonzero()[0].item()


def test_backends_agree_and_layout_does_not_matter(seed: int) -> None:
    if _library.cpu_error is not None:
        pytest.skip(_library.cpu_error)
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(9, 4, 6, generator=generator).transpose(1, 2)
    rows = torch.randn(40, 4, 12, generator=generator)[..., ::2].transpose(1, 2)
    with drocc_ext.use_backend("eager"):
        expected = nearest_distance(points, rows)
    torch.testing.assert_close(nearest_distance(points, rows), expected, rtol=1e-6, atol=0)
    expanded = nearest_distance(points[:1].expand(5, 6, 4), rows)
    torch.testing.assert_close(expanded, expected[:1].expand(5), rtol=1e-6, atol=0)


def test_bad_rows_stay_alone(backend: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points, rows = torch.randn(20, 5, generator=generator), torch.randn(50, 5, generator=generator)
    with drocc_ext.use_backend(backend):
        expected = nearest_distance(points, rows)
        spoiled = torch.cat([rows, torch.full((1, 5), torch.nan), torch.full((1, 5), torch.inf)])
        torch.testing.assert_close(nearest_distance(points, spoiled), expected)
        points[3, 2], points[7, 0] = torch.nan, -torch.inf
        distance, index = nearest_row(points, rows)
        assert distance[[3, 7]].isnan().all() and (index[[3, 7]] == -1).all()
        kept = torch.ones(20, dtype=torch.bool)
        kept[[3, 7]] = False
        torch.testing.assert_close(distance[kept], expected[kept])
        nowhere, none = nearest_row(points[:1], torch.full((2, 5), torch.nan))
        assert nowhere.item() == torch.inf and none.item() == -1


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_tiny_and_large_rows_keep_their_precision(backend: str, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(10, 6, generator=generator) * scale
    rows = torch.randn(30, 6, generator=generator) * scale
    with drocc_ext.use_backend(backend):
        distance = nearest_distance(points, rows)
    expected = brute_force(points, rows).min(1).values
    torch.testing.assert_close(distance.double(), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e-150, 1e150, 1e200, 1e307])
def test_squares_that_leave_the_range_of_float64(backend: str, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(10, 6, generator=generator, dtype=torch.float64)
    rows = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    rows[[7, 20]] = points[[1, 1]]  # behind rows whose squares vanish too
    expected = brute_force(points, rows).min(1)
    with drocc_ext.use_backend(backend):
        distance, index = nearest_row(points * scale, rows * scale)
    rtol = 1e-12 if scale > 1e-300 else 1e-11
    torch.testing.assert_close(distance / scale, expected.values, rtol=rtol, atol=0)
    assert distance[1] == 0 and index[1] == 7
    assert torch.equal(index, expected.indices)


def test_empty_batch_and_no_gradient(backend: str) -> None:
    with drocc_ext.use_backend(backend):
        assert nearest_distance(torch.empty(0, 3), torch.zeros(2, 3)).shape == (0,)
        points = torch.ones(2, 3, requires_grad=True)
        assert not nearest_distance(points, torch.zeros(2, 3)).requires_grad


@pytest.mark.parametrize(
    ("points", "rows", "error", "words"),
    [
        (torch.zeros(2, 3), torch.zeros(0, 3), ValueError, "rows must have shape"),
        (torch.zeros(2, 3), torch.zeros(2, 4), ValueError, "rows must have shape"),
        (torch.zeros(2, 3), torch.zeros(2, 3).double(), TypeError, "dtype of points"),
        (torch.zeros(2, 3).int(), torch.zeros(2, 3), TypeError, "points must be float"),
        (torch.zeros(2), torch.zeros(2, 3), ValueError, "points must have shape"),
    ],
)
def test_errors(points: Tensor, rows: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"nearest_distance: .*{words}"):
        nearest_distance(points, rows)
