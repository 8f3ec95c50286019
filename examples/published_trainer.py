"""A script for EdgeML's trainer with its import changed: two clusters, anomalies all around.

`python examples/published_trainer.py`
"""

from __future__ import annotations

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

# before: from edgeml_pytorch.trainer.drocc_trainer import DROCCTrainer
from drocc_ext.compat.edgeml import DROCCTrainer
from drocc_ext.models import networks


def clusters(count: int) -> torch.Tensor:
    centers = torch.tensor([[-1.5, 0.0], [1.5, 0.0]])
    return centers[torch.randint(2, (count,))] + 0.3 * torch.randn(count, 2)


def set_rate(epoch: int, total: int, only_ce: int, rate: float, optimizer: Optimizer) -> None:
    """Called before every epoch: the rate halves in the last third."""
    for group in optimizer.param_groups:
        group["lr"] = rate / 2 if 3 * epoch > 2 * total else rate


def main() -> None:
    torch.manual_seed(0)
    train = TensorDataset(clusters(1000), torch.ones(1000))  # 1 = normal
    rows = torch.cat([clusters(200), 8 * torch.rand(200, 2) - 4])
    test = TensorDataset(rows, torch.cat([torch.ones(200), torch.zeros(200)]))

    model = networks.MLP(2, (64, 64))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trainer = DROCCTrainer(model, optimizer, lamda=1.0, radius=1.0, gamma=2.0, device="cpu")
    trainer.train(
        DataLoader(train, batch_size=128, shuffle=True),
        DataLoader(test, batch_size=128),  # chooses the epoch, as published
        learning_rate=0.01,
        lr_scheduler=set_rate,
        total_epochs=20,
        only_ce_epochs=3,
        ascent_step_size=0.1,
        ascent_num_steps=10,
        metric="AUC",
    )
    trainer.model.eval()  # the best epoch's


if __name__ == "__main__":
    main()
