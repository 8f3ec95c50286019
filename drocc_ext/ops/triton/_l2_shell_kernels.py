"""Kernels of the l2 shell operators; csrc/math/l2_shell.h has the formulas.

A row is measured in scaled units, so that nothing overflows or underflows in float32, and then
written. A row that is read from memory by every pass first tries to get by with three plain sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from drocc_ext.ops.triton._rows import (
    bounded_product,
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


@triton.jit
def grad_coefficient(grad_norm, step_size):
    """Step / (scaled norm of grad); 0 for a zero gradient."""
    return tl.where(grad_norm == 0, 0.0, quotient(step_size, grad_norm))


@triton.jit
def headroom(h_largest, step_size):
    """The power of two by which h and the step are shrunk so that their sum does not overflow."""
    if h_largest.dtype == tl.float64:
        large = 1e307
    else:
        large = 1e37
    return tl.where((h_largest > large) | (tl.abs(step_size) > large), 0.25, 1.0).to(
        h_largest.dtype
    )


@triton.jit
def out_of_range(outer, gamma, COMPUTE: tl.constexpr):
    """Whether an outer radius overflowed though gamma is finite, and gamma.

    A row may be longer than that, while its elements are not.
    """
    ratio = tl.zeros_like(outer) + scalar(gamma, COMPUTE)
    return (outer == float("inf")) & (ratio < float("inf")), ratio


@triton.jit
def moved(h, grad, ascent, ASCENT: tl.constexpr):
    """Shrink * (h + step * grad / ||grad||); the coefficient is shrunk already."""
    shrink, coefficient, grad_scale = ascent
    y = h * shrink[:, None]
    if ASCENT:
        y += coefficient[:, None] * (grad * grad_scale[:, None])
    return y


@triton.jit
def moved_tile(
    h_ptr, grad_ptr, at, live, ascent, held, ASCENT: tl.constexpr, RESIDENT: tl.constexpr
):
    """The same for a tile that is held in registers, or read."""
    if RESIDENT:
        return held
    else:
        h = read(h_ptr, at, live, held.dtype)
        grad = h
        if ASCENT:
            grad = read(grad_ptr, at, live, held.dtype)
        return moved(h, grad, ascent, ASCENT)


@triton.jit
def is_safe(total, COMPUTE: tl.constexpr):
    """Whether a sum of squares kept its precision: nothing that matters under- or overflowed."""
    if tl.float64 == COMPUTE:
        return (total > 1e-270) & (total < 1e300)
    else:
        return (total > 1e-28) & (total < 1e36)


@triton.jit
def is_safe_factor(factor, COMPUTE: tl.constexpr):
    """Whether a factor is a normal number far from the ends of the type."""
    size = tl.abs(factor)
    if tl.float64 == COMPUTE:
        return (size > 1e-270) & (size < 1e270)
    else:
        return (size > 1e-30) & (size < 1e30)


@triton.jit
def plan_step(
    grad_grad,
    h_grad,
    h_h,
    step_size,
    inner,
    outer,
    ASCENT: tl.constexpr,
    SHELL: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Ascent and scale of a row from three sums, and whether they are exact enough."""
    step = step_size.to(tl.float64)
    usable = is_safe(h_h, COMPUTE)
    norm_squared = h_h
    ascent = tl.zeros_like(h_h)
    if ASCENT:
        ascent = step / tl.sqrt(grad_grad)
        unprojected = h_h + step * step
        norm_squared = unprojected + 2.0 * ascent * h_grad
        usable = usable & is_safe(grad_grad, COMPUTE)
        usable = usable & ((step == 0.0) | is_safe_factor(ascent, COMPUTE))
        # Cancellation would magnify the error of the sums more than fourfold.
        usable = usable & (norm_squared > 0.25 * unprojected) & is_safe(norm_squared, COMPUTE)
    scale = tl.full(h_h.shape, 1.0, tl.float64)
    if SHELL:
        norm = tl.sqrt(norm_squared)
        target = tl.where(norm < inner, inner.to(tl.float64), norm)
        target = tl.where(norm > outer, outer.to(tl.float64), target)
        scale = target / norm
        usable = usable & (inner > 0) & is_safe_factor(scale, COMPUTE)
    return usable, ascent.to(COMPUTE), scale.to(COMPUTE)


@triton.jit
def step_kernel(
    h_ptr,
    grad_ptr,
    out_ptr,
    step_size,
    radius,
    gamma,
    batch,
    length,
    ASCENT: tl.constexpr,
    SHELL: tl.constexpr,
    RADIUS_ROWS: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Forward of all three operators; out may be h."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    base = row[:, None] * length + tl.arange(0, BLOCK)[None, :]
    zeros = tl.zeros([ROWS, BLOCK], COMPUTE)
    h_held, grad_held = zeros, zeros
    if RESIDENT:
        stop = BLOCK
        live = live_lanes(row, batch, 0, length, BLOCK)
        h_held = read(h_ptr, base, live, COMPUTE)
        if ASCENT:
            grad_held = read(grad_ptr, base, live, COMPUTE)
    else:
        stop = length
    step = tl.zeros([ROWS], COMPUTE) + scalar(step_size, COMPUTE)
    inner, outer = shell_bounds(radius, gamma, row, batch, RADIUS_ROWS, ROWS, COMPUTE)

    h_size, grad_size = zeros, zeros
    h_h, h_grad, grad_grad = zeros, zeros, zeros
    for start in range(0, stop, BLOCK):
        live = live_lanes(row, batch, start, length, BLOCK)
        h = load_tile(h_ptr, base + start, live, h_held, RESIDENT)
        h_size = tl.maximum(h_size, magnitude(h))
        if ASCENT:
            grad = load_tile(grad_ptr, base + start, live, grad_held, RESIDENT)
            grad_size = tl.maximum(grad_size, magnitude(grad))
        if not RESIDENT:
            h_h += h * h
            if ASCENT:
                h_grad += h * grad
                grad_grad += grad * grad
    h_largest = tl.max(h_size, 1)
    grad_largest = tl.max(grad_size, 1)

    planned = False
    if not RESIDENT:
        usable, gain, scale = plan_step(
            tl.sum(grad_grad, 1).to(tl.float64),
            tl.sum(h_grad, 1).to(tl.float64),
            tl.sum(h_h, 1).to(tl.float64),
            step,
            inner,
            outer,
            ASCENT,
            SHELL,
            COMPUTE,
        )
        planned = tl.min(usable.to(tl.int32), 0) == 1
        if planned:
            for start in range(0, stop, BLOCK):
                live = live_lanes(row, batch, start, length, BLOCK)
                y = read(h_ptr, base + start, live, COMPUTE)
                if ASCENT:
                    grad = read(grad_ptr, base + start, live, COMPUTE)
                    y += gain[:, None] * grad
                store_tile(out_ptr, base + start, y * scale[:, None], live)
    if not planned:
        grad_scale = inverse_scale(grad_largest)
        coefficient = tl.zeros_like(grad_largest)
        shrink = tl.full([ROWS], 1.0, COMPUTE)
        if ASCENT:
            square = zeros
            for start in range(0, stop, BLOCK):
                live = live_lanes(row, batch, start, length, BLOCK)
                grad = load_tile(grad_ptr, base + start, live, grad_held, RESIDENT)
                scaled = grad * grad_scale[:, None]
                square += scaled * scaled
            if SHELL:
                shrink = headroom(h_largest, step)
            coefficient = grad_coefficient(root(tl.sum(square, 1)), step) * shrink
        ascent = (shrink, coefficient, grad_scale)
        y_held = zeros
        if RESIDENT:
            y_held = moved(h_held, grad_held, ascent, ASCENT)
        bad = (h_largest == float("inf")) | (grad_largest == float("inf"))
        outside = tl.zeros([ROWS], tl.int1)
        origin = outside
        y_scale, inverse_norm, target = shrink, shrink, shrink
        if SHELL:
            y_size = zeros
            for start in range(0, stop, BLOCK):
                live = live_lanes(row, batch, start, length, BLOCK)
                y = moved_tile(
                    h_ptr, grad_ptr, base + start, live, ascent, y_held, ASCENT, RESIDENT
                )
                y_size = tl.maximum(y_size, magnitude(y))
            y_scale = inverse_scale(tl.max(y_size, 1))
            square = zeros
            for start in range(0, stop, BLOCK):
                live = live_lanes(row, batch, start, length, BLOCK)
                y = moved_tile(
                    h_ptr, grad_ptr, base + start, live, ascent, y_held, ASCENT, RESIDENT
                )
                scaled = y * y_scale[:, None]
                square += scaled * scaled
            norm = root(tl.sum(square, 1))
            unit = shrink * y_scale
            bad = bad | ~(inner > 0)
            near = norm < inner * unit
            beyond, ratio = out_of_range(outer, gamma, COMPUTE)
            outside = near | (norm > tl.where(beyond, ratio * (inner * unit), outer * unit))
            origin = near & (norm == 0)
            target = tl.where(near | beyond, inner, outer)
            inverse_norm = quotient(tl.full([ROWS], 1.0, COMPUTE), tl.where(origin, 1.0, norm))
            lengthened = bounded_product(inverse_norm, ratio)
            inverse_norm = tl.where(beyond & ~near, lengthened, inverse_norm)
        grow = tl.where(shrink < 1.0, 4.0, 1.0).to(COMPUTE)
        for start in range(0, stop, BLOCK):
            live = live_lanes(row, batch, start, length, BLOCK)
            y = moved_tile(h_ptr, grad_ptr, base + start, live, ascent, y_held, ASCENT, RESIDENT)
            out = y * grow[:, None]
            if SHELL:
                direction = (y * y_scale[:, None]) * inverse_norm[:, None]
                # Every point of the inner sphere is equally near to 0: the first coordinate.
                first = (start + tl.arange(0, BLOCK) == 0)[None, :]
                direction = tl.where(origin[:, None] & first, 1.0, direction)
                out = tl.where(outside[:, None], direction * target[:, None], out)
            out = tl.where(bad[:, None], float("nan"), out)
            store_tile(out_ptr, base + start, out, live)


@triton.jit
def step_backward_kernel(
    upstream_ptr,
    h_ptr,
    grad_ptr,
    grad_h_ptr,
    grad_grad_ptr,
    grad_radius_ptr,
    step_size,
    radius,
    gamma,
    batch,
    length,
    ASCENT: tl.constexpr,
    SHELL: tl.constexpr,
    RADIUS_ROWS: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Backward of all three; without a shell h is not read, and grad_h and grad_radius not given.

    With P the gradient of y = h + step * grad / ||grad||, that of h is P and that of grad
    (step / ||grad||) (P - v <v, P>).
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    base = row[:, None] * length + tl.arange(0, BLOCK)[None, :]
    zeros = tl.zeros([ROWS, BLOCK], COMPUTE)
    ones = tl.full([ROWS], 1.0, COMPUTE)
    up_held, h_held, grad_held = zeros, zeros, zeros
    if RESIDENT:
        stop = BLOCK
        live = live_lanes(row, batch, 0, length, BLOCK)
        up_held = read(upstream_ptr, base, live, COMPUTE)
        if SHELL:
            h_held = read(h_ptr, base, live, COMPUTE)
        if ASCENT:
            grad_held = read(grad_ptr, base, live, COMPUTE)
    else:
        stop = length
    step = tl.zeros([ROWS], COMPUTE) + scalar(step_size, COMPUTE)

    h_size, grad_size = zeros, zeros
    for start in range(0, stop, BLOCK):
        live = live_lanes(row, batch, start, length, BLOCK)
        if SHELL:
            h = load_tile(h_ptr, base + start, live, h_held, RESIDENT)
            h_size = tl.maximum(h_size, magnitude(h))
        if ASCENT:
            grad = load_tile(grad_ptr, base + start, live, grad_held, RESIDENT)
            grad_size = tl.maximum(grad_size, magnitude(grad))
    h_largest = tl.max(h_size, 1)
    grad_largest = tl.max(grad_size, 1)
    bad = (h_largest == float("inf")) | (grad_largest == float("inf"))
    grad_scale = inverse_scale(grad_largest)
    coefficient = tl.zeros_like(ones)
    grad_norm, shrink = ones, ones
    if ASCENT:
        square = zeros
        for start in range(0, stop, BLOCK):
            live = live_lanes(row, batch, start, length, BLOCK)
            grad = load_tile(grad_ptr, base + start, live, grad_held, RESIDENT)
            scaled = grad * grad_scale[:, None]
            square += scaled * scaled
        grad_norm = root(tl.sum(square, 1))
        coefficient = grad_coefficient(grad_norm, step)
        if SHELL:
            shrink = headroom(h_largest, step)
    ascent = (shrink, coefficient * shrink, grad_scale)
    y_held = zeros
    if RESIDENT:
        y_held = moved(h_held, grad_held, ascent, ASCENT)

    # P = gain (G - u <u, G>) outside, G inside.
    outside = tl.zeros([ROWS], tl.int1)
    gain, y_scale, inverse_norm, along = ones, ones, ones, tl.zeros_like(ones)
    if SHELL:
        inner, outer = shell_bounds(radius, gamma, row, batch, RADIUS_ROWS, ROWS, COMPUTE)
        y_size = zeros
        for start in range(0, stop, BLOCK):
            live = live_lanes(row, batch, start, length, BLOCK)
            y = moved_tile(h_ptr, grad_ptr, base + start, live, ascent, y_held, ASCENT, RESIDENT)
            y_size = tl.maximum(y_size, magnitude(y))
        y_scale = inverse_scale(tl.max(y_size, 1))
        square, product = zeros, zeros
        for start in range(0, stop, BLOCK):
            live = live_lanes(row, batch, start, length, BLOCK)
            y = moved_tile(h_ptr, grad_ptr, base + start, live, ascent, y_held, ASCENT, RESIDENT)
            upstream = load_tile(upstream_ptr, base + start, live, up_held, RESIDENT)
            scaled = y * y_scale[:, None]
            square += scaled * scaled
            product += scaled * upstream
        norm = root(tl.sum(square, 1))
        unit = shrink * y_scale
        bad = bad | ~(inner > 0)
        near = norm < inner * unit
        beyond, ratio = out_of_range(outer, gamma, COMPUTE)
        outside = near | (norm > tl.where(beyond, ratio * (inner * unit), outer * unit))
        origin = near & (norm == 0)
        inverse_norm = tl.where(origin, 0.0, quotient(ones, tl.where(origin, 1.0, norm)))
        along = tl.where(outside, tl.sum(product, 1) * inverse_norm, 0.0)
        target = tl.where(near, inner, outer)
        gain = bounded_product(target * inverse_norm, unit)
        lengthened = bounded_product(inverse_norm, ratio)
        gain = tl.where(beyond & ~near, bounded_product(inner * unit, lengthened), gain)
        gain = tl.where(outside, gain, 1.0)
        first = read(upstream_ptr, row * length, row < batch, COMPUTE)
        by_radius = tl.where(near, along, scalar(gamma, COMPUTE) * along)
        by_radius = tl.where(origin, first, tl.where(outside, by_radius, 0.0))
        by_radius = tl.where(bad, float("nan"), by_radius)
        tl.store(grad_radius_ptr + row, by_radius, mask=row < batch)
    gain = tl.where(bad, float("nan"), gain)

    across = tl.zeros_like(ones)
    grad_unit = grad_scale
    grad_gain = ones
    inverse_grad = tl.where(grad_norm > 0, quotient(ones, grad_norm), 0.0)
    if ASCENT:
        product = zeros
        for start in range(0, stop, BLOCK):
            live = live_lanes(row, batch, start, length, BLOCK)
            upstream = load_tile(upstream_ptr, base + start, live, up_held, RESIDENT)
            y = moved_tile(h_ptr, grad_ptr, base + start, live, ascent, y_held, ASCENT, RESIDENT)
            grad = load_tile(grad_ptr, base + start, live, grad_held, RESIDENT)
            u = (y * y_scale[:, None]) * inverse_norm[:, None]
            p = gain[:, None] * (upstream - u * along[:, None])
            product += tl.where(
                live, p * ((grad * grad_unit[:, None]) * inverse_grad[:, None]), 0.0
            )
        across = tl.sum(product, 1)
        grad_gain = bounded_product(tl.abs(coefficient), grad_scale)
        grad_gain = tl.where(coefficient < 0, -grad_gain, grad_gain)
    for start in range(0, stop, BLOCK):
        live = live_lanes(row, batch, start, length, BLOCK)
        upstream = load_tile(upstream_ptr, base + start, live, up_held, RESIDENT)
        y = moved_tile(h_ptr, grad_ptr, base + start, live, ascent, y_held, ASCENT, RESIDENT)
        u = (y * y_scale[:, None]) * inverse_norm[:, None]
        p = gain[:, None] * (upstream - u * along[:, None])
        if SHELL:
            store_tile(grad_h_ptr, base + start, p, live)
        if ASCENT:
            grad = load_tile(grad_ptr, base + start, live, grad_held, RESIDENT)
            v = (grad * grad_unit[:, None]) * inverse_grad[:, None]
            tangent = p - v * across[:, None]
            store_tile(grad_grad_ptr, base + start, tangent * grad_gain[:, None], live)
