"""A small run of every CUDA kernel and regime, for compute-sanitizer (`make cuda-sanitize`)."""

from __future__ import annotations

import torch

import drocc_ext
from drocc_ext import ops
from drocc_ext.models import networks
from drocc_ext.search import SearchConfig
from drocc_ext.search.mlp.match import find_hidden_layers, find_mlp
from drocc_ext.search.mlp.search import hidden_search, mlp_search


def main() -> None:
    torch.manual_seed(0)
    drocc_ext.use_backend("native")
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for shape in ((9, 6), (5, 37), (3, 512), (3, 3072), (2, 20484), (1, 150528)):
            leaves = [torch.randn(shape, device="cuda").to(dtype) for _ in range(2)]
            leaves.append(torch.rand(shape, device="cuda").to(dtype) + 0.1)
            h, grad, sigma = (t.requires_grad_() for t in leaves)
            radius = shape[1] ** 0.5
            for out in (
                ops.l2_shell_step(h, grad, 1.0, radius, 1.5),
                ops.mahalanobis_shell_step(h, grad, sigma, 1.0, radius, 1.5),
                ops.mahalanobis_norm(h, sigma),
                ops.influence(grad),
            ):
                out.sum().backward()
    for units, rows, steps in ((9, 5, 40), (128, 3, 40), (100, 600, 3), (6500, 2, 2)):
        layers = find_hidden_layers(networks.MLP(6, units).cuda())
        assert layers is not None
        x, start = torch.randn(2, rows, 6, device="cuda")
        start[0] = 0.0
        hidden_search(
            layers,
            x,
            start,
            SearchConfig(radius=2.0, gamma=1.5, step_size=0.2, num_steps=steps),
        )
    # Weights on chip with few rows and many, from the caches likewise, and rows in device memory.
    for features, widths, rows in (
        (6, [9, 9], 5),
        (6, [9, 33, 9], 1000),
        (300, [300, 9], 5),
        (40, [300, 300], 70),
        (12000, [3, 3], 5),
    ):
        for dtype in (torch.float32, torch.float64):
            network = find_mlp(networks.MLP(features, widths).cuda().to(dtype))
            assert network is not None
            x, start = torch.randn(2, rows, features, device="cuda", dtype=dtype)
            for sigma in (None, torch.ones_like(x)):
                mlp_search(
                    network,
                    x,
                    start.clone(),
                    sigma,
                    SearchConfig(radius=2.0, gamma=1.5, step_size=0.2, num_steps=3),
                )
    torch.cuda.synchronize()
    print("ran every kernel")


if __name__ == "__main__":
    main()
