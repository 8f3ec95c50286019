"""Training images in the memory format channels_last."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from drocc_ext.compat import edgeml
from drocc_ext.compat._trainer import takes_channels_last
from drocc_ext.models import networks
from drocc_ext.search import SearchConfig
from drocc_ext.training.loss import DROCCLoss
from drocc_ext.training.trainer import Trainer


@pytest.mark.parametrize("kind", ["tensor", "loader"])
def test_channels_last(kind: str, seed: int) -> None:
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    losses, formats = [], []
    for channels_last in (False, True):
        torch.manual_seed(seed)
        model = networks.CIFARLeNet().double()
        model.register_forward_hook(
            lambda _, given, __: formats.append(
                given[0].is_contiguous(memory_format=torch.channels_last)
            )
        )
        fitted = Trainer(
            model,
            DROCCLoss(SearchConfig.from_relative_step(8.0, num_steps=1)),
            torch.optim.SGD(model.parameters(), 0.1),
            channels_last=channels_last,
            progress=False,
        )
        data = x if kind == "tensor" else [x[:4], x[4:]]
        history = fitted.fit(data, epochs=1, batch_size=4, seed=seed)
        losses.append(torch.tensor([record["loss"] for record in history]))
        last = torch.channels_last if channels_last else torch.contiguous_format
        assert model.blocks[1][0].weight.is_contiguous(memory_format=last)
        assert all(formats) if channels_last else not any(formats)
        formats.clear()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)


class Viewing(networks.CIFARLeNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head[1:](self.blocks(x).view(x.shape[0], -1))
        return logits


def test_compat(seed: int) -> None:
    """The format changes no number, and a model that does not take it is not given it."""
    formats, weights = [], []
    batches = [(torch.randn(3, 3, 32, 32), torch.tensor([1.0, 0, 1])) for _ in range(2)]
    for trained in (networks.CIFARLeNet, Viewing):
        torch.manual_seed(seed)
        model = trained().double()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        trainer = edgeml.DROCCTrainer(model, optimizer, 1.0, 8.0, 2.0, "cpu")
        trainer.train(batches, batches, 0.1, lambda *_: None, 2, 0, 0.1, 12)
        weights.append([parameter.detach() for parameter in trainer.model.parameters()])
        rows = trainer._to_model(batches[0][0])
        formats.append(rows.is_contiguous(memory_format=torch.channels_last))
    assert formats == [True, False]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-8)


def test_the_trial_leaves_the_model_alone(seed: int) -> None:
    torch.manual_seed(seed)
    model = networks.CIFARLeNet()
    before, state = torch.random.get_rng_state(), copy.deepcopy(model.state_dict())
    assert takes_channels_last(model, torch.randn(2, 3, 32, 32, generator=torch.Generator()))
    assert torch.equal(torch.random.get_rng_state(), before) and model.training
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    called: list[int] = []
    model.blocks[0].register_forward_hook(lambda *_: called.append(1))
    assert not takes_channels_last(model, torch.randn(2, 3, 32, 32)) and not called
    assert not takes_channels_last(nn.Flatten(), torch.randn(2, 3, 32, 32))


class Drawing(nn.Module):
    """Random numbers that no module of dropout draws."""

    def __init__(self, noise: bool) -> None:
        super().__init__()
        self.conv, self.out, self.noise = nn.Conv2d(2, 3, 3), nn.Linear(108, 1), noise

    def forward(self, x: Tensor) -> Tensor:
        if self.noise and self.training:
            x = x + 0.5 * torch.randn_like(x)
        z = torch.relu(self.conv(x))
        z = z if self.noise else nn.functional.dropout(z, 0.5, self.training)
        return self.out(z.flatten(1))  # type: ignore[no-any-return]


def test_random_numbers_follow_the_order_of_memory() -> None:
    layers = [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 1)]
    images = torch.randn(4, 2, 8, 8)
    assert takes_channels_last(nn.Sequential(*layers), images)
    assert not takes_channels_last(nn.Sequential(*layers[:2], nn.Dropout(), *layers[2:]), images)
    for noise in (False, True):
        assert not takes_channels_last(Drawing(noise), images)


class OwnLoss(edgeml.DROCCTrainer):
    def one_class_adv_loss(self, x_train_data: Tensor) -> Tensor:
        scale = x_train_data.view(len(x_train_data), -1).norm(dim=1).mean()
        logits = self.model(x_train_data + scale).squeeze(1)
        return nn.functional.softplus(logits).mean()  # type: ignore[no-any-return]


def test_an_objective_of_ones_own_gets_rows_as_they_are(seed: int) -> None:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 1)]
    batches = [(torch.randn(4, 2, 8, 8), torch.tensor([1.0, 0, 1, 1]))]
    for kind in (edgeml.DROCCTrainer, OwnLoss):
        model = nn.Sequential(*layers)
        trainer = kind(model, torch.optim.SGD(model.parameters(), 0.1), 1.0, 1.0, 2.0, "cpu")
        trainer.train(batches, batches, 0.1, lambda *_: None, 1, 0, 0.1, 2)
        assert trainer._channels_last is (kind is edgeml.DROCCTrainer)


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.conv(x)).view(16, -1))  # type: ignore[no-any-return]


def test_a_network_that_takes_one_number_of_rows(seed: int) -> None:
    torch.manual_seed(seed)
    model, images = FixedBatch(), torch.randn(32, 1, 8, 8)
    labels = torch.ones(32)
    train = DataLoader(TensorDataset(images, labels, labels), 16)
    test = DataLoader(TensorDataset(images, torch.arange(32) % 2, labels), 16)
    optimizer = torch.optim.Adam(model.parameters())
    before = model.out.weight.detach().clone()
    edgeml.DROCCTrainer(model, optimizer, 1.0, 1.0, 2.0, torch.device("cpu")).train(
        train, test, 1e-3, lambda *_: None, 2, 0, 0.1, 3
    )
    assert not torch.equal(model.out.weight, before)
