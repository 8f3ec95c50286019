"""The training step of linear - ReLU - linear networks: search, logits and gradients at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drocc_ext import DROCCLoss, SearchConfig
from drocc_ext.compat import edgeml
from drocc_ext.models import networks
from drocc_ext.ops import _library
from drocc_ext.search.mlp import matmul as _products
from drocc_ext.search.mlp.loss import HiddenLosses

pytestmark = pytest.mark.skipif(
    _library.native_error("cpu") is not None, reason="the operator has no eager form"
)

SETTINGS: dict[str, Any] = {"step_size": 0.2, "num_steps": 7, "gamma": 1.5}


def step(
    model: nn.Module, x: Tensor, y: Tensor | None, method: Any, radius: Any = 1.5, **settings: Any
) -> list[Tensor]:
    """Take the three losses and the gradient of every parameter."""
    model.zero_grad()
    loss = DROCCLoss(SearchConfig(radius, method=method, **{**SETTINGS, **settings}), mu=0.7)
    terms = loss(model, x, y, generator=torch.Generator().manual_seed(3))
    terms.total.backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [*(t.detach() for t in terms), *(p.grad for p in parameters if p.grad is not None)]


def uses_the_joint_step(model: nn.Module, x: Tensor, y: Tensor | None = None) -> bool:
    loss = DROCCLoss(SearchConfig(1.5, **SETTINGS))
    node = loss(model, x, y).clean.grad_fn
    seen, todo = set(), [node]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [next_node for next_node, _ in node.next_functions]
    return any("MLPLosses" in node.name() for node in seen)


@pytest.mark.parametrize("columns", [3, 40], ids=["points", "factors"])
@pytest.mark.parametrize("labels", ["none", "mixed", "all normal", "one normal"])
@pytest.mark.parametrize("biases", [True, False])
def test_losses_and_gradients(columns: int, labels: str, biases: bool, seed: int) -> None:
    torch.manual_seed(seed)
    model: nn.Module = networks.MLP(columns, 24)
    if not biases:
        model = nn.Sequential(
            nn.Linear(columns, 24, bias=False), nn.ReLU(), nn.Linear(24, 1, bias=False)
        )
    model = model.double()
    x = torch.randn(30, columns, dtype=torch.float64)
    y = {
        "none": None,
        "mixed": torch.arange(30) % 3,
        "all normal": torch.ones(30),
        "one normal": torch.arange(30) == 4,
    }[labels]
    y = y.clamp(max=1) if labels == "mixed" and y is not None else y
    assert uses_the_joint_step(model, x, y)
    for radius in (1.5, torch.rand(30, dtype=torch.float64) + 1):
        ours = step(model, x, y, "auto", radius)
        expected = step(model, x, y, "autograd", radius)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
        assert len(ours) == 3 + len(list(model.parameters()))


@pytest.mark.parametrize("columns", [7, 40])
def test_a_backward_within_autocast_and_strided_weights(columns: int, seed: int) -> None:
    """Neither changes a bit: the forward decides the types, and any strides are read."""
    torch.manual_seed(seed)
    x = torch.randn(9, columns)
    model = nn.Sequential(nn.Linear(columns, 12), nn.ReLU(), nn.Linear(12, 1))
    expected = step(model, x, None, "auto")
    model[2].weight = nn.Parameter(model[2].weight.detach().T.repeat(1, 2)[:, :1].T)
    assert not model[2].weight.is_contiguous() and uses_the_joint_step(model, x)
    model.zero_grad()
    loss = DROCCLoss(SearchConfig(1.5, **SETTINGS), mu=0.7)
    terms = loss(model, x, generator=torch.Generator().manual_seed(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms.total.backward()
    for actual, wanted in zip((p.grad for p in model.parameters()), expected[3:], strict=True):
        assert torch.equal(actual, wanted)


def test_parameters_that_are_not_trained(seed: int) -> None:
    torch.manual_seed(seed)
    for frozen in ("hidden.weight", "hidden.bias", "logit.weight", "logit.bias"):
        model = networks.MLP(30, 12).double()
        model.get_parameter(frozen).requires_grad_(False)
        x = torch.randn(9, 30, dtype=torch.float64)
        ours, expected = step(model, x, None, "auto"), step(model, x, None, "autograd")
        assert len(ours) == 3 + 3
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_single_precision_at_full_size(seed: int) -> None:
    """Products of this size go through another library."""
    torch.manual_seed(seed)
    model = networks.MLP(300, 128)
    x = torch.randn(256, 300)
    # Few and small steps, lest rounding switch a unit in some row.
    settings = {"radius": 17.0, "step_size": 0.01, "num_steps": 2}
    ours = step(model, x, None, "auto", **settings)
    expected = step(model, x, None, "autograd", **settings)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_products(transposed: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight, bias = torch.randn(260, 310), torch.randn(90, 310), torch.randn(90)
    if transposed:
        x, weight = x.T.contiguous().T, weight.T.contiguous().T
    exact = x.double() @ weight.double().T
    torch.testing.assert_close(_products.linear(x, weight).double(), exact, rtol=1e-4, atol=1e-4)
    exact += bias.double()
    ours = _products.linear(x, weight, bias)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)


def test_a_bad_row_is_not_hidden(seed: int) -> None:
    torch.manual_seed(seed)
    for columns in (3, 40):
        x = torch.randn(8, columns)
        x[2, 1] = float("nan")
        total, clean, against, *_ = step(networks.MLP(columns, 6), x, None, "auto")
        assert total.isnan() and clean.isnan() and against.isnan()


def test_when_the_model_itself_is_called(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = networks.MLP(5, 8), torch.randn(6, 5)
    assert uses_the_joint_step(model, x)
    assert not uses_the_joint_step(model, x.clone().requires_grad_())
    assert not uses_the_joint_step(model, x, torch.zeros(6))
    called: list[int] = []
    handle = model.register_forward_hook(lambda *_: called.append(1))
    assert not uses_the_joint_step(model, x) and called
    handle.remove()
    with torch.autocast("cpu", torch.bfloat16):
        assert not uses_the_joint_step(model, x)
    with torch.inference_mode():
        inference = x.clone()
    assert uses_the_joint_step(model, inference)  # with a copy, which autograd can keep


def test_an_objective_of_somebodys_own_is_called(seed: int) -> None:
    torch.manual_seed(seed)

    class Own(edgeml.DROCCTrainer):
        called = 0

        def one_class_adv_loss(self, x_train_data: Tensor) -> Tensor:
            self.called += 1
            return super().one_class_adv_loss(x_train_data)

    losses = []
    batches = [(torch.randn(6, 5), torch.ones(6)) for _ in range(2)]
    for kind in (Own, edgeml.DROCCTrainer):
        torch.manual_seed(seed)
        model = networks.MLP(5, 8).double()
        optimizer = torch.optim.Adam(model.parameters())
        trainer = kind(model, optimizer, 1.0, 1.0, 2.0, "cpu")
        trainer.train(batches, _Validation(), 1e-3, lambda *_: None, 2, 0, 0.1, 5)
        losses.append([p.detach() for p in model.parameters()])
        if isinstance(trainer, Own):
            assert trainer.called == 4
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-9)


class _Validation(list[Any]):
    def __init__(self) -> None:
        super().__init__([(torch.randn(4, 5), torch.tensor([0.0, 1, 0, 1]))])


@pytest.mark.parametrize("columns", [5, 40])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("factored", [False, True])
def test_what_a_gpu_uses(columns: int, masked: bool, factored: bool, seed: int) -> None:
    """The losses behind a layer whose units are known, against autograd, on the CPU."""
    torch.manual_seed(seed)
    model = networks.MLP(columns, 24).double()
    x, h = torch.randn(2, 30, columns, dtype=torch.float64)
    normal = torch.rand(30) > 0.5 if masked else None
    around = x if normal is None else x[normal]
    count = len(around)
    weight, bias = model.hidden.weight, model.hidden.bias
    scale, coefficients = torch.rand(count).double(), torch.randn(count, 24).double()
    h = h[:count]
    found = scale[:, None] * (h + coefficients @ weight.detach())
    found = found + around if factored else h
    target = torch.ones(30).double() if normal is None else normal.double()
    bce = nn.functional.binary_cross_entropy_with_logits
    expected = (bce(model(x)[:, 0], target), bce(model(found)[:, 0], torch.zeros(count).double()))
    with torch.no_grad():
        units = (x @ weight.T + bias, found @ weight.T + bias)
    ours = HiddenLosses.apply(
        *(weight, bias, model.logit.weight, model.logit.bias, x, normal, *units, h),
        *((scale, coefficients) if factored else (None, None)),
    )
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    parameters = list(model.parameters())
    grads = [
        torch.autograd.grad(one + 0.7 * other, parameters, retain_graph=True)
        for one, other in (ours, expected)
    ]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)
    second = []
    for one, other in (ours, expected):
        first = torch.autograd.grad(one + 0.7 * other, parameters, create_graph=True)
        penalty = sum((grad.square().sum() for grad in first), start=torch.zeros(()))
        second.append(torch.autograd.grad(penalty, parameters, allow_unused=True))
    for ours_of, expected_of in zip(*second, strict=True):
        torch.testing.assert_close(ours_of, expected_of, rtol=1e-9, atol=1e-12)


def test_losses_can_be_differentiated_twice_and_apart(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = networks.MLP(5, 8).double(), torch.randn(6, 5, dtype=torch.float64)
    parameters = list(model.parameters())
    terms = DROCCLoss(SearchConfig(1.5, **SETTINGS), mu=0.7)(model, x)
    grads = [torch.autograd.grad(t, parameters, retain_graph=True) for t in (*terms, terms.total)]
    for total, clean, against, again in zip(*grads, strict=True):
        torch.testing.assert_close(total, clean + 0.7 * against)
        assert torch.equal(total, again)
