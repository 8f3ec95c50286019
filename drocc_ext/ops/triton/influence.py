"""Triton implementation of `influence`; csrc/math/influence.h has the formulas."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from drocc_ext.ops import _checks
from drocc_ext.ops.triton._launch import check_device, in_layout_of, is_row_dense, launch
from drocc_ext.ops.triton._rows import (
    bounded_product,
    inverse_scale,
    live_lanes,
    load_tile,
    magnitude,
    quotient,
    read,
    store_tile,
)


@triton.jit
def influence_kernel(
    grad_ptr,
    upstream_ptr,
    out_ptr,
    batch,
    length,
    BACKWARD: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sigma = |g| / mean |g|, or grad_k = sign(g_k) / mean (G_k - mean_j G_j sigma_j)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    base = row[:, None] * length + tl.arange(0, BLOCK)[None, :]
    zeros = tl.zeros([ROWS, BLOCK], COMPUTE)
    grad_held, up_held = zeros, zeros
    if RESIDENT:
        stop = BLOCK
        live = live_lanes(row, batch, 0, length, BLOCK)
        grad_held = read(grad_ptr, base, live, COMPUTE)
        if BACKWARD:
            up_held = read(upstream_ptr, base, live, COMPUTE)
    else:
        stop = length
    size = zeros
    for start in range(0, stop, BLOCK):
        live = live_lanes(row, batch, start, length, BLOCK)
        grad = load_tile(grad_ptr, base + start, live, grad_held, RESIDENT)
        size = tl.maximum(size, magnitude(grad))
    largest = tl.max(size, 1)
    zero = largest == 0
    scale = inverse_scale(largest)
    total, product = zeros, zeros
    for start in range(0, stop, BLOCK):
        live = live_lanes(row, batch, start, length, BLOCK)
        grad = load_tile(grad_ptr, base + start, live, grad_held, RESIDENT)
        scaled = tl.abs(grad) * scale[:, None]
        total += scaled
        if BACKWARD:
            upstream = load_tile(upstream_ptr, base + start, live, up_held, RESIDENT)
            product += scaled * upstream
    count = tl.zeros([ROWS], COMPUTE) + length.to(COMPUTE)
    total_row = tl.where(zero, 1.0, tl.sum(total, 1))
    inverse = quotient(tl.full([ROWS], 1.0, COMPUTE), total_row)
    factor = count * inverse  # 1 / mean, in the scaled unit
    mean_upstream = tl.sum(product, 1) * inverse
    slope = bounded_product(factor, scale)
    bad = (largest == float("inf"))[:, None]
    for start in range(0, stop, BLOCK):
        live = live_lanes(row, batch, start, length, BLOCK)
        grad = load_tile(grad_ptr, base + start, live, grad_held, RESIDENT)
        if BACKWARD:
            upstream = load_tile(upstream_ptr, base + start, live, up_held, RESIDENT)
            tangent = slope[:, None] * (upstream - mean_upstream[:, None])
            out = tl.where(grad > 0, tangent, tl.where(grad < 0, -tangent, 0.0))
        else:
            out = (tl.abs(grad) * scale[:, None]) * factor[:, None]
            out = tl.where(zero[:, None], 1.0, out)
        store_tile(out_ptr, base + start, tl.where(bad, float("nan"), out), live)


def influence(grad: Tensor) -> Tensor:
    """|grad| / mean |grad| per row, `[B, *]`."""
    check_device("influence", grad)
    _checks.check_rows("influence", "grad", grad)
    out = torch.empty_like(grad)
    if grad.numel() == 0:
        return out
    dense = torch.contiguous_format
    rows = out if is_row_dense(out) else torch.empty_like(out, memory_format=dense)
    source = in_layout_of(grad, rows)
    launch(influence_kernel, rows, 0, (source, source, rows), BACKWARD=False)
    return out if rows is out else out.copy_(rows)


def _influence_backward(grad_out: Tensor, grad: Tensor) -> Tensor:
    """Gradient of grad, `[B, *]`, contiguous."""
    op = "_influence_backward"
    check_device(op, grad)
    _checks.check_rows(op, "grad", grad)
    _checks.check_like(op, "grad_out", grad_out, grad)
    grad, upstream = grad.contiguous(), grad_out.contiguous()
    out = torch.empty_like(grad)
    if grad.numel():
        launch(influence_kernel, grad, 1, (grad, upstream, out), BACKWARD=True)
    return out
