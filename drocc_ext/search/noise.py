"""Normal numbers: torch's, on the CPU drawn by a kernel that is several times faster.

A seed gives the noise that `torch.Tensor.normal_` would give, to rounding, and leaves the generator
where that would leave it. So seeds, saved states and the order of draws keep their meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from drocc_ext.ops import _backend, _library

__all__ = ["draws_like_torch", "gaussian"]

# Numbers from which on reading and writing a generator's state pays (measured).
_LEAST_COUNT = 4096

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
        generator: Source, on that device; None is the device's global one. On the CPU it must not
            be used by another thread meanwhile.

    Returns:
        The numbers, contiguous.
    """
    out = torch.empty(tuple(shape), dtype=dtype, device=device)
    if not (_takes_kernel(out) and draws_like_torch()):
        return out.normal_(0.0, scale, generator=generator)
    _fill(out, scale, torch.default_generator if generator is None else generator)
    return out


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
