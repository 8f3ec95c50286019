"""BatchNorm folded into convolutions for a search."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drocc_ext import adversarial_search
from drocc_ext.models.networks import CIFARLeNet, MNISTLeNet
from drocc_ext.search.folding import folded


def used(model: nn.Module, seed: int, *shape: int) -> nn.Module:
    """A model in float64 whose BatchNorm has seen rows, in eval mode."""
    torch.manual_seed(seed)
    model = model.double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.affine:
            nn.init.uniform_(module.weight, -2, 2)
            nn.init.normal_(module.bias)
    for _ in range(3):
        model(2 * torch.randn(8, *shape, dtype=torch.float64) + 1)
    return model.eval()


def small(dimensions: int, bias: bool = True, affine: bool = True, **settings: Any) -> nn.Module:
    conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    norm: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimensions - 1]
    return nn.Sequential(
        nn.Sequential(
            conv(4, 6, 3, bias=bias, **settings), norm(6, affine=affine, eps=1e-2), nn.ReLU()
        ),
        conv(6, 2, 1),
        norm(2),
        nn.Flatten(),
        nn.LazyLinear(1),
    )


NETWORKS: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "CIFAR": (CIFARLeNet, (3, 32, 32), 3),
    "MNIST": (MNISTLeNet, (1, 28, 28), 2),
    "1d": (lambda: small(1), (4, 9), 2),
    "2d": (lambda: small(2, bias=False, groups=2, stride=2), (4, 9, 7), 2),
    "3d": (lambda: small(3, affine=False, padding_mode="circular", padding=1), (4, 3, 4, 3), 2),
}


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x).sum(), x)[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays(name: str, seed: int) -> None:
    make, shape, norms = NETWORKS[name]
    model = used(make(), seed, *shape)
    before = copy.deepcopy(model.state_dict())
    other = folded(model)
    assert other is not model
    assert sum("BatchNorm" in type(m).__name__ for m in model.modules()) == norms
    assert not any("BatchNorm" in type(m).__name__ for m in other.modules())
    x = torch.randn(5, *shape, dtype=torch.float64)
    torch.testing.assert_close(other(x), model(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient(other, x), gradient(model, x), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("training", [False, True])
def test_a_search_uses_it(training: bool, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = used(CIFARLeNet(), seed, 3, 32, 32).train(training)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    settings: Any = {"radius": 8.0, "step_size": 0.8, "num_steps": 3}

    def found(method: Any) -> Tensor:
        noise = torch.Generator().manual_seed(seed)
        return adversarial_search(model, x, generator=noise, method=method, **settings)

    calls: list[Tensor] = []
    with monkeypatch.context() as patch:
        forward = nn.BatchNorm2d.forward
        patch.setattr(
            nn.BatchNorm2d, "forward", lambda self, x: (calls.append(x), forward(self, x))[1]
        )
        ours = found("auto")
    assert not calls
    torch.testing.assert_close(ours, found("autograd"), rtol=1e-7, atol=1e-7)
    assert model.training is training


def test_what_stays_as_it_is(seed: int) -> None:
    def make() -> nn.Module:
        return used(small(2), seed, 4, 9, 7)

    assert folded(make().train()) is not None
    left: dict[str, Any] = {
        "batch statistics": make().train(),
        "a plain network": nn.Sequential(nn.Linear(3, 4), nn.ReLU()),
        "half": make().half(),
        "no parameters": nn.Sequential(nn.ReLU()),
    }
    hooked = make()
    for module in hooked.modules():
        module.register_forward_hook(lambda *_: None)
    left["hooks"] = hooked
    own = make()
    own.forward = lambda x: x  # type: ignore[method-assign]
    left["a forward of its own"] = own
    subclass = make()
    subclass.__class__ = type("Other", (nn.Sequential,), {})
    left["another class"] = subclass
    normalized = make()
    nn.utils.parametrizations.weight_norm(normalized[0][0])
    nn.utils.parametrizations.weight_norm(normalized[1])
    left["parametrized"] = normalized
    for name, model in left.items():
        assert folded(model) is model, name
    model = make().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert folded(model) is model
    assert folded(model) is not model


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_plain_tensor_in_the_place_of_a_parameter_is_not_folded(name: str, seed: int) -> None:
    model = used(small(2), seed, 4, 9, 9)
    conv = model[0][0]
    changed = 3 * getattr(conv, name).detach()
    delattr(conv, name)
    setattr(conv, name, changed)
    x = torch.randn(5, 4, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(gradient(folded(model), x), gradient(model, x))
