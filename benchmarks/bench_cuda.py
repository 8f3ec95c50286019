"""Every operator on the GPU at hand: time, bandwidth against a measured copy, eager and compiled.

    python -m benchmarks.bench_cuda --out DIR       (benchmarks/gpu.sh runs it after the tests)

Times are medians over repeats by CUDA events, rotating over inputs that together exceed the L2
cache; `bytes` are those an ideal kernel moves, each input read once, each output written once.
Results are checked against float64 before they are timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import drocc_ext
from benchmarks import cuda_search
from benchmarks.providers import eager_step_
from benchmarks.reporting import write_json
from drocc_ext import ops
from drocc_ext.demo import interleaved
from drocc_ext.ops import _library

DEVICE = "cuda"
SHAPES = ((256, 6), (256, 274), (256, 3072), (65536, 6), (65536, 784), (65536, 3072),
          (64, 150528), (2048, 150528))  # fmt: skip
COMPILED_SHAPES = ((256, 3072), (65536, 3072), (2048, 150528))
SEARCHES = ((256, 6, 128, 50), (256, 274, 128, 50), (256, 768, 128, 50), (256, 3072, 128, 50),
            (16384, 768, 128, 50), (256, 3072, 1024, 50))  # fmt: skip
GAMMA, STEP = 1.5, 0.5
TRAININGS: list[str] | None = None  # all
# (case, least share of the copy's bandwidth): what the project promises on a data-centre GPU.
BARS = {
    "l2_shell_step_ 65536 x 3072": 0.85,
    "l2_shell_step_ 2048 x 150528": 0.85,
    "mahalanobis_shell_step_ 65536 x 3072": 0.60,
}


def seconds(calls: list[Callable[[], Any]], budget: float = 0.15) -> float:
    """Median time of one call, over rotating inputs."""
    for call in calls:
        call()
    if DEVICE == "cpu":  # a dry run: nothing is measured
        return 1e-6
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times: list[float] = []
    while len(times) < 5 or (sum(times) < budget and len(times) < 100):
        # Short kernels in a batch: the launch of one must not be waited for by the next.
        repeats = 1 if times and times[0] > 1e-3 else 20
        start.record()
        for k in range(repeats):
            calls[k % len(calls)]()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / repeats)
    return statistics.median(times)


def in_graph(calls: list[Callable[[], Any]]) -> list[Callable[[], Any]]:
    """The same calls, one after the other in a captured graph: without the host's share."""
    if DEVICE == "cpu":
        return calls
    calls[0]()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return [graph.replay]


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a large device-to-device copy."""
    source = torch.randn(2**29 if DEVICE == "cuda" else 2**10, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / seconds([lambda: target.copy_(source)], 0.3)


def operands(shape: tuple[int, int], dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """Enough copies of (h, grad, sigma) to exceed the caches."""
    bytes_each = 3 * shape[0] * shape[1] * dtype.itemsize
    count = max(1, min(16, -(-400_000_000 // bytes_each)))

    def draw() -> Tensor:
        return torch.randn(shape, device=DEVICE, dtype=dtype)

    return [(draw(), draw(), draw().abs_().add_(0.1)) for _ in range(count)]


def checked(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (actual.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(error.max()) <= tolerance, f"{name}: {float(error.max())} from float64"


def check(dtype: torch.dtype) -> None:
    """Steps of a few rows of every length against the eager operators in float64."""
    tolerance = {2: 1e-2, 4: 2e-6, 8: 1e-12}[dtype.itemsize]
    for length in (6, 274, 784, 3072, 150528):
        h, grad, sigma = (t[:7] for t in operands((7, length), dtype)[0])
        radius = 0.8 * length**0.5
        wide = [t.double().cpu() for t in (h, grad, sigma)]
        with drocc_ext.use_backend("eager"):
            plain = ops.l2_shell_step(wide[0], wide[1], STEP, radius, GAMMA)
            metric = ops.mahalanobis_shell_step(*wide, STEP, radius, GAMMA)
        checked("l2", ops.l2_shell_step(h, grad, STEP, radius, GAMMA).cpu(), plain, tolerance)
        got = ops.mahalanobis_shell_step(h, grad, sigma, STEP, radius, GAMMA).cpu()
        checked("mahalanobis", got, metric, 10 * tolerance)


def providers_of(name: str) -> dict[str, Callable[..., Any]]:
    """Implementations of an in-place operator by name, where they exist here."""

    def by(backend: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with drocc_ext.use_backend(backend):
                return getattr(ops, name)(*arguments)

        return call

    found = {"native": getattr(ops, name), "eager operators": by("eager")}
    if name == "l2_shell_step_":
        found |= {"eager": eager_step_, "compiled eager": torch.compile(eager_step_, dynamic=False)}
    if _library.triton_error(DEVICE) is None:
        found["triton"] = by("triton")
    return found


@torch.no_grad()
def operators(copy: float, rows: dict[str, dict[str, Any]]) -> None:
    """Time and bandwidth of every operator at every shape, into `rows`, printed one by one."""

    def record(label: str, calls: list[Callable[[], Any]], moved: int) -> None:
        time = seconds(calls)
        share = moved / time / copy
        rows[label] = {"seconds": time, "bytes": moved, "share of copy": share}
        print(f"{label:46}{time * 1e6:12.1f} us{100 * share:7.1f} %", flush=True)

    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16) if shape[0] > 2000 else (torch.float32,):
            sets = operands(shape, dtype)
            size = shape[0] * shape[1] * dtype.itemsize
            radius = 0.8 * shape[1] ** 0.5
            suffix = f"{shape[0]} x {shape[1]}" + ("" if dtype == torch.float32 else " bfloat16")
            rest = (STEP, radius, GAMMA)

            def bind(f: Callable[..., Any], *fixed: Any) -> Callable[[], Any]:
                return lambda: f(*fixed)

            step, metric = ops.l2_shell_step_, ops.mahalanobis_shell_step_
            shell = ops.project_l2_shell_
            calls = [bind(step, h, g, *rest) for h, g, _ in sets]
            record(f"l2_shell_step_ {suffix}", calls, 3 * size)
            calls = [bind(metric, h, g, s, *rest) for h, g, s in sets]
            record(f"mahalanobis_shell_step_ {suffix}", calls, 4 * size)
            calls = [bind(shell, h, radius, GAMMA) for h, _, _ in sets]
            record(f"project_l2_shell_ {suffix}", calls, 2 * size)
            if shape[0] * shape[1] < 2**28:
                calls = [bind(ops.influence, g) for _, g, _ in sets]
                record(f"influence {suffix}", calls, 2 * size)
                calls = [bind(ops.mahalanobis_norm, h, s) for h, _, s in sets]
                record(f"mahalanobis_norm {suffix}", calls, 2 * size)
            del sets


@torch.no_grad()
def against_eager() -> dict[str, dict[str, Any]]:
    """Both steps by every provider: seconds; what fails says why."""
    table: dict[str, dict[str, Any]] = {}
    for shape in COMPILED_SHAPES:
        sets = operands(shape, torch.float32)
        rest = (STEP, 0.8 * shape[1] ** 0.5, GAMMA)
        for name in ("l2_shell_step_", "mahalanobis_shell_step_"):
            metric = name.startswith("mahalanobis")
            row: dict[str, Any] = {}
            for provider, step in providers_of(name).items():
                calls = [
                    lambda f=step, o=o[: 3 if metric else 2]: f(*o, *rest)  # noqa: B023
                    for o in sets
                ]
                try:
                    with drocc_ext.use_backend("native"):
                        row[provider] = seconds(calls)
                        if provider == "native" and shape[0] == COMPILED_SHAPES[0][0]:
                            row["native, in a graph"] = seconds(in_graph(calls)) / len(calls)
                except Exception as error:
                    row[provider] = {"failed": repr(error)[:300]}
            table[f"{name} {shape[0]} x {shape[1]}"] = row
        del sets
    return table


def dry_run() -> None:
    """Every line of this file, on the CPU and small."""
    global DEVICE, SHAPES, COMPILED_SHAPES, SEARCHES, BARS, TRAININGS
    DEVICE, SHAPES, COMPILED_SHAPES = "cpu", ((8, 6), (4, 300)), ((8, 6),)
    SEARCHES, TRAININGS = ((8, 6, 9, 3),), [next(iter(cuda_search.TRAININGS))]
    BARS = {"l2_shell_step_ 8 x 6": 0.85}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true", help="small shapes on the CPU, no times")
    arguments = parser.parse_args()
    if arguments.dry_run:
        dry_run()
    report: dict[str, Any] = {
        "command": "python -m benchmarks.bench_cuda",
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "none: a dry run",
        "environment": interleaved.environment(),
    }
    path = arguments.out / "cuda.json"
    failed: list[str] = []

    def attempt(name: str, part: Callable[[], None]) -> None:
        """Whatever happens here, what is measured so far is written, and the rest is measured."""
        try:
            part()
        except Exception as error:
            failed.append(name)
            report[f"{name}, failed"] = repr(error)[:500]
            print(f"{name} failed: {error!r}"[:500], flush=True)
        write_json(path, report)

    def measure_operators() -> None:
        copy = report["copy, bytes per second"] = copy_bandwidth()
        print(f"{report['device']}: copy {copy / 1e12:.2f} TB/s", flush=True)
        report["operators"] = {}
        operators(copy, report["operators"])

    def compare(name: str, part: Callable[[], dict[str, Any]]) -> None:
        report[name] = part()
        print(name)
        for case, row in report[name].items():
            print(f"  {case}: {json.dumps(row, default=str)}", flush=True)

    def judge_bars() -> None:
        report["bars"] = {}
        for name, bar in BARS.items():
            share = report["operators"][name]["share of copy"]
            report["bars"][name] = {"share": share, "bar": bar}
            verdict = "reached" if share >= bar else "NOT reached"
            print(f"{name}: {share:.2f} of the copy, bar {bar}: {verdict}", flush=True)

    with drocc_ext.use_backend("native"):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            attempt(f"values in {dtype}", lambda: check(dtype))  # noqa: B023
        attempt("operators", measure_operators)
    attempt("bars", judge_bars)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "providers, seconds": against_eager,
        "search, seconds": lambda: cuda_search.searches(seconds, DEVICE, SEARCHES),
        "training step, seconds": lambda: cuda_search.training_steps(seconds, DEVICE, TRAININGS),
    }
    for name, part in parts.items():
        attempt(name, lambda: compare(name, part))  # noqa: B023
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
