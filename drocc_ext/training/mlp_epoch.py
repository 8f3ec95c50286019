"""Epochs without Python between their steps: multilayer perceptrons on the CPU.

One operator draws the noise, searches, computes losses and gradients, and takes the optimizer's
steps. What it takes part in is recognized, never asked for; everything else goes step by step.

The operator reads the same generator in the same order as the loop, and its formulas are the loop's
and those of `torch.optim`. Rounding may differ in the last places: noise of fewer than 4096
numbers, the sums of a matrix product, and the optimizer's fused multiplications.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim import optimizer as _optimizer_globals
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)

from drocc_ext.search.config import SearchConfig
from drocc_ext.search.mlp.joint import has_losses
from drocc_ext.search.mlp.match import MLPLayers, find_mlp
from drocc_ext.search.noise import draws_like_torch
from drocc_ext.training.data import TensorBatches
from drocc_ext.training.loss import DROCCLoss, as_normal_mask
from drocc_ext.training.step import not_finite

__all__ = ["MLPTraining", "StepRecord", "find_training"]

# Schedulers whose next rate depends on nothing but their own count.
_SCHEDULERS = (
    *(LambdaLR, LinearLR, ConstantLR, StepLR, MultiStepLR, ExponentialLR, CosineAnnealingLR),
    PolynomialLR,
)


class StepRecord(NamedTuple):
    """One step's numbers: total, clean and adversarial loss, and the norm of the gradient."""

    total: float
    clean: float
    adversarial: float
    norm: float

    @property
    def is_finite(self) -> bool:
        """Whether the step was taken."""
        return math.isfinite(self.total + self.norm)


class MLPTraining(NamedTuple):
    """What one operator can train.

    Attributes:
        layers: The network.
        parameters: Weight and bias of each layer in order, None where a layer has no bias.
        loss: The objective.
        optimizer: Over these parameters.
        scheduler: Stepped after each step, or None.
        clip_norm: Largest norm of the gradient, or None.
    """

    layers: MLPLayers
    parameters: Sequence[Tensor | None]
    loss: DROCCLoss
    optimizer: Optimizer
    scheduler: LRScheduler | None
    clip_norm: float | None

    def run(
        self,
        x: Tensor,
        is_normal: Tensor | None,
        order: Tensor,
        batch_size: int,
        generator: torch.Generator,
        *,
        adversarial: bool,
    ) -> list[StepRecord]:
        """Take one step per batch.

        Args:
            x: Rows, `[N, D]`, on the CPU, dtype of the network.
            is_normal: Mask of the normal rows, `[N]`, or None.
            order: Which rows the batches take, positions `[n]`.
            batch_size: Rows per batch; the last one may be smaller.
            generator: Source of the noise.
            adversarial: False leaves out the search and its term.

        Returns:
            The steps' numbers. The last one was not taken where it is not finite, and there are
            none after it; parameters, optimizer and scheduler are then as before that step.
        """
        count = -(-order.shape[0] // batch_size)
        group = self.optimizer.param_groups[0]
        fresh = [p for p in group["params"] if p not in self.optimizer.state]
        first, second, steps_done = _states(self.optimizer, self.parameters)
        state = generator.get_state()
        with _scheduled(self.optimizer, self.scheduler, count) as (rates, keep):
            losses, taken = _train(
                [self.parameters],
                self.layers.negative_slopes,
                self.loss,
                group,
                x,
                is_normal,
                order[None],
                batch_size,
                (first, second, steps_done),
                state[None],
                rates,
                self.clip_norm,
                adversarial,
            )
            steps = int(taken[0])
            keep(steps)
        generator.set_state(state)
        if steps == 0:
            for parameter in fresh:
                self.optimizer.state.pop(parameter, None)
        self._mark_written(steps)
        records = [StepRecord(*row) for row in losses[0].tolist()]
        return records[: steps + 1]

    def run_epoch(
        self,
        batches: TensorBatches,
        generator: torch.Generator,
        most_steps: int,
        place: str,
        *,
        adversarial: bool,
    ) -> list[tuple[int, list[float]]]:
        """Take the steps of an epoch.

        Args:
            batches: The data, shuffled.
            generator: Source of the noise.
            most_steps: How many steps to take, at most one per batch.
            place: Where in the fit this is, for an error.
            adversarial: False in warm-up.

        Returns:
            Number of rows and total, clean and adversarial loss of each step.

        Raises:
            ValueError: If labels are neither 1 nor 0.
            FloatingPointError: If a loss or the norm of its gradient is not finite; weights,
                optimizer and scheduler are then as before that batch.
        """
        x, size = batches.x, batches.batch_size
        is_normal = None if batches.y is None else as_normal_mask("DROCCLoss", batches.y, len(x))
        order = batches.order()
        assert order is not None  # `Trainer` shuffles
        order = order[: most_steps * size]
        records = self.run(x, is_normal, order, size, generator, adversarial=adversarial)
        if records and not records[-1].is_finite:
            number, last = len(records), records[-1]
            rows = x.index_select(0, order[(number - 1) * size : number * size])
            raise not_finite(last.total, last.norm, f"{place}, batch {number}", rows)
        return [
            (min(size, len(order) - i * size), list(record[:3])) for i, record in enumerate(records)
        ]

    def _mark_written(self, steps: int) -> None:
        """Tell autograd that parameters have changed, and count the optimizer's steps."""
        if steps == 0:
            return
        for parameter in self.parameters:
            if parameter is None or not parameter.requires_grad:
                continue
            parameter.grad = None  # as after `zero_grad`: the last step's is not kept
            torch.autograd.graph.increment_version(parameter)
            state = self.optimizer.state[parameter]
            if "step" in state:
                state["step"] += steps


def find_training(
    model: nn.Module,
    loss: DROCCLoss,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    clip_norm: float | None,
    x: Tensor,
) -> MLPTraining | None:
    """Find out whether one operator can train a model as a loop over batches would.

    Args:
        model: The model.
        loss: The objective.
        optimizer: Over the model's parameters.
        scheduler: What is stepped after each step, or None.
        clip_norm: Largest norm of the gradient, or None.
        x: The rows that the batches come from.

    Returns:
        The training, or None where a loop has to do it.
    """
    if x.is_inference() or not torch.is_grad_enabled():
        return None
    if not _is_plain_loss(loss) or not _is_plain_optimizer(optimizer):
        return None
    if scheduler is not None and (
        type(scheduler) not in _SCHEDULERS or scheduler.optimizer is not optimizer
    ):
        return None
    layers = find_mlp(model)
    if layers is None or not has_losses(layers, x) or not draws_like_torch():
        return None
    parameters = [tensor for layer in layers.linears for tensor in (layer.weight, layer.bias)]
    if not _owns(optimizer, model, parameters):
        return None
    return MLPTraining(layers, parameters, loss, optimizer, scheduler, clip_norm)


def _is_plain_loss(loss: DROCCLoss) -> bool:
    config = loss.search
    return (
        type(loss) is DROCCLoss
        and not (loss._forward_hooks or loss._forward_pre_hooks or "forward" in vars(loss))
        and loss.metric == "l2"
        and config.method in ("auto", "hidden")
        and not isinstance(config.radius, Tensor)
    )


def _is_plain_optimizer(optimizer: Optimizer) -> bool:
    if type(optimizer) not in (Adam, AdamW, SGD) or len(optimizer.param_groups) != 1:
        return False
    group = optimizer.param_groups[0]
    step = vars(optimizer).get("step")
    odd = ("amsgrad", "maximize", "capturable", "differentiable", "fused")
    numbers = [group["lr"], *group.get("betas", ())]
    return (
        not any(group.get(name) for name in odd)
        and all(type(number) in (int, float) for number in numbers)
        and (step is None or hasattr(step, "_wrapped_by_lr_sched"))
        and not optimizer._optimizer_step_pre_hooks
        and not optimizer._optimizer_step_post_hooks
        and not _optimizer_globals._global_optimizer_pre_hooks
        and not _optimizer_globals._global_optimizer_post_hooks
    )


def _owns(optimizer: Optimizer, model: nn.Module, parameters: Sequence[Tensor | None]) -> bool:
    """Say whether optimizer and model have the same parameters to train, each once and plain."""
    there = [parameter for parameter in parameters if parameter is not None]
    trained = {id(parameter) for parameter in there if parameter.requires_grad}
    optimized = [p for p in optimizer.param_groups[0]["params"] if p.requires_grad]
    steps = {float(_step_of(optimizer, p)) for p in optimized}
    return (
        len({p.data_ptr() for p in there}) == len(there)  # none is tied to another
        and bool(trained)
        and {id(p) for p in model.parameters()} == {id(p) for p in there}
        and {id(p) for p in optimized} == trained
        and len(steps) == 1
        and all(p.is_contiguous() for p in there)
        and not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in there)
    )


def _step_of(optimizer: Optimizer, parameter: Tensor) -> float:
    """Count the steps that an optimizer remembers."""
    state = optimizer.state.get(parameter, {})
    if isinstance(optimizer, SGD):
        # Whether there is a velocity is all that SGD remembers.
        return 1.0 if state.get("momentum_buffer") is not None else 0.0
    return float(state["step"]) if state else 0.0


def _states(
    optimizer: Optimizer, parameters: Sequence[Tensor | None]
) -> tuple[list[Tensor], list[Tensor], int]:
    """Give an optimizer's states in the order of the parameters, made where there are none."""
    group = optimizer.param_groups[0]
    first, second = [], []
    steps_done = 0
    for parameter in parameters:
        if parameter is None or not parameter.requires_grad:
            first.append(torch.empty(0))
            second.append(torch.empty(0))
            continue
        steps_done = int(_step_of(optimizer, parameter))
        state = optimizer.state[parameter]
        if isinstance(optimizer, SGD):
            if group["momentum"] != 0 and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            first.append(state.get("momentum_buffer", parameter.new_empty(0)))
            second.append(parameter.new_empty(0))
            continue
        if not state:
            state["step"] = torch.tensor(0.0, dtype=torch.get_default_dtype())
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter)
        first.append(state["exp_avg"])
        second.append(state["exp_avg_sq"])
    return first, second, steps_done


@contextmanager
def _scheduled(
    optimizer: Optimizer, scheduler: LRScheduler | None, count: int
) -> Iterator[tuple[Tensor, Any]]:
    """Give the learning rates of the next steps, and a function that says how many were taken."""
    group = optimizer.param_groups[0]
    if scheduler is None:
        yield torch.full((count,), float(group["lr"]), dtype=torch.float64), lambda steps: None
        return
    before = (scheduler.state_dict(), group["lr"])
    optimizer._opt_called = True  # type: ignore[attr-defined]  # the scheduler asks for it
    rates = []

    def advance(steps: int) -> None:
        for _ in range(steps):
            rates.append(float(group["lr"]))
            scheduler.step()

    def keep(steps: int) -> None:
        if steps < count:
            scheduler.load_state_dict(before[0])
            group["lr"] = before[1]
            advance(steps)

    advance(count)
    yield torch.tensor(rates, dtype=torch.float64), keep


def _train(
    networks: Sequence[Sequence[Tensor | None]],
    negative_slopes: Sequence[float],
    loss: DROCCLoss,
    group: dict[str, Any],
    x: Tensor,
    is_normal: Tensor | None,
    order: Tensor,
    batch_size: int,
    states: tuple[list[Tensor], list[Tensor], int],
    generators: Tensor,
    rates: Tensor,
    clip_norm: float | None,
    adversarial: bool,
) -> tuple[Tensor, Tensor]:
    """Call the operator."""
    config: SearchConfig = loss.search
    is_adam = "betas" in group
    beta1, beta2 = group.get("betas", (0.0, 0.0))
    trained = sum(1 << i for i, p in enumerate(networks[0]) if p is not None and p.requires_grad)
    flat = [x.new_empty(0) if p is None else p.detach() for network in networks for p in network]
    result: tuple[Tensor, Tensor] = torch.ops.drocc._mlp_train(
        x.contiguous(),
        is_normal,
        order.contiguous(),
        batch_size,
        flat,
        states[0],
        states[1],
        trained,
        negative_slopes,
        generators,
        rates,
        states[2],
        is_adam,
        beta1,
        beta2,
        group.get("eps", 0.0),
        group.get("momentum", 0.0),
        group.get("dampening", 0.0),
        group.get("nesterov", False),
        group["weight_decay"],
        group.get("decoupled_weight_decay", False),
        clip_norm or 0.0,
        adversarial,
        loss.mu,
        config.radius,
        config.gamma,
        config.step_size,
        config.num_steps,
        config.project_every,
        config.project_start,
        config.project_last,
        config.noise_scale,
        None,
        0.0,
    )
    return result
