"""Batches for the trainer, from tensors kept on the device or from any loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

Batch: TypeAlias = tuple[Tensor, Tensor | None]
# What fit, score and evaluate take: rows, (rows, labels), a dataset, or an iterable of batches.
Data: TypeAlias = "Tensor | np.ndarray[Any, Any] | tuple[Any, Any] | Dataset[Any] | Iterable[Any]"


@dataclass
class TensorBatches:
    """Slices of tensors, shuffled anew in each pass where a generator is given.

    Attributes:
        x: Rows, `[N, *]`.
        y: Labels, `[N]` or `[N, 1]`, or None.
        batch_size: Rows per batch; the last one may be smaller.
        device: Where batches are delivered.
        generator: Source of the shuffling; None keeps the order.
        channels_last: Whether batches `[B, C, H, W]` come in that memory format.
    """

    x: Tensor
    y: Tensor | None
    batch_size: int
    device: torch.device
    generator: torch.Generator | None = None
    channels_last: bool = False

    def __len__(self) -> int:
        """Count batches."""
        return -(-self.x.shape[0] // self.batch_size)

    def order(self) -> Tensor | None:
        """Draw the order of one pass.

        Returns:
            Positions `[N]` on the device of x; None where the order is kept.
        """
        if self.generator is None:
            return None
        return torch.randperm(
            self.x.shape[0], generator=self.generator, device=self.generator.device
        ).to(self.x.device)

    def __iter__(self) -> Iterator[Batch]:
        """Yield one pass."""
        order = self.order()
        for start in range(0, len(self.x if order is None else order), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.batch_at(rows if order is None else order[rows])

    def batch_at(self, rows: Tensor | slice) -> Batch:
        """Give some rows, on the device.

        Args:
            rows: Their positions, or a slice of them.

        Returns:
            The batch.
        """
        if isinstance(rows, slice):
            x, y = self.x[rows], None if self.y is None else self.y[rows]
        else:  # index_select is several times faster than indexing
            x = self.x.index_select(0, rows)
            y = None if self.y is None else self.y.index_select(0, rows)
        x = _laid_out(x.to(self.device), self.channels_last)
        return x, None if y is None else y.to(self.device)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: each pass continues the generator."""

    def generators(self) -> list[torch.Generator]:
        """List the generators that decide the order.

        Returns:
            The generator, if there is one.
        """
        return [] if self.generator is None else [self.generator]


@dataclass
class LoaderBatches:
    """Batches of a loader, brought to one device and floating-point type.

    Attributes:
        caller: Name to begin an error with.
        loader: Yields x or (x, y, ...).
        device: Where batches are delivered.
        dtype: Floating-point type of x.
        channels_last: Whether batches `[B, C, H, W]` come in that memory format.
    """

    caller: str
    loader: Iterable[Any]
    device: torch.device
    dtype: torch.dtype
    channels_last: bool = False

    def __len__(self) -> int:
        """Count batches; 0 where the loader does not know."""
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except TypeError:
            return 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield one pass."""
        for item in self.loader:
            parts = item if isinstance(item, list | tuple) else (item,)
            if not parts:
                raise ValueError(f"{self.caller}: a batch must be x or (x, y, ...), got {item!r}")
            x, y = _tensors(self.caller, parts[0], parts[1] if len(parts) > 1 else None, self.dtype)
            x = _laid_out(x.to(self.device), self.channels_last)
            yield x, None if y is None else y.to(self.device)

    def set_epoch(self, epoch: int) -> None:
        """Tell the samplers that ask for it which epoch begins.

        Args:
            epoch: Number of the epoch, from 0.
        """
        for part in self._parts():
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    def generators(self) -> list[torch.Generator]:
        """List the generators that decide the order, as far as the loader shows them.

        Returns:
            The generators of the loader and its samplers.
        """
        found = [getattr(part, "generator", None) for part in self._parts()]
        return [g for g in found if isinstance(g, torch.Generator) and g is not _UNUSED]

    def _parts(self) -> list[Any]:
        batch_sampler = getattr(self.loader, "batch_sampler", None)
        samplers = [
            getattr(self.loader, "sampler", None),
            batch_sampler,
            getattr(batch_sampler, "sampler", None),
        ]
        parts = [self.loader]
        for sampler in samplers:
            if sampler is not None and all(sampler is not part for part in parts):
                parts.append(sampler)
        return parts


Batches: TypeAlias = TensorBatches | LoaderBatches


def as_batches(
    caller: str,
    data: Data,
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    generator: torch.Generator | None = None,
    resident: bool = False,
    channels_last: bool = False,
) -> Batches:
    """Turn data into batches.

    Args:
        caller: Name to begin an error with.
        data: Rows `[N, *]`, a tuple (rows, labels) of tensors or arrays, a `Dataset` of x or
            (x, y, ...), or an iterable of batches x or (x, y, ...), such as a `DataLoader`. Rows
            are converted to dtype, elements after y ignored.
        batch_size: Rows per batch; a loader's own size stays.
        device: Where batches are delivered.
        dtype: Floating-point type of x.
        generator: Shuffles tensors and datasets; None keeps their order. A loader's order is its
            own.
        resident: Move tensors to the device as a whole, not batch by batch.
        channels_last: Deliver batches `[B, C, H, W]` in that memory format.

    Returns:
        The batches; every iteration is a new pass.

    Raises:
        TypeError: If data is none of the above or x is not floating point.
        ValueError: If rows and labels differ in number.
    """
    if type(data) is TensorDataset:  # a subclass may transform its rows
        data = (*data.tensors, None)[:2]
    if isinstance(data, Tensor | np.ndarray):
        data = (data, None)
    if isinstance(data, tuple):
        if len(data) != 2:
            raise TypeError(f"{caller}: a tuple must be (x, y), got {len(data)} elements")
        _refuse_frame(caller, data[0])
        x, y = _tensors(caller, data[0], data[1], dtype)
        if resident:
            x, y = x.to(device), None if y is None else y.to(device)
        return TensorBatches(x, y, batch_size, device, generator, channels_last)
    _refuse_frame(caller, data)
    if isinstance(data, Dataset):
        data = _dataset_loader(data, batch_size, generator)
    if isinstance(data, str | bytes | dict) or not isinstance(data, Iterable):
        raise TypeError(
            f"{caller}: data must be a tensor, (x, y), a Dataset or an iterable of batches, got "
            f"{type(data).__name__}"
        )
    return LoaderBatches(caller, data, device, dtype, channels_last)


# Loaders that keep the order draw a seed for workers that they have not; not from the global one.
_UNUSED = torch.Generator("cpu")


def _laid_out(x: Tensor, channels_last: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if channels_last and x.dim() == 4 else x


def _dataset_loader(
    dataset: Dataset[Any], batch_size: int, generator: torch.Generator | None
) -> DataLoader[Any]:
    if generator is not None and generator.device.type != "cpu":  # samplers draw on the CPU
        generator = torch.Generator("cpu").manual_seed(generator.initial_seed())
    shuffle = generator is not None and not isinstance(dataset, IterableDataset)
    return DataLoader(
        dataset, batch_size=batch_size, shuffle=shuffle, generator=generator or _UNUSED
    )


def _refuse_frame(caller: str, data: Any) -> None:
    if hasattr(data, "columns"):  # iterating a DataFrame would give its column names
        raise TypeError(
            f"{caller}: data must be a tensor, (x, y), a Dataset or an iterable of batches, got "
            f"{type(data).__name__}; pass its to_numpy()"
        )


def _tensors(caller: str, x: Any, y: Any, dtype: torch.dtype) -> Batch:
    x = _as_tensor(caller, "x", x)
    if not x.is_floating_point():
        raise TypeError(f"{caller}: x must be floating point, got {x.dtype}")
    if x.layout is not torch.strided:
        raise TypeError(f"{caller}: x must be dense, got {x.layout}; its to_dense() is")
    if x.dim() == 0:
        raise ValueError(
            f"{caller}: x must be rows with features, [N, *], got a tensor of shape (); of a list "
            "each element is a batch"
        )
    x = x.detach().to(dtype)
    if y is None:
        return x, None
    y = _as_tensor(caller, "labels", y)
    if y.is_complex():
        raise TypeError(f"{caller}: labels must be real numbers, got {y.dtype}")
    if y.dim() == 0 or y.shape[0] != x.shape[0]:
        raise ValueError(
            f"{caller}: labels must be one per row, got shape {tuple(y.shape)} for "
            f"{x.shape[0]} rows"
        )
    return x, y


def _as_tensor(caller: str, name: str, value: Any) -> Tensor:
    """Make a tensor of numbers, of a type that torch can compute with."""
    if isinstance(value, Tensor):
        tensor = value
    else:
        if isinstance(value, dict | str | bytes):
            raise TypeError(f"{caller}: {name} must be numbers, got {type(value).__name__}")
        try:
            array = value if isinstance(value, np.ndarray) else None
            if array is None and hasattr(value, "__array__"):  # a pandas Series, for one
                array = np.asarray(value)
            if array is not None:
                # torch takes no negative strides or foreign byte order, and warns of read-only data
                array = array.astype(array.dtype.newbyteorder("="), copy=False)
                array = np.require(array, requirements=["C", "W"])
            tensor = torch.as_tensor(value if array is None else array, device="cpu")
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            # torch's own words span lines and speak of numpy's types.
            held = f"of {value.dtype}" if isinstance(value, np.ndarray) else "of other things"
            raise TypeError(
                f"{caller}: {name} must be numbers, got {type(value).__name__} {held}"
            ) from error
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
        tensor = tensor.to(torch.int64)  # torch has few operations on these
    return tensor
