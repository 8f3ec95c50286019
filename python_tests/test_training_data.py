"""Kinds of data that a fit takes, their order and their labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from training_cases import (
    CONFIG,
    OwnLoader,
    Rows,
    assert_same_state,
    network,
    rows,
    state_of,
    trainer,
)

from drocc_ext.training.loss import DROCCLoss
from drocc_ext.training.trainer import Trainer


class Stream(IterableDataset[Tensor]):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.x)


def test_kinds_of_data_agree(seed: int) -> None:
    x, y = rows(seed), torch.ones(40, dtype=torch.int64)
    y[::3] = 0
    batches = list(zip(x.split(16), y.split(16), strict=True))
    kinds: dict[str, Any] = {
        "loader": DataLoader(TensorDataset(x, y), batch_size=16),
        "triples": [(a, b, "extra") for a, b in batches],
        "arrays": [(a.double().numpy(), b.numpy()) for a, b in batches],
        "columns": [[a, b[:, None].bool()] for a, b in batches],
    }
    states = {}
    for name, data in kinds.items():
        model = network(seed)
        model[3].p = 0.0  # a DataLoader moves the global generator, dropout's
        trainer(model).fit(data, epochs=2, seed=seed)
        states[name] = state_of(model)
    for state in states.values():
        assert_same_state(state, states["loader"])


@pytest.mark.parametrize(
    "data",
    [
        lambda x: x.numpy(),
        lambda x: x.double().numpy()[::-1],
        lambda x: (x, None),
        lambda x: (x.numpy(), [1] * 40),
        lambda x: TensorDataset(x),
        lambda x: TensorDataset(x, torch.ones(40), torch.zeros(40)),
        Rows,
        Stream,
        lambda x: DataLoader(Stream(x), batch_size=8),
        lambda x: list(x.split(8)),
    ],
    ids=["array", "reversed", "none", "list_y", "td1", "td3", "map", "stream", "loader", "list"],
)
def test_kinds_of_data_train_and_score(data: Any, seed: int) -> None:
    model, x = network(seed), rows(seed)
    fitted = trainer(model)
    history = fitted.fit(data(x), epochs=2, batch_size=16)
    assert len(history) == 2
    assert fitted.score(data(x)).shape == (40,)


def test_tensors_are_shuffled_anew_each_epoch(seed: int) -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            logits: Tensor = self.inner(x)
            return logits

    x = torch.arange(50.0)[:, None]
    trainer(Spy()).fit(x, epochs=2, batch_size=20, warmup_epochs=2, seed=seed)
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert [len(batch) for batch in seen] == [20, 20, 10] * 2
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(0).values, x)
    assert torch.equal(second.sort(0).values, x)


def test_labels_follow_their_rows(seed: int) -> None:
    pairs: list[tuple[Tensor, Tensor]] = []

    class Spy(DROCCLoss):
        def forward(self, model: nn.Module, x: Tensor, y: Any = None, **options: Any) -> Any:
            pairs.append((x, y))
            return super().forward(model, x, y, **options)

    x = torch.arange(30.0)[:, None]
    y = (torch.arange(30) % 3 == 0).int()
    model = nn.Linear(1, 1)
    Trainer(model, Spy(CONFIG), torch.optim.SGD(model.parameters()), progress=False).fit(
        (x, y), epochs=1, batch_size=7, seed=seed
    )
    for batch, labels in pairs:
        assert torch.equal(labels, (batch[:, 0].int() % 3 == 0).int())


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.zeros(0, 4), ValueError, "train must hold rows in every epoch, got none in epoch 1"),
        ([], ValueError, "train must hold rows in every epoch, got none in epoch 1"),
        (torch.zeros(4, 4).int(), TypeError, "train: x must be floating point, got torch.int32"),
        (torch.tensor(1.0), ValueError, "train: x must be rows with features"),
        ((torch.zeros(4, 4), torch.ones(3)), ValueError, "labels must be one per row, got shape"),
        ((torch.zeros(4, 4),) * 3, TypeError, r"a tuple must be \(x, y\), got 3 elements"),
        ("text", TypeError, "data must be a tensor, .* got str"),
        (3, TypeError, "data must be a tensor, .* got int"),
        ((torch.zeros(4, 4), torch.full((4,), -1)), ValueError, "labels must be 1 .* got -1"),
    ],
)
def test_bad_data(data: Any, error: type[Exception], message: str, seed: int) -> None:
    with pytest.raises(error, match=message):
        trainer(network(seed)).fit(data, epochs=1)


def test_loader_is_told_the_epoch(seed: int) -> None:
    loader = OwnLoader(rows(seed))
    trainer(network(seed)).fit(loader, epochs=3)
    assert loader.epochs == [0, 1, 2]


def test_one_shot_iterator(seed: int) -> None:
    with pytest.raises(ValueError, match=r"got none in epoch 2 \(an iterator serves one epoch"):
        trainer(network(seed)).fit(iter(rows(seed).split(8)), epochs=2)


def test_a_data_frame_is_refused(seed: int) -> None:
    pandas = pytest.importorskip("pandas", reason="the refusal needs a DataFrame to refuse")
    with pytest.raises(TypeError, match=r"^Trainer\.fit: train: data must be .* got DataFrame"):
        trainer(network(seed)).fit(pandas.DataFrame(rows(seed).numpy()), epochs=1)
