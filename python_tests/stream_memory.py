"""Peak memory, in MB, of a summary, an epoch and scores of a sparse file: PATH GIGABYTES."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

from drocc_ext import DROCCLoss, SearchConfig, Trainer
from drocc_ext.models.networks import MLP
from drocc_ext.streams import NpyBlocks, RowStream, score_to_file, summarize

COLUMNS = 64


def resident() -> float:
    """Memory of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main(path: Path, gigabytes: float) -> None:
    torch.set_num_threads(1)
    count = int(gigabytes * 1e9 / (4 * COLUMNS))
    array = np.lib.format.open_memmap(path, "w+", np.float32, (count, COLUMNS))
    array[:4096] = np.random.default_rng(0).normal(size=(4096, COLUMNS))  # the rest is a hole
    del array
    blocks = NpyBlocks(path)
    took, before = {}, resident()
    started = time.perf_counter()
    summary = summarize(blocks)
    took["summary"] = time.perf_counter() - started
    net = MLP(COLUMNS, (8,))
    loss = DROCCLoss(SearchConfig(radius=1.0, step_size=0.2, num_steps=1))
    trainer = Trainer(net, loss, torch.optim.SGD(net.parameters(), lr=0.01), progress=False)
    stream = RowStream(blocks, 65536, seed=0, transform=lambda x: x - summary.mean)
    started = time.perf_counter()
    trainer.fit(stream, epochs=1, warmup_epochs=1, seed=0)
    took["epoch"] = time.perf_counter() - started
    out = path.with_suffix(".scores.npy")
    started = time.perf_counter()
    assert score_to_file(lambda x: trainer.score(x).numpy(), blocks, out) == count
    took["scores"] = time.perf_counter() - started
    out.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    speeds = ", ".join(f"{name} {count / seconds:.0f}" for name, seconds in took.items())
    print(f"{peak:.0f} MB, {before:.0f} before; rows per second: {speeds}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
