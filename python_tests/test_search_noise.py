"""Normal numbers from the kernel: torch's, from the same seed, with the same state afterwards."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from drocc_ext import use_backend
from drocc_ext.ops import _library
from drocc_ext.search import noise as _noise
from drocc_ext.search.noise import gaussian

native_only = pytest.mark.skipif(_library.cpu_error is not None, reason="no native library")


def ours(shape: tuple[int, ...], scale: float, generator: torch.Generator) -> Tensor:
    device = torch.device("cpu")
    return gaussian(shape, dtype=torch.float32, device=device, scale=scale, generator=generator)


def drawn_by_kernel(count: int, generator: torch.Generator) -> Tensor:
    """What the kernel draws, also where it would not be chosen."""
    out = torch.empty(count)
    _noise._fill(out, 1.0, generator)
    return out


def pair(seed: int) -> tuple[torch.Generator, torch.Generator]:
    return torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)


@native_only
def test_this_torch_is_followed() -> None:
    assert _noise.draws_like_torch()


@native_only
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 31, 32, 100, 623, 624, 625, 5000, 70_001])
@pytest.mark.parametrize("taken", [0, 1, 623, 624, 700])
def test_numbers_and_state_are_torchs(count: int, taken: int, seed: int) -> None:
    generator, theirs = pair(seed)
    for each in (generator, theirs):
        torch.rand(taken, generator=each)
    for _ in range(3):
        found = drawn_by_kernel(count, generator)
        expected = torch.empty(count).normal_(generator=theirs)
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)
        assert torch.equal(generator.get_state(), theirs.get_state())
    torch.testing.assert_close(torch.rand(9, generator=generator), torch.rand(9, generator=theirs))


@native_only
@pytest.mark.parametrize("counts", [(1, 2, 3), (15, 16, 17), (5, 1000, 7), (311, 312, 313, 3)])
def test_double_precision_is_torchs_to_the_bit(counts: tuple[int, ...], seed: int) -> None:
    generator, theirs = pair(seed)
    for count in counts:
        found = torch.empty(count, dtype=torch.float64)
        _noise._fill(found, 0.7, generator)
        expected = torch.empty_like(found).normal_(0.0, 0.7, generator=theirs)
        torch.testing.assert_close(found, expected, rtol=1e-15, atol=1e-15)
        assert torch.equal(generator.get_state(), theirs.get_state())


@pytest.mark.parametrize("shape", [(0, 4), (3, 5), (64, 64), (97, 43), (8, 3, 32, 32)])
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 7.0])
def test_every_shape_and_scale(shape: tuple[int, ...], scale: float, seed: int) -> None:
    generator, theirs = pair(seed)
    found = ours(shape, scale, generator)
    expected = torch.empty(shape).normal_(0.0, scale, generator=theirs)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6 * scale)
    assert torch.equal(generator.get_state(), theirs.get_state())


def test_the_global_generator_is_the_default(seed: int) -> None:
    torch.manual_seed(seed)
    found = gaussian((80, 80), dtype=torch.float32, device=torch.device("cpu"))
    after = torch.rand(3)
    torch.manual_seed(seed)
    torch.testing.assert_close(found, torch.randn(80, 80), rtol=2e-6, atol=2e-6)
    assert torch.equal(after, torch.rand(3))


def test_other_types_and_backends_are_torchs_own(seed: int) -> None:
    device = torch.device("cpu")
    for dtype in (torch.float64, torch.bfloat16):
        generator, theirs = pair(seed)
        found = gaussian((80, 80), dtype=dtype, device=device, generator=generator)
        expected = torch.empty(80, 80, dtype=dtype).normal_(generator=theirs)
        assert torch.equal(found, expected)
    generator, theirs = pair(seed)
    with use_backend("eager"):
        found = ours((80, 80), 1.0, generator)
    assert torch.equal(found, torch.empty(80, 80).normal_(generator=theirs))


@native_only
def test_the_distribution_is_normal(seed: int) -> None:
    """In float64 and without a look at torch: moments, and the share beyond some bounds."""
    count = 2_000_000
    values = drawn_by_kernel(count, torch.Generator().manual_seed(seed)).double()
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        spread = math.sqrt((values**power).var() / count)
        assert abs(float((values**power).mean()) - moment) < 6 * spread
    for bound in (0.1, 1.0, 2.0, 4.0):
        expected = 0.5 * math.erfc(bound / math.sqrt(2))
        allowed = 6 * math.sqrt(expected / count) + 1e-6
        for tail in (values > bound, values < -bound):
            assert abs(float(tail.double().mean()) - expected) < allowed


@native_only
def test_wrong_arguments_are_refused(seed: int) -> None:
    state = torch.Generator().manual_seed(seed).get_state()
    for out, given, words in (
        (torch.empty(32, dtype=torch.float16), state, "out must be"),
        (torch.empty(32, 2)[:, 0], state, "out must be"),
        (torch.empty(32), state[:-1], "state must hold 5056 bytes"),
        (torch.empty(32), torch.zeros_like(state), "state must be that of a seeded generator"),
    ):
        with pytest.raises(RuntimeError, match=f"_normal_: {words}"):
            torch.ops.drocc._normal_(out, given, 1.0)
