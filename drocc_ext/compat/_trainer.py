"""What the two published trainers share."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from drocc_ext._checks import as_float, as_int, describe
from drocc_ext._files import atomic_write
from drocc_ext.models.modes import frozen
from drocc_ext.models.modules import (
    as_logits,
    draws_numbers,
    fresh_casts,
    full_precision,
    keeping_gradients,
    uses_batch_statistics,
)
from drocc_ext.training.checkpoint import check_bytes, reason_of
from drocc_ext.training.loss import as_normal_mask

Array: TypeAlias = "np.ndarray[Any, Any]"
# Batches (rows [B, *], labels [B] or [B, 1]: 1 = normal, 0 = negative, ...), as a DataLoader gives.
Loader: TypeAlias = Iterable[Any]
# lr_scheduler(epoch, total_epochs, only_ce_epochs, learning_rate, optimizer), before every epoch.
Schedule: TypeAlias = Callable[[int, int, int, float, Optimizer], Any]


class PublishedTrainer:
    """Constructor, save, load and the epoch; a subclass brings the search and `train`, `test`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        lamda: float,
        radius: float,
        gamma: float,
        device: torch.device | str,
        *,
        method: Literal["auto", "autograd"] = "auto",
    ) -> None:
        """Keep the parts of a training.

        Args:
            model: Maps `[B, *]` to logits `[B, 1]` or `[B]`, higher = more normal; on `device`.
            optimizer: Over the model's parameters.
            lamda: Weight of the adversarial loss.
            radius: Inner radius of the shell, > 0 and finite.
            gamma: Outer radius divided by inner radius, >= 1.
            device: Where batches go.
            method: How the search gets its gradients. "autograd": from the model, step by step;
                "auto": all steps at once where the network allows it.

        Raises:
            TypeError: If a setting has the wrong type.
            ValueError: If a setting is out of range.
        """
        name = type(self).__name__
        if not 0 < as_float(name, "radius", radius) < np.inf:
            raise ValueError(f"{name}: radius must be > 0 and finite, got {radius}")
        if not as_float(name, "gamma", gamma) >= 1:
            raise ValueError(f"{name}: gamma must be >= 1, got {gamma}")
        if method not in ("auto", "autograd"):
            raise ValueError(f"{name}: method must be 'auto' or 'autograd', got {method!r}")
        if not isinstance(lamda, Tensor) and not 0 <= as_float(name, "lamda", lamda) < np.inf:
            raise ValueError(f"{name}: lamda must be >= 0 and finite, got {lamda}")
        self.model: nn.Module = model
        self.optimizer = optimizer
        self.lamda = lamda
        self.radius = radius
        self.gamma = gamma
        self.device: torch.device = torch.device(device)
        self.method = method
        self.ascent_step_size: float = 0.001
        self.ascent_num_steps: int = 50
        self._channels_last: bool | None = None  # whether images go in that memory format

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model's `state_dict` to `model.pt` in a directory, made where missing.

        Args:
            path: The directory.
        """
        file = Path(path) / "model.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self.model.state_dict(), whole := io.BytesIO())
        atomic_write(file, lambda stream: stream.write(whole.getbuffer()))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read what `save` wrote, here or in the published trainer, into the model.

        Args:
            path: The directory.

        Raises:
            FileNotFoundError: If there is no `model.pt`.
            RuntimeError: If the weights do not fit the model.
            ValueError: If a part of the file is damaged.
        """
        file = Path(path) / "model.pt"
        with open(file, "rb") as stream:
            try:
                check_bytes(stream)
                state = torch.load(stream, map_location=self.device, weights_only=True)
            except Exception as error:  # damaged bytes fail in any way
                raise ValueError(
                    f"{file}: the weights cannot be read: {reason_of(error)}"
                ) from error
        if not isinstance(state, dict):
            raise ValueError(f"{file}: must hold a state_dict, got {type(state).__name__}")
        self.model.load_state_dict(state)

    def _set_ascent(self, step_size: float, num_steps: int) -> None:
        caller = f"{type(self).__name__}.train"
        if not 0 <= as_float(caller, "ascent_step_size", step_size) < np.inf:
            raise ValueError(f"{caller}: ascent_step_size must be >= 0 and finite, got {step_size}")
        self.ascent_num_steps = as_int(caller, "ascent_num_steps", num_steps, 0)
        self.ascent_step_size = float(step_size)

    def _epochs(self, total_epochs: int) -> int:
        return as_int(f"{type(self).__name__}.train", "total_epochs", total_epochs, 0)

    def _train_epoch(self, loader: Loader, *, adversarial: bool) -> tuple[float, float]:
        """Take one step for each batch; return the means of the two losses over the batches."""
        with keeping_gradients(), fresh_casts(self.device.type):
            return self._train_epoch_in(loader, adversarial=adversarial)

    def _train_epoch_in(self, loader: Loader, *, adversarial: bool) -> tuple[float, float]:
        caller = f"{type(self).__name__}.train"
        self.model.train()
        # Kept on the device and without graphs; read back once, after the epoch.
        ce_sum: Tensor | float = 0.0
        adv_sum: Tensor | float = 0.0
        batches = 0
        for batch in loader:
            data, target = _rows_and_labels(caller, batch)
            del batch
            batches += 1
            # On the device the labels came on, so that their values need no wait for another.
            is_normal = as_normal_mask(caller, target, data.shape[0])
            rows = self._to_model(data)
            self.optimizer.zero_grad()
            some = None if bool(is_normal.all()) else is_normal.to(rows.device)
            joint = self._joint_losses(rows, some) if adversarial else None
            if joint is not None:
                loss, adv_loss = joint
            else:
                logits = self._logits(rows)
                loss = F.binary_cross_entropy_with_logits(logits, is_normal.to(logits))
                if adversarial:
                    adv_loss = self._adversarial_loss(rows if some is None else rows[some])
            ce_sum = ce_sum + loss.detach()
            if adversarial:
                adv_sum = adv_sum + adv_loss.detach()
                loss = loss + adv_loss * self.lamda
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            # The loader's next batch then takes this one's memory, which is still in cache.
            del data, target, rows, is_normal, joint, loss
        if batches == 0:
            raise ValueError(f"{caller}: train_loader must give at least one batch, got none")
        return float(ce_sum / batches), float(adv_sum / batches)

    def _joint_losses(self, rows: Tensor, is_normal: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Losses of the rows and of adversarial points around the normal ones, where one can."""
        return None

    def _adversarial_loss(self, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def _has_own_loss(self) -> bool:
        """Say whether a subclass, or an assignment, brings an objective of its own."""
        name = "one_class_adv_loss"
        published = next(c for c in reversed(type(self).__mro__) if name in vars(c))
        return name in vars(self) or getattr(type(self), name) is not vars(published)[name]

    def _loss_at(self, x_adv: Tensor) -> Tensor:
        return _loss_of(self._logits(x_adv))

    def _logits(self, rows: Tensor) -> Tensor:
        with self._mode_for(rows):
            return full_precision(as_logits(self.model(rows), rows.shape[0]))

    def _mode_for(self, rows: Tensor) -> AbstractContextManager[None]:
        # The statistics of one row would be its values: every deviation from them is 0.
        if rows.shape[0] == 1 and uses_batch_statistics(self.model):
            return frozen(self.model)
        return nullcontext()

    def _to_model(self, data: Tensor) -> Tensor:
        types = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        dtype = next(types, torch.get_default_dtype())
        rows = data.to(self.device, dtype, non_blocking=True)
        if rows.dim() != 4 or not rows.is_cpu:
            return rows
        if self._channels_last is None:
            # An objective of somebody's own may call `view` on the rows.
            own = self._has_own_loss()
            self._channels_last = not own and takes_channels_last(self.model, rows)
        if not self._channels_last:
            return rows
        return rows.contiguous(memory_format=torch.channels_last)

    def _scores(self, loader: Loader, *, probability: bool) -> tuple[Array, Array]:
        """Score a loader's rows; return labels and scores, float64 `[N]` each."""
        caller = f"{type(self).__name__}.test"
        labels: list[Tensor] = []
        scores: list[Tensor] = []
        with keeping_gradients(), torch.no_grad():
            for batch in loader:
                data, target = _rows_and_labels(caller, batch)
                labels.append(as_normal_mask(caller, target, data.shape[0]).cpu())
                logits = self._logits(self._to_model(data))
                scores.append(logits.sigmoid() if probability else logits)
        if not labels:
            raise ValueError(f"{caller}: the loader must give at least one batch, got none")
        values = torch.cat(scores).double().cpu().numpy()
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            warnings.warn(
                f"{caller}: scores must be finite, got {values[row]} in row {row}; are the data?",
                RuntimeWarning,
                stacklevel=3,
            )
        return torch.cat(labels).double().numpy(), values


def _rows_and_labels(caller: str, batch: object) -> tuple[Tensor, Any]:
    """Take the first two parts of a loader's batch."""
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise TypeError(
            f"{caller}: a loader must give batches (rows, labels, ...), got {describe(batch)}"
        )
    data, target, *_ = batch
    if not isinstance(data, Tensor) or data.dim() == 0:
        raise TypeError(f"{caller}: a batch's rows must be a tensor [B, *], got {describe(data)}")
    return data, target


def takes_channels_last(model: nn.Module, images: Tensor) -> bool:
    """Try whether a model computes the same from images in the memory format channels_last.

    Convolutions and pooling are faster in it on a CPU. A model that calls `view` on activations, as
    the published ones do, fails. One that draws random numbers in training, for dropout or as
    noise, would give them to other values: they follow the order of memory.

    Args:
        model: Maps `[B, C, H, W]` to logits. Left as it is; one with hooks is not called.
        images: A batch, `[B, C, H, W]`: a model may take no other number of rows.

    Returns:
        Whether to use the format.
    """
    modules = list(model.modules())
    if not any(isinstance(module, nn.Conv2d) for module in modules) or any(
        module._forward_hooks or module._forward_pre_hooks for module in modules
    ):
        return False
    if draws_numbers(model, images):
        return False
    with torch.no_grad():
        try:
            with frozen(model):
                expected = model(images.contiguous())
                logits = model(images.contiguous(memory_format=torch.channels_last))
        except Exception:  # "view size is not compatible"; a model of any class runs here
            return False
    return bool(torch.allclose(logits, expected, rtol=1e-3, atol=1e-3, equal_nan=True))


def _loss_of(anomalous: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(anomalous, torch.zeros_like(anomalous))
