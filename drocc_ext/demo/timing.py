"""Times of one search step: fused operator, eager PyTorch and the same lines compiled."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from drocc_ext.demo.interleaved import interleaved
from drocc_ext.demo.reporting import markdown_table, paragraph
from drocc_ext.ops import l2_shell_step_

SHAPES = ((256, 6), (256, 274), (256, 3072), (8192, 3072))
_STEP, _GAMMA = 0.1, 2.0
_SAMPLE_SECONDS = 5e-4
# Threads that wait for a busy core take a hundred times longer; a quiet machine shows 1.05 to 1.5.
_CALM_SPREAD = 2.0

Step = Callable[[Tensor, Tensor, float, float, float], object]


def eager_step_(h: Tensor, grad: Tensor, step_size: float, radius: float, gamma: float) -> Tensor:
    """Step 2 and 3 of Algorithm 1 as one would write them, in place and without care for zeros.

    Args:
        h: `[B, D]`, changed in place.
        grad: `[B, D]`, without zero rows.
        step_size: Length of the step.
        radius: Inner radius of the shell.
        gamma: Outer radius divided by inner radius.

    Returns:
        h.
    """
    h.addcdiv_(grad, torch.linalg.vector_norm(grad, dim=1, keepdim=True), value=step_size)
    norm = torch.linalg.vector_norm(h, dim=1, keepdim=True)
    return h.mul_(norm.clamp(radius, gamma * radius).div_(norm))


def run(quick: bool = False) -> dict[str, Any]:
    """Time the three at several shapes.

    Args:
        quick: One small shape and few samples.

    Returns:
        "rows", a list of dicts: "batch" and "features"; "fused", "eager" and "compiled", median
        seconds per call, the last None where compilation failed; "spread", the largest ratio of
        median to fastest sample among them. And "compile_error", why it failed, or None.
    """
    from tqdm.auto import tqdm  # here, so that `eager_step_` needs torch alone

    shapes = SHAPES[:1] if quick else SHAPES
    compiled = torch.compile(eager_step_, dynamic=False)
    error, rows = None, []
    for batch, features in tqdm(shapes, desc="timing", unit="shape", leave=False):
        providers: dict[str, Step] = {"fused": l2_shell_step_, "eager": eager_step_}
        if error is None:
            error = _first_call_error(compiled, batch, features)
        if error is None:
            providers["compiled"] = compiled
        seconds = _interleaved_times(providers, batch, features, samples=5 if quick else 41)
        rows.append({"batch": batch, "features": features, "compiled": None, **seconds})
    return {"rows": rows, "compile_error": error}


def report(results: dict[str, Any], environment: dict[str, Any]) -> str:
    """Write the results of `run` as Markdown."""
    header = ("B x D, float32", "fused", "eager / fused", "compiled / fused")
    rows = []
    for row in results["rows"]:
        compiled = row["compiled"]
        mark = "*" if row["spread"] > _CALM_SPREAD else ""
        rows.append(
            (
                f"{row['batch']} x {row['features']}",
                _readable(row["fused"]),
                f"{row['eager'] / row['fused']:.2f}{mark}",
                "-" if compiled is None else f"{compiled / row['fused']:.2f}{mark}",
            )
        )
    lines = [
        paragraph(
            "One in-place search step, `l2_shell_step_` beside three lines of PyTorch, eager and "
            "through `torch.compile`. Medians of interleaved samples; a ratio above 1 means the "
            "fused step is faster."
        ),
        "",
        markdown_table(header, rows),
        "",
        f"torch {environment['torch']}, {environment['threads']} threads, "
        f"{environment['cpu_instruction_set']} kernels ({environment['native_cpu']}).",
    ]
    if environment["native_cpu"] != "loaded":
        lines.append("The native kernels are not in use: the fused step is eager PyTorch here.")
    if max(row["spread"] for row in results["rows"]) > _CALM_SPREAD:
        lines.append(
            paragraph(
                f"* The median is more than {_CALM_SPREAD:g} times the fastest sample: other "
                "programs were running; repeat on a quiet machine."
            )
        )
    if results["compile_error"] is not None:
        lines.append(paragraph(f"No compiled column: {results['compile_error']}"))
    return "\n".join(lines)


def _first_call_error(compiled: Step, batch: int, features: int) -> str | None:
    """Compile for a shape and compare with the operator; say why that failed."""
    h, grad, radius = _inputs(batch, features)
    expected = l2_shell_step_(h.clone(), grad, _STEP * radius, radius, _GAMMA)
    torch.testing.assert_close(
        eager_step_(h.clone(), grad, _STEP * radius, radius, _GAMMA), expected
    )
    try:
        compiled(h, grad, _STEP * radius, radius, _GAMMA)
    except Exception as error:  # a missing compiler shows as any of a dozen types
        lines = [line for line in str(error).splitlines() if line.strip()]
        return f"torch.compile failed ({lines[0] if lines else type(error).__name__})"
    torch.testing.assert_close(h, expected)
    return None


def _interleaved_times(
    providers: dict[str, Step], batch: int, features: int, samples: int
) -> dict[str, float]:
    h, grad, radius = _inputs(batch, features)
    arguments = (grad, _STEP * radius, radius, _GAMMA)
    calls = {
        name: functools.partial(step, h.clone(), *arguments) for name, step in providers.items()
    }
    times = interleaved(calls, samples, least_seconds=_SAMPLE_SECONDS)
    medians = {name: timing.median for name, timing in times.items()}
    return {**medians, "spread": max(t.median / t.fastest for t in times.values())}


def _inputs(batch: int, features: int) -> tuple[Tensor, Tensor, float]:
    generator = torch.Generator().manual_seed(0)
    h, grad = torch.randn(2, batch, features, generator=generator).unbind()
    return h.contiguous(), grad.contiguous(), math.sqrt(features) / 2


def _readable(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
