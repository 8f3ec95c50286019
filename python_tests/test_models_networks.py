from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from drocc_ext.models.networks import (
    MLP,
    NETWORKS,
    CIFARLeNet,
    LSTMClassifier,
    MNISTLeNet,
    NearestMLP,
)

# network, shape of one row, number of parameters counted by hand
CASES = [
    pytest.param(lambda: MLP(6), (6,), 6 * 128 + 128 + 128 + 1, id="MLP"),
    pytest.param(
        CIFARLeNet,
        (3, 32, 32),
        25 * (3 * 32 + 32 * 64 + 64 * 128) + 2048 * 128 + 128 * 64 + 64,
        id="CIFARLeNet",
    ),
    pytest.param(MNISTLeNet, (1, 28, 28), 25 * (8 + 8 * 4) + 196 * 64 + 64, id="MNISTLeNet"),
    pytest.param(
        lambda: LSTMClassifier(5, hidden=16),
        (7, 5),
        4 * 16 * (5 + 16 + 2) + 16 + 1,
        id="LSTMClassifier",
    ),
]


@pytest.mark.parametrize(("build", "row", "parameters"), CASES)
def test_one_logit_per_row_and_gradients_everywhere(build, row, parameters, seed):
    torch.manual_seed(seed)
    network = build()
    assert sum(p.numel() for p in network.parameters()) == parameters
    x = torch.randn(5, *row, requires_grad=True)
    logits = network(x)
    assert logits.shape == (5, 1)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize(("build", "row", "parameters"), CASES)
def test_config_builds_the_same_network(build, row, parameters, seed):
    torch.manual_seed(seed)
    network = build().eval()
    twin = NETWORKS[type(network).__name__](**network.config).eval()
    twin.load_state_dict(network.state_dict())
    x = torch.randn(3, *row)
    assert torch.equal(twin(x), network(x))


@pytest.mark.parametrize(("build", "row", "parameters"), CASES)
def test_rows_are_independent_in_eval_mode(build, row, parameters, seed):
    torch.manual_seed(seed)
    network = build().double().eval()
    x = torch.randn(4, *row, dtype=torch.float64)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]))
    assert network(x[:0]).shape == (0, 1)


def test_mlp_formula(seed):
    torch.manual_seed(seed)
    network = MLP(3, hidden=4).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    w1, b1, w2, b2 = network.parameters()
    torch.testing.assert_close(network(x), (x @ w1.T + b1).clamp(min=0) @ w2.T + b2)


def norm(x: torch.Tensor) -> torch.Tensor:
    """BatchNorm of the published networks, in train mode."""
    mean = x.mean((0, 2, 3), keepdim=True)
    return (x - mean) / (x.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-4).sqrt()


def test_cifar_formula(seed):
    torch.manual_seed(seed)
    network = CIFARLeNet().double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    *kernels, w1, w2, w3 = network.parameters()
    z = x
    for kernel in kernels:
        z = F.max_pool2d(F.leaky_relu(norm(F.conv2d(z, kernel, padding=2))), 2)
    z = F.leaky_relu(F.leaky_relu(z.flatten(1) @ w1.T) @ w2.T) @ w3.T
    torch.testing.assert_close(network(x), z)


def test_mnist_formula_and_flat_images(seed):
    torch.manual_seed(seed)
    network = MNISTLeNet().double()
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    *kernels, w1, w2 = network.parameters()
    z = x
    for kernel in kernels:
        z = F.max_pool2d(F.leaky_relu(norm(F.conv2d(z, kernel, padding=2))), 2)
    torch.testing.assert_close(network(x), z.flatten(1) @ w1.T @ w2.T)
    assert torch.equal(network(x.reshape(2, 784)), network(x))


def test_lstm_uses_the_last_step(seed):
    torch.manual_seed(seed)
    network = LSTMClassifier(3, hidden=8).double()
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(network(x), network.logit(network.lstm(x)[0][:, -1]))


def test_bad_sizes_and_shapes_are_named():
    for network in (MLP, LSTMClassifier):
        name = network.__name__
        with pytest.raises(ValueError, match=f"{name}: in_features must be >= 1, got 0"):
            network(0)
        with pytest.raises(ValueError, match=f"{name}: hidden must be >= 1, got -2"):
            network(3, hidden=-2)
    with pytest.raises(ValueError, match=r"MLP: x must have shape \[B, 3\], got \[2, 4\]"):
        MLP(3)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"CIFARLeNet: .* \[B, 3, 32, 32\], got \[2, 3, 28, 28\]"):
        CIFARLeNet()(torch.zeros(2, 3, 28, 28))
    with pytest.raises(ValueError, match=r"MNISTLeNet: .* \[B, 784\], got \[2, 783\]"):
        MNISTLeNet()(torch.zeros(2, 783))
    with pytest.raises(ValueError, match=r"MNISTLeNet: .* \[B, 1, 28, 28\], got \[2, 28, 28\]"):
        MNISTLeNet()(torch.zeros(2, 28, 28))
    for shape in ((2, 4), (2, 0, 3), (2, 5, 4)):
        with pytest.raises(ValueError, match=r"LSTMClassifier: x must have shape \[B, T >= 1, 3\]"):
            LSTMClassifier(3)(torch.zeros(shape))


def test_distances_are_exported_for_any_batch(seed):
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        torch.manual_seed(seed)
        model = NearestMLP(4, 8, 2, 300).eval()
        model.rows.normal_()
        x = torch.randn(3, 4)
        assert model.rows.dtype is model(x).dtype is default
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        for form in (program.module(), torch.jit.trace(model, x)):
            for count in (2, 3, 900):
                points = (2 * torch.randn(count, 4)).requires_grad_()
                found = [
                    (logits, torch.autograd.grad(logits.sum(), points)[0])
                    for logits in (form(points), model(points))
                ]
                torch.testing.assert_close(*found)
