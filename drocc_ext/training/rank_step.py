"""A step that all ranks take together."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from drocc_ext.search.mlp.match import find_mlp
from drocc_ext.training.data import Batches
from drocc_ext.training.loss import LossTerms
from drocc_ext.training.mlp_gradient import MLPGradient, find_gradient
from drocc_ext.training.shares import TensorShare
from drocc_ext.training.step import OptimizerStep, not_finite

if TYPE_CHECKING:
    from drocc_ext.training.distributed import Ranks

_T = TypeVar("_T")


class RankStep(OptimizerStep):
    """A step that all ranks take together, each with the weight that its rows have.

    Ranks tell each other nothing but gradients: losses are added up at the end of the epoch.
    """

    ranks: Ranks
    _is_mlp: bool | None = None
    _gradient: MLPGradient | None = None

    def __init__(self, *parts: Any, **settings: Any) -> None:
        """Keep the parts, and which parameters are trained."""
        super().__init__(*parts, **settings)
        self._flags = self._trained()

    def start_epoch(self, batches: Batches) -> None:
        """Find out whether one operator computes the steps' gradients; all ranks do, or none."""
        gradient, own = None, self.ranks.current.batches
        if self.autocast_dtype is None and isinstance(own, TensorShare):
            gradient = find_gradient(self.model, self.loss, own.x)
        there = self.ranks.add([gradient is not None])[0] == self.ranks.size
        self._gradient = gradient if there else None

    def __call__(
        self,
        x: Tensor,
        y: Tensor | None,
        *,
        adversarial: bool,
        generator: torch.Generator | None,
        place: str,
    ) -> list[float]:
        """Take one step, see `OptimizerStep`."""
        if (flags := self._trained()) != self._flags:
            self._follow(flags)
        if self._gradient is None or generator is None:
            return super().__call__(x, y, adversarial=adversarial, generator=generator, place=place)
        self.optimizer.zero_grad()  # what is frozen now may have a gradient of former steps
        values = self._add_gradients(self._gradient, x, y, adversarial, generator)
        self._gradient.give()
        stepped = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = self._norm([p.grad for p in stepped if p.grad is not None])
        if not math.isfinite(norm):
            self.optimizer.zero_grad()
            raise not_finite(self.ranks.add(values)[0], float(norm), place, x)
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(stepped, self.clip_norm, norm)
        self.optimizer.step()
        return values

    def _trained(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self.model.parameters()]

    def _follow(self, flags: list[bool]) -> None:
        """Go on with other parameters, frozen or not, on all ranks.

        `DistributedDataParallel` adds up the gradients of what was trained when it was made.
        """
        model, former = self.model, self._flags
        if isinstance(model, DistributedDataParallel):
            if self.ranks.wraps:
                _wrap_anew(model)
            elif self._gradient is None and any(
                now and not then for now, then in zip(flags, former, strict=True)
            ):
                raise ValueError(
                    "Trainer.fit: parameters that are trained must have been so when the model was "
                    "wrapped, or ranks would drift apart; freeze layers after that, or let "
                    "distributed='ddp' wrap it"
                )
        self._flags = flags
        own = self.ranks.current.batches
        if self._gradient is not None and isinstance(own, TensorShare):
            self._gradient = find_gradient(model, self.loss, own.x)

    def _add_gradients(
        self,
        gradient: MLPGradient,
        x: Tensor,
        y: Tensor | None,
        adversarial: bool,
        generator: torch.Generator,
    ) -> list[float]:
        """Make the gradient the mean over all rows; give this rank's part of the losses."""
        _, _, row_weight, normal_weight = self.ranks.current.turn
        mu = self.loss.mu
        # The operator's sum, times row_weight, is this rank's part of the objective.
        share = normal_weight / row_weight if row_weight > 0 else 1.0
        record = gradient(x, y, generator, adversarial=adversarial, mu=mu * share)
        gradient.flat.mul_(row_weight / self.ranks.size)
        dist.all_reduce(gradient.flat, group=self.ranks.group)
        clean, against = record.clean * row_weight, record.adversarial * normal_weight
        losses = [clean + mu * against, clean, against]
        return [loss / self.ranks.size for loss in losses]

    def count_rows(self, x: Tensor) -> int:
        """Count the rows of the step, over all ranks."""
        return self.ranks.current.turn.rows

    def _forward(
        self, x: Tensor, y: Tensor | None, adversarial: bool, generator: torch.Generator | None
    ) -> LossTerms:
        _, _, row_weight, normal_weight = self.ranks.current.turn
        counted = self.loss.state_dict() if row_weight == 0 else None
        terms = self._terms(x, y, adversarial, generator)
        if counted is not None:  # rows that were counted before are not to enter sigma again
            self.loss.load_state_dict(counted)
        if not row_weight == normal_weight == 1:
            # The mean over ranks of these is the mean over all rows, whoever has how many.
            clean, against = terms.clean * row_weight, terms.adversarial * normal_weight
            other = terms.total - terms.clean - self.loss.mu * terms.adversarial
            total = clean + self.loss.mu * against + other * row_weight
            terms = LossTerms(total, clean, against)
        # A loss that is not finite on one rank makes the gradient, which all ranks get, not finite.
        return terms._replace(total=terms.total * (1 + 0 * terms.total.detach()))

    def _terms(
        self, x: Tensor, y: Tensor | None, adversarial: bool, generator: torch.Generator | None
    ) -> LossTerms:
        """Let the operators for multilayer perceptrons run under DDP too: they call no module."""
        model = self.model
        if isinstance(model, DistributedDataParallel):
            if self._is_mlp is None:  # asked once, it takes a while
                self._is_mlp = find_mlp(model.module) is not None
            if self._is_mlp:
                options: dict[str, Any] = {"adversarial": adversarial, "generator": generator}
                return _through(model, x, lambda: self.loss(model.module, x, y, **options))
        return super()._forward(x, y, adversarial, generator)

    def _read(self, terms: LossTerms, norm: Tensor) -> list[float]:
        """Give this rank's part of the losses, whose sum over the ranks is the step's."""
        *values, gradient = torch.stack([*terms, norm.to(terms.total)]).tolist()
        values = [value / self.ranks.size for value in values]
        if self.scaler.is_enabled() or not math.isfinite(gradient):
            everywhere = self.ranks.add(values)
            if not math.isfinite(everywhere[0] + gradient):
                values = everywhere
        return [*values, gradient]

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        norm = super()._norm(gradients)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _wrap_anew(model: DistributedDataParallel) -> None:
    """Make the wrapper again in its place, for all that holds it; hooks stay."""
    hooks = {name: vars(model)[name] for name in vars(nn.Module()) if "_hooks" in name}
    training, messages = model.training, list(getattr(model, "_comm_hooks", ()))
    model.zero_grad(set_to_none=True)  # gradients may lie in the former one's buckets
    DistributedDataParallel.__init__(
        model, model.module, process_group=model.process_group, gradient_as_bucket_view=True
    )
    for name, value in hooks.items():
        setattr(model, name, value)
    for hook, state in messages:
        model.register_comm_hook(state, hook)
    model.training = training


def _through(model: DistributedDataParallel, x: Tensor, compute: Callable[[], _T]) -> _T:
    """Compute something as the forward of the module inside: between DDP's before and after."""
    inner = model.module
    former = vars(inner).get("forward")

    def give_back() -> None:
        if former is None:
            vars(inner).pop("forward", None)
        else:
            inner.forward = former

    def once(*_: Any) -> _T:
        give_back()
        return compute()

    inner.forward = once
    try:
        result: _T = model(x)
        return result
    finally:
        give_back()
