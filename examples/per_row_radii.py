"""A radius for each row: wide where the data are sparse, narrow where they are dense.

`python examples/per_row_radii.py`
"""

from __future__ import annotations

from dataclasses import replace

import torch
from sklearn.neighbors import NearestNeighbors

from drocc_ext import DROCCLoss, SearchConfig, networks


def main() -> None:
    torch.manual_seed(0)
    # A dense and a sparse cluster.
    x = torch.cat([torch.randn(600, 2) * 0.1 + 1, torch.randn(600, 2) * 0.6 - 1])
    distances, _ = NearestNeighbors(n_neighbors=21).fit(x).kneighbors(x)
    radii = torch.from_numpy(distances[:, -1]).float()  # to the 20th neighbor
    print(f"radii from {radii.min():.2f} to {radii.max():.2f}")

    model = networks.MLP(2, (64, 64))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    base = SearchConfig(radius=1.0, step_size=0.03, num_steps=5)
    loss = DROCCLoss(base)
    for _ in range(60):
        for rows in torch.randperm(len(x)).split(128):
            loss.search = replace(base, radius=radii[rows])  # [B], in the order of the batch
            optimizer.zero_grad()
            loss(model, x[rows]).total.backward()
            optimizer.step()
    # The same distance from a cluster's rim: far for the dense one, near for the sparse one.
    with torch.no_grad():
        dense, sparse = model(torch.tensor([[1.0, 1.7], [-1.0, -2.2]])).flatten().tolist()
    print(f"logit 0.7 from the dense center: {dense:.2f}, 1.2 from the sparse one: {sparse:.2f}")


if __name__ == "__main__":
    main()
