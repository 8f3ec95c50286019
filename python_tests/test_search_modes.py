"""Modes, contexts, layouts and settings of adversarial_search, and all that it must leave alone."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from search_cases import SETTINGS, generator, network, rows
from torch import Tensor, nn

from drocc_ext.models.modes import frozen
from drocc_ext.models.modules import as_logits
from drocc_ext.search import SearchConfig, adversarial_search
from drocc_ext.training.loss import DROCCLoss


class Mixed(nn.Module):
    """Batch statistics, dropout and a recurrent layer with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, num_layers=2, dropout=0.5, batch_first=True)
        self.norm = nn.BatchNorm1d(5)
        self.drop = nn.Dropout(0.5)
        self.frozen_norm = nn.BatchNorm1d(5).eval()
        self.logit = nn.Linear(5, 1)
        self.fail = False
        self.seen: list[tuple[bool, ...]] = []

    def flags(self) -> tuple[bool, ...]:
        return tuple(module.training for module in self.modules())

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, self.lstm.training, self.lstm.dropout == 0))
        if self.fail:
            raise RuntimeError("on purpose")
        last = self.lstm(x)[0][:, -1]
        logits: Tensor = self.logit(self.frozen_norm(self.drop(self.norm(last))))
        return logits


def test_freeze_and_restore(seed: int) -> None:
    model, x = Mixed(), rows(seed, 6, 4, 3, dtype=torch.float32)
    flags = model.flags()
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    found = [adversarial_search(model, x, **SETTINGS, generator=generator(seed)) for _ in range(2)]
    assert torch.equal(*found)  # dropout was off
    assert set(model.seen) == {(False, True, True)}
    assert model.flags() == flags
    assert model.lstm.dropout == 0.5
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name])
    model.fail = True
    with pytest.raises(RuntimeError, match="on purpose"):
        adversarial_search(model, x, **SETTINGS)
    assert model.flags() == flags
    assert model.lstm.dropout == 0.5


def test_freeze_false_leaves_modes_alone(seed: int) -> None:
    model, x = Mixed(), rows(seed, 6, 4, 3, dtype=torch.float32)
    flags = model.flags()
    adversarial_search(model, x, **SETTINGS, freeze=False)
    assert set(model.seen) == {(True, True, False)}
    assert model.flags() == flags
    assert int(model.norm.num_batches_tracked) == 3


def test_frozen_recurrent_layer_computes_as_in_eval_mode(seed: int) -> None:
    model, x = Mixed(), rows(seed, 6, 4, 3, dtype=torch.float32)
    with frozen(model):
        found = model(x)
    torch.testing.assert_close(found, model.eval()(x))


class VariationalLSTM(nn.LSTM):
    def forward(self, x: Tensor, state: Any = None) -> Any:
        return super().forward(nn.functional.dropout(x, 0.5, self.training), state)


def hooked(layer: nn.LSTM) -> nn.LSTM:
    forward = layer.forward
    layer.forward = lambda x: forward(nn.functional.dropout(x, 0.5, layer.training))  # type: ignore[assignment]
    return layer


def test_a_recurrent_layer_with_its_own_forward_is_in_eval_mode(seed: int) -> None:
    x = rows(seed, 6, 4, 3, dtype=torch.float32)
    for layer in (VariationalLSTM(3, 5, batch_first=True), hooked(nn.LSTM(3, 5, batch_first=True))):
        model = Mixed()
        model.lstm = layer
        expected = copy.deepcopy(model).eval()(x) if layer.training else None
        with frozen(model):
            assert torch.equal(model(x), model(x))
            assert not layer.training
            if type(layer) is VariationalLSTM:
                torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
        assert layer.training
        one, two = (
            adversarial_search(model, x, **SETTINGS, generator=generator(seed)) for _ in range(2)
        )
        assert torch.equal(one, two)
    parametrized = nn.utils.parametrizations.weight_norm(nn.LSTM(3, 5), "weight_hh_l0")
    with frozen(parametrized):
        assert parametrized.training


@pytest.fixture
def contexts() -> dict[str, Any]:
    return {
        "no_grad": torch.no_grad(),
        "enable_grad": torch.enable_grad(),
        "inference": torch.inference_mode(),
    }


@pytest.mark.parametrize("name", ["no_grad", "enable_grad", "inference"])
def test_any_gradient_mode(name: str, contexts: dict[str, Any], seed: int) -> None:
    model, x = network(seed), rows(seed, 5, 6)
    expected = adversarial_search(model, x, **SETTINGS, generator=generator(seed))
    with contexts[name]:
        radius = torch.full((5,), 2.0, dtype=x.dtype)  # in inference mode these are of its kind
        moved = x.clone()
        settings = {**SETTINGS, "radius": radius}
        found = adversarial_search(model, moved, **settings, generator=generator(seed))
        assert torch.is_inference_mode_enabled() == (name == "inference")
        assert torch.is_grad_enabled() == (name == "enable_grad")
        empty = adversarial_search(model, moved[:0], **settings | {"radius": radius[:0]})
    assert not found.is_inference()
    assert not empty.requires_grad
    torch.testing.assert_close(found, expected)
    loss = model(found).sum()  # usable in training afterwards
    loss.backward()


@pytest.mark.parametrize("inference", [False, True])
def test_autocast(inference: bool, seed: int) -> None:
    model, x = network(seed, dtype=torch.float32), rows(seed, 50, 6, dtype=torch.float32)
    expected = adversarial_search(model, x, **SETTINGS, generator=generator(seed))
    with torch.inference_mode(inference), torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16  # fills autocast's cache of weights
        found = adversarial_search(model, x, **SETTINGS, generator=generator(seed))
    assert found.dtype == torch.float32
    assert (found - expected).norm(dim=1).median() < 0.5  # of a shell of radius 2


def test_searches_the_module_inside_ddp(tmp_path: Path, seed: int) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model, x = network(seed), rows(seed, 5, 6)
        wrapped = nn.parallel.DistributedDataParallel(model)
        wrapped.forward = None  # type: ignore[assignment, method-assign]  # not to be called
        found = adversarial_search(wrapped, x, **SETTINGS, generator=generator(seed))
    finally:
        torch.distributed.destroy_process_group()
    expected = adversarial_search(model, x, **SETTINGS, generator=generator(seed))
    assert torch.equal(found, expected)


def test_logit_shapes(seed: int) -> None:
    model, x = network(seed), rows(seed, 5, 6)
    column = adversarial_search(model, x, **SETTINGS, generator=generator(seed))
    flat = adversarial_search(lambda x: model(x)[:, 0], x, **SETTINGS, generator=generator(seed))
    assert torch.equal(column, flat)
    for bad in (lambda x: model(x).sum(), lambda x: model(x).expand(-1, 2), lambda x: model(x)[1:]):
        with pytest.raises(ValueError, match=r"one logit per row, shape \(5,\) or \(5, 1\), got"):
            adversarial_search(bad, x, **SETTINGS)


def test_as_logits_refuses_other_types() -> None:
    with pytest.raises(TypeError, match=r"floating-point tensor, got torch\.int64"):
        as_logits(torch.zeros(3, dtype=torch.int64), 3)
    with pytest.raises(TypeError, match="floating-point tensor, got tuple"):
        as_logits((torch.zeros(3),), 3)  # type: ignore[arg-type]
    assert as_logits(torch.zeros(1, 1), 1).shape == (1,)


def layouts(x: Tensor) -> Iterator[Tensor]:
    yield x.to(memory_format=torch.channels_last)
    yield x.transpose(1, 3).contiguous().transpose(1, 3)
    yield torch.stack([x, x], dim=-1)[..., 0]


def test_layout_of_x_does_not_matter(seed: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 1)).double()
    x = rows(seed, 2, 3, 6, 6)
    expected = adversarial_search(model, x, **SETTINGS, generator=generator(seed))
    for strided in layouts(x):
        found = adversarial_search(model, strided, **SETTINGS, generator=generator(seed))
        torch.testing.assert_close(found, expected)
    channels_last = next(layouts(x))
    found = adversarial_search(model, channels_last, **SETTINGS)
    assert found.is_contiguous(memory_format=torch.channels_last)
    repeated = x[:1].expand(2, -1, -1, -1)
    found = adversarial_search(model, repeated, **SETTINGS)
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("num_steps", [0, 3])
def test_without_rows_or_steps_the_model_is_not_called(num_steps: int, seed: int) -> None:
    def refuse(_: Tensor) -> Tensor:
        raise AssertionError("called")

    settings = {**SETTINGS, "num_steps": num_steps}
    empty = adversarial_search(refuse, torch.zeros(0, 3, 2), **settings)
    assert empty.shape == (0, 3, 2)
    if num_steps == 0:
        adversarial_search(refuse, rows(seed, 4, 3), **settings)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"radius": -1.0}, ValueError, "radius must be > 0 and finite, got -1.0"),
        ({"radius": 0}, ValueError, "radius must be > 0 and finite, got 0"),
        ({"radius": math.inf}, ValueError, "radius must be > 0 and finite, got inf"),
        ({"radius": math.nan}, ValueError, "radius must be > 0 and finite, got nan"),
        ({"radius": "2"}, TypeError, "radius must be a number, got '2'"),
        ({"step_size": math.inf}, ValueError, "step_size must be >= 0 and finite, got inf"),
        ({"step_size": -0.1}, ValueError, "step_size must be >= 0 and finite, got -0.1"),
        ({"noise_scale": -1}, ValueError, "noise_scale must be >= 0 and finite, got -1"),
        ({"gamma": 0.9}, ValueError, "gamma must be >= 1, got 0.9"),
        ({"gamma": math.nan}, ValueError, "gamma must be >= 1, got nan"),
        ({"num_steps": -1}, ValueError, "num_steps must be >= 0, got -1"),
        ({"num_steps": 2.0}, TypeError, "num_steps must be an integer, got 2.0"),
        ({"num_steps": True}, TypeError, "num_steps must be an integer, got True"),
        ({"project_every": 0}, ValueError, "project_every must be >= 1, got 0"),
    ],
)
def test_settings_out_of_range(
    changes: dict[str, Any], error: type[Exception], message: str, seed: int
) -> None:
    settings = {**SETTINGS, **changes}
    with pytest.raises(error, match=f"^adversarial_search: {message}$"):
        adversarial_search(network(seed), rows(seed, 2, 6), **settings)
    with pytest.raises(error, match=f"^SearchConfig: {message}$"):
        SearchConfig(**settings)


def test_bad_input(seed: int) -> None:
    model, x = network(seed), rows(seed, 4, 6)
    with pytest.raises(TypeError, match=r"x must be a floating-point tensor, got torch\.int64"):
        adversarial_search(model, x.long(), **SETTINGS)
    with pytest.raises(TypeError, match="x must be a floating-point tensor, got ndarray"):
        adversarial_search(model, x.numpy(), **SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"batch dimension, got a tensor of shape \(\)"):
        adversarial_search(model, torch.tensor(1.0), **SETTINGS)
    with pytest.raises(ValueError, match=r"rows with features, shape \[B, \*\], got \(4,\)"):
        adversarial_search(model, x[:, 0], **SETTINGS)
    nested = torch.nested.nested_tensor([x[:1], x[:2]])
    with pytest.raises(TypeError, match="x must be rows of one shape, got a nested tensor"):
        adversarial_search(model, nested, **SETTINGS)
    for radius in (torch.ones(3), torch.ones(4, 1), torch.ones(()), torch.ones(4).int()):
        with pytest.raises(ValueError, match=r"radius tensor must be floating point of shape"):
            adversarial_search(model, x, **{**SETTINGS, "radius": radius})
    with pytest.raises(ValueError, match="generator must be on the device of x, meta, got cpu"):
        adversarial_search(model, x.to("meta"), **SETTINGS, generator=generator(seed))


@pytest.mark.parametrize(
    "model",
    [
        lambda x: torch.ones(4),
        lambda x: torch.ones(4, requires_grad=True) * 2,
        lambda x: x.detach().sum(1),
        lambda x: (x > 0).double().sum(1),
    ],
    ids=["constant", "parameter_only", "detached", "not_differentiable"],
)
def test_output_must_depend_on_x(model: Any, seed: int) -> None:
    with pytest.raises(ValueError, match="must depend differentiably on its input"):
        adversarial_search(model, rows(seed, 4, 6), **SETTINGS)


def test_vmap_is_refused_in_a_sentence(seed: int) -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(2, 5, 3)
    config = SearchConfig(**SETTINGS)
    message = "must be from outside of torch.func.vmap, got some of it; one batch"
    with pytest.raises(TypeError, match=f"^adversarial_search: x {message}"):
        torch.vmap(lambda part: adversarial_search(net, part, config), randomness="same")(x)
    weights = {name: torch.stack([p, p]) for name, p in net.state_dict().items()}

    def of(weights: dict[str, Tensor]) -> Tensor:
        return adversarial_search(
            lambda rows: torch.func.functional_call(net, weights, (rows,)), x[0], config
        )

    with pytest.raises(TypeError, match=f"^adversarial_search: the model {message}"):
        torch.vmap(of, randomness="same")(weights)
    for randomness in ("different", "error"):
        with pytest.raises(TypeError, match=r"^adversarial_search: it must be called outside of"):
            torch.vmap(of, randomness=randomness)(weights)

    class Objective(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.loss = net, DROCCLoss(config)

        def forward(self, rows: Tensor) -> Tensor:
            total: Tensor = self.loss(self.net, rows).total
            return total

    objective = Objective()

    def total(weights: dict[str, Tensor], rows: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(objective, weights, (rows,))
        return result

    one = {name: p.detach() for name, p in objective.named_parameters()}
    slope = torch.func.grad(total)
    with pytest.raises(TypeError, match=f"^DROCCLoss: x {message}"):  # a gradient for each row
        torch.vmap(slope, in_dims=(None, 0), randomness="same")(one, x)
    with pytest.raises(TypeError, match=f"the model {message}"):  # several models
        several = {name: torch.stack([p, p]) for name, p in one.items()}
        torch.vmap(slope, in_dims=(0, None), randomness="same")(several, x[0])
    # Derivatives of many directions at once are no more rows.
    torch.func.jacfwd(total, randomness="same")(one, x[0])


def test_config_is_frozen_and_comparable() -> None:
    config = SearchConfig(**SETTINGS)
    assert config == SearchConfig(**SETTINGS)
    with pytest.raises(AttributeError):
        config.radius = 1.0  # type: ignore[misc]


def test_steps_in_units_of_the_radius() -> None:
    config = SearchConfig.from_relative_step(4.0)
    assert (config.radius, config.step_size, config.num_steps, config.gamma) == (4.0, 0.4, 5, 2.0)
    config = SearchConfig.from_relative_step(
        2.0, step_size=0.25, num_steps=3, gamma=1.0, project_every=2
    )
    assert (config.step_size, config.num_steps, config.project_every) == (0.5, 3, 2)
    with pytest.raises(
        TypeError, match=r"SearchConfig.from_relative_step: radius must be a number"
    ):
        SearchConfig.from_relative_step(torch.ones(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="radius must be > 0"):
        SearchConfig.from_relative_step(-1.0)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5))
        self.heads = nn.ModuleList([nn.Linear(8, 1), nn.Linear(8, 3)])

    def logit(self, x: Tensor, head: int = 0) -> Tensor:
        result: Tensor = self.heads[head](self.body(x))
        return result


@pytest.mark.parametrize("count", [20, 1])
def test_a_method_of_a_module_is_searched_frozen(count: int, seed: int) -> None:
    torch.manual_seed(seed)
    model, x = TwoHeads().train(), torch.randn(count, 5)
    before = copy.deepcopy(model.state_dict())
    settings = {"radius": 1.0, "step_size": 0.1, "num_steps": 3}
    found = [
        adversarial_search(form, x, **settings, generator=generator(seed))  # type: ignore[arg-type]
        for form in (model.logit, model.logit, functools.partial(model.logit, head=0))
    ]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert all(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("metric", ["l2", "mahalanobis"])
def test_the_loss_of_a_function(metric: Any, seed: int) -> None:
    torch.manual_seed(seed)
    model = TwoHeads().eval()
    loss, x = DROCCLoss(SearchConfig(1.0, 0.1, 2), metric=metric), torch.randn(20, 5)
    for some, y, adversarial in (
        *((x, torch.zeros(20), True), (x[:1], None, False), (x[:1], None, True)),
        *((x[:0], None, True), (x[:0], None, False), (x, torch.arange(20) % 2, True)),
    ):
        found = []
        for form in (lambda z: model.logit(z), model.logit):
            model.zero_grad()
            total = loss(form, some, y, adversarial=adversarial, generator=generator(seed)).total
            total.backward()
            grads = [torch.zeros(()) if p.grad is None else p.grad for p in model.parameters()]
            found.append([total.detach(), *grads])
        torch.testing.assert_close(*found)


def test_rows_of_inference_mode_train(seed: int) -> None:
    torch.manual_seed(seed)
    with torch.inference_mode():
        x = torch.randn(12, 6)
    model, loss = network(seed, dtype=torch.float32), DROCCLoss(SearchConfig(1.0, 0.1, 2))
    for adversarial in (True, False):
        found = []
        for some in (x, x.clone()):
            total = loss(model, some, adversarial=adversarial, generator=generator(seed)).total
            found.append([total, *torch.autograd.grad(total, list(model.parameters()))])
        torch.testing.assert_close(*found, rtol=0, atol=0)
