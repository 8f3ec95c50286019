"""Kernels of the Mahalanobis shell operators; csrc/math/mahalanobis_shell.h has the formulas."""

from __future__ import annotations

import triton
import triton.language as tl

from drocc_ext.ops.triton._l2_shell_kernels import grad_coefficient, moved
from drocc_ext.ops.triton._rows import (
    inverse_scale,
    live_lanes,
    load_tile,
    magnitude,
    quotient,
    read,
    root,
    scalar,
    shell_bounds,
    store_tile,
)
from drocc_ext.ops.triton._secular import (
    any_row,
    coordinates,
    search_grid,
    secular_term,
    solve_secular,
)


@triton.jit
def offsets_of_rows(row, stride, BLOCK: tl.constexpr):
    """Offsets of the first tile of the rows."""
    return row[:, None] * stride + tl.arange(0, BLOCK)[None, :]


@triton.jit
def open_rows(
    pointers,
    offsets,
    rows,
    step,
    stop,
    ASCENT: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The ascent, the tiles of d and sigma that stay on chip, and the gradients' norm and tile.

    What a kernel writes to must not come from here: torch.compile could no longer tell that it
    does not write to its inputs.
    """
    h_ptr, grad_ptr, sigma_ptr = pointers
    base, sigma_base = offsets
    row, batch, length = rows
    zeros = tl.zeros([ROWS, BLOCK], step.dtype)
    ones = tl.full([ROWS], 1.0, step.dtype)
    d_held, sigma_held, grad_held = zeros, zeros, zeros
    grad_scale, grad_norm, coefficient = ones, ones, tl.zeros_like(ones)
    if RESIDENT:
        live = live_lanes(row, batch, 0, length, BLOCK)
        d_held = read(h_ptr, base, live, step.dtype)
        sigma_held = read(sigma_ptr, sigma_base, live, step.dtype)
        if ASCENT:
            grad_held = read(grad_ptr, base, live, step.dtype)
    if ASCENT:
        size = zeros
        for start in range(0, stop, BLOCK):
            live = live_lanes(row, batch, start, length, BLOCK)
            grad = load_tile(grad_ptr, base + start, live, grad_held, RESIDENT)
            size = tl.maximum(size, magnitude(grad))
        largest = tl.max(size, 1)
        grad_scale = inverse_scale(largest)
        square = zeros
        for start in range(0, stop, BLOCK):
            live = live_lanes(row, batch, start, length, BLOCK)
            grad = load_tile(grad_ptr, base + start, live, grad_held, RESIDENT)
            scaled = grad * grad_scale[:, None]
            square += scaled * scaled
        grad_norm = root(tl.sum(square, 1))
        coefficient = grad_coefficient(grad_norm, step)
        coefficient = tl.where(largest == float("inf"), float("nan"), coefficient)
    ascent = (ones, coefficient, grad_scale)
    if RESIDENT:
        d_held = moved(d_held, grad_held, ascent, ASCENT)
    return ascent, d_held, sigma_held, grad_norm, grad_held


@triton.jit
def measure(
    source,
    radius,
    stop,
    ASCENT: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Bad rows, rows without any sigma > 0, scales, ||d||_S, the sum of (sigma d)^2, span of sigma.

    radius is what the length will be compared with, so that it fits the scales too. A row is bad
    too where neither stands out from what is lost below the range of the type: its d is largest
    where sigma is more than 30 decades (300 in float64) below its largest.
    """
    dtype = radius.dtype
    # d is brought near `lift` rather than 1, so that a small radius too stays a normal number.
    if dtype == tl.float64:
        lift = 1.1579208923731620e77  # 2^256
        most_scale = 6.064523798049644e228  # 2^760
        least_length = 1e-73
    else:
        lift = 1099511627776.0  # 2^40
        most_scale = 7.7371252455336267e25  # 2^86
        least_length = 1e-3
    zeros = tl.zeros([ROWS, BLOCK], dtype)
    d_size, sigma_size = zeros, zeros
    sigma_least = tl.full([ROWS, BLOCK], float("inf"), dtype)
    for start in range(0, stop, BLOCK):
        d, sigma = coordinates(source, start, ASCENT, RESIDENT, BLOCK)[:2]
        # Without a weight a coordinate has no length, but it may still be bad.
        size = magnitude(d)
        d_size = tl.maximum(d_size, tl.where((sigma == 0) & (size < float("inf")), 0.0, size))
        valid = (sigma >= 0) & (sigma < float("inf"))
        sigma_size = tl.maximum(sigma_size, tl.where(valid, sigma, float("inf")))
        sigma_least = tl.minimum(sigma_least, tl.where(sigma > 0, sigma, float("inf")))
    d_largest = tl.max(d_size, 1)
    largest = tl.max(sigma_size, 1)
    bad = (d_largest == float("inf")) | (largest == float("inf"))
    empty = ~(largest > 0)
    largest = tl.where(bad | empty, 1.0, largest)
    sigma_root = root(largest)
    needed = quotient(radius, sigma_root)
    d_largest = tl.where(needed > d_largest, needed, d_largest)
    d_scale = tl.where(d_largest > 0, inverse_scale(d_largest), 1.0)
    d_scale = tl.minimum(d_scale, most_scale) * lift
    # The scale of sigma is an even power of two, so that its root is exact; bounded, so that it is
    # finite.
    half = inverse_scale(sigma_root)
    if dtype == tl.float64:
        half = tl.minimum(half, 6.703903964971299e153)
    else:
        half = tl.minimum(half, 9.223372036854775808e18)
    square, fourth = zeros, zeros
    for start in range(0, stop, BLOCK):
        d, sigma = coordinates(source, start, ASCENT, RESIDENT, BLOCK)[:2]
        scaled = tl.where(sigma > 0, d * d_scale[:, None], 0.0)
        sd = (sigma * half[:, None] * half[:, None]) * scaled
        square += sd * scaled
        fourth += sd * sd
    top = largest * half * half
    unit = tl.full([ROWS], 1.0, dtype)
    equation = (d_scale, half * half, top, quotient(unit, top), unit)
    measured = root(tl.sum(square, 1))
    seen = tl.maximum(measured, (radius * d_scale) * half)
    bad = bad | (~empty & (d_largest > 0) & (seen < least_length))
    span = quotient(tl.min(sigma_least, 1), largest)
    return bad, empty, equation, half, measured, tl.sum(fourth, 1), span


@triton.jit
def plan_projection(
    source,
    inner,
    gamma,
    grid_points,
    stop,
    ASCENT: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What the projection does to each row.

    Returns masks (bad, near, far, hard), the equation, t, the factor of coordinates with sigma > 0,
    half (the root of sigma's scale), and of hard rows: the missing length in units of u, the tied
    coordinates' scale and scaled norm, and the first of them.
    """
    one = tl.full([ROWS], 1.0, inner.dtype)
    bad, empty, equation, half, measured, fourth, span = measure(
        source, inner, stop, ASCENT, RESIDENT, ROWS, BLOCK
    )
    bad = bad | ~(inner > 0)
    d_scale, sigma_scale, largest, inverse_largest = equation[:4]
    low = (inner * d_scale) * half
    high = gamma * low  # gamma * inner may be beyond the range
    near = ~bad & ~empty & (measured < low)
    far = ~bad & ~empty & ~near & (measured > high)
    outside = near | far
    bound = tl.where(outside, tl.where(near, low, high), 1.0)
    unit = quotient(root(largest), bound)
    # The radius may be beyond the range of the type in the units of the row, or so small that
    # weights below that range would count.
    if inner.dtype == tl.float64:
        tiny = 2.2250738585072014e-308
        many = 1e73
    else:
        tiny = 1.1754943508222875e-38
        many = 1e4
    lost = (tl.minimum(inner * d_scale, bound) < tiny) | ((unit > many) & (span < tiny))
    lost = outside & (lost | ~(unit > 0) | ~(unit < float("inf")))
    bad = bad | lost
    near, far, outside = near & ~lost, far & ~lost, outside & ~lost
    equation = (d_scale, sigma_scale, largest, inverse_largest, unit)
    length = quotient(measured, bound)

    on_grid = tl.zeros([ROWS], tl.int1)
    grid_t, grid_scale = one, one
    if grid_points > 0:
        on_grid, grid_t, reached = search_grid(
            source,
            equation,
            grid_points,
            length,
            near,
            outside,
            stop,
            ASCENT,
            RESIDENT,
            ROWS,
            BLOCK,
        )
        # A grid point respects one bound only.
        least = tl.where(near, one, quotient(one, one * gamma))
        most = tl.where(near, gamma, one)
        wanted = tl.where(reached < least, least, tl.where(reached > most, most, reached))
        grid_scale = quotient(wanted, reached)
    q_one = quotient(quotient(fourth * inverse_largest, bound), bound)
    t, scale, hard, missing = solve_secular(
        source,
        equation,
        length * length,
        q_one,
        length,
        span,
        near,
        outside & ~on_grid,
        stop,
        ASCENT,
        RESIDENT,
        ROWS,
        BLOCK,
    )
    t = tl.where(on_grid, grid_t, t)
    scale = tl.where(on_grid, grid_scale, scale)

    tied_scale, tied_norm, first = one, one, tl.zeros([ROWS], tl.int64)
    if any_row(hard):
        size = tl.zeros([ROWS, BLOCK], inner.dtype)
        lowest = tl.full([ROWS, BLOCK], 0x7FFFFFFFFFFFFFFF, tl.int64)
        for start in range(0, stop, BLOCK):
            d, sigma, live = coordinates(source, start, ASCENT, RESIDENT, BLOCK)
            b = secular_term(equation, d, sigma)[2]
            tied = live & (b == 0)
            size = tl.maximum(size, tl.where(tied, tl.abs(d), 0.0))
            column = (start + tl.arange(0, BLOCK)).to(tl.int64)[None, :] + tl.zeros_like(lowest)
            lowest = tl.minimum(lowest, tl.where(tied, column, lowest))
        first = tl.min(lowest, 1)
        tied_scale = inverse_scale(tl.max(size, 1))
        square = tl.zeros([ROWS, BLOCK], inner.dtype)
        for start in range(0, stop, BLOCK):
            d, sigma, live = coordinates(source, start, ASCENT, RESIDENT, BLOCK)
            b = secular_term(equation, d, sigma)[2]
            scaled = tl.where(live & (b == 0), d * tied_scale[:, None], 0.0)
            square += scaled * scaled
        tied_norm = root(tl.sum(square, 1))
    masks = (bad, near, far, hard)
    return masks, equation, t, scale, half, (missing, tied_scale, tied_norm, first)


@triton.jit
def tied_direction(tied, d, start, BLOCK: tl.constexpr):
    """The direction that a tied coordinate of a hard row shares in."""
    tied_scale, tied_norm, first = tied[1:]
    zero = tied_norm == 0
    inverse = quotient(tl.full(tied_norm.shape, 1.0, d.dtype), tl.where(zero, 1.0, tied_norm))
    column = (start + tl.arange(0, BLOCK)).to(tl.int64)
    alone = tl.where(column[None, :] == first[:, None], 1.0, 0.0)
    return tl.where(zero[:, None], alone, (d * tied_scale[:, None]) * inverse[:, None])


@triton.jit(do_not_specialize=["grid_points"])
def mahalanobis_step_kernel(
    h_ptr,
    grad_ptr,
    sigma_ptr,
    out_ptr,
    step_size,
    radius,
    gamma,
    grid_points,
    sigma_stride,
    batch,
    length,
    ASCENT: tl.constexpr,
    RADIUS_ROWS: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Forward of projection and step; out may be h."""
    if RESIDENT:
        stop = BLOCK
    else:
        stop = length
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    base = offsets_of_rows(row, length, BLOCK)
    pointers, rows = (h_ptr, grad_ptr, sigma_ptr), (row, batch, length)
    offsets = (base, offsets_of_rows(row, sigma_stride, BLOCK))
    step = tl.zeros([ROWS], COMPUTE) + scalar(step_size, COMPUTE)
    ascent, d_held, sigma_held = open_rows(
        pointers, offsets, rows, step, stop, ASCENT, RESIDENT, ROWS, BLOCK
    )[:3]
    source = (pointers, offsets, rows, ascent, d_held, sigma_held)
    inner = shell_bounds(radius, gamma, row, batch, RADIUS_ROWS, ROWS, COMPUTE)[0]
    ratio = scalar(gamma, COMPUTE)
    masks, equation, t, scale, _, tied = plan_projection(
        source, inner, ratio, grid_points, stop, ASCENT, RESIDENT, ROWS, BLOCK
    )
    bad, near, far, hard = masks
    missing = quotient(tied[0], equation[4]) * inverse_scale(equation[0])
    outside = near | far
    for start in range(0, stop, BLOCK):
        d, sigma, live = coordinates(source, start, ASCENT, RESIDENT, BLOCK)
        w, b = secular_term(equation, d, sigma)[1:]
        taken = hard[:, None] & (b == 0)
        x = quotient(d, tl.where(taken, 1.0, b + t[:, None] * w))
        x = tl.where(sigma > 0, x * scale[:, None], x)
        shared = missing[:, None] * tied_direction(tied, d, start, BLOCK)
        x = tl.where(taken, shared, x)
        out = tl.where(outside[:, None], x, d)
        store_tile(out_ptr, base + start, tl.where(bad[:, None], float("nan"), out), live)
