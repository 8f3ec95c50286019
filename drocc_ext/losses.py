"""The training objective: eq. (1), its inner maximum taken by `adversarial_search`."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from drocc_ext._checks import kind, number
from drocc_ext.search import SearchConfig, adversarial_search, as_logits, frozen

_METRICS = ("l2",)


class LossTerms(NamedTuple):
    """The objective and its two parts, 0-dimensional tensors with gradient history.

    Attributes:
        total: `clean + mu * adversarial`, the one to minimize.
        clean: Mean loss of the given rows at their labels.
        adversarial: Mean loss of the adversarial points at the anomalous label; 0 in warm-up and
            in a batch without normal rows.
    """

    total: Tensor
    clean: Tensor
    adversarial: Tensor


class DROCCLoss(nn.Module):
    """Objective of DROCC and, with labelled negatives, of DROCC-OE (eq. (1), Algorithm 1).

    `total = mean BCE(f(x), y) + mu * mean BCE(f(x_adv), 0)`: the first mean is over all rows, the
    second over one adversarial point for each normal row. Weight decay, the paper's lambda, is the
    optimizer's.

    Clean and adversarial rows go through the model in one joint forward. In two, BatchNorm in
    training mode would normalize each group by its own statistics, and a network trained that way
    fails once it uses the running ones.

    Args:
        search: Settings of the search.
        mu: Weight of the adversarial term, >= 0 and finite.
        metric: Geometry of the shell; only "l2" exists.

    Raises:
        TypeError: If search is not a SearchConfig or mu not a number.
        ValueError: If mu is out of range or metric does not exist.
    """

    def __init__(self, search: SearchConfig, mu: float = 1.0, metric: Literal["l2"] = "l2") -> None:
        """Check and keep the settings."""
        super().__init__()
        if not isinstance(search, SearchConfig):
            raise TypeError(
                f"DROCCLoss: search must be a SearchConfig, got {type(search).__name__}"
            )
        if not 0 <= number("DROCCLoss", "mu", mu) < math.inf:
            raise ValueError(f"DROCCLoss: mu must be >= 0 and finite, got {mu}")
        if metric not in _METRICS:
            raise ValueError(
                f"DROCCLoss: metric must be one of {', '.join(_METRICS)}, got {metric!r}"
            )
        self.search = search
        self.mu = float(mu)
        self.metric = metric

    def forward(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None = None,
        *,
        adversarial: bool = True,
        generator: torch.Generator | None = None,
    ) -> LossTerms:
        """Compute the objective on one batch.

        Args:
            model: Maps `[B, *]` to logits `[B]` or `[B, 1]`, higher = more normal.
            x: Rows, `[B, *]`, floating point.
            y: Labels, `[B]` or `[B, 1]`, boolean, integer or floating point: 1 = normal,
                0 = negative. None: every row is normal.
            adversarial: False leaves out the search and its term (the n0 initial steps of
                Algorithm 1).
            generator: Source of the search's noise, on the device of x.

        Returns:
            The terms, in float32 (float64 for float64 logits). An empty batch gives zeros, the
            total connected to the parameters so that `backward` gives zero gradients. A joint
            forward of one single row, for which BatchNorm in training mode is not defined, runs in
            the `frozen` model; parameters still get gradients.

        Raises:
            TypeError: If x is not a floating-point tensor, or y not a tensor.
            ValueError: If y does not fit x or holds another label, and for all that
                `adversarial_search` refuses.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"DROCCLoss: x must be a floating-point tensor, got {kind(x)}")
        if x.dim() == 0:
            raise ValueError("DROCCLoss: x must have a batch dimension, got a tensor of shape ()")
        normal = None if y is None else as_normal_mask("DROCCLoss", y, x.shape[0]).to(x.device)
        if x.shape[0] == 0:
            return _empty_terms(model, x)
        rows = x
        if adversarial:
            rows = torch.cat([x, self._search(model, x, normal, generator)])
        logits = _joint_forward(model, rows)
        clean_logits, adv_logits = logits[: x.shape[0]], logits[x.shape[0] :]
        target = torch.ones_like(clean_logits) if normal is None else normal.to(logits.dtype)
        clean = F.binary_cross_entropy_with_logits(clean_logits, target)
        if adv_logits.shape[0] == 0:
            return LossTerms(clean, clean, torch.zeros_like(clean))
        against = F.binary_cross_entropy_with_logits(adv_logits, torch.zeros_like(adv_logits))
        return LossTerms(clean + self.mu * against, clean, against)

    def extra_repr(self) -> str:
        """Describe the settings, for `repr`.

        Returns:
            One line.
        """
        return f"search={self.search}, mu={self.mu}, metric={self.metric!r}"

    def _search(
        self, model: nn.Module, x: Tensor, normal: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        config = self.search
        radius = config.radius
        if normal is not None:
            if isinstance(radius, Tensor):
                if radius.shape != normal.shape:
                    raise ValueError(
                        f"DROCCLoss: a radius tensor must have shape {tuple(normal.shape)}, one "
                        f"radius per row, got {tuple(radius.shape)}"
                    )
                radius = radius[normal]
            x = x[normal]
        return adversarial_search(
            model,
            x,
            radius=radius,
            step_size=config.step_size,
            num_steps=config.num_steps,
            gamma=config.gamma,
            project_every=config.project_every,
            noise_scale=config.noise_scale,
            project_start=config.project_start,
            generator=generator,
            freeze=config.freeze,
        )


def as_normal_mask(caller: str, y: Tensor, batch_size: int) -> Tensor:
    """Check labels and turn them into a mask of the normal rows.

    Args:
        caller: Name to begin an error with.
        y: Labels, `[B]` or `[B, 1]`: 1 = normal, 0 = negative.
        batch_size: Number of rows B.

    Returns:
        Boolean tensor `[B]`, True = normal, on the device of y.

    Raises:
        TypeError: If y is not a tensor.
        ValueError: If y has another shape or holds another value.
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"{caller}: labels must be a tensor, got {type(y).__name__}")
    if y.shape not in ((batch_size,), (batch_size, 1)):
        raise ValueError(
            f"{caller}: labels must have shape ({batch_size},) or ({batch_size}, 1), got "
            f"{tuple(y.shape)}"
        )
    y = y.reshape(batch_size)
    normal = y == 1
    others = y[~normal & (y != 0)]
    if others.numel() > 0:
        raise ValueError(
            f"{caller}: labels must be 1 (normal) or 0 (negative), got {others[0].item()}"
        )
    return normal


def full_precision(logits: Tensor) -> Tensor:
    """Bring half-precision logits to float32, where a cross-entropy is accurate.

    Args:
        logits: Any floating-point tensor.

    Returns:
        The tensor, in float32 if it was in a half type.
    """
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _joint_forward(model: nn.Module, rows: Tensor) -> Tensor:
    single = rows.shape[0] == 1 and any(
        isinstance(module, _BatchNorm) and module.training for module in model.modules()
    )
    with frozen(model) if single else nullcontext():
        return full_precision(as_logits(model(rows), rows.shape[0]))


def _empty_terms(model: nn.Module, x: Tensor) -> LossTerms:
    zero = full_precision(x.new_zeros(()))
    total = zero
    for parameter in model.parameters():
        # An empty slice, not 0 * sum: NaN weights would make that NaN.
        total = total + parameter.reshape(-1)[:0].sum().to(zero)
    return LossTerms(total, zero, zero.clone())
