"""Accelerate: a loop of one's own on one process or several.

`python examples/accelerate_loop.py`
`accelerate launch --num_processes 2 --cpu examples/accelerate_loop.py`
"""

from __future__ import annotations

import sys

import torch
from torch.utils.data import DataLoader, TensorDataset

from drocc_ext import DROCCLoss, SearchConfig, networks

try:
    from accelerate import Accelerator
except ImportError:
    sys.exit("this example needs accelerate: pip install accelerate")


def main() -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    angle = torch.rand(2000) * 6.28
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    model = networks.MLP(2, 64)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = DataLoader(TensorDataset(ring), 128, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    loss = DROCCLoss(SearchConfig.from_relative_step(0.3))
    torch.manual_seed(accelerator.process_index)  # each process searches from noise of its own
    for _ in range(30):
        loss.start_epoch()  # only the metric "mahalanobis" needs it
        for (x,) in loader:
            optimizer.zero_grad()
            accelerator.backward(loss(model, x).total)
            optimizer.step()
    model = accelerator.unwrap_model(model).eval()
    points = torch.tensor([[0.0, 1.0], [0.0, 0.5], [0.0, 1.5]])
    with torch.no_grad():
        on, inside, outside = model(points).flatten().tolist()
    accelerator.print(f"logits on the ring {on:.1f}, inside {inside:.1f}, outside {outside:.1f}")


if __name__ == "__main__":
    main()
