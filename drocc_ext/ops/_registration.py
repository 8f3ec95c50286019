"""What every operator gets besides its kernels: fake, fallback, vmap, autocast, autograd."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from drocc_ext.ops import _library

# The same operators stand in two namespaces: `drocc` has the native kernels and the eager
# fallbacks, `drocc_triton` the Triton kernels. Everything in this file is the same for both.
NAMESPACES = ("drocc", "drocc_triton")

REFUSAL = (
    "{namespace}::{name}: second derivatives are not available; use the eager backend "
    '(drocc_ext.use_backend("eager")), whose operators torch differentiates any number of times'
)


def _library_of(namespace: str) -> Any:
    return _library.registry if namespace == "drocc" else _library.triton_registry


def register_fake(name: str, function: Callable[..., Any], namespace: str = "drocc") -> None:
    """Give the shape, dtype and strides of the result without computing it."""
    torch.library.register_fake(f"{namespace}::{name}", function, lib=_library_of(namespace))


def register_fallback(name: str, function: Callable[..., Any], namespace: str = "drocc") -> None:
    """Run `function` on devices without kernels (everywhere if the libraries are missing)."""
    _library_of(namespace).impl(name, function, "CompositeExplicitAutograd")


def register_autograd(
    name: str,
    backward: Callable[..., Any],
    setup: Callable[..., Any] | None,
    namespace: str = "drocc",
) -> None:
    """Attach the derivative to the operator, so that `torch.ops` callers get it too.

    `backward` takes the operators of the namespace before autograd's arguments.
    """
    torch.library.register_autograd(
        f"{namespace}::{name}",
        partial(backward, getattr(torch.ops, namespace)),
        setup_context=setup,
        lib=_library_of(namespace),
    )


def register_autocast(name: str, namespace: str = "drocc") -> None:
    """Run in float32 under autocast, as torch runs norms: half-precision norms lose the shell."""
    for device_type in ("cpu", "cuda"):
        torch.library.register_autocast(
            f"{namespace}::{name}", device_type, torch.float32, lib=_library_of(namespace)
        )


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Merge the mapped dimension into the batch: [V, B, *] -> [V * B, *]."""
    moved = tensor.movedim(dim, 0) if dim is not None else tensor.expand(size, *tensor.shape)
    return moved.flatten(0, 1)


def _unfold(tensor: Tensor, size: int) -> Tensor:
    """[V * B, *] -> [V, B, *]."""
    return tensor.reshape(size, tensor.shape[0] // size, *tensor.shape[1:])


def _fold_shared(
    tensor: Tensor, dim: int | None, size: int, h: Tensor, h_dim: int | None
) -> Tensor:
    """Fold an operand that all rows of h may share: [*] beside h [B, *].

    One that is not mapped stays shared; a mapped one is repeated for the rows of its h.
    """
    if tensor.dim() - (dim is not None) == h.dim() - (h_dim is not None):
        return _fold(tensor, dim, size)
    if dim is None:
        return tensor
    rows = h.movedim(h_dim, 0).shape[1] if h_dim is not None else h.shape[0]
    moved = tensor.movedim(dim, 0).unsqueeze(1)
    return moved.expand(size, rows, *moved.shape[2:]).flatten(0, 1)


def register_vmap(
    name: str, mutates: bool = False, shared: int | None = None, namespace: str = "drocc"
) -> None:
    """Map a row-wise operator by treating the mapped dimension as more rows.

    Args:
        name: Of the operator.
        mutates: Whether it writes to its first argument.
        shared: Position of an operand that may be [*] for all rows of the tensor before it.
        namespace: Where it stands.
    """
    op = getattr(getattr(torch.ops, namespace), name).default

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        size = info.batch_size
        folded = [
            _fold(arg, dim, size) if isinstance(arg, Tensor) else arg
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        if shared is not None:
            operand, h = (args[shared], in_dims[shared]), (args[shared - 1], in_dims[shared - 1])
            folded[shared] = _fold_shared(*operand, size, *h)
        if mutates:
            return _mapped_in_place(name, op, args[0], in_dims[0], folded)
        result = op(*folded)
        if isinstance(result, Tensor):
            return _unfold(result, size), 0
        return tuple(_unfold(r, size) for r in result), (0,) * len(result)

    torch.library.register_vmap(f"{namespace}::{name}", rule, lib=_library_of(namespace))


def _mapped_in_place(name: str, op: Any, h: Tensor, dim: int | None, folded: list[Any]) -> Any:
    if dim is None:
        raise RuntimeError(
            f"{name}: under vmap h must be mapped too; one h cannot take the updates of several"
        )
    op(*folded)
    if folded[0].data_ptr() != h.data_ptr() or not h.movedim(dim, 0).is_contiguous():
        h.copy_(_unfold(folded[0], h.shape[dim]).movedim(0, dim))
    elif not h.is_inference():  # the caller's bump stays with the batched wrapper
        torch.autograd.graph.increment_version(h)
    return None, None


def refuse_second_order(name: str, namespace: str = "drocc") -> None:
    """Make the derivative of a backward operator a clear error instead of a silent zero."""

    def backward(ops: Any, ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(REFUSAL.format(name=name, namespace=namespace))

    register_autograd(name, backward, None, namespace)
