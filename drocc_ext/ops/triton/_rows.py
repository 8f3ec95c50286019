"""What the Triton kernels share: scalars, scales and norms of rows.

A program holds a tile of ROWS x BLOCK elements. Where a row fits (RESIDENT) it is loaded once and
stays in registers; a longer one is read again, BLOCK elements at a time, by every pass over it.
Sums are kept per lane and added up as a tree. COMPUTE is the type of the arithmetic.
"""

from __future__ import annotations

import triton
import triton.language as tl

from drocc_ext.ops._library import triton_is_interpreted

# The interpreter cuts bfloat16 off where a GPU rounds, and gets its subnormal numbers wrong.
_INTERPRETED = tl.constexpr(triton_is_interpreted)


@triton.jit
def scalar(value, COMPUTE: tl.constexpr):
    """Return a scalar argument: float64 kernels get theirs in memory, others as a number.

    A number arrives as float32 from an eager launch and as float64 from Inductor, so it is cast.
    """
    if tl.float64 == COMPUTE:
        return tl.load(value)
    else:
        return tl.full((), value, tl.float32)


@triton.jit
def root(x):
    """Correctly rounded square root (`tl.sqrt` is approximate in float32)."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def quotient(x, y):
    """Correctly rounded x / y (`/` is off by up to 2 ulp in float32)."""
    if y.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def magnitude(x):
    """|x|, infinite for NaN too: `tl.max` would lose a NaN, and so finds bad rows."""
    size = tl.abs(x)
    return tl.where(size < float("inf"), size, float("inf"))


@triton.jit
def inverse_scale(maximum):
    """The power of two that brings a maximum near 1; a normal number for any maximum.

    Of a power of two it is the reciprocal, exactly, without a division.
    """
    if maximum.dtype == tl.float64:
        bits = maximum.to(tl.int64, bitcast=True)
        exponent = 2046 - ((bits >> 52) & 2047)
        exponent = tl.minimum(tl.maximum(exponent, 1), 2045)
        return (exponent << 52).to(tl.float64, bitcast=True)
    else:
        bits = maximum.to(tl.int32, bitcast=True)
        exponent = 254 - ((bits >> 23) & 255)
        exponent = tl.minimum(tl.maximum(exponent, 1), 253)
        return (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def largest_finite(x):
    """The largest finite number of the type of x."""
    if x.dtype == tl.float64:
        return tl.full((), 1.7976931348623157e308, tl.float64)
    else:
        return tl.full((), 3.4028234663852886e38, tl.float32)


@triton.jit
def bounded_product(x, y):
    """X * y of non-negative numbers, at most the largest finite one: times 0 it stays 0."""
    return tl.minimum(x * y, largest_finite(x))


@triton.jit
def read(pointer, at, live, COMPUTE: tl.constexpr):
    """Read a tile, 0 in dead lanes, as the compute type."""
    if _INTERPRETED and pointer.dtype.element_ty == tl.bfloat16:
        bits = tl.load(pointer.to(tl.pointer_type(tl.int16), bitcast=True) + at, live, other=0)
        return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return tl.load(pointer + at, live, other=0.0).to(COMPUTE)


@triton.jit
def load_tile(pointer, at, live, held, RESIDENT: tl.constexpr):
    """The tile that is held in registers, or else the one in memory."""
    if RESIDENT:
        return held
    else:
        return read(pointer, at, live, held.dtype)


@triton.jit
def store_tile(pointer, at, value, live):
    """Write a tile, rounded to nearest."""
    if _INTERPRETED and pointer.dtype.element_ty == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        bits = tl.where(value == value, rounded, 0x7FC0).to(tl.int16)
        tl.store(pointer.to(tl.pointer_type(tl.int16), bitcast=True) + at, bits, live)
    else:
        tl.store(pointer + at, value.to(pointer.dtype.element_ty), live)


@triton.jit
def live_lanes(row, batch, start, length, BLOCK: tl.constexpr):
    """Which lanes of the tile that begins at column `start` hold an element."""
    column = start + tl.arange(0, BLOCK)
    return (row < batch)[:, None] & (column < length)[None, :]


@triton.jit
def shell_bounds(
    radius, gamma, row, batch, RADIUS_ROWS: tl.constexpr, ROWS: tl.constexpr, COMPUTE: tl.constexpr
):
    """Inner and outer radius of each row; NaN where the radius is not positive and finite."""
    if RADIUS_ROWS:
        inner = tl.load(radius + row, mask=row < batch, other=1.0).to(COMPUTE)
    else:
        inner = tl.zeros([ROWS], COMPUTE) + scalar(radius, COMPUTE)
    inner = tl.where((inner > 0) & (inner < float("inf")), inner, float("nan"))
    return inner, scalar(gamma, COMPUTE) * inner
