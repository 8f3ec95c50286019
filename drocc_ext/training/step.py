"""One optimizer step on the objective, which leaves the model alone where a value is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from drocc_ext._checks import as_float
from drocc_ext.training.data import Batches
from drocc_ext.training.loss import DROCCLoss, LossTerms


class OptimizerStep:
    """Forward, backward, check, clipping, update.

    Args:
        model: The model, on its device.
        loss: The objective.
        optimizer: Over the model's parameters.
        clip_norm: Largest l2 norm of the gradient, > 0; None for no clipping.
        autocast_dtype: float16 (with loss scaling), bfloat16, or None for full precision.

    Raises:
        ValueError: If clip_norm or autocast_dtype is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: DROCCLoss,
        optimizer: Optimizer,
        *,
        clip_norm: float | None,
        autocast_dtype: torch.dtype | None,
    ) -> None:
        """Check and keep the parts."""
        self.ranks: Any = None  # whom it is shared with, where it is
        if clip_norm is not None and not 0 < as_float("Trainer", "clip_norm", clip_norm) < math.inf:
            raise ValueError(f"Trainer: clip_norm must be > 0 and finite, got {clip_norm}")
        if autocast_dtype not in (None, torch.float16, torch.bfloat16):
            raise ValueError(
                f"Trainer: autocast_dtype must be float16 or bfloat16, got {autocast_dtype}"
            )
        parameter = next(model.parameters(), torch.empty(0))
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.clip_norm: float | None = None if clip_norm is None else float(clip_norm)
        self.autocast_dtype = autocast_dtype
        self.device_type: str = parameter.device.type
        self.scaler: torch.amp.GradScaler = torch.amp.GradScaler(
            self.device_type, enabled=autocast_dtype is torch.float16
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """Make the context for forwards.

        Returns:
            Autocast to the chosen type, or a context that does nothing.
        """
        if self.autocast_dtype is None:
            return nullcontext()
        return _autocast(self.device_type, self.autocast_dtype)

    def start_epoch(self, batches: Batches) -> None:
        """Prepare the steps of an epoch.

        Args:
            batches: Its batches.
        """

    def __call__(
        self,
        x: Tensor,
        y: Tensor | None,
        *,
        adversarial: bool,
        generator: torch.Generator | None,
        place: str,
    ) -> list[float]:
        """Take one step.

        Args:
            x: Rows, `[B, *]`.
            y: Labels, or None.
            adversarial: False in warm-up.
            generator: Source of the search's noise.
            place: Where in the fit this is, for an error.

        Returns:
            Total, clean and adversarial loss.

        Raises:
            FloatingPointError: If the loss or the norm of its gradient is not finite. Weights,
                BatchNorm statistics and the loss's state are then as before. With loss scaling a
                gradient that is not finite means a step left out and a smaller scale, as usual.
        """
        statistics = [
            (buffer, buffer.clone())
            for module in self.model.modules()
            if isinstance(module, _NormBase)
            for buffer in module.buffers(recurse=False)
        ]
        counted = self.loss.state_dict()  # a forward makes new tensors, these stay as they are
        self.optimizer.zero_grad()
        with self.autocast():
            terms = self._forward(x, y, adversarial, generator)
        self.scaler.scale(terms.total).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        # The optimizer's, for what it does not step has gradients of former batches, in its scale.
        stepped = (p for group in self.optimizer.param_groups for p in group["params"])
        parameters = [p for p in stepped if p.grad is not None]
        norm = self._norm([p.grad for p in parameters if p.grad is not None])
        # The step's only read-back, after the backward pass is queued.
        *losses, gradient = self._read(terms, norm)
        if not math.isfinite(losses[0] if self.scaler.is_enabled() else losses[0] + gradient):
            self.optimizer.zero_grad()
            with torch.no_grad():
                for buffer, before in statistics:
                    buffer.copy_(before)
            self.loss.load_state_dict(counted)
            raise not_finite(losses[0], gradient, place, x)
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return losses

    def count_rows(self, x: Tensor) -> int:
        """Count the rows of a step.

        Args:
            x: Its rows, `[B, *]`.

        Returns:
            B.
        """
        return x.shape[0]

    def _forward(
        self, x: Tensor, y: Tensor | None, adversarial: bool, generator: torch.Generator | None
    ) -> LossTerms:
        terms: LossTerms = self.loss(self.model, x, y, adversarial=adversarial, generator=generator)
        return terms

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        return nn.utils.get_total_norm(gradients)

    def _read(self, terms: LossTerms, norm: Tensor) -> list[float]:
        values: list[float] = torch.stack([*terms, norm.to(terms.total)]).tolist()
        return values


@contextmanager
def _autocast(device_type: str, dtype: torch.dtype) -> Iterator[None]:
    """Compute in a shorter type, and say so where the processor has no layer in it."""
    with torch.autocast(device_type, dtype=dtype):
        try:
            yield
        except RuntimeError as error:
            if "could not create a primitive" not in str(error):
                raise
            raise ValueError(
                "Trainer: autocast_dtype must be a type that this processor computes the model's "
                f"layers in, got {dtype} (oneDNN: {str(error).partition('. ')[0]})"
            ) from error


def not_finite(loss: float, norm: float, place: str, x: Tensor) -> FloatingPointError:
    """Make the error for a step that was not taken.

    Args:
        loss: Its loss.
        norm: The norm of its gradient.
        place: Where in the fit this is.
        x: The rows of its batch.

    Returns:
        The error.
    """
    hint = "" if bool(x.isfinite().all()) else "; x holds NaN or infinite values"
    return FloatingPointError(
        f"Trainer.fit: loss {loss} and gradient norm {norm} in {place} are not "
        f"finite; the weights are as before this batch{hint}"
    )
