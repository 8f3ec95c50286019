"""`torch.compile` around networks, losses and searches changes neither results nor ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drocc_ext import DROCCLoss, SearchConfig, adversarial_search, networks
from drocc_ext.models.modules import uncompiled, unwrap
from drocc_ext.ops import _library

CONFIG = SearchConfig.from_relative_step(1.5)


def compiled(what: Any, **settings: Any) -> Any:
    return torch.compile(what, backend="eager", **settings)


def losses(loss: Any, model: Any, x: Tensor, seed: int) -> list[Tensor]:
    terms = loss(model, x, generator=torch.Generator().manual_seed(seed))
    inner = uncompiled(model)
    gradients = torch.autograd.grad(terms.total, list(inner.parameters()))
    return [*terms, *gradients]


@pytest.mark.parametrize("name", ["MLP", "tanh"])
def test_one_result_whatever_is_compiled(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = {
        "MLP": networks.MLP(6, 16),
        "tanh": nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 1)),
    }[name].double()
    x, loss = torch.randn(12, 6, dtype=torch.float64), DROCCLoss(CONFIG)
    expected = losses(loss, model, x, seed)
    for ours in (
        losses(compiled(loss), model, x, seed),
        losses(loss, compiled(model), x, seed),
        losses(compiled(lambda *a, **k: loss(*a, **k)), model, x, seed),
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    noise = [torch.Generator().manual_seed(seed) for _ in range(3)]
    ends = [
        adversarial_search(model, x, CONFIG, generator=noise[0]),
        adversarial_search(compiled(model), x, CONFIG, generator=noise[1]),
        compiled(adversarial_search)(model, x, CONFIG, generator=noise[2]),
    ]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(_library.native_error("cpu") is not None, reason="the operator is native")
def test_the_operators_run_under_compile(seed: int) -> None:
    model, x, loss = networks.MLP(6, 16), torch.randn(12, 6), DROCCLoss(CONFIG)
    for call in (
        lambda: compiled(loss)(model, x),
        lambda: loss(compiled(model), x),
        lambda: compiled(adversarial_search)(model, x, CONFIG),
    ):
        call()
        with torch.profiler.profile() as profile:
            call()
        names = {event.name for event in profile.events()}
        assert any("_search" in name and "drocc" in name for name in names), names


def test_a_full_graph_is_refused_with_a_reason() -> None:
    model, x = networks.MLP(6, 16), torch.randn(12, 6)
    search = compiled(lambda m, x: adversarial_search(m, x, CONFIG) * 2, fullgraph=True)
    with pytest.raises(Exception, match="adversarial_search runs all its steps in operators"):
        search(model, x)


def test_wrappers_are_looked_through() -> None:
    model = networks.MLP(6, 16)
    wrapped = compiled(model)
    assert unwrap(wrapped) is model and unwrap(model) is model
    handle = wrapped.register_forward_hook(lambda *_: None)
    assert uncompiled(wrapped) is wrapped
    handle.remove()
    assert uncompiled(wrapped) is model
