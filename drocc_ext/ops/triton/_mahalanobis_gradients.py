"""Backward kernels of the Mahalanobis shell; csrc/math/mahalanobis_shell.h has the formulas."""

from __future__ import annotations

import triton
import triton.language as tl

from drocc_ext.ops.triton._mahalanobis_kernels import (
    measure,
    offsets_of_rows,
    open_rows,
    plan_projection,
    tied_direction,
)
from drocc_ext.ops.triton._rows import (
    bounded_product,
    inverse_scale,
    live_lanes,
    load_tile,
    quotient,
    read,
    root,
    scalar,
    shell_bounds,
    store_tile,
)
from drocc_ext.ops.triton._secular import any_row, coordinates, secular_term


@triton.jit
def plan_gradient(
    source,
    plan,
    up_ptr,
    up_held,
    gamma,
    stop,
    ASCENT: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What the gradients of each row share; and the inner radius' gradient.

    The first is a tuple: rho; the sums a and q over the coordinates that are not tied; those of
    G v and v^2 over the tied ones, whether only one is tied, and t q plus the latter (times 1 / t
    it is the full q: no square of a tiny u is taken); then, for hard rows, rho q - a and <G, e>;
    and the gain of sigma.
    """
    masks, equation, t, half, tied = plan[0], plan[1], plan[2], plan[4], plan[5]
    near, far, hard = masks[1:]
    base = source[1][0]
    zeros = tl.zeros([ROWS, BLOCK], t.dtype)
    one = tl.full([ROWS], 1.0, t.dtype)
    inverse_t = quotient(one, tl.where(hard, 1.0, t))
    a_sum, q_sum, along_sum, square_sum, count = zeros, zeros, zeros, zeros, zeros
    for start in range(0, stop, BLOCK):
        d, sigma, live = coordinates(source, start, ASCENT, RESIDENT, BLOCK)
        upstream = load_tile(up_ptr, base + start, live, up_held, RESIDENT)
        u, w, b = secular_term(equation, d, sigma)
        is_tied = live & (b == 0)
        c = quotient(zeros + 1.0, tl.where(is_tied, 1.0, b + t[:, None] * w))
        c = tl.where(is_tied, 0.0, c)
        v = u * c
        a_sum += upstream * (w * v) * c
        q_sum += (w * v) * (w * v) * c
        v = tl.where(is_tied, u * inverse_t[:, None], 0.0)
        along_sum += upstream * v
        square_sum += v * v
        count += tl.where(is_tied, 1.0, 0.0)
    a, q = tl.sum(a_sum, 1), tl.sum(q_sum, 1)
    tied_along, tied_square = tl.sum(along_sum, 1), tl.sum(square_sum, 1)
    one_tied = tl.sum(count, 1) == 1.0
    outside = near | far
    all_q = tl.where(outside & ~hard, t * q + tied_square, 1.0)
    rho = quotient(t * a + tied_along, all_q)
    from_tied, along = tl.zeros_like(one), tl.zeros_like(one)
    if any_row(hard):
        product = zeros
        for start in range(0, stop, BLOCK):
            d, sigma, live = coordinates(source, start, ASCENT, RESIDENT, BLOCK)
            upstream = load_tile(up_ptr, base + start, live, up_held, RESIDENT)
            b = secular_term(equation, d, sigma)[2]
            e = tied_direction(tied, d, start, BLOCK)
            product += tl.where(live & (b == 0), upstream * e, 0.0)
        along = tl.where(hard, tl.sum(product, 1), 0.0)
        rho = tl.where(hard, quotient(along, tl.where(hard, tied[0], 1.0)), rho)
        from_tied = tl.where(hard, rho * q - a, 0.0)
    d_scale, largest, unit = equation[0], equation[2], equation[4]
    sigma_root = root(largest) * inverse_scale(half)
    sigma_gain = quotient(one, unit) * inverse_scale(d_scale)
    sigma_gain = quotient(quotient(sigma_gain, sigma_root), sigma_root)
    by_radius = quotient(rho, sigma_root) * tl.where(far, gamma, one)
    by_radius = tl.where(outside, by_radius, 0.0)
    sums = (a, q, tied_along, tied_square, one_tied, all_q)
    return (rho, sums, from_tied, along, sigma_gain), by_radius


@triton.jit
def gradient_tile(plan, gradient, d, sigma, upstream, start, BLOCK: tl.constexpr):
    """Gradients of d and sigma."""
    masks, equation, t, tied = plan[0], plan[1], plan[2], plan[5]
    bad, near, far, hard = masks
    rho, sums, from_tied, along, sigma_gain = gradient
    a, q, tied_along, tied_square, one_tied, all_q = sums
    u, w, b = secular_term(equation, d, sigma)
    # Without a weight u is not 0 here: sigma has a gradient where it is 0.
    u = (d * equation[0][:, None]) * equation[4][:, None]
    is_tied = b == 0
    taken = hard[:, None] & is_tied
    c = quotient(tl.full(d.shape, 1.0, d.dtype), tl.where(taken, 1.0, b + t[:, None] * w))
    v = u * c
    bent = rho[:, None] * v * c
    tau = t[:, None] - 1.0
    by_d = upstream * c - tl.where(w > 0, w * bent, 0.0)
    by_sigma = -tau * upstream * v * c - 0.5 * bent * v * (1.0 - tau * w)
    # Tied coordinates, w = 1 and b = 0: there the difference above cancels as t becomes tiny.
    rest = upstream * q[:, None] - v * a[:, None]
    across = c * (upstream * tied_square[:, None] - v * tied_along[:, None])
    rest = quotient(
        rest + tl.where(one_tied[:, None], 0.0, across), all_q[:, None] + tl.zeros_like(rest)
    )
    by_d = tl.where(is_tied, rest, by_d)
    by_sigma = tl.where(is_tied, v * (rest * (1.0 - 0.5 * t[:, None]) - 0.5 * upstream), by_sigma)
    e = tied_direction(tied, d, start, BLOCK)
    missing = tl.where(hard, tied[0], 1.0)
    by_d = tl.where(taken, e * quotient(from_tied, missing)[:, None], by_d)
    share = from_tied - 0.5 * along * missing
    by_sigma = sigma_gain[:, None] * tl.where(taken, e * e * share[:, None], by_sigma)
    outside = (near | far)[:, None]
    by_d = tl.where(outside, by_d, upstream)
    by_sigma = tl.where(outside, by_sigma, 0.0)
    spoiled = bad[:, None]
    return tl.where(spoiled, float("nan"), by_d), tl.where(spoiled, float("nan"), by_sigma)


@triton.jit(do_not_specialize=["grid_points"])
def mahalanobis_step_backward_kernel(
    upstream_ptr,
    h_ptr,
    grad_ptr,
    sigma_ptr,
    grad_h_ptr,
    grad_grad_ptr,
    grad_sigma_ptr,
    grad_radius_ptr,
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
    """Backward of projection and step; the multiplier is solved for again."""
    if RESIDENT:
        stop = BLOCK
    else:
        stop = length
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    base = offsets_of_rows(row, length, BLOCK)
    pointers, rows = (h_ptr, grad_ptr, sigma_ptr), (row, batch, length)
    offsets = (base, offsets_of_rows(row, sigma_stride, BLOCK))
    step = tl.zeros([ROWS], COMPUTE) + scalar(step_size, COMPUTE)
    ascent, d_held, sigma_held, grad_norm, grad_held = open_rows(
        pointers, offsets, rows, step, stop, ASCENT, RESIDENT, ROWS, BLOCK
    )
    source = (pointers, offsets, rows, ascent, d_held, sigma_held)
    inner = shell_bounds(radius, gamma, row, batch, RADIUS_ROWS, ROWS, COMPUTE)[0]
    ratio = scalar(gamma, COMPUTE)
    plan = plan_projection(source, inner, ratio, grid_points, stop, ASCENT, RESIDENT, ROWS, BLOCK)
    zeros = tl.zeros([ROWS, BLOCK], COMPUTE)
    up_held = zeros
    if RESIDENT:
        live = live_lanes(row, batch, 0, length, BLOCK)
        up_held = read(upstream_ptr, base, live, COMPUTE)
    gradient, by_radius = plan_gradient(
        source,
        plan,
        upstream_ptr,
        up_held,
        ratio,
        stop,
        ASCENT,
        RESIDENT,
        ROWS,
        BLOCK,
    )
    bad = plan[0][0]
    tl.store(grad_radius_ptr + row, tl.where(bad, float("nan"), by_radius), mask=row < batch)

    coefficient, grad_scale = ascent[1:]
    one = tl.full([ROWS], 1.0, COMPUTE)
    across, grad_gain, inverse_norm = tl.zeros_like(one), one, one
    if ASCENT:
        inverse_norm = tl.where(grad_norm > 0, quotient(one, grad_norm), 0.0)
        product = zeros
        for start in range(0, stop, BLOCK):
            d, sigma, live = coordinates(source, start, ASCENT, RESIDENT, BLOCK)
            upstream = load_tile(upstream_ptr, base + start, live, up_held, RESIDENT)
            p = gradient_tile(plan, gradient, d, sigma, upstream, start, BLOCK)[0]
            grad = load_tile(grad_ptr, base + start, live, grad_held, RESIDENT)
            v = (grad * grad_scale[:, None]) * inverse_norm[:, None]
            product += tl.where(live, v * p, 0.0)
        across = tl.sum(product, 1)
        grad_gain = bounded_product(tl.abs(coefficient), grad_scale)
        grad_gain = tl.where(coefficient < 0, -grad_gain, grad_gain)
    for start in range(0, stop, BLOCK):
        d, sigma, live = coordinates(source, start, ASCENT, RESIDENT, BLOCK)
        upstream = load_tile(upstream_ptr, base + start, live, up_held, RESIDENT)
        p, by_sigma = gradient_tile(plan, gradient, d, sigma, upstream, start, BLOCK)
        store_tile(grad_h_ptr, base + start, p, live)
        store_tile(grad_sigma_ptr, base + start, by_sigma, live)
        if ASCENT:
            grad = load_tile(grad_ptr, base + start, live, grad_held, RESIDENT)
            v = (grad * grad_scale[:, None]) * inverse_norm[:, None]
            tangent = (p - v * across[:, None]) * grad_gain[:, None]
            store_tile(grad_grad_ptr, base + start, tangent, live)


@triton.jit
def mahalanobis_norm_kernel(
    h_ptr,
    sigma_ptr,
    out_ptr,
    upstream_ptr,
    grad_h_ptr,
    grad_sigma_ptr,
    sigma_stride,
    batch,
    length,
    BACKWARD: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """||h||_S, or the gradients of h and sigma for an upstream gradient per row."""
    if RESIDENT:
        stop = BLOCK
    else:
        stop = length
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    base = offsets_of_rows(row, length, BLOCK)
    pointers, rows = (h_ptr, h_ptr, sigma_ptr), (row, batch, length)
    offsets = (base, offsets_of_rows(row, sigma_stride, BLOCK))
    zero = tl.zeros([ROWS], COMPUTE)
    ascent, d_held, sigma_held = open_rows(
        pointers, offsets, rows, zero, stop, False, RESIDENT, ROWS, BLOCK
    )[:3]
    source = (pointers, offsets, rows, ascent, d_held, sigma_held)
    bad, empty, equation, half, measured = measure(
        source, zero, stop, False, RESIDENT, ROWS, BLOCK
    )[:5]
    norm = (measured * inverse_scale(half)) * inverse_scale(equation[0])
    norm = tl.where(empty, 0.0, norm)
    norm = tl.where(bad, float("nan"), norm)
    if BACKWARD:
        upstream = tl.load(upstream_ptr + row, mask=row < batch, other=0.0).to(COMPUTE)
        for start in range(0, stop, BLOCK):
            d, sigma, live = coordinates(source, start, False, RESIDENT, BLOCK)
            ratio = quotient(d, (tl.where(norm == 0, 1.0, norm)[:, None] + tl.zeros_like(d)))
            unit = tl.where((norm == 0)[:, None], 0.0, upstream[:, None] * ratio)
            store_tile(grad_h_ptr, base + start, unit * sigma, live)
            store_tile(grad_sigma_ptr, base + start, 0.5 * unit * d, live)
    else:
        tl.store(out_ptr + row, norm, mask=row < batch)
