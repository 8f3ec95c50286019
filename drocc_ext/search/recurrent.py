"""LSTM layers under a search: their gradient with respect to the input alone, on the CPU.

torch's fused layer computes the gradients of the weights too, whether anyone wants them or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from drocc_ext.ops import _backend, _library

__all__ = ["InputGradients", "input_gradients_alone"]

# Rows and rows times steps from which on it pays to bring the weights into the order in which
# products read them.
_LEAST_ROWS, _LEAST_CELLS = 4, 64


def input_gradients_alone(model: object) -> AbstractContextManager[object]:
    """Make the context in which a model's gradients are taken with respect to its input alone.

    Args:
        model: Anything that is called.

    Returns:
        `InputGradients` where the model has an LSTM layer, else a context that does nothing.
    """
    has_lstm = isinstance(model, nn.Module) and any(
        isinstance(module, nn.LSTM) for module in model.modules()
    )
    return InputGradients() if has_lstm else nullcontext()


class InputGradients(TorchFunctionMode):
    """Within it, LSTM layers on the CPU have gradients for their input and states only.

    Other functions, and layers that the operator does not serve (bidirectional ones, projections,
    packed sequences, dropout that is on, half types, autocast), are as ever. Weights get no
    gradients in here: it is for those who differentiate with respect to the input.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run a torch function."""
        # Nine arguments, the second of them the states: the others are for packed sequences.
        if func is torch.lstm and not kwargs and isinstance(args[1], tuple | list):
            x, states, weights, has_biases, layers, dropout, train, both_ways, batch_first = args
            drops = dropout > 0 and train and layers > 1
            if not (drops or both_ways) and _is_served(x, states, weights):
                return _run_layers(x, states, weights, has_biases, layers, batch_first)
        return func(*args, **(kwargs or {}))


def _is_served(x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    tensors = (x, *states, *weights)
    return (
        x.dim() == 3
        and x.dtype in (torch.float32, torch.float64)
        and all(t.is_cpu and t.dtype is x.dtype and t.layout is torch.strided for t in tensors)
        and all(type(t) in (Tensor, nn.Parameter) for t in tensors)
        and all(weight.grad_fn is None for weight in weights)  # that may lead to the input
        and states[0].shape == states[1].shape  # no projection
        and states[0].shape[1] >= _LEAST_ROWS
        and x.shape[0] * x.shape[1] >= _LEAST_CELLS
        and _library.native_error("cpu") is None
        and _backend.allows_native()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        # Activation checkpointing runs the forward again when this mode has ended.
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )


def _run_layers(
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    hidden = x.transpose(0, 1) if batch_first else x
    last_hidden, last_cells = [], []
    count = 4 if has_biases else 2
    for layer in range(layers):
        w_ih, w_hh, *biases = weights[count * layer : count * (layer + 1)]
        hidden, cell = _Layer.apply(  # type: ignore[no-untyped-call]
            hidden, states[0][layer], states[1][layer], w_ih, w_hh, *(biases or (None, None))
        )
        last_hidden.append(hidden[-1])
        last_cells.append(cell)
    output = hidden.transpose(0, 1) if batch_first else hidden
    return output, torch.stack(last_hidden), torch.stack(last_cells)


class _Layer(torch.autograd.Function):
    """One layer `[T, B, I]` -> hidden states `[T, B, H]` and the last cell `[B, H]`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h_0: Tensor,
        c_0: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        hidden, cells, gates = torch.ops.drocc._lstm(x, h_0, c_0, w_ih, w_hh, b_ih, b_hh)
        ctx.gates = gates  # no input or output, and used up by the first backward
        ctx.save_for_backward(x, h_0, c_0, cells, w_ih, w_hh, b_ih, b_hh)
        ctx.set_materialize_grads(False)
        return hidden, cells[-1].clone()

    @staticmethod
    def backward(
        ctx: Any, grad_hidden: Tensor | None, grad_cell: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, h_0, c_0, cells, w_ih, w_hh, b_ih, b_hh = ctx.saved_tensors
        if torch.is_grad_enabled() or ctx.gates is None:
            grads = _by_autograd((x, h_0, c_0), (w_ih, w_hh, b_ih, b_hh), grad_hidden, grad_cell)
            return (*grads, None, None, None, None)
        gates, ctx.gates = ctx.gates, None
        if grad_hidden is None:
            grad_hidden = torch.zeros_like(cells)
        grads = torch.ops.drocc._lstm_backward(
            grad_hidden, grad_cell, c_0, cells, gates, w_ih, w_hh
        )
        return (*grads, None, None, None, None)


def _by_autograd(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    grad_hidden: Tensor | None,
    grad_cell: Tensor | None,
) -> list[Tensor | None]:
    """Differentiate a layer that torch computes again: with a graph, or another time."""
    with_graph = torch.is_grad_enabled()
    held = [weight for weight in weights if weight is not None]
    with torch._C.DisableTorchFunction(), torch.enable_grad():
        taken = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in inputs]
        x, h_0, c_0 = taken
        states, has_biases = [h_0[None], c_0[None]], len(held) == 4
        hidden, _, cell = torch.lstm(x, states, held, has_biases, 1, 0.0, True, False, False)
        pairs = ((hidden, grad_hidden), (cell[0], grad_cell))
        given = [(output, grad) for output, grad in pairs if grad is not None]
        return list(
            torch.autograd.grad(
                [output for output, _ in given],
                taken,
                [grad for _, grad in given],
                create_graph=with_graph,
                allow_unused=True,
            )
        )
