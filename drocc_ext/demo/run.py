"""The parts of the demonstration in turn: the paper's sines, real data, and times."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from drocc_ext._files import atomic_write
from drocc_ext.demo import noisy_sine, real_data, sine, timing
from drocc_ext.demo.reporting import environment


def run(out: Path, quick: bool) -> dict[str, Any]:
    """Do what `drocc_ext.demo.main` says."""
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    results: dict[str, Any] = {"environment": environment(), "quick": quick}
    pages: list[str] = []

    def show(title: str, text: str) -> None:
        pages.append(f"## {title}\n\n{text}\n")
        print(f"\n{title}\n\n{text}", flush=True)

    pictures = out / "sine.png", out / "noisy_sine.png"
    print("Training on the sine of the paper's Figure 1 ...", flush=True)
    with _one_thread():
        results["sine"] = sine.run(pictures[0], quick)
    show("Sine manifold (Figure 1 and Table 7)", sine.report(results["sine"]))

    print("\nTraining on the sine among noise, with negatives ...", flush=True)
    with _one_thread():
        results["noisy_sine"] = noisy_sine.run(pictures[1], quick)
    show("Sine among noise (Figure 1(c) and (d))", noisy_sine.report(results["noisy_sine"]))

    print("\nTraining on real data ...", flush=True)
    with _one_thread():
        results["real_data"] = real_data.run(quick)
    show("Real data", real_data.report(results["real_data"]))

    print("\nTiming; torch.compile takes most of this ...", flush=True)
    results["timing"] = timing.run(quick)
    show("Time of a search step", timing.report(results["timing"], results["environment"]))

    results["seconds"] = time.perf_counter() - start
    heading = "# drocc_ext demonstration\n"
    if quick:
        heading += "\nA quick run: the numbers mean nothing.\n"
    _write_text(out / "results.json", json.dumps(results, indent=2) + "\n")
    _write_text(out / "results.md", "\n".join([heading, *pages]))
    print(f"\nDone in {results['seconds']:.0f} s. Pictures: {pictures[0]}, {pictures[1]}")
    print(f"Tables: {out / 'results.md'}, numbers: {out / 'results.json'}", flush=True)
    return results


@contextmanager
def _one_thread() -> Iterator[None]:
    """Train on one thread: more help small networks little and hurt much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _write_text(path: Path, text: str) -> None:
    atomic_write(path, lambda file: file.write(text.encode()))
