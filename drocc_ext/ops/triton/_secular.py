"""The multiplier of Proposition 1 for a tile of rows; csrc/math/secular.h says how it comes about.

A `source` is what a pass needs to get the rows' d (after the ascent) and sigma; an `equation` the
constants of secular.h, one per row. Rows are independent: one that is done waits, unchanged, for
the others of its program.
"""

from __future__ import annotations

import triton
import triton.language as tl

from drocc_ext.ops.triton._l2_shell_kernels import moved
from drocc_ext.ops.triton._rows import live_lanes, quotient, read, root


@triton.jit
def coordinates(source, start, ASCENT: tl.constexpr, RESIDENT: tl.constexpr, BLOCK: tl.constexpr):
    """A tile of d and sigma, 0 in dead lanes, and which lanes are live."""
    pointers, offsets, rows, ascent, d_held, sigma_held = source
    h_ptr, grad_ptr, sigma_ptr = pointers
    base, sigma_base = offsets
    row, batch, length = rows
    live = live_lanes(row, batch, start, length, BLOCK)
    if RESIDENT:
        return d_held, sigma_held, live
    else:
        h = read(h_ptr, base + start, live, d_held.dtype)
        grad = h
        if ASCENT:
            grad = read(grad_ptr, base + start, live, d_held.dtype)
        sigma = read(sigma_ptr, sigma_base + start, live, d_held.dtype)
        return moved(h, grad, ascent, ASCENT), sigma, live


@triton.jit
def secular_term(equation, d, sigma):
    """u, w and b; b is exactly 0 where sigma is the largest of its row, and only there.

    A coordinate without a weight has no part in sums, and u, which may be infinite there, is 0.
    """
    d_scale, sigma_scale, largest, inverse_largest, unit = equation
    scaled = sigma * sigma_scale[:, None]
    w = scaled * inverse_largest[:, None]
    u = tl.where(w > 0, (d * d_scale[:, None]) * unit[:, None], 0.0)
    b = (largest[:, None] - scaled) * inverse_largest[:, None]
    return u, w, b


@triton.jit
def secular_value(
    source,
    equation,
    t,
    stop,
    ASCENT: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """F(t) and Q(t) = -t F'(t) / 2; t > 0."""
    f = tl.zeros([ROWS, BLOCK], t.dtype)
    q = tl.zeros([ROWS, BLOCK], t.dtype)
    for start in range(0, stop, BLOCK):
        d, sigma = coordinates(source, start, ASCENT, RESIDENT, BLOCK)[:2]
        u, w, b = secular_term(equation, d, sigma)
        tw = t[:, None] * w
        inverse = quotient(tl.full([ROWS, BLOCK], 1.0, t.dtype), b + tw)
        v = u * inverse
        share = (w * v) * v
        f += share
        q += share * (tw * inverse)
    return tl.sum(f, 1), tl.sum(q, 1)


@triton.jit
def secular_at_zero(
    source,
    equation,
    stop,
    ASCENT: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """F(0) and -F'(0) / 2 without the tied coordinates, which have a pole there."""
    f = tl.zeros([ROWS, BLOCK], equation[0].dtype)
    slope = tl.zeros([ROWS, BLOCK], equation[0].dtype)
    for start in range(0, stop, BLOCK):
        d, sigma = coordinates(source, start, ASCENT, RESIDENT, BLOCK)[:2]
        u, w, b = secular_term(equation, d, sigma)
        free = b > 0
        one = tl.full([ROWS, BLOCK], 1.0, u.dtype)
        inverse = tl.where(free, quotient(one, tl.where(free, b, 1.0)), 0.0)
        v = u * inverse
        share = (w * v) * v
        f += share
        slope += share * (w * inverse)
    return tl.sum(f, 1), tl.sum(slope, 1)


@triton.jit
def largest_tied(
    source,
    equation,
    stop,
    ASCENT: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Largest |u| among the tied coordinates."""
    size = tl.zeros([ROWS, BLOCK], equation[0].dtype)
    for start in range(0, stop, BLOCK):
        d, sigma = coordinates(source, start, ASCENT, RESIDENT, BLOCK)[:2]
        term = secular_term(equation, d, sigma)
        size = tl.maximum(size, tl.where(term[2] == 0, tl.abs(term[0]), 0.0))
    return tl.max(size, 1)


@triton.jit
def any_row(mask):
    """Whether any row of the program has it."""
    return tl.max(mask.to(tl.int32), 0) > 0


@triton.jit
def newton_increment(f, q):
    """The relative step, in the one order of operations that stays precise when t is tiny."""
    return quotient(f, q) * (root(f) - 1.0)


@triton.jit
def solve_secular(
    source,
    equation,
    f_one,
    q_one,
    length,
    span,
    near,
    wanted,
    stop,
    ASCENT: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Newton's method for 1 / sqrt(F) = 1, for the rows `wanted`.

    f_one, q_one are F(1) and Q(1), length sqrt(F(1)), span the least w above 0. Returns t, the
    factor that brings the coordinates with sigma > 0 onto the ellipsoid, the hard rows (no root: t
    is 0) and the length their tied coordinates take, in units of u.
    """
    if length.dtype == tl.float64:
        tiny = 2.2250738585072014e-308
        eps = 2.220446049250313e-16
        enough = 1e-9
        astray = 1e-10
        distant = 1e17
        most = 1e307
    else:
        tiny = 1.1754943508222875e-38
        eps = 1.1920928955078125e-07
        enough = 1e-5
        astray = 1e-4
        distant = 1e9
        most = 1e38
    ones = tl.full([ROWS], 1.0, length.dtype)
    # Left of the root for certain. Far out b + t w <= t, so that sqrt(F(t)) >= length / t.
    left = tl.where(near, 0.0, length)
    hard = tl.zeros([ROWS], tl.int1)
    missing = tl.zeros_like(ones)
    if any_row(wanted & near):
        # v of that coordinate alone is 1 at the pole.
        pole = largest_tied(source, equation, stop, ASCENT, RESIDENT, ROWS, BLOCK)
        poleless = wanted & near & (pole < tiny)
        left = tl.where(near & (pole >= tiny), pole, left)
        if any_row(poleless):
            f, slope = secular_at_zero(source, equation, stop, ASCENT, RESIDENT, ROWS, BLOCK)
            hard = poleless & (f < 1.0)
            missing = tl.where(hard, root(tl.where(hard, 1.0 - f, 1.0)), 0.0)
            left = tl.where(poleless, newton_increment(f, slope), left)
    left = tl.where(left > tiny, left, tiny)
    # Better: a step from t = 1, whichever side of the root that is. Where the root is tiny,
    # rounding may put it on the right; a step from there ends on the left.
    safe = (q_one > 0) & (f_one < float("inf"))
    from_one = tl.where(safe, 1.0 + newton_increment(f_one, q_one), 0.0)
    t = tl.where(from_one > left, from_one, left)
    result, scale = t, ones
    moving = wanted & ~hard
    step = 0
    while any_row(moving):
        f, q = secular_value(source, equation, t, stop, ASCENT, RESIDENT, ROWS, BLOCK)
        size = root(f)
        increment = newton_increment(f, q)
        after = tl.minimum(t * (1.0 + increment), most)
        away = size - 1.0
        off = tl.abs(away) > 4.0 * eps
        # What is left after such a step is of the order of its square, below rounding.
        last = moving & off & (tl.abs(increment) <= enough)
        after = tl.where((away < 0) & ~last & ~(after > left), left, after)
        moves = ((away > 0) & (after > t)) | ((away < 0) & (after < t))
        ended = moving & ~last & (~off | ~moves | (step >= 64))
        result = tl.where(last, after, tl.where(ended, t, result))
        # A root beyond the range of the type must not pass for one that was found. The factor
        # corrects any t that is so far out that b vanishes beside t w.
        found = (tl.abs(away) < astray) | ((t * span > distant) & (size < float("inf")))
        reached = tl.where(found, quotient(ones, size), float("nan"))
        scale = tl.where(ended, reached, scale)
        moving = moving & ~last & ~ended
        t = tl.where(moving, after, t)
        step += 1
    return tl.where(hard, 0.0, result), scale, hard, missing


@triton.jit
def search_grid(
    source,
    equation,
    points,
    length,
    near,
    outside,
    stop,
    ASCENT: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The last feasible point of the paper's grid, by bisection over k.

    Returns whether there is one, its t and its ||x||_S / R.
    """
    if length.dtype == tl.float64:
        tolerance = 16 * 2.220446049250313e-16
    else:
        tolerance = 16 * 1.1920928955078125e-07
    feasible = tl.zeros([ROWS], tl.int32)
    infeasible = tl.zeros([ROWS], tl.int32) + points.to(tl.int32)
    last = (infeasible - 1).to(length.dtype)
    found = tl.zeros([ROWS], tl.int1)
    best = tl.full([ROWS], 1.0, length.dtype)
    best_length = best
    open_rows = outside & (infeasible - feasible > 1)
    while any_row(open_rows):
        k = feasible + (infeasible - feasible) // 2
        at = tl.maximum(k, 1).to(length.dtype)
        t = tl.where(near, quotient(at, last), 1.0 + quotient((length - 1.0) * last, at))
        f = secular_value(source, equation, t, stop, ASCENT, RESIDENT, ROWS, BLOCK)[0]
        holds = (near & (f >= 1.0 - tolerance)) | (~near & (f <= 1.0 + tolerance))
        good = open_rows & holds
        found = found | good
        best = tl.where(good, t, best)
        best_length = tl.where(good, root(f), best_length)
        feasible = tl.where(good, k, feasible)
        infeasible = tl.where(open_rows & ~holds, k, infeasible)
        open_rows = outside & (infeasible - feasible > 1)
    return found, best, best_length
