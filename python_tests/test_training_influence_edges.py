"""Where the influence meets half types, autocast, bad rows and batches without normal ones."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from search_cases import (
    Spy,
    adversarial_rows,
    assert_in_shell,
    generator,
    influence_by_hand,
    lf,
    network,
    regular_network,
    rows,
)
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from drocc_ext.search import SearchConfig
from drocc_ext.training.loss import DROCCLoss


@pytest.mark.parametrize("way", ["epoch", "sample"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=lambda c: c.__name__)
def test_gradient_modes(context: Any, way: str, seed: int) -> None:
    model, x = network(seed), rows(seed, 5, 6)
    loss = lf(influence=way)
    expected = loss(model, x, generator=generator(seed)).total.detach()
    other = lf(influence=way)
    with context():
        inside = x.clone()
        for _ in range(2):
            found = other(model, inside, generator=generator(seed)).total
            torch.testing.assert_close(found, expected)
    loss(model, x)
    for each in (loss, other):
        each.start_epoch()
        each(model, x).total.backward()  # and what was counted there serves here
    if way == "epoch":
        torch.testing.assert_close(loss.sigma, other.sigma)


@pytest.mark.parametrize("way", ["epoch", "sample"])
@pytest.mark.parametrize("inference", [False, True])
def test_loss_under_autocast(inference: bool, way: str, seed: int) -> None:
    model, x = network(seed, dtype=torch.float32), rows(seed, 300, 6, dtype=torch.float32)
    loss = lf(influence=way)
    with torch.inference_mode(inference), torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        for _ in range(2):
            terms = loss(model, x)
            loss.start_epoch()
    assert terms.total.dtype == torch.float32
    assert terms.total.isfinite()
    if loss.sigma is not None:
        assert (loss.sigma - influence_by_hand(model, x).mean(0)).abs().max() < 0.1


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["epoch", "sample"])
def test_half_types(way: str, half: torch.dtype, seed: int) -> None:
    model, x = network(seed, dtype=half), rows(seed, 3000, 6, dtype=half)
    loss = lf(influence=way)
    for _ in range(2):
        loss(model, x).total.backward()
        loss.start_epoch()
    if loss.sigma is not None:
        assert loss.sigma.dtype == torch.float64  # 3000 rows would not add up in a half type
        assert abs(float(loss.sigma.mean()) - 1) < 0.01


@pytest.mark.parametrize("way", ["epoch", "sample"])
@pytest.mark.parametrize("y", [None, torch.zeros(0), torch.zeros(1), torch.ones(1), torch.zeros(4)])
def test_batches_without_normals_of_one_row_and_of_none(
    y: Tensor | None, way: str, seed: int
) -> None:
    count = 1 if y is None else len(y)
    model, x, loss = regular_network(seed), rows(seed, count, 6), lf(influence=way)
    terms = loss(model, x, y)
    assert all(term.isfinite() for term in terms)
    terms.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    some_normal = y is None or bool((y == 1).any())
    assert (terms.adversarial > 0) == some_normal
    loss.start_epoch()
    assert (loss.sigma is not None) == (some_normal and way == "epoch")


@pytest.mark.parametrize("value", [-1, 2, 0.5, math.nan])
def test_other_labels_count_nothing(value: float, seed: int) -> None:
    loss, y = lf(), torch.tensor([1, 0, value, 1])
    with pytest.raises(ValueError, match=r"^DROCCLoss: labels must be 1 \(normal\) or 0"):
        loss(network(seed), rows(seed, 4, 6), y)
    assert loss.state_dict() == {}


def test_a_forward_that_fails_counts_nothing(seed: int) -> None:
    class Broken(Spy):
        def forward(self, x: Tensor) -> Tensor:
            if len(self.seen) == 4:
                raise RuntimeError("on purpose")
            return super().forward(x)

    loss, model, x = lf(), Broken(network(seed)), rows(seed, 4, 6)
    with pytest.raises(RuntimeError, match="on purpose"):
        loss(model, x)
    assert len(model.seen) == 4
    assert loss.state_dict() == {}


def test_zero_gradient_weighs_all_coordinates_equally(seed: int) -> None:
    class Flat(nn.Module):
        """Its gradient is zero in the rows whose first coordinate is negative."""

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1].clamp(min=0) * x[:, 1:].sin().sum(1, keepdim=True)

    model, x = Spy(Flat()), rows(seed, 9, 6)
    x[:, 0] = x[:, 0].abs() + 0.1
    x[4, 0] = -1e3
    loss = lf(influence="sample")
    h = adversarial_rows(loss, model, x) - x
    sigma = influence_by_hand(model.inner, x)
    assert sigma[4].isnan().all()  # 0 / 0 by hand
    sigma[4] = 1
    assert_in_shell(h, sigma)
    loss = lf()
    loss(model, x)
    loss.start_epoch()
    assert loss.sigma is not None
    torch.testing.assert_close(loss.sigma, sigma.mean(0))


def test_a_row_without_finite_influence_is_left_out(seed: int) -> None:
    model, x = network(seed), rows(seed, 6, 6)
    spoilt = x.clone()
    spoilt[2, 3] = math.nan
    loss = lf()
    assert loss(model, spoilt).total.isnan()
    loss.start_epoch()
    expected = influence_by_hand(model, x[[0, 1, 3, 4, 5]]).mean(0)
    assert loss.sigma is not None
    torch.testing.assert_close(loss.sigma, expected)
    assert loss(model, x).total.isfinite()
    loss.start_epoch()
    before = loss.sigma.clone()
    for _ in range(2):  # nothing but bad rows: as if there had been none
        loss(model, spoilt[2:3])
        loss.start_epoch()
        assert torch.equal(loss.sigma, before)
    loss = lf()
    assert loss(model, spoilt[2:3]).total.isnan()
    loss.start_epoch()
    assert loss.sigma is None


def test_an_infinite_gradient_at_a_finite_logit(seed: int) -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.abs().sqrt().sum(1) - 3

    model, x = Spy(Root()), rows(seed, 5, 6)
    expected = influence_by_hand(model.inner, x[[0, 1, 3, 4]]).mean(0)
    x[2, 1] = 0
    h = adversarial_rows(lf(), model, x) - x
    assert_in_shell(h, expected)
    sampled = adversarial_rows(lf(influence="sample"), model, x)
    assert sampled[2].isnan().all()  # and with it the loss
    assert sampled[[0, 1, 3, 4]].isfinite().all()


def test_rows_of_another_shape(seed: int) -> None:
    def model(x: Tensor) -> Tensor:
        return x.flatten(1).sin().sum(1)

    module = nn.Module()
    module.forward = model  # type: ignore[method-assign]
    loss = lf()
    loss(module, rows(seed, 3, 6))
    message = r"^DROCCLoss: with influence 'epoch' all rows must have one shape, got \(5,\) after"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            loss(module, rows(seed, 3, 5))
        loss.start_epoch()
    loss.reset()
    loss(module, rows(seed, 3, 5))
    for shape in ((3, 5), (2, 7), (2, 2, 2)):
        lf(influence="sample")(module, rows(seed, *shape))


def test_output_that_does_not_depend_on_x(seed: int) -> None:
    model = nn.Linear(6, 1)
    model.forward = lambda x: x.new_ones(len(x))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"^DROCCLoss: .* must depend differentiably on its input"):
        lf()(model, rows(seed, 4, 6))


def test_rows_without_features_are_refused() -> None:
    loss = DROCCLoss(SearchConfig(radius=1.0, step_size=0.1, num_steps=1), metric="mahalanobis")
    with pytest.raises(ValueError, match=r"needs rows with features, shape \[B, \*\], got \(4,\)"):
        loss(torch.nn.Identity(), torch.randn(4))


def test_weights_are_averaged_beside_a_loss_with_epochs(seed: int) -> None:
    """What pairs buffers by their places must not find sigma among them."""
    torch.manual_seed(seed)
    x = torch.randn(64, 4) * 3 + 5
    whole = nn.ModuleDict(
        {
            "loss": DROCCLoss(SearchConfig.from_relative_step(0.5), metric="mahalanobis"),
            "model": nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)),
        }
    )
    averaged, kept = AveragedModel(whole, use_buffers=True), []
    for epoch in range(3):
        whole["loss"].start_epoch()  # type: ignore[operator]
        whole["loss"](whole["model"], x).total.backward()
        if epoch > 0:
            averaged.update_parameters(whole)
            kept.append(whole["model"][0].running_mean.clone())  # type: ignore[index]
    found = averaged.module["model"][0].running_mean  # type: ignore[index]
    torch.testing.assert_close(found, torch.stack(kept).mean(0))
    assert whole["loss"].sigma is not None


def test_the_state_moves_with_the_module_and_keeps_its_type(seed: int) -> None:
    torch.manual_seed(seed)
    loss = DROCCLoss(SearchConfig.from_relative_step(0.5), metric="mahalanobis")
    loss.start_epoch()
    loss(nn.Linear(4, 1), torch.randn(9, 4))
    assert loss.tracker is not None and loss.tracker.influence_sum is not None
    before = loss.tracker.influence_sum.clone()
    loss.half().double().to("cpu")
    assert torch.equal(loss.tracker.influence_sum, before)
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    assert {"tracker.influence_sum", "tracker.row_count"} <= state.keys()
    other = DROCCLoss(SearchConfig.from_relative_step(0.5), metric="mahalanobis")
    other.load_state_dict(state)
    assert other.tracker is not None and torch.equal(other.tracker.influence_sum, before)  # type: ignore[arg-type]
    assert copy.deepcopy(loss).to("meta").tracker.influence_sum.is_meta  # type: ignore[union-attr]
