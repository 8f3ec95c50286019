"""The Mahalanobis projection against vectorised PyTorch and the published solver's arithmetic.

    python -m benchmarks.bench_mahalanobis_shell [--out DIR]   interleaved medians, ratios, JSON
    pytest benchmarks/bench_mahalanobis_shell.py               the same under pytest-benchmark

sigma is the influence of real gradients: of a network that has learnt to tell rows from noise.
Every exact provider is checked against float64 before it is timed; for the others the quality of
the answers is reported beside their time.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from benchmarks import mahalanobis_peers as peers
from benchmarks import providers
from benchmarks.reporting import timing_arguments, write_json
from drocc_ext import ops
from drocc_ext.demo import interleaved
from drocc_ext.models.networks import MLP
from drocc_ext.ops.eager import mahalanobis_shell as reference

SHAPE = (128, 784)
GAMMA = 1.25
NATIVE, NATIVE_GRID, STEP = "native", "native, grid of 40", "native, whole step"
BISECTION, GRID = "bisection, 60 steps", "grid of 40"
PUBLISHED = "published arithmetic"
# (batch, features) over which the cost must be linear: in D at one B, and in B at one D.
LINEAR_IN_D = tuple((64, length) for length in (784, 3072, 12288, 49152, 150528))
LINEAR_IN_B = tuple((batch, 3072) for batch in (16, 64, 256, 1024))


class Inputs(NamedTuple):
    """h, grad and sigma [B, D]; a radius that rows lie on both sides of."""

    h: Tensor
    grad: Tensor
    sigma: Tensor
    radius: float


@functools.lru_cache(maxsize=2)
def inputs(shape: tuple[int, int]) -> Inputs:
    """Noise around rows of low-dimensional structure, and a network's gradients there."""
    batch, length = shape
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(0)
        rows = torch.randn(batch, 8) @ torch.randn(8, length) / 8**0.5
        network = MLP(length, 64)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        labels = (torch.arange(2 * batch) < batch).float()[:, None]
        for _ in range(30):
            x = torch.cat([rows, rows + torch.randn_like(rows)])
            loss = torch.nn.functional.binary_cross_entropy_with_logits(network(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        x = rows.requires_grad_()
        (at_rows,) = torch.autograd.grad(network(x).sum(), x)
        h = torch.randn(batch, length)
        moved = (rows.detach() + h).requires_grad_()
        (grad,) = torch.autograd.grad(network(moved).sum(), moved)
    # A third of the rows inside, a third nearer, a third farther out.
    sigma = ops.influence(at_rows.detach())
    factors = torch.tensor([0.5, 1.1, 2.0]).repeat(batch)[:batch, None]
    radius = length**0.5
    return Inputs(factors * radius * h / peers.length(h, sigma), grad.detach(), sigma, radius)


def calls(shape: tuple[int, int], names: Sequence[str]) -> dict[str, Callable[[], Tensor]]:
    """Checked callables by name."""
    start, grad, sigma, radius = inputs(shape)
    h = torch.empty_like(start)
    rest = (sigma, radius, GAMMA)

    # In place, as in a search; a second call would find every row in the shell, hence the copy.
    def fresh() -> Tensor:
        return h.copy_(start)

    known: dict[str, Callable[[], Tensor]] = {
        NATIVE: lambda: ops.project_mahalanobis_shell_(fresh(), *rest),
        NATIVE_GRID: lambda: ops.project_mahalanobis_shell_(
            fresh(), *rest, "grid", peers.GRID_POINTS
        ),
        STEP: lambda: ops.mahalanobis_shell_step_(fresh(), grad, sigma, 0.5, radius, GAMMA),
        BISECTION: lambda: peers.bisection(start, *rest),
        GRID: lambda: peers.grid(start, *rest),
        PUBLISHED: lambda: peers.published(start, *rest),
    }
    for name, tolerance in ((NATIVE, 1e-6), (BISECTION, 2e-3)):
        if name in names:
            check(known[name](), start, sigma, radius, tolerance)
    return {name: known[name] for name in names}


def check(x: Tensor, h: Tensor, sigma: Tensor, radius: float, tolerance: float) -> None:
    """Compare with the float64 solution, row by row, relative to the row's length."""
    exact = reference.project_mahalanobis_shell(h.double(), sigma.double(), radius, GAMMA)
    error = (x.double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert float(error.max()) <= tolerance, f"{float(error.max())} from the float64 solution"


def quality(x: Tensor, shape: tuple[int, int]) -> dict[str, float]:
    """How good an answer is: rows in the shell (to 1e-5), and squared distance over the least."""
    h, _, sigma, radius = inputs(shape)
    h64, sigma64 = h.double(), sigma.double()
    exact = reference.project_mahalanobis_shell(h64, sigma64, radius, GAMMA)
    lengths = peers.length(x.double(), sigma64)[:, 0] / radius
    inside = (lengths >= 1 - 1e-5) & (lengths <= GAMMA * (1 + 1e-5))
    moved = (exact - h64).norm(dim=1) > 1e-6 * h64.norm(dim=1)
    excess = ((x.double() - h64).norm(dim=1) / (exact - h64).norm(dim=1))[moved & inside] ** 2
    return {
        "rows in the shell": float(inside.double().mean()),
        "squared distance / least, mean": float(excess.mean()),
        "squared distance / least, worst": float(excess.max()),
    }


@torch.no_grad()
def compare(repeats: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time every provider at one shape, and judge its answer."""
    names = (NATIVE, NATIVE_GRID, STEP, BISECTION, GRID)
    by_name = calls(SHAPE, names)
    times = interleaved.interleaved(by_name, repeats=repeats)
    # The published solver takes as long as all the others together: fewer rounds, beside native.
    slow = calls(SHAPE, (NATIVE, PUBLISHED))
    slow_times = interleaved.interleaved(slow, repeats=max(3, repeats // 8))
    ratios = {name: timing.median / times[NATIVE].median for name, timing in times.items()}
    ratios[PUBLISHED] = slow_times[PUBLISHED].median / slow_times[NATIVE].median
    times[PUBLISHED] = slow_times[PUBLISHED]
    answers: dict[str, dict[str, float]] = {}
    for name, call in {**by_name, PUBLISHED: slow[PUBLISHED]}.items():
        if name != STEP:
            answers[name] = quality(call().clone(), SHAPE)
    report = {name: timing._asdict() for name, timing in times.items()}
    return {"seconds": report, "ratio_to_native": ratios}, answers


@torch.no_grad()
def scaling(shapes: Sequence[tuple[int, int]], repeats: int) -> dict[str, dict[str, float]]:
    """Time per element of the in-place projection and step, per shape."""
    result = {}
    for shape in shapes:
        times = interleaved.interleaved(calls(shape, (NATIVE, STEP)), repeats=repeats)
        elements = shape[0] * shape[1]
        result[f"{shape[0]} x {shape[1]}"] = {
            name: timing.median / elements * 1e9 for name, timing in times.items()
        }
    return result


def targets(ratios: dict[str, float], answers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The project's bars for this benchmark: value, bar, reached."""
    bars = {
        "published arithmetic / native": (ratios[PUBLISHED], 300.0),
        "grid of 40 / native": (ratios[GRID], 10.0),
        "bisection of 60 / native": (ratios[BISECTION], 10.0),
        "rows in the shell": (answers[NATIVE]["rows in the shell"], 1.0),
    }
    return {
        name: {"value": value, "bar": bar, "reached": value >= bar}
        for name, (value, bar) in bars.items()
    }


def readme_table(report: dict[str, Any]) -> str:
    """The table of the README, with everything a reader needs to judge it."""
    where = report["environment"]
    lines = [
        "| `project_mahalanobis_shell`, 128 x 784 | time / native | rows in the shell "
        "| distance² / least |",
        "|---|---|---|---|",
    ]
    for name, answer in report["answers"].items():
        inside, mean, _ = answer.values()
        ratio = report["ratio_to_native"][name]
        shown = f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"
        lines.append(f"| {name} | {shown} | {100 * inside:.1f} % | {mean:.2f} |")
    lines += [
        "",
        f"float32, sigma from a network's gradients, {where['threads']} threads of "
        f"{where['processor']}, torch {where['torch']}, {where['cpu_instruction_set']} kernels,",
        f"medians of interleaved repeats (`{report['command']}`).",
    ]
    return "\n".join(lines)


def main() -> None:
    arguments = timing_arguments(__doc__)
    print("comparing ...", file=sys.stderr, flush=True)
    compared, answers = compare(arguments.repeats)
    report: dict[str, Any] = {
        "command": "python -m benchmarks.bench_mahalanobis_shell "
        f"--repeats {arguments.repeats} --threads {arguments.threads}",
        "operation": f"copy of h and project_mahalanobis_shell_, float32, {SHAPE}, "
        f"sigma from gradients, gamma {GAMMA}, a third of the rows inside the shell",
        "environment": interleaved.environment(),
        **compared,
        "answers": answers,
        "targets": targets(compared["ratio_to_native"], answers),
        "nanoseconds_per_element": {},
    }
    for name, shapes in (("in D", LINEAR_IN_D), ("in B", LINEAR_IN_B)):
        print(f"scaling {name} ...", file=sys.stderr, flush=True)
        report["nanoseconds_per_element"][name] = scaling(shapes, max(5, arguments.repeats // 4))

    print(f"{'':24}{'time / native':>15}{'in the shell':>15}{'distance^2 / least':>20}")
    for name, ratio in report["ratio_to_native"].items():
        answer = answers.get(name)
        cells = ""
        if answer is not None:
            inside, mean, _ = answer.values()
            cells = f"{100 * inside:13.1f} %{mean:20.2f}"
        print(f"{name:24}{ratio:15.2f}{cells}")
    for name, target in report["targets"].items():
        verdict = "reached" if target["reached"] else "NOT reached"
        print(f"{name}: {target['value']:.2f}, bar {target['bar']}: {verdict}")
    for name, values in report["nanoseconds_per_element"].items():
        print(f"nanoseconds per element, {name}:")
        for shape, row in values.items():
            print(f"  {shape:>14}" + "".join(f"  {key} {value:.2f}" for key, value in row.items()))
    path = arguments.out / "mahalanobis_shell_cpu.json"
    write_json(path, report)
    print(f"written to {path}")


@pytest.mark.parametrize("provider", (NATIVE, NATIVE_GRID, STEP, BISECTION, GRID))
def test_project_mahalanobis_shell(benchmark: Any, provider: str) -> None:
    with torch.no_grad():
        by_name = calls(SHAPE, [provider])
        benchmark.group = f"project_mahalanobis_shell {SHAPE[0]}x{SHAPE[1]}"
        benchmark.extra_info.update(
            shape=SHAPE, dtype="float32", provider=provider, **interleaved.environment()
        )
        benchmark(by_name[provider])


@pytest.mark.skipif(providers.TRITON_ABSENT is not None, reason=str(providers.TRITON_ABSENT))
@pytest.mark.parametrize("solver", ["newton", "grid"])
def test_project_mahalanobis_shell_on_triton(benchmark: Any, solver: str) -> None:
    h, _, sigma, radius = inputs(SHAPE)
    arguments = (h.cuda(), sigma.cuda(), radius, GAMMA, solver)
    project = providers.on_triton(ops.project_mahalanobis_shell)
    if solver == "newton":
        check(project(*arguments).cpu(), h, sigma, radius, 2e-6)
    benchmark.extra_info.update(
        shape=SHAPE, dtype="float32", provider="triton", gpu=torch.cuda.get_device_name()
    )
    benchmark(project, *arguments)


if __name__ == "__main__":
    main()
