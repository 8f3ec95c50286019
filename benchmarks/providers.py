"""Peers of the fused step: the same arithmetic in eager PyTorch, compiled, and as published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import drocc_ext
from drocc_ext import ops
from drocc_ext.demo.timing import eager_step_ as tuned_eager_step_
from drocc_ext.ops import _library


def eager_step_(h: Tensor, grad: Tensor, step_size: float, radius: float, gamma: float) -> Tensor:
    """The formula in place, as one writes it down; one temporary."""
    h.add_(grad / torch.linalg.vector_norm(grad, dim=1, keepdim=True), alpha=step_size)
    norm = torch.linalg.vector_norm(h, dim=1, keepdim=True)
    return h.mul_(norm.clamp(radius, gamma * radius) / norm)


def eager_step(h: Tensor, grad: Tensor, step_size: float, radius: float, gamma: float) -> Tensor:
    """The eager form with a fresh result."""
    moved = torch.add(
        h, grad / torch.linalg.vector_norm(grad, dim=1, keepdim=True), alpha=step_size
    )
    norm = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
    return moved * (norm.clamp(radius, gamma * radius) / norm)


def published_step(
    x: Tensor, x_adv: Tensor, grad: Tensor, step_size: float, radius: float, gamma: float
) -> Tensor:
    """The published trainer's arithmetic, written anew: it keeps x + h rather than h.

    Norm, divide, multiply, add; subtract, square, sum, root, clamp, divide, scale, add.
    """
    norm = torch.norm(grad, p=2, dim=1).view(-1, 1)
    direction = grad / norm
    x_adv.add_(step_size * direction)
    h = x_adv - x
    length = torch.sqrt(torch.sum(h**2, dim=1))
    target = torch.clamp(length, radius, gamma * radius)
    scaled = (target / length).view(-1, 1) * h
    return x + scaled


def on_triton(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run one of the package's operators on Triton kernels and wait for the device."""

    def call(*args: Any) -> Any:
        with drocc_ext.use_backend("triton"):
            result = function(*args)
        torch.cuda.synchronize()
        return result

    return call


def _triton_absent() -> str | None:
    if _library.triton_missing is None and not torch.cuda.is_available():
        return "the Triton kernels are timed on a CUDA GPU, none here"
    return _library.triton_missing


compiled_step_ = torch.compile(tuned_eager_step_, dynamic=False)
compiled_step = torch.compile(eager_step, dynamic=False)

# name -> in-place provider of (h, grad, step_size, radius, gamma)
IN_PLACE: dict[str, Callable[..., Tensor]] = {
    "native": ops.l2_shell_step_,
    "eager": eager_step_,
    "eager, no temporary": tuned_eager_step_,
    "compiled eager": compiled_step_,
}
OUT_OF_PLACE: dict[str, Callable[..., Tensor]] = {
    "native": ops.l2_shell_step,
    "eager": eager_step,
    "compiled eager": compiled_step,
}
# Why there is no Triton provider here (its interpreter is none); None where there is one.
TRITON_ABSENT = _triton_absent()
