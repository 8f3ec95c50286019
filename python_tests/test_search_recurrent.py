"""LSTM layers under a search: torch's values and gradients, for the input alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from drocc_ext import SearchConfig, adversarial_search, networks, use_backend
from drocc_ext.ops import _library
from drocc_ext.search import recurrent
from drocc_ext.search.recurrent import InputGradients, input_gradients_alone

pytestmark = pytest.mark.skipif(
    _library.native_error("cpu") is not None, reason="the operators have no eager form"
)


def runs(call: Any) -> bool:
    with torch.profiler.profile() as profile:
        call()
    return any(event.name == "drocc::_lstm" for event in profile.events())


def gradients(lstm: nn.LSTM, x: Tensor, states: Any, upstream: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_(), *(s.clone().requires_grad_() for s in states or ())]
    output, (h, c) = lstm(leaves[0], tuple(leaves[1:]) or None)
    total = sum((u * v).sum() for u, v in zip(upstream, (output, h, c), strict=True))
    found = torch.autograd.grad(total, leaves)
    return [output.detach(), h.detach(), c.detach(), *found]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("batch", "steps", "inputs", "units", "layers", "bias", "batch_first"),
    [(64, 1, 1, 7, 1, True, True), (13, 9, 3, 16, 1, False, True), (30, 5, 17, 33, 2, True, False),
     (4, 40, 1, 5, 3, True, True), (25, 12, 2, 1, 1, True, False)],
)  # fmt: skip
def test_values_and_gradients(
    batch: int, steps: int, inputs: int, units: int, layers: int, bias: bool, batch_first: bool,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    lstm = nn.LSTM(inputs, units, layers, bias=bias, batch_first=batch_first).to(dtype)
    shape = (batch, steps, inputs) if batch_first else (steps, batch, inputs)
    x = 3 * torch.randn(shape, dtype=dtype)
    for states in (None, [2 * torch.randn(layers, batch, units, dtype=dtype) for _ in range(2)]):
        like = [t.detach() for t in (lambda o, s: (o, *s))(*lstm(x))]
        upstream = [torch.randn_like(t) for t in like]
        wide = nn.LSTM(inputs, units, layers, bias=bias, batch_first=batch_first).double()
        wide.load_state_dict(lstm.state_dict())
        expected = gradients(
            wide, x.double(), states and [s.double() for s in states],
            [u.double() for u in upstream],
        )  # fmt: skip
        with InputGradients():
            assert runs(lambda: lstm(x))
            found = gradients(lstm, x, states, upstream)
        tolerance = 1e-10 if dtype is torch.float64 else 3e-5
        for one, other in zip(found, expected, strict=True):
            size = max(1.0, float(other.abs().max()))
            torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance * size)


def test_extreme_and_bad_rows(seed: int) -> None:
    torch.manual_seed(seed)
    lstm, x = nn.LSTM(2, 9, batch_first=True), torch.randn(20, 6, 2)
    x[3], x[5] = 1e30, -1e4
    bad = x.clone()
    bad[7, 2, 0], bad[9, 4, 1] = float("nan"), float("inf")
    outputs = []
    for rows in (x, bad):
        leaf = rows.clone().requires_grad_()
        with InputGradients():
            output = lstm(leaf)[0]
        (grad,) = torch.autograd.grad(output[:, -1].sum(), leaf)
        outputs.append((output.detach(), grad))
        expected = lstm(rows)[0].detach()
        torch.testing.assert_close(output.detach(), expected, rtol=0, atol=2e-5, equal_nan=True)
    good = [i for i in range(20) if i not in (7, 9)]
    for one, other in zip(*outputs, strict=True):
        assert torch.equal(one[good], other[good])
    assert outputs[1][1][7].isnan().any()


def test_threads_and_neighbours_do_not_change_a_bit(seed: int) -> None:
    torch.manual_seed(seed)
    lstm, x = nn.LSTM(3, 20, batch_first=True), torch.randn(50, 7, 3)

    def all_of(rows: Tensor) -> tuple[Tensor, Tensor]:
        leaf = rows.clone().requires_grad_()
        with InputGradients():
            output = lstm(leaf)[0]
        return output.detach(), torch.autograd.grad(output.sum(), leaf)[0]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = all_of(x)
        torch.set_num_threads(3)
        several = all_of(x)
    finally:
        torch.set_num_threads(threads)
    some = all_of(x[17:41])
    for a, b, c in zip(one, several, some, strict=True):
        assert torch.equal(a, b) and torch.equal(a[17:41], c)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(3, 5, batch_first=True, bidirectional=True),
        lambda: nn.LSTM(3, 5, batch_first=True, proj_size=2),
        lambda: nn.LSTM(3, 5, num_layers=2, dropout=0.5, batch_first=True),
        lambda: nn.LSTM(3, 5, batch_first=True).to(torch.bfloat16),
    ],
    ids=["bidirectional", "projected", "dropout", "bfloat16"],
)
def test_what_is_left_to_torch(make: Any, seed: int) -> None:
    torch.manual_seed(seed)
    lstm = make()
    x = torch.randn(20, 6, 3).to(lstm.weight_ih_l0.dtype)
    with InputGradients():
        assert not runs(lambda: lstm(x))


def test_calls_that_are_left_to_torch(seed: int) -> None:
    torch.manual_seed(seed)
    lstm, x = nn.LSTM(3, 5, batch_first=True), torch.randn(20, 6, 3)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((20,), 6), batch_first=True)
    with InputGradients():
        assert runs(lambda: lstm(x))
        for call in (lambda: lstm(packed), lambda: lstm(x[0]), lambda: lstm(x[:2])):
            assert not runs(call)
        with torch.autocast("cpu", dtype=torch.bfloat16):  # torch may have no such layer
            states = [torch.zeros(1, 20, 5)] * 2
            assert not recurrent._is_served(x, states, list(lstm.parameters()))
        with use_backend("eager"):
            assert not runs(lambda: lstm(x))
    assert not runs(lambda: lstm(x))


def test_it_can_be_differentiated_again(seed: int) -> None:
    torch.manual_seed(seed)
    lstm = nn.LSTM(3, 5, 2, batch_first=True).double()
    x = torch.randn(20, 6, 3, dtype=torch.float64, requires_grad=True)
    with InputGradients():
        total = lstm(x)[0].square().sum()
    found = []
    for value in (total, lstm(x)[0].square().sum()):
        first = torch.autograd.grad(value, x, retain_graph=True)
        again = torch.autograd.grad(value, x, create_graph=True)
        torch.testing.assert_close(first, again, rtol=1e-9, atol=1e-11)
        found.append([*again, *torch.autograd.grad(again[0].square().sum(), x)])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


def test_a_search_through_an_lstm(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = networks.LSTMClassifier(2, 11).double(), torch.randn(8, 12, 2, dtype=torch.float64)
    config = SearchConfig.from_relative_step(2.0, num_steps=6)
    noise = [torch.Generator().manual_seed(seed) for _ in range(2)]
    assert runs(lambda: adversarial_search(model, x, config))
    ours = adversarial_search(model, x, config, generator=noise[0])
    with use_backend("eager"):
        theirs = adversarial_search(model, x, config, generator=noise[1])
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert all(p.grad is None for p in model.parameters())
    assert isinstance(input_gradients_alone(model), InputGradients)
    assert not isinstance(input_gradients_alone(networks.MLP(3)), InputGradients)


def test_a_search_through_a_checkpointed_lstm(seed: int) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.logit = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 1)
            self.saves = False

        def last(self, x: Tensor) -> Tensor:
            last: Tensor = self.lstm(x)[0][:, -1]
            return last

        def forward(self, x: Tensor) -> Tensor:
            last = checkpoint(self.last, x, use_reentrant=False) if self.saves else self.last(x)
            logits: Tensor = self.logit(last)
            return logits

    torch.manual_seed(seed)
    model, x, found = Checkpointed(), torch.randn(12, 9, 3), []
    for model.saves in (False, True):
        generator = torch.Generator().manual_seed(seed)
        found.append(
            adversarial_search(
                model, x, radius=1.0, step_size=0.1, num_steps=3, generator=generator
            )
        )
    torch.testing.assert_close(*found)
