"""A callback of `drocc_ext.Trainer` that writes what TensorBoard shows."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from drocc_ext.training.callbacks import Callback

if TYPE_CHECKING:
    from drocc_ext.training.checkpoint import History
    from drocc_ext.training.trainer import Trainer

__all__ = ["TensorBoard"]


class TensorBoard(Callback):
    """Writes each epoch's losses, monitored value, learning rate and seconds.

    The number of a point is that of the optimizer steps so far. A fit that resumes goes on in the
    same curves. Whole epochs of a multilayer perceptron still take one call.

    Args:
        log_dir: Where to write; made where missing.
        settings: Other arguments of `torch.utils.tensorboard.SummaryWriter`.

    Raises:
        ImportError: If tensorboard is not installed.
    """

    on_every_rank = False

    def __init__(self, log_dir: str | os.PathLike[str], **settings: Any) -> None:
        """Look for the package; nothing is written before a fit."""
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ImportError(
                f"TensorBoard: needs tensorboard, pip install tensorboard ({error})"
            ) from error
        self._make = SummaryWriter
        self._settings = {"log_dir": os.fspath(log_dir), **settings}
        self._writer: SummaryWriter | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        """Open the file of this fit.

        Args:
            trainer: The caller.
        """
        self._close()  # of a fit that ended with an error
        self._writer = self._make(**self._settings)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        """Write the epoch's values.

        Args:
            trainer: The caller.
            record: The epoch's entry of the history.
        """
        assert self._writer is not None
        for name, value in record.items():
            if name != "step":
                tag = f"drocc/{name}"
                self._writer.add_scalar(tag, value, int(record["step"]))
        self._writer.flush()

    def on_fit_end(self, trainer: Trainer, history: History) -> None:
        """Close the file.

        Args:
            trainer: The caller.
            history: All epochs.
        """
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
