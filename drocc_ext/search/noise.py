"""Normal numbers: torch's, on the CPU drawn by a kernel that is several times faster.

A seed gives the noise that `torch.Tensor.normal_` would give, to rounding, and leaves the generator
where that would leave it. So seeds, saved states and the order of draws keep their meaning.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from drocc_ext.ops import _backend, _library

__all__ = ["draws_like_torch", "gaussian", "row_factor", "swaps"]

# Numbers from which on reading and writing a generator's state pays (measured).
_LEAST_COUNT = 4096

# Most rows of a factor of a covariance.
_MOST_FACTORS = 512

# Share of N(0, I) in a swap.
_DITHER = 1e-3

# No multiple of 16, which torch draws in two parts, and more than one round of its generator; and
# so few that torch draws them pair by pair.
_TRIED = ((1001, torch.float32), (5, torch.float32), (1001, torch.float64), (4, torch.float64))


def gaussian(
    shape: Sequence[int],
    *,
    dtype: torch.dtype,
    device: torch.device,
    scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw from `N(0, scale^2)`.

    Args:
        shape: Shape of the result.
        dtype: Its floating-point type.
        device: Its device.
        scale: Standard deviation, >= 0.
        generator: Source, on that device; None is the device's global one. Another on the CPU must
            not be used by two threads at once.

    Returns:
        The numbers, contiguous.
    """
    out = torch.empty(tuple(shape), dtype=dtype, device=device)
    source = torch.default_generator if generator is None else generator
    if not (_takes_kernel(out) and draws_like_torch()) or _may_be_shared(source):
        return out.normal_(0.0, scale, generator=generator)
    _fill(out, scale, source)
    return out


def row_factor(x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Factor the covariance of rows, so that `N(0, I) @ factor` is noise of the rows' own shape.

    Args:
        x: `[N, *]`, floating point, finite, N >= 1.
        generator: Chooses the rows where N and D are above 512, on the device of x.

    Returns:
        F `[K, *]` with `F^T F = C`, the covariance of x (divided by N), K = min(N, D); where both
        are above 512, that of 512 rows drawn at random, K = 512.
    """
    rows = x.flatten(1)
    count, length = rows.shape
    if min(count, length) > _MOST_FACTORS:
        rows = rows[torch.randperm(count, generator=generator, device=x.device)[:_MOST_FACTORS]]
        count = _MOST_FACTORS
    rows = rows - rows.mean(0)
    if count <= length:
        factor = rows / count**0.5
    else:
        values, vectors = torch.linalg.eigh((rows.T.double() @ rows.double()) / count)
        factor = (values.clamp(min=0.0).sqrt()[:, None] * vectors.T).to(x.dtype)
    result: Tensor = factor.contiguous().view(-1, *x.shape[1:])
    return result


def swaps(
    x: Tensor,
    rows: Tensor,
    *,
    scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw directions in which a row takes over some values of another row.

    A point along such a direction has usual values column by column, but not together: what the
    anomalies of tables often look like, and neither N(0, I) nor a noise of the rows' covariance
    does. Each point draws its row, and a share, uniform in [0, 1/2], of columns to take over; one
    column is taken over for certain. A thousandth of N(0, I) is added, so that no direction is 0
    where both rows agree.

    Args:
        x: Rows to go from, `[B, *]`, floating point.
        rows: Rows to go towards, `[N, *]`, N >= 1, dtype and device of x.
        scale: Factor of the directions.
        generator: Source of the draws, on the device of x.

    Returns:
        Directions, shape of x.
    """
    start = x.flatten(1)
    count, length = start.shape
    if count == 0 or length == 0:
        return torch.zeros_like(x)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, dtype=torch.float32, device=x.device, generator=generator)

    def integers(below: int) -> Tensor:
        return torch.randint(below, (count,), device=x.device, generator=generator)

    others = rows.flatten(1).index_select(0, integers(len(rows)))
    taken = uniform(count, length) < uniform(count, 1) / 2
    taken[torch.arange(count, device=x.device), integers(length)] = True
    dither = gaussian(start.shape, dtype=x.dtype, device=x.device, generator=generator)
    directions = torch.where(taken, others - start, 0.0) + _DITHER * dither
    return (scale * directions).view(x.shape)


def _takes_kernel(out: Tensor) -> bool:
    return (
        out.dtype is torch.float32
        and out.is_cpu
        and out.numel() >= _LEAST_COUNT
        and not torch.compiler.is_compiling()
        and _library.native_error("cpu") is None
        and _backend.allows_native()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
    )


def _may_be_shared(generator: torch.Generator) -> bool:
    """Say whether another thread may draw from a generator between reading and setting its state.

    The numbers that it drew would come twice. Only torch's own draws hold the generator's lock.
    """
    return generator is torch.default_generator and threading.active_count() > 1


def _fill(out: Tensor, scale: float, generator: torch.Generator) -> None:
    state = generator.get_state()
    torch.ops.drocc._normal_(out, state, scale)
    generator.set_state(state)


@lru_cache(maxsize=1)
def draws_like_torch() -> bool:
    """Try whether this torch draws as the kernel does: that is nowhere promised.

    Returns:
        Whether numbers of every kind are torch's, and the generator's state afterwards too.
    """
    theirs, ours = (torch.Generator("cpu").manual_seed(0) for _ in range(2))
    for count, dtype in _TRIED:
        expected, drawn = (torch.empty(count, dtype=dtype, device="cpu") for _ in range(2))
        expected.normal_(0.0, 2.0, generator=theirs)
        try:
            _fill(drawn, 2.0, ours)
        except RuntimeError:  # a state of another size
            return False
        if not torch.allclose(drawn, expected, rtol=1e-5, atol=1e-5):
            return False
        if not torch.equal(ours.get_state(), theirs.get_state()):
            return False
    return True
