"""The search in deep ReLU networks against a loop of autograd: medians of interleaved runs.

Values are checked before they are timed.

    python -m benchmarks.bench_mlp_search [--threads 1] [--repeats 7] [--rows 256] [--quick]

Processor time of the calling thread with one thread, else wall-clock time.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drocc_ext.ops.eager.mlp_search import mlp_search

LAYERS = ([128], [128, 128], [256, 256], [256, 256, 256])
INPUTS = (6, 30, 274, 768)
WALKS = ((50, 0.01), (5, 0.1))


def searched(
    net: nn.Sequential, x: Tensor, h: Tensor, steps: int, step: float, every: int
) -> Tensor:
    """The operator."""
    end = h.clone()
    torch.ops.drocc._mlp_search(end, x, *_arguments(net, x, steps, step, every))
    return end


def by_autograd(
    net: nn.Sequential, x: Tensor, h: Tensor, steps: int, step: float, every: int
) -> Tensor:
    """The loop that it replaces."""
    radius = math.sqrt(x.shape[1])
    for done in range(1, steps + 1):
        points = (x + h).requires_grad_()
        (grad,) = torch.autograd.grad(net(points).sum(), points)
        h = h + step * radius * F.normalize(grad, dim=1)
        if done % every == 0 or done == steps:
            length = h.norm(dim=1, keepdim=True)
            h = h * (length.clamp(radius, 2 * radius) / length)
    return h


def _arguments(
    net: nn.Sequential, x: Tensor, steps: int, step: float, every: int
) -> tuple[object, ...]:
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    hidden, last = linear[:-1], linear[-1]
    radius = math.sqrt(x.shape[1])
    return (
        [layer.weight.detach() for layer in hidden],
        [layer.bias.detach() for layer in hidden],
        [0.0] * len(hidden),
        last.weight.detach().reshape(-1),
        *(None, step * radius, steps, every, radius, None, 2.0, 0, True),
    )


def trained(inputs: int, layers: list[int], batches: int) -> tuple[nn.Sequential, Tensor]:
    """A network after so many batches of DROCC on made rows, and 256 of these rows."""
    torch.manual_seed(0)
    widths = [inputs, *layers]
    parts: list[nn.Module] = []
    for entering, units in pairwise(widths):
        parts += [nn.Linear(entering, units), nn.ReLU()]
    net = nn.Sequential(*parts, nn.Linear(widths[-1], 1))
    mixing = torch.randn(inputs, inputs) / math.sqrt(inputs)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(batches):
        x = torch.randn(256, inputs) @ mixing
        found = x + searched(net, x, torch.randn_like(x), 5, 0.1, 1)
        loss = F.softplus(-net(x)).mean() + F.softplus(net(found)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net, mixing


def check(net: nn.Sequential, x: Tensor, h: Tensor, steps: int, step: float, every: int) -> None:
    """Compare the operator in float64 with its eager form."""
    double = nn.Sequential(
        *(type(m)(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m for m in net)
    )
    double.load_state_dict(net.state_dict())
    double = double.double()
    few, start = x[:32].double(), h[:32].double()
    wanted = start.clone()
    mlp_search(wanted, few, *_arguments(double, few, steps, step, every))  # type: ignore[arg-type]
    error = (searched(double, few, start, steps, step, every) - wanted).norm(dim=1) / wanted.norm(
        dim=1
    )
    assert float(error.max()) < 1e-8, f"wrong by {float(error.max())}"


def medians(
    calls: list[Callable[[], object]], repeats: int, clock: Callable[[], float]
) -> list[float]:
    """Of interleaved runs, in milliseconds."""
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, spent in zip(calls, times, strict=True):
            begin = clock()
            call()
            if repeat:  # the first one warms up
                spent.append(1e3 * (clock() - begin))
    return [statistics.median(spent) for spent in times]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help="two networks only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    print("inputs layers            batches steps every   autograd      ours   ratio")
    for layers in LAYERS[:2] if options.quick else LAYERS:
        for inputs in INPUTS[:1] if options.quick else INPUTS:
            for batches in (0, 200):
                net, mixing = trained(inputs, layers, batches)
                x = torch.randn(options.rows, inputs) @ mixing
                h = torch.randn_like(x)
                for steps, step in WALKS:
                    for every in (1, 10):
                        run = (net, x, h, steps, step, every)
                        check(*run)
                        theirs, ours = medians(
                            [lambda run=run: by_autograd(*run), lambda run=run: searched(*run)],  # type: ignore[misc]
                            options.repeats,
                            clock,
                        )
                        print(
                            f"{inputs:6d} {layers!s:17s} {batches:7d} {steps:5d} {every:5d} "
                            f"{theirs:8.2f}ms {ours:7.2f}ms {theirs / ours:7.1f}",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
