"""DROCC-LF: the search in the Mahalanobis metric, and where its sigma comes from."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from drocc_ext.models.modules import frozen
from drocc_ext.ops import influence, mahalanobis_norm, project_mahalanobis_shell
from drocc_ext.search import SearchConfig, adversarial_search
from drocc_ext.training import loss as losses
from drocc_ext.training.loss import DROCCLoss

SETTINGS: dict[str, Any] = {"radius": 2.0, "step_size": 0.5, "num_steps": 3}
CONFIG = SearchConfig(**SETTINGS)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed + 1), dtype=dtype)


def weights(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A sigma: uneven, positive."""
    return torch.rand(*shape, generator=generator(seed + 2), dtype=torch.float64).to(dtype) + 0.05


def network(seed: int, features: int = 6, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, 1))
        return layers.to(dtype)


def regular_network(seed: int, features: int = 6) -> nn.Sequential:
    """Batch statistics and dropout, which the influence must not see."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(
            nn.Linear(features, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.5)
        )
        return layers.append(nn.Linear(16, 1)).double()


def influence_by_hand(model: nn.Module, x: Tensor) -> Tensor:
    """Row by row, in a copy in eval mode."""
    model = copy.deepcopy(model).eval()
    found = []
    for row in x:
        leaf = row.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(leaf[None]).sum(), leaf)
        found.append(grad.abs() / grad.abs().mean())
    return torch.stack(found)


def lf(**options: Any) -> DROCCLoss:
    return DROCCLoss(CONFIG, metric="mahalanobis", **options)


class Spy(nn.Module):
    """Records its inputs; the last one of a loss is the joint batch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        output: Tensor = self.inner(x)
        return output


def assert_in_shell(h: Tensor, sigma: Tensor, radius: float = 2.0, gamma: float = 2.0) -> None:
    lengths = mahalanobis_norm(h, sigma)
    assert lengths.min() >= radius * (1 - 1e-9)
    assert lengths.max() <= gamma * radius * (1 + 1e-9)


# --- the search ---------------------------------------------------------------------------------


def algorithm_2(
    model: nn.Module,
    x: Tensor,
    sigma: Tensor,
    *,
    radius: float | Tensor,
    step_size: float,
    num_steps: int,
    gamma: float = 2.0,
    project_every: int = 1,
    noise_scale: float = 1.0,
    project_start: bool = True,
    seed: int,
    **solver: Any,
) -> Tensor:
    h = torch.randn(x.shape, generator=generator(seed), dtype=x.dtype) * noise_scale
    if project_start or num_steps == 0:
        h = project_mahalanobis_shell(h, sigma, radius, gamma, **solver)
    for i in range(1, num_steps + 1):
        at = (x + h).requires_grad_()
        (grad,) = torch.autograd.grad(model(at).sum(), at)
        h = h + step_size * grad / grad.flatten(1).norm(dim=1)[:, None]
        if i % project_every == 0 or i == num_steps:
            h = project_mahalanobis_shell(h, sigma, radius, gamma, **solver)
    return x + h


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_steps": 0},
        {"num_steps": 0, "project_start": False},
        {"project_start": False},
        {"num_steps": 7, "project_every": 3},
        {"num_steps": 2, "project_every": 10},
        {"gamma": 1.0},
        {"gamma": math.inf, "step_size": 3.0},
        {"noise_scale": 0.1, "gamma": 1.2},
        {"solver": "grid", "grid_points": 9, "noise_scale": 0.3},
        {"radius": torch.linspace(0.5, 4, 9).double()},
    ],
    ids=str,
)
@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "per_row"])
def test_matches_algorithm_2(changes: dict[str, Any], per_row: bool, seed: int) -> None:
    model, x = network(seed), rows(seed, 9, 6)
    sigma = weights(seed, *((9, 6) if per_row else (6,)))
    settings = {**SETTINGS, **changes}
    expected = algorithm_2(model, x, sigma, seed=seed, **settings)
    found = adversarial_search(model, x, sigma=sigma, generator=generator(seed), **settings)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_equal_weights_are_the_l2_shell(seed: int) -> None:
    model, x = network(seed), rows(seed, 20, 6)
    expected = adversarial_search(model, x, **SETTINGS, generator=generator(seed))
    found = adversarial_search(
        model, x, **SETTINGS, sigma=torch.ones(6).double(), generator=generator(seed)
    )
    torch.testing.assert_close(found, expected)
    narrower = adversarial_search(
        model, x, **SETTINGS, sigma=weights(seed, 6), generator=generator(seed)
    )
    assert (narrower - expected).abs().max() > 1e-3


def test_search_leaves_parameters_and_sigma_alone(seed: int) -> None:
    model, x, sigma = network(seed), rows(seed, 5, 6), weights(seed, 6).requires_grad_()
    before = sigma.detach().clone()
    found = adversarial_search(model, x, **SETTINGS, sigma=sigma)
    assert found.grad_fn is None
    assert not found.requires_grad
    assert sigma.grad is None
    assert torch.equal(sigma, before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.5, -1e-30])
@pytest.mark.parametrize("num_steps", [0, 3])
def test_a_bad_sigma_spoils_its_row_only(bad: float, num_steps: int, seed: int) -> None:
    model, x, sigma = network(seed), rows(seed, 6, 6), weights(seed, 6, 6)
    settings = {**SETTINGS, "num_steps": num_steps}
    clean = adversarial_search(model, x, **settings, sigma=sigma, generator=generator(seed))
    sigma[2, 4] = bad
    found = adversarial_search(model, x, **settings, sigma=sigma, generator=generator(seed))
    assert found[2].isnan().all()
    keep = [0, 1, 3, 4, 5]
    assert torch.equal(found[keep], clean[keep])
    assert found[keep].isfinite().all()


def test_zero_sigma_leaves_a_row_unprojected(seed: int) -> None:
    model, x, sigma = network(seed), rows(seed, 4, 6), weights(seed, 4, 6)
    sigma[1] = 0
    found = adversarial_search(
        model, x, **{**SETTINGS, "num_steps": 0}, sigma=sigma, generator=generator(seed)
    )
    noise = torch.randn(4, 6, generator=generator(seed), dtype=x.dtype)
    assert torch.equal(found[1], (x + noise)[1])
    assert_in_shell((found - x)[[0, 2, 3]], sigma[[0, 2, 3]])
    found = adversarial_search(
        model, x, **SETTINGS, sigma=torch.zeros(6).double(), generator=generator(seed)
    )
    assert found.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 6), (1, 6)])
def test_search_of_no_row_and_of_one(shape: tuple[int, int], seed: int) -> None:
    x = rows(seed, *shape)
    for sigma in (weights(seed, 6), weights(seed, *shape)):
        found = adversarial_search(network(seed), x, **SETTINGS, sigma=sigma)
        assert found.shape == shape
        if shape[0]:
            assert_in_shell(found - x, sigma)


def test_search_of_images(seed: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 1)).double()
    x, sigma = rows(seed, 2, 3, 6, 6), weights(seed, 3, 6, 6)
    expected = adversarial_search(model, x, **SETTINGS, sigma=sigma, generator=generator(seed))
    assert_in_shell(expected - x, sigma)
    strided = x.to(memory_format=torch.channels_last)
    found = adversarial_search(
        model, strided, **SETTINGS, sigma=sigma.transpose(1, 2), generator=generator(seed)
    )
    assert_in_shell(found - x, sigma.transpose(1, 2))
    found = adversarial_search(model, strided, **SETTINGS, sigma=sigma, generator=generator(seed))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("inference", [False, True])
def test_search_under_autocast(inference: bool, seed: int) -> None:
    model, x = network(seed, dtype=torch.float32), rows(seed, 50, 6, dtype=torch.float32)
    with torch.inference_mode(inference), torch.autocast("cpu", torch.bfloat16):
        sigma = weights(seed, 6, dtype=torch.float32)
        found = adversarial_search(model, x, **SETTINGS, sigma=sigma)
    assert found.dtype == torch.float32
    lengths = mahalanobis_norm(found - x, sigma)
    assert lengths.min() >= 2 * (1 - 1e-5)
    assert lengths.max() <= 4 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("sigma", "error", "message"),
    [
        (2.0, TypeError, "sigma must be a floating-point tensor, got float"),
        ([1.0] * 6, TypeError, "sigma must be a floating-point tensor, got list"),
        (torch.ones(6).long(), TypeError, r"sigma must be a floating-point tensor, got torch\.int"),
        (torch.ones(6), TypeError, r"sigma must have the dtype of x, torch.float64, got torch.flo"),
        (torch.ones(()).double(), ValueError, r"sigma must have shape \(6,\).* got \(\)$"),
        (
            torch.ones(4).double(),
            ValueError,
            r"sigma must have shape \(6,\), one for all rows, or ",
        ),
        (torch.ones(1, 6).double(), ValueError, r" or \(4, 6\), got \(1, 6\)$"),
        (torch.ones(6, device="meta").double(), ValueError, "on the device of x, cpu, got meta$"),
    ],
)
def test_sigma_that_does_not_fit(
    sigma: Any, error: type[Exception], message: str, seed: int
) -> None:
    with pytest.raises(error, match=f"^adversarial_search: .*{message}"):
        adversarial_search(network(seed), rows(seed, 4, 6), **SETTINGS, sigma=sigma)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"solver": "bisect"}, ValueError, "solver must be one of newton, grid, got 'bisect'"),
        ({"solver": None}, ValueError, "solver must be one of newton, grid, got None"),
        ({"grid_points": 1}, ValueError, "grid_points must be >= 2, got 1"),
        ({"grid_points": 9.0}, TypeError, "grid_points must be an integer, got 9.0"),
    ],
)
def test_settings_of_the_solver(
    changes: dict[str, Any], error: type[Exception], message: str, seed: int
) -> None:
    settings = {**SETTINGS, **changes}
    with pytest.raises(error, match=f"^adversarial_search: {message}$"):
        adversarial_search(network(seed), rows(seed, 2, 6), **settings, sigma=weights(seed, 6))
    with pytest.raises(error, match=f"^SearchConfig: {message}$"):
        SearchConfig(**settings)


# --- the loss -----------------------------------------------------------------------------------


def adversarial_rows(loss: DROCCLoss, model: Spy, x: Tensor, y: Tensor | None = None) -> Tensor:
    """The adversarial points that one call of the loss made."""
    loss(model, x, y)
    return model.seen[-1][len(x) :]


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
    for bx, by in batches:
        if (by == 1).any():
            assert_in_shell(adversarial_rows(loss, model, bx, by) - bx[by == 1], before)
    assert torch.equal(loss.sigma, before)
    loss.start_epoch()
    assert not torch.equal(loss.sigma, before)


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
    model, x = network(seed), rows(seed, 5, 6)
    for way in ("epoch", "sample"):
        loss = lf(influence=way)
        without = loss(model, x, generator=generator(seed))
        labelled = loss(model, x, torch.ones(5), generator=generator(seed))
        assert torch.equal(torch.stack(without), torch.stack(labelled))
        other = DROCCLoss(CONFIG)(model, x, generator=generator(seed))
        assert other.adversarial != without.adversarial
        assert torch.equal(other.clean, without.clean)


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


def test_rows_without_features_are_refused() -> None:
    loss = DROCCLoss(SearchConfig(radius=1.0, step_size=0.1, num_steps=1), metric="mahalanobis")
    with pytest.raises(ValueError, match=r"needs rows with features, shape \[B, \*\], got \(4,\)"):
        loss(torch.nn.Identity(), torch.randn(4))
