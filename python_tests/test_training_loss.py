"""DROCCLoss against its formula, and the batches on which the formula is not defined."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from search_cases import generator, network, rows
from torch import Tensor, nn

from drocc_ext.search import SearchConfig, adversarial_search
from drocc_ext.training.loss import DROCCLoss, LossTerms

CONFIG = SearchConfig(radius=2.0, step_size=0.5, num_steps=3)
SEARCH: dict[str, Any] = {"radius": 2.0, "step_size": 0.5, "num_steps": 3}


def batchnorm_network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 1)
        )
        return layers.double()


class Counted(nn.Module):
    """Records how many rows each call got and in which mode."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls: list[tuple[int, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((x.shape[0], self.training))
        output: Tensor = self.inner(x)
        return output


def bce(logits: Tensor, target: float) -> Tensor:
    p = torch.sigmoid(logits)
    return -(p.log() if target == 1 else (1 - p).log())


def test_formula_and_gradient(seed: int) -> None:
    model, x = network(seed), rows(seed, 7, 6)
    terms = DROCCLoss(CONFIG, mu=0.7)(model, x, generator=generator(seed))
    assert isinstance(terms, LossTerms)
    x_adv = adversarial_search(model, x, **SEARCH, generator=generator(seed))
    clean = bce(model(x), 1).mean()
    adversarial = bce(model(x_adv), 0).mean()
    for found, expected in zip(terms, (clean + 0.7 * adversarial, clean, adversarial), strict=True):
        assert found.shape == ()
        torch.testing.assert_close(found, expected)
    parameters = list(model.parameters())
    found_grads = torch.autograd.grad(terms.total, parameters)
    torch.testing.assert_close(
        found_grads, torch.autograd.grad(clean + 0.7 * adversarial, parameters)
    )


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64, torch.float16]
)
def test_labelled_negatives(dtype: torch.dtype, column: bool, seed: int) -> None:
    model, x = network(seed), rows(seed, 6, 6)
    y = torch.tensor([1, 0, 1, 1, 0, 1], dtype=dtype)
    normal = torch.tensor([0, 2, 3, 5])
    terms = DROCCLoss(CONFIG)(model, x, y[:, None] if column else y, generator=generator(seed))
    x_adv = adversarial_search(model, x[normal], **SEARCH, generator=generator(seed))
    logits = model(x)
    targets = [1, 0, 1, 1, 0, 1]
    clean = torch.stack([bce(z, t) for z, t in zip(logits, targets, strict=True)]).mean()
    torch.testing.assert_close(terms.clean, clean)
    torch.testing.assert_close(terms.adversarial, bce(model(x_adv), 0).mean())


def test_all_ones_is_no_labels(seed: int) -> None:
    model, x = network(seed), rows(seed, 5, 6)
    loss = DROCCLoss(CONFIG)
    without = loss(model, x, generator=generator(seed))
    with_labels = loss(model, x, torch.ones(5), generator=generator(seed))
    assert torch.equal(torch.stack(without), torch.stack(with_labels))


def test_one_joint_forward(seed: int) -> None:
    model, x = Counted(network(seed)), rows(seed, 5, 6)
    DROCCLoss(CONFIG)(model, x, torch.tensor([1, 1, 0, 0, 1]))
    assert model.calls == [(3, False)] * 3 + [(8, True)]
    assert model.training


def test_batch_statistics_are_those_of_the_joint_batch(seed: int) -> None:
    model, x = batchnorm_network(seed), rows(seed, 20, 6)
    norm = model[1]
    x_adv = adversarial_search(model, x, **SEARCH, generator=generator(seed))
    assert int(norm.num_batches_tracked) == 0
    DROCCLoss(CONFIG)(model, x, generator=generator(seed))
    assert int(norm.num_batches_tracked) == 1
    joint = model[0](torch.cat([x, x_adv]))
    torch.testing.assert_close(norm.running_mean, 0.1 * joint.mean(0))


def test_warm_up_is_the_clean_term_only(seed: int) -> None:
    model, x = Counted(network(seed)), rows(seed, 5, 6)
    terms = DROCCLoss(CONFIG)(model, x, adversarial=False)
    assert model.calls == [(5, True)]
    assert terms.adversarial == 0
    assert terms.total == terms.clean
    torch.testing.assert_close(terms.clean, bce(model(x), 1).mean())


@pytest.mark.parametrize("model_of", [network, batchnorm_network])
def test_no_normal_rows(model_of: Any, seed: int) -> None:
    model, x = model_of(seed), rows(seed, 4, 6)
    terms = DROCCLoss(CONFIG)(model, x, torch.zeros(4))
    assert terms.adversarial == 0
    assert terms.total == terms.clean
    assert terms.total.isfinite()
    terms.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("y", [None, torch.zeros(0), torch.zeros(0, 1)])
@pytest.mark.parametrize("adversarial", [False, True])
def test_empty_batch(y: Tensor | None, adversarial: bool, seed: int) -> None:
    model = Counted(batchnorm_network(seed))
    with torch.no_grad():
        next(model.parameters())[0, 0] = math.nan  # must not come through as 0 * NaN
    terms = DROCCLoss(CONFIG)(model, torch.zeros(0, 6).double(), y, adversarial=adversarial)
    assert [term.item() for term in terms] == [0, 0, 0]
    assert all(term.dtype == torch.float64 for term in terms)
    assert model.calls == []
    terms.total.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert (parameter.grad == 0).all()


@pytest.mark.parametrize("count", [1, 13])
def test_one_normal_row_with_batchnorm_in_a_search_that_does_not_freeze(
    count: int, seed: int
) -> None:
    model, x = batchnorm_network(seed), rows(seed, count, 6)
    y = torch.zeros(count)
    y[0] = 1
    frozen_search = replace(CONFIG, freeze=True)
    found = []
    for search in (replace(CONFIG, freeze=False), frozen_search):
        torch.manual_seed(seed)  # for dropout, in the joint forward
        terms = DROCCLoss(search)(copy.deepcopy(model), x, y, generator=generator(seed))
        found.append(torch.stack(terms).detach())
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("y", "adversarial"), [(None, False), (torch.zeros(1), True), (torch.ones(1), True)]
)
def test_single_row_with_batchnorm(y: Tensor | None, adversarial: bool, seed: int) -> None:
    model, x = batchnorm_network(seed), rows(seed, 1, 6)
    flags = [module.training for module in model.modules()]
    terms = DROCCLoss(CONFIG)(model, x, y, adversarial=adversarial)
    assert all(term.isfinite() for term in terms)
    terms.total.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert [module.training for module in model.modules()] == flags
    joint_rows = 2 if y is not None and y.item() == 1 else 1
    assert int(model[1].num_batches_tracked) == (1 if joint_rows == 2 else 0)


def test_single_row_without_batchnorm_keeps_dropout(seed: int) -> None:
    model = Counted(nn.Sequential(nn.Linear(6, 1), nn.Dropout(0.5)).double())
    DROCCLoss(CONFIG)(model, rows(seed, 1, 6), adversarial=False)
    assert model.calls == [(1, True)]


def test_radius_per_row_follows_its_row(seed: int) -> None:
    found = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(seed)

        def forward(self, x: Tensor) -> Tensor:
            found.append(x.detach().clone())
            output: Tensor = self.inner(x)
            return output

    radius = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    config = SearchConfig(radius=radius, step_size=0.5, num_steps=2, gamma=1.0)
    x, y = rows(seed, 4, 6), torch.tensor([1, 0, 1, 1])
    DROCCLoss(config)(Spy(), x, y)
    normal = y == 1
    torch.testing.assert_close((found[-1][4:] - x[normal]).norm(dim=1), radius[normal])
    with pytest.raises(ValueError, match=r"^DROCCLoss: a radius tensor must have shape \(3,\)"):
        DROCCLoss(config)(Spy(), x[:3], y[:3])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_logits_give_float32_terms(half: torch.dtype, seed: int) -> None:
    model, x = network(seed).to(half), rows(seed, 30, 6, dtype=half)
    terms = DROCCLoss(CONFIG)(model, x)
    assert all(term.dtype == torch.float32 for term in terms)
    terms.total.backward()
    assert all(p.grad is not None and p.grad.dtype == half for p in model.parameters())


def test_autocast_gives_parameters_their_gradients(seed: int) -> None:
    model, x = network(seed).float(), rows(seed, 300, 6, dtype=torch.float32)
    loss, parameters = DROCCLoss(CONFIG), list(model.parameters())
    expected = torch.autograd.grad(loss(model, x, generator=generator(seed)).total, parameters)
    with torch.autocast("cpu", torch.bfloat16):
        terms = loss(model, x, generator=generator(seed))
    assert terms.total.dtype == torch.float32
    for found, wanted in zip(torch.autograd.grad(terms.total, parameters), expected, strict=True):
        assert (found - wanted).norm() <= 0.1 * wanted.norm() + 1e-2


def test_inside_no_grad(seed: int) -> None:
    model, x = network(seed), rows(seed, 5, 6)
    expected = DROCCLoss(CONFIG)(model, x, generator=generator(seed))
    with torch.no_grad():
        found = DROCCLoss(CONFIG)(model, x, generator=generator(seed))
    assert not found.total.requires_grad
    torch.testing.assert_close(found.total, expected.total.detach())


@pytest.mark.parametrize("value", [-1, 2, 0.5, math.nan])
def test_other_labels(value: float, seed: int) -> None:
    y = torch.tensor([1, 0, value, 1])
    message = rf"labels must be 1 \(normal\) or 0 \(negative\), got {value}"
    with pytest.raises(ValueError, match=f"^DROCCLoss: {message}"):
        DROCCLoss(CONFIG)(network(seed), rows(seed, 4, 6), y)


@pytest.mark.parametrize("y", [torch.ones(3), torch.ones(4, 2), torch.ones(1, 4), torch.ones(())])
def test_labels_of_another_shape(y: Tensor, seed: int) -> None:
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\) or \(4, 1\), got"):
        DROCCLoss(CONFIG)(network(seed), rows(seed, 4, 6), y)


def test_bad_types(seed: int) -> None:
    loss, model = DROCCLoss(CONFIG), network(seed)
    with pytest.raises(TypeError, match=r"^DROCCLoss: x must be a floating-point tensor"):
        loss(model, torch.zeros(4, 6).long(), adversarial=False)
    with pytest.raises(TypeError, match=r"^DROCCLoss: labels must be a tensor, got list"):
        loss(model, rows(seed, 2, 6), [1, 0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metric": "l1"}, ValueError, "metric must be one of l2, mahalanobis, got 'l1'"),
        ({"metric": None}, ValueError, "metric must be one of l2, mahalanobis, got None"),
        ({"influence": "batch"}, ValueError, "influence must be one of epoch, sample, got 'batch'"),
        ({"mu": -0.1}, ValueError, "mu must be >= 0 and finite, got -0.1"),
        ({"mu": math.nan}, ValueError, "mu must be >= 0 and finite, got nan"),
        ({"mu": "1"}, TypeError, "mu must be a number, got '1'"),
        ({"search": 2.0}, TypeError, "search must be a SearchConfig, got float"),
    ],
)
def test_constructor(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^DROCCLoss: {message}$"):
        DROCCLoss(**{"search": CONFIG, **arguments})


def test_a_scalar_is_no_batch() -> None:
    with pytest.raises(ValueError, match="DROCCLoss: x must have a batch dimension"):
        DROCCLoss(SearchConfig(radius=1.0, step_size=0.1, num_steps=1))(
            nn.Linear(1, 1), torch.tensor(1.0)
        )


@pytest.mark.parametrize("metric", ["l2", "mahalanobis"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_transforms_of_torch_func(metric: str, activation: type[nn.Module], seed: int) -> None:
    """Gradients and derivatives along a direction are autograd's: of points that stay."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 8), activation(), nn.Linear(8, 1)).double()
    x = torch.randn(16, 4, dtype=torch.float64)
    loss = DROCCLoss(SearchConfig(1.0, 0.3, 3), metric=metric)  # type: ignore[arg-type]
    loss.start_epoch()

    class Objective(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.loss = network, loss

        def forward(self, x: Tensor) -> Tensor:
            source = torch.Generator("cpu").manual_seed(seed)
            total: Tensor = self.loss(self.network, x, generator=source).total
            return total

    objective = Objective()
    values = {name: p.detach() for name, p in objective.named_parameters()}
    along = {name: torch.randn_like(value) for name, value in values.items()}

    def total(values: dict[str, Tensor]) -> Tensor:
        loss.start_epoch()
        result: Tensor = torch.func.functional_call(objective, values, (x,))
        return result

    loss.start_epoch()
    objective(x).backward()
    expected = {name: p.grad for name, p in objective.named_parameters()}
    torch.testing.assert_close(torch.func.grad(total)(values), expected)
    _, pull = torch.func.vjp(total, values)
    torch.testing.assert_close(pull(torch.ones((), dtype=torch.float64))[0], expected)
    slope = sum((expected[name] * along[name]).sum() for name in along)
    torch.testing.assert_close(torch.func.jvp(total, (values,), (along,))[1], slope)
