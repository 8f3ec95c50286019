from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from drocc_ext.radius import suggest_radius, warn_if_short_travel


def brute_force(x: np.ndarray, k: int, quantile: float) -> float:
    distances = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    np.fill_diagonal(distances, np.inf)
    return float(np.quantile(np.sort(distances, axis=1)[:, k - 1], quantile))


@pytest.mark.parametrize("columns", [1, 4, 60])
@pytest.mark.parametrize(("k", "quantile"), [(1, 0.5), (5, 0.95), (19, 1.0)])
def test_matches_brute_force(seed, columns, k, quantile):
    x = np.random.default_rng(seed).normal(size=(20, columns))
    x[3] = x[7]  # a repeated row is a neighbour at distance 0
    expected = brute_force(x, k, quantile)
    assert suggest_radius(x, k=k, quantile=quantile) == pytest.approx(expected, rel=1e-12)


def test_defaults_and_forms_of_input(seed):
    x = np.random.default_rng(seed).normal(size=(50, 6)).astype(np.float32)
    expected = brute_force(x.astype(np.float64), 5, 0.95)
    tensor = torch.tensor(x, requires_grad=True)
    for form in (x, x.astype(np.float64), x.tolist(), tensor, tensor.reshape(50, 2, 3)):
        assert suggest_radius(form) == pytest.approx(expected, rel=1e-6)
    assert suggest_radius(tensor.bfloat16()) == pytest.approx(expected, rel=0.02)


def test_scales_with_the_data_and_not_with_its_place(seed):
    x = np.random.default_rng(seed).normal(size=(30, 20))
    assert suggest_radius(x * 8) == pytest.approx(8 * suggest_radius(x), rel=1e-9)
    assert suggest_radius(x + 100) == pytest.approx(suggest_radius(x), rel=1e-9)


def test_sampled_rows_search_among_all(seed):
    x = np.random.default_rng(seed).normal(size=(2000, 3))

    def part(seed: int) -> float:
        return suggest_radius(x, quantile=0.5, max_rows=400, seed=seed)

    # Of the shares below the median of a sample 0.125 is more than five standard deviations.
    # Neighbours among the sample only would be farther by about (2000 / 400) ** (1 / 3) = 1.7.
    least, most = (suggest_radius(x, quantile=quantile) for quantile in (0.375, 0.625))
    assert least <= part(seed) <= most < 1.5 * least
    assert part(seed) == part(seed)
    assert len({part(seed + k) for k in range(5)}) > 1


def test_sqrt_dim_counts_all_trailing_dimensions():
    assert suggest_radius(np.zeros((2, 4, 25)), method="sqrt_dim") == 5.0


@pytest.mark.parametrize("columns", [4, 40])
@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e160, 1e200, 1e300])
def test_rows_whose_squares_leave_the_range(scale, columns, seed):
    x = np.random.default_rng(seed).normal(size=(200, columns))
    assert suggest_radius(x * scale) / scale == pytest.approx(suggest_radius(x), rel=1e-9)


@pytest.mark.parametrize("columns", [2, 200])
def test_copies_are_refused_not_rounded(seed, columns):
    """Wide rows go through |a|^2 - 2ab + |b|^2, which leaves copies slightly apart."""
    x = np.random.default_rng(seed).normal(size=(5, columns)).repeat(8, axis=0) + 30
    with pytest.raises(ValueError, match=r"share 0\.95 of the rows .* 5 or more exact copies"):
        suggest_radius(x)
    assert suggest_radius(x, k=8) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "guess"}, 'method must be "neighbours" or "sqrt_dim", got \'guess\''),
        ({"quantile": 1.5}, "quantile must be between 0 and 1, got 1.5"),
        ({"k": 0}, "k must be >= 1, got 0"),
        ({"max_rows": 0}, "max_rows must be >= 1, got 0"),
        ({"quantile": "a"}, "quantile must be a number, got 'a'"),
        ({"k": 1.5}, "k must be an integer, got 1.5"),
        ({"max_rows": "5"}, "max_rows must be an integer, got '5'"),
        ({"k": 10}, "x must have more than k = 10 rows, got 10"),
        ({"x": np.zeros(10)}, r"x must have shape \[N, \*\] with at least one column, got \(10,\)"),
        ({"x": np.zeros((10, 0))}, r"at least one column, got \(10, 0\)"),
        ({"x": np.full((10, 2), np.nan)}, "x must be finite"),
        ({"x": torch.full((10, 2), torch.inf)}, "x must be finite"),
        ({"x": np.full((10, 2), np.nan), "method": "sqrt_dim"}, "x must be finite"),
    ],
)
def test_bad_input_is_named(arguments, message):
    x = np.arange(20.0).reshape(10, 2)
    with pytest.raises((TypeError, ValueError), match=f"^suggest_radius: .*{message}"):
        suggest_radius(**{"x": x, **arguments})


@pytest.mark.parametrize(
    ("num_steps", "step_size", "radius"),
    [(50, 0.001, 2.5), (1, 0.099, 1.0)],
)
def test_short_travel_warns_at_the_callers_caller(num_steps, step_size, radius):
    def caller() -> None:
        warn_if_short_travel(num_steps, step_size, radius)

    with pytest.warns(UserWarning, match="less than a tenth of the radius") as record:
        caller()
    assert record[0].filename == __file__
    assert record[0].lineno > caller.__code__.co_firstlineno + 1  # not the line within caller


@pytest.mark.parametrize(
    ("num_steps", "step_size", "radius"),
    [(0, 0.1, 9.0), (5, 0.1, 1.0), (2, 0.5, 10.0), (1, 0.1001, 1.0)],
)
def test_long_enough_travel_does_not_warn(num_steps, step_size, radius):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_short_travel(num_steps, step_size, radius)


def test_no_rows_and_bad_seeds_are_named():
    with pytest.raises(ValueError, match="suggest_radius: x must have at least one row, got none"):
        suggest_radius(torch.randn(0, 3))
    with pytest.raises(ValueError, match="suggest_radius: seed must be >= 0, got -1"):
        suggest_radius(torch.randn(9, 3), seed=-1)


@pytest.mark.parametrize("columns", [15, 16, 40])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_what_all_rows_share_does_not_count(columns: int, dtype: type, seed: int) -> None:
    """Neighbours of wide rows are searched by squares, which a large offset would swallow."""
    x = np.random.default_rng(seed).normal(size=(300, columns)).astype(np.float32)
    x = np.round(x * 256).astype(np.float64) / 256  # exact beside the offset
    offset = np.zeros(columns)
    offset[0] = 1.7e9 if dtype is np.float64 else 4096.0
    expected = suggest_radius(x)
    assert suggest_radius((x + offset).astype(dtype)) == pytest.approx(expected, rel=1e-6)


def test_text_is_no_number() -> None:
    with pytest.raises(TypeError, match=r"^suggest_radius: x must hold numbers, got <U1"):
        suggest_radius([["a", "b"]] * 10)


def test_tensors_that_are_negated_lazily(seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(40, 3, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    assert suggest_radius(x) == suggest_radius(x.clone())
