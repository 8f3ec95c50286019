"""The fused l2 shell step against eager PyTorch, compiled eager and the published arithmetic.

    python -m benchmarks.bench_l2_shell [--out DIR]     interleaved medians, ratios, JSON
    pytest benchmarks/bench_l2_shell.py                 the same cases under pytest-benchmark

Every case is checked against a float64 computation before it is timed.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import providers
from benchmarks.reporting import timing_arguments, write_json
from drocc_ext import ops
from drocc_ext.demo import interleaved
from python_tests.cases import BENCHMARK_SHAPES, Case

STEP = 0.1
GAMMA = 2.0
OUT_OF_PLACE = {f"{name}, out of place": step for name, step in providers.OUT_OF_PLACE.items()}
PUBLISHED = "published arithmetic"
ADD = "h.add_(grad)"  # moves the bytes of the in-place step and does next to no arithmetic
PROVIDERS = (*providers.IN_PLACE, *OUT_OF_PLACE, PUBLISHED, ADD)


@functools.lru_cache(maxsize=1)
def inputs(shape: tuple[int, int]) -> tuple[Tensor, Tensor, float, Tensor]:
    """h and grad as in a search, float32; a radius that most rows' norms exceed; the result."""
    built = Case(shape).build(seed=0)
    radius = 0.8 * math.sqrt(shape[1])
    expected = providers.eager_step(built.h.double(), built.grad.double(), STEP, radius, GAMMA)
    return built.h, built.grad, radius, expected


def calls(
    shape: tuple[int, int], names: Sequence[str]
) -> tuple[dict[str, Callable[[], Any]], Callable[[], Any]]:
    """Checked callables by name, and a reset of the state they share."""
    start, grad, radius, expected = inputs(shape)
    h, x = start.clone(), torch.zeros_like(start)
    rest = (grad, STEP, radius, GAMMA)
    result: dict[str, Callable[[], Any]] = {}
    for name in names:
        if name == ADD:
            result[name] = functools.partial(h.add_, grad)
            continue
        if name == PUBLISHED:
            step = functools.partial(providers.published_step, x)
        else:
            family = OUT_OF_PLACE if name in OUT_OF_PLACE else providers.IN_PLACE
            step = family[name]
        outcome = step(start.clone(), *rest).double()
        torch.testing.assert_close(outcome, expected, rtol=3e-6, atol=3e-6)
        result[name] = functools.partial(step, h, *rest)
    return result, lambda: h.copy_(start)


@torch.no_grad()
def measure(shape: tuple[int, int], repeats: int) -> dict[str, interleaved.Timing]:
    by_name, reset = calls(shape, PROVIDERS)
    return interleaved.interleaved(by_name, repeats=repeats, reset=reset)


def ratios(times: dict[str, interleaved.Timing]) -> dict[str, float]:
    """Every provider's median as a multiple of native's (in place or not, like with like)."""
    return {
        name: timing.median
        / times["native, out of place" if name.endswith("out of place") else "native"].median
        for name, timing in times.items()
    }


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def targets(rows: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    """The project's bars for this benchmark: value, bar, reached."""
    eager = geometric_mean([row["eager"] for row in rows.values()])
    published = geometric_mean([row[PUBLISHED] for row in rows.values()])
    compiled = min(row["compiled eager"] for row in rows.values())
    copy = rows["8192 x 3072"][ADD]
    bars = {
        "eager, geometric mean": (eager, 3.0),
        "compiled eager, worst shape": (compiled, 1.0),
        "h.add_(grad) at 8192 x 3072": (copy, 0.7),
        "published arithmetic, geometric mean": (published, 8.0),
    }
    return {
        name: {"ratio": value, "bar": bar, "reached": value >= bar}
        for name, (value, bar) in bars.items()
    }


def readme_table(report: dict[str, Any]) -> str:
    """The table of the README, with everything a reader needs to judge it."""
    columns = ("eager", "eager, no temporary", "compiled eager", PUBLISHED)
    where = report["environment"]
    lines = [
        "| `l2_shell_step_`, B x D | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for label, row in report["ratio_to_native"].items():
        lines.append(f"| {label} | " + " | ".join(f"{row[name]:.1f}x" for name in columns) + " |")
    rows = report["ratio_to_native"].values()
    means = (f"{geometric_mean([row[name] for row in rows]):.1f}x" for name in columns)
    lines += [
        "| geometric mean | " + " | ".join(means) + " |",
        "",
        f"Time of each as a multiple of the fused step's, float32, {where['threads']} threads of "
        f"{where['processor']}, torch {where['torch']},",
        f"{where['cpu_instruction_set']} kernels, medians of interleaved repeats "
        f"(`{report['command']}`). At 8192 x 3072 the step reaches",
        f"{report['ratio_to_native']['8192 x 3072'][ADD]:.2f} of the speed of `h.add_(grad)`, "
        "which moves the same bytes.",
    ]
    return "\n".join(lines)


def main() -> None:
    arguments = timing_arguments(__doc__)
    report: dict[str, Any] = {
        "command": "python -m benchmarks.bench_l2_shell "
        f"--repeats {arguments.repeats} --threads {arguments.threads}",
        "operation": "l2_shell_step_, float32, step 0.1, radius 0.8 sqrt(D), gamma 2",
        "environment": interleaved.environment(),
        "seconds": {},
        "ratio_to_native": {},
    }
    for shape in BENCHMARK_SHAPES:
        label = f"{shape[0]} x {shape[1]}"
        print(f"{label} ...", file=sys.stderr, flush=True)
        times = measure(shape, arguments.repeats)
        report["seconds"][label] = {name: timing._asdict() for name, timing in times.items()}
        report["ratio_to_native"][label] = ratios(times)
    report["targets"] = targets(report["ratio_to_native"])

    names = list(next(iter(report["ratio_to_native"].values())))
    print("times as multiples of the native step's (in place, or out of place like with like)")
    print(f"{'':28}" + "".join(f"{label:>15}" for label in report["ratio_to_native"]))
    for name in names:
        row = [values[name] for values in report["ratio_to_native"].values()]
        print(f"{name:28}" + "".join(f"{value:15.2f}" for value in row))
    for name, target in report["targets"].items():
        verdict = "reached" if target["reached"] else "NOT reached"
        print(f"{name}: {target['ratio']:.2f}, bar {target['bar']}: {verdict}")
    path = arguments.out / "l2_shell_cpu.json"
    write_json(path, report)
    print(f"written to {path}")


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("shape", BENCHMARK_SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_l2_shell_step(benchmark: Any, provider: str, shape: tuple[int, int]) -> None:
    with torch.no_grad():
        by_name, reset = calls(shape, [provider])
        reset()
        benchmark.group = f"l2_shell_step {shape[0]}x{shape[1]}"
        benchmark.extra_info.update(
            shape=shape, dtype="float32", provider=provider, **interleaved.environment()
        )
        benchmark(by_name[provider])


@pytest.mark.skipif(providers.TRITON_ABSENT is not None, reason=str(providers.TRITON_ABSENT))
@pytest.mark.parametrize("shape", BENCHMARK_SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_l2_shell_step_on_triton(benchmark: Any, shape: tuple[int, int]) -> None:
    start, grad, radius, expected = inputs(shape)
    h, rest = start.cuda(), (grad.cuda(), STEP, radius, GAMMA)
    step = providers.on_triton(ops.l2_shell_step_)
    torch.testing.assert_close(step(h, *rest).double().cpu(), expected, rtol=3e-6, atol=3e-6)
    benchmark.extra_info.update(
        shape=shape, dtype="float32", provider="triton", gpu=torch.cuda.get_device_name()
    )
    benchmark(step, h, *rest)


if __name__ == "__main__":
    main()
