"""Train the published configurations with the published trainers and with ours, in turn.

    python -m benchmarks.training --data-dir DIR [--edgeml CHECKOUT] [--out DIR] [--cases NAME ...]

Providers take turns, each turn a training from the same weights; times are medians over all epochs
of all turns. Every epoch has the adversarial loss. Where a case runs some batches only, the time of
an epoch is that of its batches times the number of batches. Losses of the compat trainer are
compared with the published ones before anything is reported.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reporting import peak_resident, write_json
from benchmarks.training.cases import CASES, Case, Split
from benchmarks.training.providers import Outcome, Provider, providers, use_cpu_time
from drocc_ext.demo import interleaved

# A search keeps more alive with every step in the published trainer only, so few are enough, and
# are to its advantage.
_STEPS_FOR_MEMORY = 10


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.cpu_time:
        use_cpu_time()
    report: dict[str, Any] = {
        "command": _command(arguments),
        "published": "checkout" if arguments.edgeml else "benchmarks/training/published.py",
        "clock": "processor time" if arguments.cpu_time else "wall time",
        "environment": interleaved.environment(),
        "cases": {},
    }
    for name in arguments.cases:
        case = CASES[name]
        if arguments.repeats:
            case = replace(case, repeats=arguments.repeats)
        report["cases"][name] = result = _run(case, arguments)
        _print(name, result)
        if arguments.out:
            path = arguments.out / "training_cpu.json"
            write_json(path, report)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data-dir", type=Path, required=True, help="thyroid.npz and the others")
    parser.add_argument("--edgeml", type=Path, help="a checkout of microsoft/EdgeML")
    parser.add_argument("--out", type=Path, help="where to write training_cpu.json")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count processor time, not wall time: for a machine with other work; one thread",
    )
    parser.add_argument("--repeats", type=int, help="turns of each provider; default: the case's")
    arguments = parser.parse_args()
    if arguments.cpu_time and arguments.threads != 1:
        parser.error(f"--cpu-time needs --threads 1, got {arguments.threads}")
    return arguments


def _command(arguments: argparse.Namespace) -> str:
    parts = ["python -m benchmarks.training --data-dir DIR"]
    parts += ["--edgeml CHECKOUT"] if arguments.edgeml else []
    parts += ["--out DIR"] if arguments.out else []
    parts += ["--cases", *arguments.cases] if len(arguments.cases) < len(CASES) else []
    parts += [f"--threads {arguments.threads}"]
    parts += ["--cpu-time"] if arguments.cpu_time else []
    parts += [f"--repeats {arguments.repeats}"] if arguments.repeats else []
    return " ".join(parts)


def _run(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    x, y, *test = case.load(arguments.data_dir)
    full = -(-len(x) // case.batch_size)
    batches = full if case.batches is None else case.batches
    split: Split = (x[: batches * case.batch_size], y[: batches * case.batch_size], *test)
    runs = providers(case, arguments.edgeml)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in runs}
    _warm_up(case, split, runs)
    for turn in range(case.repeats):
        for name, run in runs.items():
            print(f"{case.name}: turn {turn + 1} of {case.repeats}, {name}", file=sys.stderr)
            torch.manual_seed(turn)
            np.random.seed(turn)
            gc.collect()
            outcomes[name].append(run(case, split))
    return _summary(case, full, batches, outcomes, _memory(case, split, runs))


def _warm_up(case: Case, split: Split, runs: dict[str, Provider]) -> None:
    """Reach every line once, so that imports and first calls are not timed."""
    few = replace(case, epochs=1, num_steps=10)
    for run in runs.values():
        run(few, (split[0][:32], split[1][:32], *split[2:]))


def _memory(case: Case, split: Split, runs: dict[str, Provider]) -> dict[str, int]:
    one = replace(case, epochs=1, num_steps=min(case.num_steps, _STEPS_FOR_MEMORY))
    x, y, test_x, test_y = split
    ends = torch.cat([torch.arange(4), torch.arange(len(test_y) - 4, len(test_y))])
    small = (x[: case.batch_size], y[: case.batch_size], test_x[ends], test_y[ends])
    peaks = {}
    for name, run in runs.items():
        gc.collect()
        peaks[name] = peak_resident(lambda run=run: run(one, small))
    return peaks


def _summary(
    case: Case,
    full: int,
    batches: int,
    outcomes: dict[str, list[Outcome]],
    memory: dict[str, int],
) -> dict[str, Any]:
    if case.rtol is not None:
        for theirs, ours in zip(outcomes["published"], outcomes["compat"], strict=True):
            np.testing.assert_allclose(ours.losses, theirs.losses, rtol=case.rtol)
    seconds = {
        name: statistics.median(s for outcome in turns for s in outcome.epoch_seconds)
        * (full / batches)
        for name, turns in outcomes.items()
    }
    ratios = {name: seconds["published"] / value for name, value in seconds.items()}
    result: dict[str, Any] = {
        "settings": {
            key: getattr(case, key)
            for key in ("batch_size", "radius", "gamma", "step_size", "num_steps", "epochs")
        },
        "batches_per_epoch": full,
        "batches_run": batches,
        "turns": case.repeats,
        "seconds_per_adversarial_epoch": seconds,
        "published_time_over_ours": ratios,
        "auc_of_the_last_epoch": {
            name: statistics.mean(outcome.auc for outcome in turns)
            for name, turns in outcomes.items()
        },
        "peak_bytes_of_a_batch": memory,
        "losses_agree_to": case.rtol,
    }
    reached = {
        f"{name} >= {target:g}x": ratios[name] >= target
        for name, target in case.targets.items()
        if name in ratios
    }
    reached |= {
        f"{name}: peak memory not above": peak <= memory["published"]
        for name, peak in memory.items()
        if name != "published"
    }
    if case.limited_negatives:
        shares = {
            name: sum(o.projection_seconds for o in turns)
            / sum(s for o in turns for s in o.epoch_seconds)
            for name, turns in outcomes.items()
        }
        result["share_of_projections"] = shares
        reached |= {
            f"{name}: projections < 1 %": share < 0.01
            for name, share in shares.items()
            if name != "published"
        }
    result["reached"] = reached
    return result


def _print(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name}: {result['batches_run']} of {result['batches_per_epoch']} batches")
    for provider, seconds in result["seconds_per_adversarial_epoch"].items():
        auc = result["auc_of_the_last_epoch"][provider]
        share = result.get("share_of_projections", {}).get(provider, math.nan)
        print(
            f"  {provider:10} {seconds:9.3f} s per adversarial epoch, "
            f"{result['published_time_over_ours'][provider]:6.2f}x, AUC {auc:.3f}, "
            f"peak {result['peak_bytes_of_a_batch'][provider] / 2**20:.1f} MiB"
            + ("" if math.isnan(share) else f", projections {share:.2%}")
        )
    for target, reached in result["reached"].items():
        print(f"  {target}: {'reached' if reached else 'NOT reached'}")


if __name__ == "__main__":
    main()
