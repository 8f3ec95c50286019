"""The networks of the paper. Each returns one logit per row, shape [B, 1]: positive = normal.

`config` holds the constructor's arguments and `NETWORKS` the classes by name, so that a saved
model can be built again without pickled code.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from numbers import Integral
from operator import index

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drocc_ext.ops.nearest import nearest_row

__all__ = [
    "MLP",
    "NETWORKS",
    "CIFARLeNet",
    "LSTMClassifier",
    "MLPEnsemble",
    "MNISTLeNet",
    "NearestMLP",
]


class _Network(nn.Module):
    """A network that `torch.jit.script`, which knows no Python properties, refuses in a sentence.

    `torch.jit` is deprecated; `torch.export` and `torch.jit.trace` take these networks as they are.
    """

    def __prepare_scriptable__(self) -> nn.Module:
        raise TypeError(
            f"torch.jit.script: {type(self).__name__} is not written in TorchScript; use "
            "torch.export.export(network, (x,)) or torch.jit.trace(network, x)"
        )


class MLP(_Network):
    """Hidden layers with ReLU, for tabular rows: [B, in_features] -> [B, 1].

    Args:
        in_features: columns of the input, >= 1.
        hidden: units of the hidden layer, >= 1 (128 in the paper), or of several in order.
        device: of the parameters, as for torch's layers.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int | Sequence[int] = 128,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        # Python's integers, as a description in a file holds them.
        widths = [index(hidden)] if isinstance(hidden, Integral) else [*map(index, hidden)]  # type: ignore[arg-type]
        if not widths:
            raise ValueError("MLP: hidden must have at least one layer, got none")
        for width in widths:
            _check_sizes("MLP", in_features=in_features, hidden=width)
        sizes = [index(in_features), *widths]
        layers = [nn.Linear(*pair, device=device) for pair in itertools.pairwise(sizes)]
        # One layer keeps the names that weights have on disk.
        self.hidden: nn.Linear | nn.ModuleList
        self.hidden = layers[0] if len(layers) == 1 else nn.ModuleList(layers)
        self.logit: nn.Linear = nn.Linear(sizes[-1], 1, device=device)

    @property
    def layers(self) -> list[nn.Linear]:
        """Return the hidden layers in order."""
        if isinstance(self.hidden, nn.Linear):
            return [self.hidden]
        return [layer for layer in self.hidden if isinstance(layer, nn.Linear)]

    @property
    def config(self) -> dict[str, int | list[int]]:
        """Return the constructor's arguments."""
        widths = [layer.out_features for layer in self.layers]
        return {
            "in_features": self.layers[0].in_features,
            "hidden": widths[0] if len(widths) == 1 else widths,
        }

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B, 1] of rows x [B, in_features]."""
        _check_shape("MLP", x, (self.layers[0].in_features,))
        for layer in self.layers:
            x = F.relu(layer(x))
        logits: Tensor = self.logit(x)
        return logits


class MLPEnsemble(_Network):
    """Mean logit of several `MLP` of one form: [B, in_features] -> [B, 1].

    Args:
        in_features: columns of the input, >= 1.
        hidden: units of each member's hidden layers, as for `MLP`.
        members: number of members, >= 1.
    """

    def __init__(self, in_features: int, hidden: int | Sequence[int], members: int) -> None:
        super().__init__()
        _check_sizes("MLPEnsemble", members=members)
        self.members: nn.ModuleList = nn.ModuleList(
            MLP(in_features, hidden) for _ in range(members)
        )

    @classmethod
    def of(cls, networks: Sequence[MLP]) -> MLPEnsemble:
        """Unite networks, which it then shares."""
        with torch.device("meta"):  # draws no weights
            ensemble = cls(**networks[0].config, members=1)  # type: ignore[arg-type]
        ensemble.members = nn.ModuleList(networks)
        return ensemble

    @property
    def config(self) -> dict[str, int | list[int]]:
        """Return the constructor's arguments."""
        first = self.members[0]
        assert isinstance(first, MLP)
        return {**first.config, "members": len(self.members)}

    def forward(self, x: Tensor) -> Tensor:
        """Compute the mean logits [B, 1] of rows x [B, in_features]."""
        logits: Tensor = torch.stack([member(x) for member in self.members]).mean(0)
        return logits


class NearestMLP(_Network):
    """Mean logit of several `MLP` less the distance to the nearest row: [B, in_features] -> [B, 1].

    Both are in units of their own, and a distance counts from the usual one on:
    `(logit - u_0) / u_1 - max(0, (distance - u_2) / u_3)`. A network knows nothing of places
    further out than it was trained on, which the distance to a row does; a small distance says
    nothing that the network does not know better.

    Args:
        in_features: columns of the input, >= 1.
        hidden: units of each member's hidden layers, as for `MLP`.
        members: number of members, >= 1.
        rows: number of rows to measure from, >= 1.

    Attributes:
        rows: These rows, `[rows, in_features]`, a buffer.
        units: u, `[4]`, a buffer.
    """

    logits: MLPEnsemble
    rows: Tensor
    units: Tensor

    def __init__(
        self, in_features: int, hidden: int | Sequence[int], members: int, rows: int
    ) -> None:
        super().__init__()
        _check_sizes("NearestMLP", rows=rows)
        self.logits = MLPEnsemble(in_features, hidden, members)
        self.register_buffer("rows", torch.zeros(rows, in_features))
        units = torch.tensor([0.0, 1.0, 0.0, 1.0])
        self.register_buffer("units", units)

    @classmethod
    def of(cls, networks: Sequence[MLP], rows: Tensor) -> NearestMLP:
        """Unite networks, which it then shares, with rows; its units are 0 and 1."""
        with torch.device("meta"):  # draws no weights
            model = cls(**networks[0].config, members=1, rows=len(rows))  # type: ignore[arg-type]
        model.logits = MLPEnsemble.of(networks)
        model.rows = rows
        model.units = rows.new_tensor([0.0, 1.0, 0.0, 1.0])
        return model

    @property
    def config(self) -> dict[str, int | list[int]]:
        """Return the constructor's arguments."""
        return {**self.logits.config, "rows": len(self.rows)}

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits less the distances, [B, 1], of rows x [B, in_features]."""
        return self.beside(x, self.logits(x))

    def beside(self, x: Tensor, logits: Tensor) -> Tensor:
        """Combine logits [B, 1] of rows with their distances.

        Args:
            x: Rows [B, in_features].
            logits: What the networks say of them, [B, 1].

        Returns:
            [B, 1], in the type of the logits.
        """
        with torch.no_grad():
            distance, index = nearest_row(x.detach(), self.rows)
        # What is traced or exported may serve for gradients too.
        kept = torch.jit.is_tracing() or torch.compiler.is_exporting()  # type: ignore[attr-defined,no-untyped-call]
        if kept or (x.requires_grad and torch.is_grad_enabled()):
            nearest = self.rows.index_select(0, index.clamp(min=0))
            distance = torch.linalg.vector_norm(x - nearest, dim=1)
        return self.combined(logits, distance[:, None].to(logits.dtype))

    def combined(self, logits: Tensor, distances: Tensor) -> Tensor:
        """Bring logits and distances of one shape to their units and subtract."""
        center, spread, near, wide = self.units.unbind()
        result: Tensor = (logits - center) / spread - F.relu((distances - near) / wide)
        return result


class CIFARLeNet(_Network):
    """LeNet of the CIFAR-10 experiments: [B, 3, 32, 32] -> [B, 1].

    Three blocks (5x5 convolution, BatchNorm without affine parameters, 2x2 max-pooling, leaky ReLU)
    of 32, 64 and 128 channels, then linear layers 2048-128-64-1; no layer has a bias.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks: nn.Sequential = nn.Sequential(_block(3, 32), _block(32, 64), _block(64, 128))
        self.head: nn.Sequential = nn.Sequential(
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, 128, bias=False),
            nn.LeakyReLU(),
            nn.Linear(128, 64, bias=False),
            nn.LeakyReLU(),
            nn.Linear(64, 1, bias=False),
        )

    @property
    def config(self) -> dict[str, int]:
        """Return the constructor's arguments: none."""
        return {}

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B, 1] of images x [B, 3, 32, 32]."""
        _check_shape("CIFARLeNet", x, (3, 32, 32))
        logits: Tensor = self.head(self.blocks(x))
        return logits


class MNISTLeNet(_Network):
    """LeNet of the MNIST experiments: [B, 1, 28, 28] or [B, 784] -> [B, 1].

    Two blocks as in `CIFARLeNet` of 8 and 4 channels, then linear layers 196-64-1 without
    bias and without an activation between them, as published.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks: nn.Sequential = nn.Sequential(_block(1, 8), _block(8, 4))
        self.head: nn.Sequential = nn.Sequential(
            nn.Flatten(), nn.Linear(4 * 7 * 7, 64, bias=False), nn.Linear(64, 1, bias=False)
        )

    @property
    def config(self) -> dict[str, int]:
        """Return the constructor's arguments: none."""
        return {}

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B, 1] of images x, [B, 1, 28, 28] or flattened to [B, 784]."""
        if x.ndim == 2:
            _check_shape("MNISTLeNet", x, (784,))
            x = x.reshape(-1, 1, 28, 28)
        _check_shape("MNISTLeNet", x, (1, 28, 28))
        logits: Tensor = self.head(self.blocks(x))
        return logits


class LSTMClassifier(nn.Module):
    """One LSTM layer and a linear layer on its last hidden state: [B, T, in_features] -> [B, 1].

    Args:
        in_features: features of one time step, >= 1.
        hidden: units of the LSTM, >= 1.
    """

    def __init__(self, in_features: int, hidden: int = 128) -> None:
        super().__init__()
        _check_sizes("LSTMClassifier", in_features=in_features, hidden=hidden)
        self.lstm: nn.LSTM = nn.LSTM(in_features, hidden, batch_first=True)
        self.logit: nn.Linear = nn.Linear(hidden, 1)

    @property
    def config(self) -> dict[str, int]:
        """Return the constructor's arguments."""
        return {"in_features": self.lstm.input_size, "hidden": self.lstm.hidden_size}

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B, 1] of series x [B, T, in_features], T >= 1."""
        if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != self.lstm.input_size:
            raise ValueError(
                f"LSTMClassifier: x must have shape [B, T >= 1, {self.lstm.input_size}], "
                f"got {list(x.shape)}"
            )
        _, (last, _) = self.lstm(x)
        logits: Tensor = self.logit(last[-1])
        return logits


NETWORKS: dict[str, type[nn.Module]] = {
    network.__name__: network
    for network in (MLP, MLPEnsemble, NearestMLP, CIFARLeNet, MNISTLeNet, LSTMClassifier)
}


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 5, padding=2, bias=False),
        nn.BatchNorm2d(out_channels, eps=1e-4, affine=False),
        # The published order is the other. A monotone function and the maximum commute, and this
        # way it has a quarter of the values to go through.
        nn.MaxPool2d(2),
        nn.LeakyReLU(),
    )


def _check_sizes(network: str, **sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{network}: {name} must be >= 1, got {value}")


def _check_shape(network: str, x: Tensor, row: tuple[int, ...]) -> None:
    if x.shape[1:] != torch.Size(row):
        expected = ", ".join(map(str, row))
        raise ValueError(f"{network}: x must have shape [B, {expected}], got {list(x.shape)}")
