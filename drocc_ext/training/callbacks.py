"""Hooks into `Trainer.fit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drocc_ext.training.checkpoint import History
    from drocc_ext.training.trainer import Trainer


class Callback:
    """Base class: override what is needed. `trainer.should_stop = True` ends the fit.

    Attributes:
        on_every_rank: Whether to run on all ranks that train together; False for one that writes or
            prints, which rank 0 alone is to do.
    """

    on_every_rank = True

    def on_fit_start(self, trainer: Trainer) -> None:
        """Run before the first epoch, and before a checkpoint is loaded.

        Args:
            trainer: The caller.
        """

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        """Run before each epoch.

        Args:
            trainer: The caller.
            epoch: Number of the epoch, from 1.
        """

    def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
        """Run after each optimizer step.

        Args:
            trainer: The caller.
            step: Optimizer steps so far.
            losses: "loss", "clean" and "adversarial" of the batch.
        """

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Run after each epoch and its validation, before its checkpoint is written.

        Args:
            trainer: The caller.
            record: The epoch's entry of the history.
        """

    def on_fit_end(self, trainer: Trainer, history: History) -> None:
        """Run once at the end, after the best weights are restored; not after an error.

        Args:
            trainer: The caller.
            history: All epochs.
        """
