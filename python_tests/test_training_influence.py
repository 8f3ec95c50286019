"""Where the sigma of DROCC-LF comes from: the sample, or the mean over the epoch before."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from search_cases import (
    CONFIG,
    SETTINGS,
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
from torch.utils._python_dispatch import TorchDispatchMode

from drocc_ext.models.modes import frozen
from drocc_ext.ops import influence, mahalanobis_norm
from drocc_ext.search import SearchConfig, adversarial_search
from drocc_ext.training import loss as losses
from drocc_ext.training.loss import DROCCLoss


@pytest.mark.parametrize("make", [network, regular_network])
def test_sigma_of_each_sample(make: Any, seed: int) -> None:
    model, x = Spy(make(seed)), rows(seed, 7, 6)
    y = torch.tensor([1, 0, 1, 1, 0, 1, 1])
    sigma = influence_by_hand(model.inner, x[y == 1])
    loss = lf(influence="sample")
    expected = adversarial_search(
        model.inner, x[y == 1], **SETTINGS, sigma=sigma, generator=generator(seed)
    )
    loss(model, x, y, generator=generator(seed))
    x_adv = model.seen[-1][7:]
    torch.testing.assert_close(x_adv, expected)
    assert_in_shell(x_adv - x[y == 1], sigma)
    assert loss.state_dict() == {}


@pytest.mark.parametrize("make", [network, regular_network])
def test_sigma_of_the_epoch_before(make: Any, seed: int) -> None:
    model, x = Spy(make(seed)), rows(seed, 11, 6)
    y = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1])
    loss = lf()
    loss.start_epoch()
    assert loss.sigma is None
    batches = [(x[:4], y[:4]), (x[4:5], y[4:5]), (x[5:], y[5:])]  # the second has no normal row
    counted = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for bx, by in batches:
        by_hand = influence_by_hand(model.inner, bx[by == 1]) if (by == 1).any() else None
        terms = loss(model, bx, by)
        if by_hand is not None:  # before the first epoch is over: the batch's own mean
            assert_in_shell(model.seen[-1][len(bx) :] - bx[by == 1], by_hand.mean(0))
            counted.append(by_hand)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
    assert loss.sigma is None
    loss.start_epoch()
    expected = torch.cat(counted).mean(0)  # over rows, with the weights of their own step
    assert loss.sigma is not None
    torch.testing.assert_close(loss.sigma, expected)
    torch.testing.assert_close(loss.sigma.mean(), torch.ones(()).double())
    before = loss.sigma.clone()
    counted = []
    for bx, by in batches:
        if (by == 1).any():
            counted.append(influence_by_hand(model.inner, bx[by == 1]))
            assert_in_shell(adversarial_rows(loss, model, bx, by) - bx[by == 1], before)
    assert torch.equal(loss.sigma, before)
    loss.start_epoch()
    assert not torch.equal(loss.sigma, before)
    # Rows of the first epoch do not count again.
    torch.testing.assert_close(loss.sigma, torch.cat(counted).mean(0))


def test_an_epoch_without_normal_rows_keeps_sigma(seed: int) -> None:
    model, x, loss = network(seed), rows(seed, 5, 6), lf()
    loss(model, x)
    loss.start_epoch()
    assert loss.sigma is not None
    before = loss.sigma.clone()
    loss.start_epoch()
    for batch in (x, x[:1], x[:0]):
        loss(model, batch, torch.zeros(len(batch)))
    loss(model, x, adversarial=False)
    loss.start_epoch()
    assert torch.equal(loss.sigma, before)


def test_warm_up_costs_nothing(seed: int) -> None:
    model, x, loss = Spy(network(seed)), rows(seed, 5, 6), lf()
    loss(model, x, adversarial=False)
    assert len(model.seen) == 1
    loss.start_epoch()
    assert loss.sigma is None
    assert loss.state_dict() == {}
    x_adv = adversarial_rows(loss, model, x)
    assert_in_shell(x_adv - x, influence_by_hand(model.inner, x).mean(0))
    loss.start_epoch()
    loss.eval()  # sigma is in force, so there is nothing to measure
    model.seen.clear()
    loss(model, x)
    assert len(model.seen) == SETTINGS["num_steps"] + 1


def test_evaluation_is_not_counted(seed: int) -> None:
    model, x, loss = Spy(network(seed)), rows(seed, 5, 6), lf()
    loss.eval()
    assert_in_shell(adversarial_rows(loss, model, x) - x, influence_by_hand(model.inner, x).mean(0))
    assert loss.state_dict() == {}
    loss.train()
    loss(model, x)
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    loss.eval()
    loss(model, 100 * x)
    assert state.keys() == loss.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in loss.state_dict().items())


def test_without_labels_and_all_normal_agree(seed: int) -> None:
    differs = []
    for other_seed in range(seed, seed + 5):
        model, x = network(other_seed), rows(other_seed, 5, 6)
        for way in ("epoch", "sample"):
            loss = lf(influence=way)
            without = loss(model, x, generator=generator(seed))
            labelled = loss(model, x, torch.ones(5), generator=generator(seed))
            assert torch.equal(torch.stack(without), torch.stack(labelled))
            other = DROCCLoss(CONFIG)(model, x, generator=generator(seed))
            differs.append(bool(other.adversarial != without.adversarial))
            assert torch.equal(other.clean, without.clean)
    assert sum(differs) > 5  # where all units are off, every metric has one loss


def test_influence_gives_parameters_no_gradients(seed: int) -> None:
    model, x = network(seed), rows(seed, 5, 6)
    computed = 0

    def count(_: Tensor) -> None:
        nonlocal computed
        computed += 1

    for parameter in model.parameters():
        parameter.register_hook(count)
    terms = lf()(model, x)
    assert computed == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    terms.total.backward()
    assert computed == 4


class Reads(TorchDispatchMode):
    """Counts the reads by the host, which would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        self.count += func in (aten._local_scalar_dense.default, aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", ["epoch", "sample"])
def test_sigma_is_not_read_by_the_host(
    way: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, loss = network(seed), rows(seed, 5, 6), lf(influence=way)
    monkeypatch.setattr(losses, "adversarial_search", lambda model, x, *_, **__: x + 1)
    for _ in range(2):
        with Reads() as reads:
            for _ in range(3):
                loss(model, x)
        assert reads.count == 0
        loss.start_epoch()


def test_influence_of_the_module_inside_ddp(tmp_path: Path, seed: int) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model, x = network(seed), rows(seed, 5, 6)
        wrapped, loss, other = nn.parallel.DistributedDataParallel(model), lf(), lf()
        calls, forward = [], wrapped.forward
        wrapped.forward = lambda x: (calls.append(len(x)), forward(x))[1]  # type: ignore[func-returns-value, method-assign]
        found = loss(wrapped, x, generator=generator(seed))
        found.total.backward()
        assert calls == [10]  # the joint forward; its wrapper is not for other gradients
    finally:
        torch.distributed.destroy_process_group()
    expected = other(model, x, generator=generator(seed))
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))
    assert same_state(loss, other)


def same_state(first: DROCCLoss, second: DROCCLoss) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_influence_leaves_modes_and_statistics_alone(seed: int) -> None:
    model, x = regular_network(seed), rows(seed, 8, 6)
    model[3].eval()
    flags = [module.training for module in model.modules()]
    with torch.no_grad():
        lf()(model, x, generator=generator(seed))
    assert [module.training for module in model.modules()] == flags
    assert int(model[1].num_batches_tracked) == 1  # of the joint forward


def test_radius_per_row(seed: int) -> None:
    radius = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    config = SearchConfig(radius=radius, step_size=0.5, num_steps=2, gamma=1.0)
    model, x, y = Spy(network(seed)), rows(seed, 4, 6), torch.tensor([1, 0, 1, 1])
    DROCCLoss(config, metric="mahalanobis", influence="sample")(model, x, y)
    sigma = influence_by_hand(model.inner, x[y == 1])
    found = mahalanobis_norm(model.seen[-1][4:] - x[y == 1], sigma)
    torch.testing.assert_close(found, radius[y == 1])


def test_the_solver_of_the_config_is_used(seed: int) -> None:
    model, x = network(seed), rows(seed, 30, 6)
    config = SearchConfig(**SETTINGS, noise_scale=0.2, solver="grid", grid_points=4)
    loss = DROCCLoss(config, metric="mahalanobis", influence="sample")
    found = loss(model, x, generator=generator(seed)).adversarial
    sigma = influence_by_hand(model, x)
    for points, same in ((4, True), (40, False)):
        x_adv = adversarial_search(
            model,
            x,
            **SETTINGS,
            noise_scale=0.2,
            sigma=sigma,
            solver="grid",
            grid_points=points,
            generator=generator(seed),
        )
        expected = torch.nn.functional.softplus(model(x_adv)).mean()
        assert torch.isclose(found, expected, rtol=1e-9) == same


def test_state_goes_into_another_loss(seed: int, tmp_path: Path) -> None:
    model, x = network(seed), rows(seed, 8, 6)
    loss = lf()
    loss(model, x[:5])
    loss.start_epoch()
    loss(model, x[5:])
    state = loss.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    safetensors.torch.save_file(state, tmp_path / "state")  # weights of plain tensors
    other = lf()
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "state"))
    loss.start_epoch()
    other.start_epoch()
    assert loss.sigma is not None
    assert other.sigma is not None
    assert torch.equal(loss.sigma, other.sigma)
    other.load_state_dict({})  # as of a module that was saved by the first version
    assert other.sigma is None
    outer = nn.ModuleDict({"model": model, "loss": other})
    outer.load_state_dict({f"model.{k}": v for k, v in model.state_dict().items()})
    outer.load_state_dict(nn.ModuleDict({"model": model, "loss": loss}).state_dict())
    assert other.sigma is not None
    assert torch.equal(loss.sigma, other.sigma)
    copied = copy.deepcopy(loss)
    copied.reset()
    assert (copied.sigma, loss.sigma is None) == (None, False)


def test_state_that_does_not_fit(seed: int) -> None:
    loss = lf()
    loss(network(seed), rows(seed, 5, 6))
    state = loss.state_dict()
    for other in (DROCCLoss(CONFIG), lf(influence="sample")):
        with pytest.raises(RuntimeError, match="Unexpected key"):
            other.load_state_dict(state)
    del state["tracker.row_count"]
    with pytest.raises(RuntimeError, match=r"Missing key.*row_count"):
        lf().load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*weight"):
        lf().load_state_dict({"weight": torch.ones(1)})


def test_repr() -> None:
    assert "metric='mahalanobis', influence='epoch'" in repr(lf())
    assert "influence" not in repr(DROCCLoss(CONFIG))
    assert "labels='distance'" in repr(DROCCLoss(CONFIG, labels="distance", rows=torch.ones(2, 3)))


def test_influence_equals_the_operator(seed: int) -> None:
    model, x = regular_network(seed), rows(seed, 9, 6)
    leaf = x.clone().requires_grad_()
    with frozen(model):
        (grad,) = torch.autograd.grad(model(leaf).sum(), leaf)
    loss = lf()
    loss(model, x)
    loss.start_epoch()
    assert loss.sigma is not None
    torch.testing.assert_close(loss.sigma, influence(grad).mean(0))
