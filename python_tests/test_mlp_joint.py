"""The losses of deep networks and their gradients, against torch's own."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drocc_ext import DROCCLoss, SearchConfig
from drocc_ext.models.networks import MLP
from drocc_ext.ops import _library

pytestmark = pytest.mark.skipif(
    _library.native_error("cpu") is not None, reason="the operator has no eager form"
)


class Case(NamedTuple):
    """A network, its rows and its labels."""

    weights: list[Tensor]
    biases: list[Tensor | None]
    slopes: list[float]
    output: Tensor
    output_bias: Tensor | None
    x: Tensor
    x_adv: Tensor
    is_normal: Tensor | None = None
    targets: Tensor | None = None

    def parameters(self) -> list[Tensor | None]:
        pairs = zip(self.weights, self.biases, strict=True)
        return [p for pair in pairs for p in pair] + [self.output, self.output_bias]


def case(
    widths: list[int], rows: int, others: int, dtype: torch.dtype, *, biases: bool = True
) -> Case:
    pairs = list(itertools.pairwise(widths))
    return Case(
        [torch.randn(b, a, dtype=dtype) / a**0.5 for a, b in pairs],
        [torch.randn(b, dtype=dtype) if biases else None for _, b in pairs],
        [0.0 if i % 2 == 0 else 0.1 for i in range(len(pairs))],
        torch.randn(widths[-1], dtype=dtype),
        torch.randn(1, dtype=dtype) if biases else None,
        torch.randn(rows, widths[0], dtype=dtype),
        torch.randn(others, widths[0], dtype=dtype),
    )


def without_near_switches(one: Case) -> Case:
    """Leave rows out that switch a unit within rounding: float32 and float64 may differ there."""
    rows = []
    for x in (one.x, one.x_adv):
        active, near = x.double(), torch.zeros(len(x), dtype=torch.bool)
        for weight, bias, slope in zip(one.weights, one.biases, one.slopes, strict=True):
            z = units(active, weight.double(), None if bias is None else bias.double())
            near |= (z.abs() < 1e-5).any(1)
            active = F.leaky_relu(z, slope)
        rows.append(x[~near])
    return one._replace(x=rows[0], x_adv=rows[1])


def units(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def by_torch(one: Case, weights: tuple[float, float]) -> list[Tensor]:
    """Losses and gradients in float64."""
    wide = [None if p is None else p.double().clone().requires_grad_() for p in one.parameters()]
    active = torch.cat([one.x, one.x_adv]).double()
    for i, slope in enumerate(one.slopes):
        layer = wide[2 * i]
        assert layer is not None
        active = F.leaky_relu(units(active, layer, wide[2 * i + 1]), slope)
    output, constant = wide[-2], wide[-1]
    assert output is not None
    logits = active @ output + (0.0 if constant is None else constant)
    clean, found = logits[: len(one.x)], logits[len(one.x) :]
    labels = torch.ones_like(clean) if one.is_normal is None else one.is_normal.double()
    targets = torch.zeros_like(found) if one.targets is None else one.targets.double()
    losses = [
        F.binary_cross_entropy_with_logits(clean, labels),
        F.binary_cross_entropy_with_logits(found, targets)
        if len(found)
        else torch.zeros((), dtype=torch.float64),
    ]
    total = weights[0] * losses[0] + weights[1] * losses[1]
    total.backward()  # type: ignore[no-untyped-call]
    grads = [p.grad for p in wide if p is not None]
    return [*(loss.detach() for loss in losses), *(g for g in grads if g is not None)]


def by_operator(one: Case, weights: tuple[float, float], wanted: int = -1) -> list[Tensor]:
    clean, adv, state = torch.ops.drocc._mlp_loss(
        *(one.x, one.x_adv, one.weights, one.biases, one.slopes, one.output, one.output_bias),
        *(one.is_normal, one.targets, None, None),
    )
    there = [i for i, p in enumerate(one.parameters()) if p is not None and wanted >> i & 1]
    grads = torch.ops.drocc._mlp_loss_backward(
        *(one.x, one.x_adv, one.weights, one.slopes, one.output, state),
        *(one.x.new_tensor(weight) for weight in weights),
        sum(1 << i for i in there),
    )
    for i, grad in enumerate(grads):
        assert (grad.numel() > 0) == (i in there)
    return [clean, adv, *(grads[i] for i in there)]


WIDTHS = [
    *([6, 128], [1, 1], [30, 17, 33], [5, 64, 64, 64], [7, 3, 100, 2, 40], [300, 20], [13, 257]),
    [4, 130, 129],
]


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("rows", [(1, 1), (1, 0), (33, 7), (250, 300)], ids=str)
def test_float64(widths: list[int], rows: tuple[int, int], seed: int) -> None:
    torch.manual_seed(seed)
    one = case(widths, *rows, torch.float64, biases=seed % 2 == 0)
    for is_normal in (None, torch.rand(rows[0]) < 0.5, torch.zeros(rows[0], dtype=torch.bool)):
        for targets in (None, torch.rand(rows[1], dtype=torch.float64)):
            one = one._replace(is_normal=is_normal, targets=targets)
            torch.testing.assert_close(
                by_operator(one, (1.3, 0.7)), by_torch(one, (1.3, 0.7)), rtol=1e-9, atol=1e-12
            )


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_float32(widths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    one = without_near_switches(case(widths, 256, 200, torch.float32))
    for found, expected in zip(
        by_operator(one, (1.0, 2.0)), by_torch(one, (1.0, 2.0)), strict=True
    ):
        size = float(expected.abs().max())
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-6 * (1 + size))


def test_many_rows_are_summed_accurately(seed: int) -> None:
    torch.manual_seed(seed)
    one = without_near_switches(case([3, 8, 8], 200_000, 10, torch.float32))
    found, expected = by_operator(one, (1.0, 1.0)), by_torch(one, (1.0, 1.0))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


def test_hard_targets_are_labels(seed: int) -> None:
    """Targets 0 and 1 give the losses of labels, also where a logit is far out."""
    torch.manual_seed(seed)
    one = case([4, 16], 40, 40, torch.float32)
    one = one._replace(output=30 * one.output)
    zeros = by_operator(one._replace(targets=torch.zeros(40)), (0.5, 1.0))
    torch.testing.assert_close(zeros, by_operator(one, (0.5, 1.0)), rtol=1e-6, atol=1e-7)
    ones = by_operator(one._replace(x=one.x_adv, targets=torch.ones(40)), (1.0, 1.0))
    torch.testing.assert_close(ones[0], ones[1], rtol=1e-6, atol=1e-7)


def test_known_units_are_used(seed: int) -> None:
    torch.manual_seed(seed)
    one = case([9, 30, 20], 50, 40, torch.float64)
    given = [units(rows, one.weights[0], one.biases[0]) for rows in (one.x, one.x_adv)]
    arguments = (one.weights, one.biases, one.slopes, one.output, one.output_bias, None, None)
    expected = torch.ops.drocc._mlp_loss(one.x, one.x_adv, *arguments, None, None)
    found = torch.ops.drocc._mlp_loss(one.x, one.x_adv, *arguments, *given)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    other = torch.ops.drocc._mlp_loss(one.x, one.x_adv, *arguments, given[0] + 1, None)
    assert not torch.allclose(other[0], expected[0])


def test_only_what_is_wanted(seed: int) -> None:
    torch.manual_seed(seed)
    one = case([6, 10, 11, 12], 30, 20, torch.float64)
    everything = by_operator(one, (1.0, 1.0))[2:]
    for wanted in range(1 << 8):
        some = by_operator(one, (1.0, 1.0), wanted)[2:]
        expected = [grad for i, grad in enumerate(everything) if wanted >> i & 1]
        torch.testing.assert_close(some, expected, rtol=0, atol=0)


def test_bad_rows(seed: int) -> None:
    """NaN in a row makes its mean NaN and leaves the other; what ReLU cuts off stays finite."""
    torch.manual_seed(seed)
    one = case([4, 9, 9], 20, 20, torch.float32)
    one = one._replace(slopes=[0.0, 0.0])
    bad = one.x.clone()
    bad[7, 2] = torch.nan
    clean, adv, *_ = by_operator(one._replace(x=bad), (1.0, 1.0))
    assert clean.isnan()
    assert adv.isfinite()
    far = torch.full((1, 1), -torch.inf)
    cut = Case([torch.ones(3, 1)], [None], [0.0], torch.ones(3), None, far, far)
    clean, adv, *_ = by_operator(cut, (1.0, 1.0))
    torch.testing.assert_close(clean, torch.tensor(2.0).log())


def test_tiny_weights(seed: int) -> None:
    torch.manual_seed(seed)
    one = case([5, 12, 12], 30, 30, torch.float64)
    one = one._replace(weights=[1e-22 * w for w in one.weights], biases=[None, None])
    torch.testing.assert_close(
        by_operator(one, (1.0, 1.0)), by_torch(one, (1.0, 1.0)), rtol=1e-9, atol=0
    )


def test_threads_agree_to_the_bit(seed: int) -> None:
    torch.manual_seed(seed)
    one = case([40, 300, 150], 700, 500, torch.float32)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(by_operator(one, (1.0, 1.0)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


def step(model: nn.Module, x: Tensor, y: Tensor | None, method: Any) -> list[Tensor]:
    model.zero_grad()
    search = SearchConfig(1.5, step_size=0.2, num_steps=7, gamma=1.5, method=method)
    terms = DROCCLoss(search, mu=0.7)(model, x, y, generator=torch.Generator().manual_seed(3))
    terms.total.backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [*(t.detach() for t in terms), *(p.grad for p in parameters if p.grad is not None)]


def test_the_objective_is_autograds(seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(40, 6, dtype=torch.float64)
    mixed = (torch.arange(40) % 3 > 0).long()
    models = (
        MLP(6, [20, 10]),
        nn.Sequential(
            *(nn.Linear(6, 8, bias=False), nn.LeakyReLU(0.2), nn.Linear(8, 9), nn.ReLU()),
            *(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 1, bias=False)),
        ),
    )
    for model in models:
        model.double()
        for y in (None, mixed, torch.zeros(40).long(), torch.ones(40).long()):
            found, expected = step(model, x, y, "auto"), step(model, x, y, "autograd")
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        next(model.parameters()).requires_grad_(False)
        found, expected = step(model, x, mixed, "auto"), step(model, x, mixed, "autograd")
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_changed_weight_is_noticed(seed: int) -> None:
    torch.manual_seed(seed)
    model = MLP(6, [20, 10])
    loss = DROCCLoss(SearchConfig(1.5, step_size=0.2, num_steps=3))
    total = loss(model, torch.randn(20, 6)).total
    with torch.no_grad():
        model.logit.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()  # type: ignore[no-untyped-call]


def test_arguments_are_refused() -> None:
    one = case([3, 4], 5, 6, torch.float32)
    arguments = (one.weights, one.biases, one.slopes, one.output, None, None, None, None, None)
    run = torch.ops.drocc._mlp_loss
    with pytest.raises(RuntimeError, match="_mlp_loss: x must be float32 or float64"):
        run(one.x.half(), one.x_adv.half(), *arguments)
    with pytest.raises(RuntimeError, match=r"\[M, D\], got \[5, 3\] and \[6, 2\]"):
        run(one.x, one.x_adv[:, :2], *arguments)
    with pytest.raises(RuntimeError, match="negative_slopes must be >= 0"):
        run(one.x, one.x_adv, one.weights, one.biases, [-0.5], *arguments[3:])
    with pytest.raises(RuntimeError, match="targets must have 6 elements"):
        run(one.x, one.x_adv, *arguments[:6], torch.zeros(5), None, None)
    with pytest.raises(RuntimeError, match="is_normal must be boolean"):
        run(one.x, one.x_adv, *arguments[:5], torch.zeros(5), None, None, None)
