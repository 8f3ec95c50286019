"""Networks for which a search that reads them might differ from autograd: it does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from drocc_ext import DROCCLoss, SearchConfig, adversarial_search
from drocc_ext.search import gradients


@pytest.fixture(autouse=True)
def _small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search behind a first layer runs at any size."""
    monkeypatch.setattr(gradients, "_LEAST_WORK", 0)


def assert_as_autograd(model: nn.Module, x: Tensor, **settings: Any) -> None:
    ends = [
        adversarial_search(
            model, x, method=method, generator=torch.Generator().manual_seed(1),
            **{"radius": 1.0, "step_size": 0.3, "num_steps": 7, **settings},
        )
        for method in ("auto", "autograd")
    ]  # fmt: skip
    torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-7)


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("kind", [np.float64, np.float32, torch.tensor])
def test_a_slope_that_is_no_plain_number(kind: Any, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(), nn.Linear(16, 1)).double()
    x = rows(16, 6)
    for slope in (0.1, 0.5, 0.9):
        model[1].negative_slope = kind(slope)
        assert_as_autograd(model, x)
    if kind is torch.tensor:
        model[1].negative_slope.fill_(0.2)
        assert_as_autograd(model, x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))  # type: ignore[no-any-return]


def _steeper(self: Net, x: Tensor) -> Tensor:
    return self.b(F.leaky_relu(self.a(x), 0.5))  # type: ignore[no-any-return]


def test_code_that_is_replaced_in_place(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(seed)
    model, x = Net().double(), rows(16, 6)
    assert_as_autograd(model, x)
    monkeypatch.setattr(Net.forward, "__code__", _steeper.__code__)
    assert_as_autograd(model, x)


class Skipping(nn.Sequential):
    skipped: Sequence[int] = ()

    def __iter__(self) -> Iterator[nn.Module]:
        return (m for i, m in enumerate(self._modules.values()) if i not in self.skipped)  # type: ignore[misc]


def test_a_container_that_chooses_its_layers(seed: int) -> None:
    torch.manual_seed(seed)
    layers = (nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1))
    model, x = Skipping(*layers).double(), rows(16, 6)
    assert_as_autograd(model, x)
    model.skipped = (2, 3)
    assert_as_autograd(model, x)


SLOPE = 0.0


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)  # type: ignore[no-any-return]

    def relu(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, SLOPE)


class Calling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = Block(), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body.relu(self.body(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("own", [False, True])
def test_a_method_with_the_name_of_a_tensor_s(
    own: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(seed)
    model, x = Calling().double(), rows(16, 6)
    if own:
        vars(model.body)["relu"] = lambda x: F.leaky_relu(x, SLOPE)
    assert_as_autograd(model, x)
    monkeypatch.setitem(globals(), "SLOPE", 0.9)
    assert_as_autograd(model, x)


class Positive(Tensor):
    """Weights that count where they are positive."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.linear, F.conv1d, torch.conv1d):
            with torch._C.DisableTorchFunctionSubclass():
                weight = args[1].as_subclass(Tensor)
                return func(args[0], weight * (weight > 0), *args[2:], **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})


def positive(module: nn.Module, attribute: bool) -> None:
    weight = module.weight.detach().as_subclass(Positive)  # type: ignore[operator, union-attr]
    if attribute:
        del module.weight
        module.weight = weight
    else:
        module.weight = nn.Parameter(weight)


@pytest.mark.parametrize("attribute", [False, True])
def test_weights_of_another_class(attribute: bool, seed: int) -> None:
    torch.manual_seed(seed)
    perceptron = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)).double()
    positive(perceptron[2], attribute)
    assert_as_autograd(perceptron, rows(16, 6))
    behind = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    positive(behind[0], attribute)
    assert_as_autograd(behind, rows(16, 64))
    folded = nn.Sequential(
        *(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 1))
    ).double()
    nn.init.uniform_(folded[1].running_var, 0.2, 3.0)
    positive(folded[0], attribute)
    assert_as_autograd(folded.eval(), rows(16, 2, 6))


class Hyper(nn.Module):
    """Weights of a layer that depend on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 1)
        self.gate = nn.Linear(3, 60)

    def forward(self, x: Tensor) -> Tensor:
        change = self.gate(x.mean((0, 1))).view(20, 3)
        state = {"weight_ih_l0": self.lstm.weight_ih_l0 + change}
        return self.out(functional_call(self.lstm, state, (x,))[0][:, -1])  # type: ignore[no-any-return]


class Energy(nn.Module):
    """A forward that differentiates."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            z = x if x.requires_grad else x.detach().requires_grad_()
            total = self.out(self.lstm(z)[0][:, -1]).sum()
            (grad,) = torch.autograd.grad(total, z, create_graph=True)
        return -grad.square().sum((1, 2))


@pytest.mark.parametrize("cls", [Hyper, Energy])
def test_a_search_follows_the_gradient_of_an_lstm(cls: type[nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    model, x = cls().double(), rows(8, 20, 3).requires_grad_()
    (grad,) = torch.autograd.grad(model(x).sum(), x)
    found = adversarial_search(
        model,
        x.detach(),
        radius=1e-3,
        step_size=1.0,
        num_steps=1,
        noise_scale=0.0,
        gamma=1e6,
        project_start=False,
    )
    way = (found - x.detach()).flatten(1)
    torch.testing.assert_close(way, F.normalize(grad.flatten(1)), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("second", [nn.ReLU, nn.ELU, nn.Hardtanh])
def test_what_follows_a_first_layer_may_work_in_place(second: Any, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Linear(60, 12), second(inplace=True), nn.Linear(12, 8), nn.ELU(), nn.Linear(8, 1))
    ).double()
    assert_as_autograd(model, rows(16, 60))


@pytest.mark.parametrize("weight", [1.0, 1e20])
def test_behind_a_first_layer_nothing_overflows(weight: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.mul_(weight)
    for radius in (1.0, 1e20 / weight):
        found = adversarial_search(
            model, torch.zeros(5, 64), radius=radius, step_size=radius / 10, num_steps=3
        )
        ratios = found.double().norm(dim=1) / radius
        assert (ratios > 1 - 1e-5).all() and (ratios < 2 + 1e-5).all()


def test_a_model_on_the_meta_device() -> None:
    for layers in ((nn.Linear(3, 5), nn.ReLU()), (nn.Linear(40, 5), nn.Tanh())):
        model = nn.Sequential(*layers, nn.Linear(5, 1)).to("meta")
        x = torch.empty(8, layers[0].in_features, device="meta")  # type: ignore[arg-type]
        assert adversarial_search(model, x, radius=1.0, step_size=0.1, num_steps=2).shape == x.shape


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("labelled", [True, False])
def test_gradients_of_gradients(biases: bool, labelled: bool, seed: int) -> None:
    """Penalties, Hessian products and steps that are differentiated through."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(5, 8, bias=biases), nn.ReLU(), nn.Linear(8, 7), nn.LeakyReLU(0.2),
        nn.Linear(7, 1, bias=biases),
    ).double()  # fmt: skip
    x, parameters = rows(50, 5), list(model.parameters())
    y = (torch.rand(50) > 0.3).double() if labelled else None
    found = []
    for method in ("autograd", "auto"):
        config = SearchConfig(1.0, 0.2, 3, method=method, noise_scale=0.0)  # type: ignore[arg-type]
        total = DROCCLoss(config, mu=0.7)(model, x, y).total
        grads = torch.autograd.grad(total, parameters, create_graph=True)
        penalty = sum((grad.square().sum() for grad in grads), start=torch.zeros(()))
        both = torch.autograd.grad(total + penalty, parameters, retain_graph=True)
        alone = torch.autograd.grad(penalty, parameters, retain_graph=True, allow_unused=True)
        names = dict(zip((name for name, _ in model.named_parameters()), grads, strict=True))
        moved = {n: p - 0.5 * names[n] for n, p in model.named_parameters()}
        meta = torch.autograd.grad(functional_call(model, moved, (x,)).square().mean(), parameters)
        found.append([*grads, *both, *(g for g in alone if g is not None), *meta])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


def test_gradients_of_many_at_once(seed: int) -> None:
    torch.manual_seed(seed)
    model, x, found = Net().double(), rows(20, 6), []
    for method in ("autograd", "auto"):
        config = SearchConfig(1.0, 0.2, 3, method=method, noise_scale=0.0)  # type: ignore[arg-type]
        terms = DROCCLoss(config)(model, x)
        both = torch.stack([terms.clean, terms.adversarial])
        weights = torch.eye(2, dtype=torch.float64)
        found.append(
            torch.autograd.grad(both, list(model.parameters()), weights, is_grads_batched=True)
        )
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


class Image(Tensor):
    """What libraries make of images: a class of its own that does nothing else."""


def test_rows_of_another_class(seed: int) -> None:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1))
    model, x = nn.Sequential(*layers).double(), rows(8, 1, 8, 8)
    config = SearchConfig.from_relative_step(1.0)
    calls = [
        adversarial_search,
        lambda m, x, c, generator: DROCCLoss(c)(m, x, None).clean,
        lambda m, x, c, generator: (
            DROCCLoss(c, metric="mahalanobis")(m, x, None, generator=generator).total
        ),
    ]
    for call in calls:
        found = [
            call(model, some, config, generator=torch.Generator().manual_seed(1))  # type: ignore[operator]
            for some in (x, x.as_subclass(Image))
        ]
        torch.testing.assert_close(*(f.detach().as_subclass(Tensor) for f in found))


@pytest.mark.parametrize("shape", [(1,), (1, 16)])
def test_one_bias_for_all_units(shape: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    model = Net().double()
    model.a.bias = nn.Parameter(rows(*shape))
    assert_as_autograd(model, rows(16, 6))


@pytest.mark.parametrize("layers", [1, 2])
def test_weights_that_are_given_other_data_before_the_backward(layers: int, seed: int) -> None:
    found = []
    for method in ("auto", "autograd"):
        torch.manual_seed(seed)
        deep = [m for _ in range(layers - 1) for m in (nn.Linear(16, 16), nn.ReLU())]
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), *deep, nn.Linear(16, 1)).double()
        config = SearchConfig.from_relative_step(1.0, method=method, noise_scale=0.0)  # type: ignore[arg-type]
        total = DROCCLoss(config)(model, rows(20, 6)).total
        parameters = list(model.parameters())
        vector = nn.utils.parameters_to_vector(parameters).detach()
        nn.utils.vector_to_parameters(1.5 * vector, parameters)
        found.append(torch.autograd.grad(total, parameters))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
