"""A callback for Lightning's `Trainer`."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch

from drocc_ext.training.loss import DROCCLoss

__all__ = ["StartEpoch"]


def _callback_class() -> Any:
    """Give the base class of callbacks: of the package in use, the new name or the former."""
    names = ["lightning.pytorch", "pytorch_lightning"]
    names.sort(key=lambda name: name not in sys.modules)
    for name in names:
        try:
            return importlib.import_module(name).Callback
        except ImportError:
            continue
    raise ImportError("drocc_ext.integrations.lightning needs Lightning, pip install lightning")


class StartEpoch(_callback_class()):  # type: ignore[misc]
    """Calls `start_epoch` of every `DROCCLoss` that a LightningModule holds.

    The loss of the metric "mahalanobis" with `influence="epoch"` needs that call at the start of
    each epoch; for any other it does nothing. The loss has to be an attribute of the module, which
    also puts it in eval mode for validation and its sigma into checkpoints. Processes that train
    together get one sigma, from the rows of all.

    Raises:
        RuntimeError: At the start of a fit, if the module holds no `DROCCLoss`.
    """

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Look for the losses.

        Args:
            trainer: Lightning's.
            pl_module: The module that is trained.
        """
        if not _losses(pl_module):
            raise RuntimeError(
                "StartEpoch: the LightningModule must hold a DROCCLoss as an attribute, got "
                f"{type(pl_module).__name__} without one"
            )

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin an epoch of each loss.

        Args:
            trainer: Lightning's.
            pl_module: The module that is trained.
        """
        distributed = torch.distributed
        alone = not (distributed.is_available() and distributed.is_initialized())
        # The rows of all processes count together.
        group = None if alone or trainer.world_size == 1 else distributed.group.WORLD
        for loss in _losses(pl_module):
            loss.start_epoch(group)


def _losses(pl_module: Any) -> list[DROCCLoss]:
    return [module for module in pl_module.modules() if isinstance(module, DROCCLoss)]
