"""How training scales over ranks: predicted from costs, and measured on two.

    python -m benchmarks.scale predict
    python -m benchmarks.scale measure [--rounds 5] [--only LeNet] [--out DIR]

`measure` runs one process and two gloo ranks, one thread each, in turn, and gives rows per second
and rows per second of processor time: on a busy machine only the second says something.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.reporting import write_json
from drocc_ext import DROCCLoss, SearchConfig, Trainer
from drocc_ext.models.networks import MLP, CIFARLeNet
from drocc_ext.training.callbacks import Callback

STEPS = 5
RANKS = (1, 2, 8, 64, 256, 1024)

# What the prediction assumes of a GPU and its network; nothing of it was measured here.
FLOPS = 40e12  # per second, float32 with TF32 products, of a network large enough
OPERATION = 5e-6  # seconds until the next kernel can start: small networks wait for that
IN_NODE, LINK, PER_NODE = 300e9, 40e9, 8  # bytes per second and GPU: inside, between; GPUs
LATENCY, LATENCY_LINK = 20e-6, 10e-6  # seconds: of an all-reduce; more per doubling of nodes


class Case(NamedTuple):
    """A network and the rows a rank gives it."""

    name: str
    network: nn.Module
    row: tuple[int, ...]
    batch_size: int


def cases(*, images: bool) -> list[Case]:
    found = [
        Case("MLP 32-256-256-1", MLP(32, (256, 256)), (32,), 512),
        Case("LeNet (CIFAR)", CIFARLeNet(), (3, 32, 32), 512),
    ]
    if images:
        from benchmarks.paper.imagenet import MobileNetV2

        found.append(Case("MobileNetV2, 224 x 224", MobileNetV2(), (3, 224, 224), 64))
    return found


class _Count(TorchDispatchMode):
    """Counts operator calls, each at least one kernel on a GPU, and floating-point operations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.flops = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


class Costs(NamedTuple):
    """Of a row, in floating-point operations; of a step, in bytes and operator calls."""

    score: float
    search: float
    loss: float
    bytes: int
    calls: int


def costs_of(case: Case) -> Costs:
    """Count a forward. A gradient of the input costs two; a loss has two rows, at three each."""
    config = SearchConfig(radius=1.0, step_size=0.2, num_steps=STEPS, method="autograd")
    net, loss, x = case.network, DROCCLoss(config), torch.randn(4, *case.row)
    with _Count() as count, torch.no_grad():
        net(x)
    score = count.flops / len(x)
    with _Count() as count:
        loss(net, x).total.backward()
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    return Costs(score, 2 * STEPS * score, 6 * score, 4 * trained, count.calls)


def all_reduce(size: float, ranks: int) -> float:
    """Seconds of a ring inside a node and one between nodes, one after the other."""
    if ranks == 1:
        return 0.0
    inside = min(ranks, PER_NODE)
    nodes = math.ceil(ranks / PER_NODE)
    took = LATENCY + 2 * (inside - 1) / inside * size / IN_NODE
    if nodes > 1:
        took += LATENCY_LINK * math.log2(nodes) + 2 * (nodes - 1) / nodes * size / inside / LINK
    return took


def predict() -> None:
    print("| network | parameters | FLOP per row: score | search | loss | bytes per step |")
    print("|---|---|---|---|---|---|")
    table = [(case, costs_of(case)) for case in cases(images=True)]
    for case, costs in table:
        numbers = " | ".join(f"{n:.3g}" for n in costs[:3])
        size = f"{costs.bytes / 1e6:.3g} MB"
        print(f"| {case.name} | {costs.bytes // 4:,} | {numbers} | {size} |")
    print("\n| network, rows per GPU | step | " + " | ".join(map(str, RANKS)) + " |")
    print("|---" * (len(RANKS) + 2) + "|")
    for case, costs in table:
        work = (costs.search + costs.loss) * case.batch_size / FLOPS
        step = max(work, costs.calls * OPERATION)
        speeds = [n * step / (step + all_reduce(costs.bytes, n)) for n in RANKS]
        numbers = " | ".join(f"{n:.3g}" for n in speeds)
        print(f"| {case.name}, {case.batch_size} | {1e3 * step:.2g} ms | {numbers} |")


class StepByStep(Callback):
    """Keeps the operator away that takes whole epochs of one process."""

    def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
        pass


def _train(case: Case, steps: int, ranks: int, by_step: bool) -> tuple[float, float]:
    """Rows per second on the clock, and per second of one rank's processor time times ranks."""
    model: nn.Module = case.network
    if ranks > 1:
        model = DistributedDataParallel(case.network)
    search = SearchConfig(radius=1.0, step_size=0.2, num_steps=STEPS)
    optimizer = torch.optim.Adam(case.network.parameters(), lr=1e-3)
    callbacks = [StepByStep()] if by_step else []
    trainer = Trainer(model, DROCCLoss(search), optimizer, progress=False, callbacks=callbacks)
    rows = torch.randn(case.batch_size * steps * ranks, *case.row)
    trainer.fit(rows[: 64 * ranks], epochs=1, batch_size=64, seed=0)
    wall, used = time.perf_counter(), time.process_time()
    trainer.fit(rows, epochs=1, batch_size=case.batch_size, seed=0)
    wall, used = time.perf_counter() - wall, time.process_time() - used
    return len(rows) / wall, len(rows) / used


def _start(
    rank: int, ranks: int, store: str, name: str, by_step: bool, steps: int, out: Any
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    [case] = [case for case in cases(images=False) if case.name == name]
    found = _train(case, steps, ranks, by_step)
    sent = None
    if ranks > 1:
        tensor: Tensor = torch.zeros(sum(p.numel() for p in case.network.parameters()))
        dist.all_reduce(tensor)
        used = time.process_time()
        for _ in range(50):
            dist.all_reduce(tensor)
        sent = (time.process_time() - used) / 50
        dist.destroy_process_group()
    if rank == 0:
        out.put((*found, sent))


def _run(ranks: int, name: str, by_step: bool, steps: int) -> tuple[float, float, float | None]:
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    with tempfile.TemporaryDirectory() as place:
        arguments = (ranks, f"{place}/store", name, by_step, steps, out)
        processes = [
            context.Process(target=_start, args=(rank, *arguments)) for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        found: tuple[float, float, float | None] = out.get(timeout=3600)
        for process in processes:
            process.join()
    return found


def measure(rounds: int, only: str, out: Path) -> None:
    results: dict[str, Any] = {}
    for case, steps in zip(cases(images=False), (60, 2), strict=True):
        if only not in case.name:
            continue
        ways = {"one": (1, False), "one, step by step": (1, True), "two": (2, True)}
        found: dict[str, list[tuple[float, float, float | None]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, (ranks, by_step) in ways.items():
                found[way].append(_run(ranks, case.name, by_step, steps))
        middle = {
            way: {
                "rows_per_second": round(statistics.median(r[0] for r in runs)),
                "rows_per_processor_second": round(statistics.median(r[1] for r in runs)),
            }
            for way, runs in found.items()
        }
        sent = statistics.median(r[2] for r in found["two"] if r[2] is not None)
        step = case.batch_size / middle["one, step by step"]["rows_per_processor_second"]
        results[case.name] = {
            **middle,
            "all_reduce_ms": round(1e3 * sent, 3),
            "predicted": round(2 * step / (step + sent), 2),
        }
        for way in ("one", "one, step by step"):
            for unit in ("rows_per_second", "rows_per_processor_second"):
                ratio = middle["two"][unit] / middle[way][unit]
                results[case.name][f"two / {way}, {unit}"] = round(ratio, 2)
        print(case.name, results[case.name], flush=True)
    content = {
        "command": f"python -m benchmarks.scale measure --rounds {rounds}",
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "results": results,
    }
    write_json(out / "scale.json", content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("predict", "measure"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="part of the name of the network to measure")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    if arguments.what == "predict":
        predict()
    else:
        measure(arguments.rounds, arguments.only, arguments.out)


if __name__ == "__main__":
    main()
