"""Peak memory of the adversarial search, and of one forward and backward pass beside it.

    python -m benchmarks.bench_search_memory [--out DIR]

Counts the bytes of live tensor storages at every operator call.
"""

from __future__ import annotations

import argparse
import weakref
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.reporting import write_json
from drocc_ext import adversarial_search
from drocc_ext.demo import interleaved
from drocc_ext.models import networks


class PeakMemory(TorchDispatchMode):
    """Tracks storages made while it is active; `peak` is the largest sum of live bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                key = storage.data_ptr()
                if key and key not in known and key not in self.live:
                    self.live[key] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, key, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return result


def peak_of(function: Any) -> int:
    with PeakMemory() as memory:
        function()
    return memory.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = networks.CIFARLeNet().eval()
    x = torch.randn(64, 3, 32, 32)
    size = x.numel() * x.element_size()

    def forward_backward() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(model(leaf).sum(), leaf)

    def search(steps: int) -> None:
        adversarial_search(model, x, radius=8.0, step_size=0.8, num_steps=steps)

    once = peak_of(forward_backward)
    rows = {steps: peak_of(lambda steps=steps: search(steps)) for steps in (1, 5, 50)}
    bound = once + 2 * size
    print(f"one forward and backward: {once} bytes; x: {size} bytes; bound: {bound} bytes")
    for steps, peak in rows.items():
        print(f"search of {steps} steps: {peak} bytes, {'within' if peak <= bound else 'ABOVE'}")
    report = {
        "command": "python -m benchmarks.bench_search_memory",
        "environment": interleaved.environment(),
        "model": "CIFARLeNet, batch 64, float32",
        "bytes_of_x": size,
        "peak_forward_backward": once,
        "peak_search_by_steps": rows,
        "bound": bound,
        "reached": all(peak <= bound for peak in rows.values()),
    }
    path = arguments.out / "search_memory.json"
    write_json(path, report)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
