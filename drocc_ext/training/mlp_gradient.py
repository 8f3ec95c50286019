"""The gradient of one batch's objective by the operator that trains multilayer perceptrons."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from drocc_ext.search.mlp.match import MLPLayers
from drocc_ext.training.loss import DROCCLoss, as_normal_mask
from drocc_ext.training.mlp_epoch import (
    StepRecord,
    are_plain,
    find_layers,
    parameters_of,
    run_operator,
)
from drocc_ext.training.plain_optimizers import OptimizerRule

__all__ = ["MLPGradient", "find_gradient"]

# From a velocity of 0 the first step of SGD makes the gradient its velocity, and at a rate of 0 it
# moves no weight: that is all that is wanted of it.
_KEEP = OptimizerRule(
    is_adam=False,
    beta1=0.0,
    beta2=0.0,
    eps=0.0,
    momentum=0.5,
    dampening=0.0,
    nesterov=False,
    weight_decay=0.0,
    decoupled=False,
)


class MLPGradient:
    """Computes gradients into one vector, which ranks can add up at once.

    Args:
        layers: The network, on the CPU.
        loss: The objective.

    Attributes:
        flat: The gradient of all trained parameters, one after another.
        trained: These parameters.
    """

    def __init__(self, layers: MLPLayers, loss: DROCCLoss) -> None:
        """Make room."""
        self._layers, self._loss = layers, loss
        self._parameters = parameters_of(layers)
        self.trained: list[Tensor] = [
            p for p in self._parameters if p is not None and p.requires_grad
        ]
        total = sum(p.numel() for p in self.trained)
        self.flat: Tensor = torch.zeros(total, dtype=self.trained[0].dtype, device="cpu")
        parts = iter(torch.split(self.flat, [p.numel() for p in self.trained]))
        self._first = [
            self.flat.new_empty(0)
            if p is None or not p.requires_grad
            else next(parts).view(p.shape)
            for p in self._parameters
        ]
        self._none = [self.flat.new_empty(0) for _ in self._parameters]
        self._rate = torch.zeros(1, dtype=torch.float64, device="cpu")

    def __call__(
        self,
        x: Tensor,
        y: Tensor | None,
        generator: torch.Generator,
        *,
        adversarial: bool,
        mu: float,
    ) -> StepRecord:
        """Write the gradient of a batch into `flat`; NaN throughout where it is not finite.

        Args:
            x: Rows, `[B, D]`.
            y: Labels `[B]`, or None.
            generator: Source of the noise.
            adversarial: False leaves out the search and its term.
            mu: Weight of the adversarial term.

        Returns:
            Losses and the norm of the gradient.

        Raises:
            ValueError: If labels are neither 1 nor 0.
        """
        is_normal = None if y is None else as_normal_mask("DROCCLoss", y, len(x))
        self.flat.zero_()
        bits = generator.get_state()[None].clone()
        losses, _ = run_operator(
            self._layers,
            self._loss,
            x,
            is_normal,
            torch.arange(len(x), device="cpu")[None],
            len(x),
            self._parameters,
            self._first,
            self._none,
            bits,
            self._rate,
            0,
            _KEEP,
            0.0,
            adversarial=adversarial,
            mu=mu,
        )
        generator.set_state(bits[0].clone())  # which reads no views
        record = StepRecord(*losses[0, 0].tolist())
        if not record.is_finite:
            self.flat.fill_(math.nan)
        return record

    def give(self) -> None:
        """Let the trained parameters have their parts of `flat` as their gradients."""
        written = [part for part in self._first if part.numel() > 0]
        for parameter, part in zip(self.trained, written, strict=True):
            parameter.grad = part


def find_gradient(model: nn.Module, loss: DROCCLoss, x: Tensor) -> MLPGradient | None:
    """Find out whether the gradients of a wrapped model's ranks can be had, and sent, in one piece.

    Args:
        model: The model, as it is trained.
        loss: The objective.
        x: A batch's rows.

    Returns:
        What computes them, or None where `DistributedDataParallel` has to do it.
    """
    if type(model) is not DistributedDataParallel or not model.require_backward_grad_sync:
        return None
    if getattr(model, "_comm_hooks", None) or model.mixed_precision is not None:
        return None
    hooks = (model._forward_hooks, model._forward_pre_hooks, model._backward_hooks)
    if any(hooks) or model._backward_pre_hooks or model.parameters_to_ignore:
        return None
    layers = find_layers(model.module, loss, x)
    if layers is None:
        return None
    there = [p for p in parameters_of(layers) if p is not None]
    whole = {id(p) for p in model.module.parameters()} == {id(p) for p in there}
    trained = any(p.requires_grad for p in there)
    return MLPGradient(layers, loss) if whole and trained and are_plain(there) else None
