"""How kernels are launched: the table of launch shapes, scalars, and tensors as rows.

The shape of a launch depends on the length of the rows, the type of the arithmetic and the kernel
alone, never on the batch or on a measurement: a row gives the same bits in every batch, and nothing
is tuned when a kernel first runs. BLOCK is the length rounded up to a power of two. Heavy kernels
(the Mahalanobis shell, which keeps some ten values per element, and the backward kernels) and the
heaviest (the Mahalanobis shell's backward) take fewer elements per lane; one warp owns whole rows
up to 256 elements (128 if heavy, 64 if heaviest in float64), so that their sums need no barrier.

| kernel | rows per program | elements per lane | longest row on chip | tile of longer rows |
|---|---|---|---|---|
| float32 (and half types) | 256 / BLOCK, 1 to 16 | 8; 16 from BLOCK 4096 on | 8192 | 4096 |
| float64 | 256 / BLOCK, 1 to 16 | 4 | 2048 | 512 |
| heavy, float32 | 32 / BLOCK, at least 1 | 8 | 4096 | 4096 |
| heavy, float64 | 32 / BLOCK, at least 1 | 4 | 512 | 1024 |
| heaviest, float32 | 32 / BLOCK, at least 1 | 8 | 4096 | 2048 |
| heaviest, float64 | 32 / BLOCK, at least 1 | 2 | 512 | 1024 |

Longer rows (RESIDENT false) get one program of 16 warps that reads them once per pass.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from drocc_ext.ops import _library


class Shape(NamedTuple):
    """A launch: whether the row stays on chip, the tile, and the warps of a program."""

    resident: bool
    rows: int
    block: int
    warps: int


# (float64, heavy) -> elements of a program's rows, of a lane, of a row on chip, of a longer tile
_TABLE = {
    (False, 0): (256, 8, 8192, 4096),
    (True, 0): (256, 4, 2048, 512),
    (False, 1): (32, 8, 4096, 4096),
    (True, 1): (32, 4, 512, 1024),
    (False, 2): (32, 8, 4096, 2048),
    (True, 2): (32, 2, 512, 1024),
}
_MOST_WARPS = 16
_INTERPRETED = _library.triton_is_interpreted


@lru_cache(maxsize=256)
def launch_shape(length: int, wide: bool, heavy: int) -> Shape:
    """Look up the launch for rows of `length` elements.

    Args:
        length: Elements in a row.
        wide: Whether the arithmetic is in float64.
        heavy: How many values the kernel keeps per element: 0 few, 1 heavy, 2 heaviest.
    """
    together, lane, longest, tile = _TABLE[wide, heavy]
    block = max(2, 1 << (length - 1).bit_length())
    if block > longest:
        return Shape(False, 1, tile, _MOST_WARPS)
    rows = min(max(together // block, 1), 16)
    if not wide and not heavy and block >= 4096:
        lane = 16
    warps = min(max(rows * block // (32 * lane), 1), _MOST_WARPS)
    if _INTERPRETED:
        rows = max(rows, min(16, 8192 // block))  # it runs one program at a time
    return Shape(True, rows, block, warps)


# ---- tracing -------------------------------------------------------------------------------------

_state = threading.local()


@contextmanager
def traced() -> Iterator[None]:
    """Launch through torch.library.wrap_triton, which tracing can see."""
    _state.traced = True
    try:
        yield
    finally:
        _state.traced = False


def is_traced() -> bool:
    """Say whether launches are being traced."""
    return getattr(_state, "traced", False)


def launch(kernel: Any, h: Tensor, heavy: int, arguments: tuple[Any, ...], **flags: Any) -> None:
    """Launch a kernel over the rows of h.

    Args:
        kernel: A function decorated with `triton.jit` that ends in batch, length and its flags.
        h: [B, *], not empty; gives the number and length of rows and the type of the arithmetic.
        heavy: See `launch_shape`.
        arguments: All before batch and length.
        flags: Those of the kernel, except RESIDENT, ROWS, BLOCK and COMPUTE.
    """
    batch = h.shape[0]
    length = h.numel() // batch
    wide = h.dtype == torch.float64
    shape = launch_shape(int(length), wide, heavy)
    grid = ((batch + shape.rows - 1) // shape.rows,)
    chosen = torch.library.wrap_triton(kernel) if is_traced() else kernel
    # Triton launches on the current device, which need not be that of h.
    elsewhere = not is_traced() and h.is_cuda and h.device.index != torch.cuda.current_device()
    with torch.cuda.device(h.device) if elsewhere else nullcontext():
        chosen[grid](
            *arguments,
            batch,
            length,
            **flags,
            RESIDENT=shape.resident,
            ROWS=shape.rows,
            BLOCK=shape.block,
            COMPUTE=tl.float64 if wide else tl.float32,
            num_warps=shape.warps,
        )


# ---- arguments -----------------------------------------------------------------------------------


_LARGEST = torch.finfo(torch.float32).max


def scalar(value: float, h: Tensor, beyond: float = _LARGEST) -> Any:
    """A number as kernels on rows of h take it.

    A launch passes numbers as float32, so kernels in float64 read theirs from memory. A number that
    float32 cannot hold becomes `beyond`, with its sign.
    """
    if h.dtype == torch.float64:
        return torch.full((), value, dtype=torch.float64, device=h.device)
    if abs(value) > _LARGEST:
        return beyond if value > 0 else -beyond
    return value


def radii(radius: float, radius_rows: Tensor | None, h: Tensor, target: Tensor | None) -> Any:
    """The radius argument: a number, or rows that do not share memory with the target."""
    if radius_rows is None:
        return scalar(radius, h, math.inf)
    rows = radius_rows.contiguous()
    return rows.clone() if target is not None and share_memory(rows, target) else rows


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Say whether the memory ranges of two tensors meet; yes while tracing, to be sure."""
    if is_traced():
        return True
    if a.numel() == 0 or b.numel() == 0:
        return False
    (first, last), (begin, end) = _memory(a), _memory(b)
    return first < end and begin < last


def _memory(t: Tensor) -> tuple[int, int]:
    if t.is_contiguous():
        begin = t.data_ptr()
        return begin, begin + t.numel() * t.element_size()
    reach = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    begin = t.data_ptr()
    return begin, begin + (reach + 1) * t.element_size()


def check_in_place(op: str, h: Tensor, grad: Tensor | None) -> None:
    """Refuse an h that overlaps itself, or partly overlaps grad."""
    if is_traced() or h.numel() == 0:
        return
    if not h.is_contiguous() and any(
        size > 1 and stride == 0 for size, stride in zip(h.shape, h.stride(), strict=True)
    ):
        raise ValueError(f"{op}: h must not be an expanded tensor, several elements share memory")
    if grad is None or h.data_ptr() == grad.data_ptr() or h.stride() != grad.stride():
        return
    # Rows with gaps, and a gradient in another layout, are copied before h is written.
    if share_memory(h, grad) and is_row_dense(h):
        raise RuntimeError(f"{op}: h and grad must not partly share memory")


# ---- tensors as rows, as csrc/row_layout.h -------------------------------------------------------


def is_row_dense(t: Tensor) -> bool:
    """Say whether rows lie one after the other and each fills its elements in some order."""
    if t.is_contiguous():
        return True
    length = t.numel() // t.shape[0]
    if t.shape[0] > 1 and t.stride(0) != length:
        return False
    expected = 1
    for stride, size in sorted((t.stride(d), t.shape[d]) for d in range(1, t.dim())):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def in_layout_of(t: Tensor, like: Tensor) -> Tensor:
    """Return t, laid out as the row-dense tensor `like`."""
    if t.is_contiguous() and like.is_contiguous():
        return t
    same = (a == b or n == 1 for a, b, n in zip(t.stride(), like.stride(), t.shape, strict=True))
    return t if all(same) else torch.empty_like(like).copy_(t)


def row_values(h: Tensor) -> Tensor:
    """Return a new value per row, `[B]`, in the compute type."""
    wide = torch.float64 if h.dtype == torch.float64 else torch.float32
    return torch.empty(h.shape[0], dtype=wide, device=h.device)


def check_device(op: str, h: Tensor) -> None:
    """Refuse tensors that the kernels cannot reach."""
    error = _library.triton_error(h.device.type)
    if error is not None:
        raise RuntimeError(f"{op}: {error}")
