"""One rank of a training that torchrun starts again whenever a rank is killed.

    torchrun ... elastic_worker.py DIRECTORY KILLS SEED

In each of its first KILLS lives one of the ranks kills itself: within an epoch, or while rank 0
writes the checkpoint. Rank 0 leaves the weights of the end in DIRECTORY/weights.pt.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from drocc_ext import DROCCLoss, SearchConfig, Trainer
from drocc_ext.training.callbacks import Callback
from drocc_ext.training.distributed import join_ranks

EPOCHS, STEPS = 12, 10


class Kill(Callback):
    """Kills this process at a step; `while_writing` at the end of that epoch, half a file later."""

    def __init__(self, step: int, while_writing: bool) -> None:
        self.step, self.while_writing = step, while_writing

    def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
        if step == self.step and not self.while_writing:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        if self.while_writing and record["step"] >= self.step:
            torch.save = self._save_half

    @staticmethod
    def _save_half(content: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def main(directory: str, kills: str, seed: str) -> None:
    torch.set_num_threads(1)
    join_ranks(timeout=timedelta(minutes=5))
    life = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    chance = random.Random(f"{seed} {life}")  # the same on all ranks
    victim, while_writing = chance.randrange(2), chance.random() < 0.5
    rank = torch.distributed.get_rank()
    # A later life dies later, so that they all do.
    step = 1 + int((life + chance.random()) * EPOCHS * STEPS / (int(kills) + 1))
    step = min(step, (EPOCHS - 1) * STEPS)
    doomed = life < int(kills) and rank == (0 if while_writing else victim)

    torch.manual_seed(int(seed))
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    rows = torch.randn(16 * 2 * STEPS, 6, generator=torch.Generator().manual_seed(1))
    trainer = Trainer(
        DistributedDataParallel(net),
        DROCCLoss(SearchConfig(radius=1.0, step_size=0.2, num_steps=2), metric="mahalanobis"),
        optimizer,
        callbacks=[Kill(step, while_writing) if doomed else Callback()],
        progress=False,
    )
    history = trainer.fit(
        rows,
        validation=rows[:40],
        epochs=EPOCHS,
        batch_size=16,
        checkpoint_dir=Path(directory) / "run",
        resume=True,
        seed=int(seed),
    )
    if rank == 0:
        values = [record["monitor"] for record in history]
        torch.save(
            {"weights": net.state_dict(), "monitor": values, "lives": life + 1},
            f"{directory}/end.pt",
        )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
