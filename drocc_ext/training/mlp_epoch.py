"""Epochs without Python between their steps: multilayer perceptrons on the CPU.

One operator draws the noise, searches, computes losses and gradients, and takes the optimizer's
steps. What it takes part in is recognized, never asked for; everything else goes step by step.

The operator reads the same generator in the same order as the loop, and its formulas are the loop's
and those of `torch.optim`. Rounding may differ in the last places: noise of fewer than 4096
numbers, the sums of a matrix product, and the optimizer's fused multiplications.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from drocc_ext.models.modes import stepping
from drocc_ext.search.mlp.joint import has_losses
from drocc_ext.search.mlp.match import MLPLayers, find_mlp
from drocc_ext.search.mlp.search import pays
from drocc_ext.search.noise import draws_like_torch
from drocc_ext.training.data import TensorBatches
from drocc_ext.training.loss import DROCCLoss, as_normal_mask
from drocc_ext.training.plain_optimizers import (
    OptimizerRule,
    is_plain_optimizer,
    is_plain_scheduler,
    optimizer_states,
    rule_of,
    scheduled,
    steps_taken,
)
from drocc_ext.training.step import not_finite

__all__ = [
    "MLPTraining",
    "StepRecord",
    "are_plain",
    "find_layers",
    "find_training",
    "parameters_of",
    "run_operator",
    "train_together",
]

# Rows of a batch for which the way is chosen: it is not to depend on the last batch of an epoch.
_USUAL_ROWS = 256

# So many, and a fit hears of an interruption before an epoch of millions of rows ends.
_STEPS_OF_A_CALL = 64

# Rows of a batch that start from noise of the training rows' own shape.
_FACTOR_SHARE = {"isotropic": 0.0, "mixed": 0.5, "rows": 1.0, "swaps": 0.0, "blend": 0.5}


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

    def run_epoch(
        self,
        batches: TensorBatches,
        generator: torch.Generator,
        most_steps: int,
        place: str,
        *,
        adversarial: bool,
        stops: Callable[[], bool],
    ) -> Iterator[tuple[int, list[float]]]:
        """Take the steps of an epoch, some at a time.

        Args:
            batches: The data, shuffled.
            generator: Source of the noise.
            most_steps: How many steps to take, at most one per batch.
            place: Where in the fit this is, for an error.
            adversarial: False in warm-up.
            stops: Asked after some steps whether to leave out the rest.

        Yields:
            Number of rows and total, clean and adversarial loss of each step.

        Raises:
            ValueError: If labels are neither 1 nor 0.
            FloatingPointError: If a loss or the norm of its gradient is not finite; weights,
                optimizer and scheduler are then as before that batch.
        """
        x, size = batches.x, min(batches.batch_size, max(len(batches.x), 1))
        is_normal = None if batches.y is None else as_normal_mask("DROCCLoss", batches.y, len(x))
        order = batches.order()
        assert order is not None  # `Trainer` shuffles
        batches_of_rows = torch.split(order[: most_steps * size], size)
        for first in range(0, len(batches_of_rows), _STEPS_OF_A_CALL):
            if first > 0 and stops():
                return
            taken = batches_of_rows[first : first + _STEPS_OF_A_CALL]
            with stepping(nn.ModuleList(self.layers.linears)):
                [records] = train_together(
                    [self],
                    x,
                    is_normal,
                    torch.cat(taken)[None],
                    size,
                    [generator],
                    adversarial=adversarial,
                )
            for i, (record, rows) in enumerate(zip(records, taken, strict=False), first + 1):
                if not record.is_finite:
                    where = f"{place}, batch {i}"
                    raise not_finite(record.total, record.norm, where, x.index_select(0, rows))
                yield len(rows), list(record[:3])

    def mark_written(self, steps: int) -> None:
        """Tell autograd that parameters have changed, and count the optimizer's steps."""
        for parameter in self.parameters:
            if parameter is None or not parameter.requires_grad or steps == 0:
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
    if not is_plain_optimizer(optimizer):
        return None
    if scheduler is not None and not is_plain_scheduler(scheduler, optimizer):
        return None
    layers = find_layers(model, loss, x)
    if layers is None:
        return None
    parameters = parameters_of(layers)
    if not _owns(optimizer, model, parameters):
        return None
    return MLPTraining(layers, parameters, loss, optimizer, scheduler, clip_norm)


def find_layers(model: nn.Module, loss: DROCCLoss, x: Tensor) -> MLPLayers | None:
    """Find out whether the operator computes a model's objective, and that pays.

    Args:
        model: The model.
        loss: The objective.
        x: The rows.

    Returns:
        The model's layers, or None.
    """
    if x.is_inference() or not torch.is_grad_enabled() or not _is_plain_loss(loss, x):
        return None
    layers = find_mlp(model)
    if layers is None or not has_losses(layers, x) or not draws_like_torch():
        return None
    return layers if pays(layers, _USUAL_ROWS, loss.search.num_steps) else None


def parameters_of(layers: MLPLayers) -> list[Tensor | None]:
    """List weight and bias of each layer, None where it has no bias."""
    return [tensor for layer in layers.linears for tensor in (layer.weight, layer.bias)]


def train_together(
    trainings: Sequence[MLPTraining],
    x: Tensor,
    is_normal: Tensor | None,
    orders: Tensor,
    batch_size: int,
    generators: Sequence[torch.Generator],
    *,
    adversarial: bool,
) -> list[list[StepRecord]]:
    """Take one step per batch with each of some networks, each as if it were alone.

    Networks are shared out among torch's threads; the loss, the optimizer's settings and the
    learning rates are those of the first.

    Args:
        trainings: Networks of one shape, with the same layers frozen.
        x: Rows, `[N, D]`, on the CPU, dtype of the networks.
        is_normal: Mask of the normal rows, `[N]`, or None.
        orders: Which rows the batches of each network take, positions `[networks, n]`.
        batch_size: Rows per batch; the last one may be smaller.
        generators: Sources of the networks' noise.
        adversarial: False leaves out the search and its term.

    Returns:
        Each network's steps. The last one was not taken where it is not finite, and there are none
        after it; parameters, optimizer and scheduler are then as before that step.

    Raises:
        ValueError: If the networks differ.
        RuntimeError: For what else does not fit, from the operator.
    """
    one = trainings[0]
    if len({_kind_of(each) for each in trainings}) > 1:
        raise ValueError(
            "train_together: networks must have one shape, the same layers frozen, and optimizers "
            f"of one kind and state, got {len(trainings)} that differ"
        )
    count = -(-orders.shape[1] // batch_size)
    fresh = [
        [p for p in each.parameters if p is not None and p not in each.optimizer.state]
        for each in trainings
    ]
    states = [optimizer_states(each.optimizer, each.parameters) for each in trainings]
    bits = torch.stack([generator.get_state() for generator in generators])
    with ExitStack() as stack:
        rates = [
            stack.enter_context(scheduled(each.optimizer, each.scheduler, count))
            for each in trainings
        ]
        losses, taken = run_operator(
            one.layers,
            one.loss,
            x,
            is_normal,
            orders,
            batch_size,
            [p for each in trainings for p in each.parameters],
            [tensor for first, _, _ in states for tensor in first],
            [tensor for _, second, _ in states for tensor in second],
            bits,
            rates[0][0],
            states[0][2],
            rule_of(one.optimizer),
            one.clip_norm or 0.0,
            adversarial=adversarial,
            mu=one.loss.mu,
        )
        records = []
        for i, (each, steps) in enumerate(zip(trainings, taken.tolist(), strict=True)):
            generators[i].set_state(bits[i].clone())  # which reads no views
            rates[i][1](steps)
            for parameter in fresh[i] if steps == 0 else ():
                each.optimizer.state.pop(parameter, None)
            each.mark_written(steps)
            rows = losses[i, : steps + 1].tolist()
            records.append([StepRecord(*row) for row in rows])
    return records


def run_operator(
    layers: MLPLayers,
    loss: DROCCLoss,
    x: Tensor,
    is_normal: Tensor | None,
    orders: Tensor,
    batch_size: int,
    parameters: Sequence[Tensor | None],
    first: list[Tensor],
    second: list[Tensor],
    bits: Tensor,
    rates: Tensor,
    steps_done: int,
    rule: OptimizerRule,
    clip_norm: float,
    *,
    adversarial: bool,
    mu: float,
) -> tuple[Tensor, Tensor]:
    """Take steps with networks of one shape, whose parameters and states stand one after another.

    Args:
        layers: The first network.
        loss: The objective.
        x: Rows, `[N, D]`, on the CPU, dtype of the networks.
        is_normal: Mask of the normal rows, `[N]`, or None.
        orders: Positions of the batches' rows, `[networks, n]`.
        batch_size: Rows per batch.
        parameters: Weight and bias of each layer in order, None where there is none.
        first: An optimizer's first state of each parameter, written; empty where it has none.
        second: Its second state, likewise.
        bits: States of the generators of noise, `[networks, bytes]`, written.
        rates: Learning rates of the steps, float64 `[steps]`.
        steps_done: Steps that the optimizer remembers.
        rule: What the optimizer does.
        clip_norm: Largest norm of the gradient; 0 for no clipping.
        adversarial: False leaves out the search and its term.
        mu: Weight of the adversarial term.

    Returns:
        Total, clean and adversarial loss and norm of the gradient, `[networks, steps, 4]`, and how
        many steps were taken, `[networks]`.
    """
    config, count = loss.search, 2 * len(layers.linears)
    result: tuple[Tensor, Tensor] = torch.ops.drocc._mlp_train(
        x.contiguous(),
        is_normal,
        orders.contiguous(),
        min(batch_size, max(orders.shape[1], 1)),  # which is what it makes room for
        [x.new_empty(0) if p is None else p.detach() for p in parameters],
        first,
        second,
        sum(1 << i for i, p in enumerate(parameters[:count]) if p is not None and p.requires_grad),
        layers.negative_slopes,
        bits,
        rates,
        steps_done,
        *rule,
        clip_norm,
        adversarial,
        mu,
        config.radius,
        config.gamma,
        config.step_size,
        config.num_steps,
        config.project_every,
        config.project_start,
        config.project_last,
        config.noise_scale,
        config.noise_factor if _FACTOR_SHARE[config.noise] > 0 else None,
        _FACTOR_SHARE[config.noise],
        swap_rows_of(loss),
        [] if config.radius_range is None else [math.log(end) for end in config.radius_range],
        None if loss.rows is None else loss.rows.contiguous(),
    )
    return result


def swap_rows_of(loss: DROCCLoss) -> Tensor | None:
    """Give the rows that noise goes towards, where the search has such noise."""
    config = loss.search
    if config.noise not in ("swaps", "blend") or config.noise_rows is None:
        return None
    return config.noise_rows.contiguous()


def _kind_of(training: MLPTraining) -> tuple[object, ...]:
    """Give what networks that are trained together have in common."""
    there = [p for p in training.parameters if p is not None and p.requires_grad]
    return (
        tuple(None if p is None else (*p.shape, p.requires_grad) for p in training.parameters),
        training.layers.negative_slopes,
        type(training.optimizer),
        steps_taken(training.optimizer, there[0]),
    )


def _is_plain_loss(loss: DROCCLoss, x: Tensor) -> bool:
    config = loss.search
    swapped = config.noise_rows if config.noise in ("swaps", "blend") else None
    given = [t for t in (loss.rows, config.noise_factor, swapped) if t is not None]
    return (
        type(loss) is DROCCLoss
        and not (loss._forward_hooks or loss._forward_pre_hooks or "forward" in vars(loss))
        and loss.metric == "l2"
        and config.method in ("auto", "hidden")
        and not isinstance(config.radius, Tensor)
        and all(
            t.dim() == x.dim()
            and len(t) > 0  # else the loop refuses it in a sentence
            and t.shape[1:] == x.shape[1:]
            and t.dtype == x.dtype
            and t.is_cpu
            for t in given
        )
    )


def _owns(optimizer: Optimizer, model: nn.Module, parameters: Sequence[Tensor | None]) -> bool:
    """Say whether optimizer and model have the same parameters to train, each once and plain."""
    there = [parameter for parameter in parameters if parameter is not None]
    trained = {id(parameter) for parameter in there if parameter.requires_grad}
    optimized = [p for p in optimizer.param_groups[0]["params"] if p.requires_grad]
    steps = {float(steps_taken(optimizer, p)) for p in optimized}
    return (
        are_plain(there)
        and bool(trained)
        and {id(p) for p in model.parameters()} == {id(p) for p in there}
        and {id(p) for p in optimized} == trained
        and len(steps) == 1
        # A state that was loaded or set may be laid out in another way, or of another type.
        and all(
            state.is_contiguous() and state.dtype == p.dtype and state.device == p.device
            for p in optimized
            for state in optimizer.state.get(p, {}).values()
            if isinstance(state, Tensor) and state.shape == p.shape and p.dim() > 0
        )
    )


def are_plain(parameters: Sequence[Tensor]) -> bool:
    """Say whether parameters are contiguous, none tied to another, none watched by a hook."""
    return (
        len({p.data_ptr() for p in parameters}) == len(parameters)
        and all(p.is_contiguous() for p in parameters)
        and not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in parameters)
    )
