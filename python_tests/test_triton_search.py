"""The search on the Triton backend: what has native kernels only is not used, its steps are.

Runs where `test_triton_interpreter.py` starts it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import TRITON_ONLY
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import drocc_ext
from drocc_ext import DROCCLoss, SearchConfig, adversarial_search
from drocc_ext.compat import edgeml
from drocc_ext.models import networks
from drocc_ext.search.mlp.match import find_hidden_layers

pytestmark = pytest.mark.skipif(
    not TRITON_ONLY, reason="test_triton_interpreter.py runs it in a process of its own"
)


class Calls(TorchDispatchMode):
    """Collects the names of the package's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith("drocc"):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def search(x: Tensor, model: torch.nn.Module, seed: int, **settings: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return adversarial_search(
        model, x, radius=1.5, step_size=0.1, num_steps=4, generator=generator, **settings
    )


@pytest.mark.parametrize("metric", ["l2", "mahalanobis"])
def test_a_shallow_network_is_searched_step_by_step(metric: str, seed: int) -> None:
    torch.manual_seed(seed)
    model, x = networks.MLP(6, 9), torch.randn(12, 6)
    settings = {} if metric == "l2" else {"sigma": 0.1 + torch.rand(6)}
    with drocc_ext.use_backend("eager"):
        expected = search(x, model, seed, **settings)
    with drocc_ext.use_backend("triton"), Calls() as calls:
        assert find_hidden_layers(model) is None
        found = search(x, model, seed, **settings)
    step = "l2_shell_step_" if metric == "l2" else "mahalanobis_shell_step_"
    assert calls.names.count(f"drocc_triton.{step}.default") == 4
    assert all(name.startswith("drocc_triton.") for name in calls.names), calls.names
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def loss_of(model: torch.nn.Module, x: Tensor, seed: int) -> Tensor:
    """Compute the loss of a training step of ours."""
    config = SearchConfig(1.5, step_size=0.1, num_steps=4)
    total: Tensor = DROCCLoss(config)(model, x, generator=torch.Generator().manual_seed(seed)).total
    return total


def published_loss(model: torch.nn.Module, x: Tensor, seed: int) -> Tensor:
    """Let the published trainer take one step; the loss of it."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = edgeml.DROCCTrainer(model, optimizer, 1.0, 1.5, 2.0, torch.device("cpu"))
    trainer._set_ascent(0.1, 10)
    losses = trainer._train_epoch([(x, torch.ones(len(x)))], adversarial=True)
    return torch.tensor(sum(losses))


@pytest.mark.parametrize("loss", [loss_of, published_loss], ids=["ours", "published"])
def test_a_training_step_takes_triton_operators_alone(loss: Any, seed: int) -> None:
    """Where the joint step of linear - ReLU - linear is native, the searched rows are not."""
    torch.manual_seed(seed)
    model, x = networks.MLP(6, 9), torch.randn(12, 6)
    results = []
    for backend in ("eager", "triton"):
        model.zero_grad()
        with drocc_ext.use_backend(backend), Calls() as calls:
            total = loss(model, x, seed)
            if total.requires_grad:
                total.backward()
        results.append([total.detach(), *(p.grad.clone() for p in model.parameters())])
        assert bool(calls.names) == (backend == "triton"), calls.names
        assert all(name.startswith("drocc_triton.") for name in calls.names), calls.names
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)
