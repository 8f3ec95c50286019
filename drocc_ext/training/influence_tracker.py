"""The Mahalanobis metric of an epoch: the mean influence of the epoch before (Algorithm 2)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_SUMS = ("influence_sum", "row_count")
_STATE = ("sigma", *_SUMS)


class InfluenceTracker(nn.Module):
    """Averages the influence of rows over an epoch, and keeps the mean for the next one.

    Rows whose influence is not finite are left out. The state is part of `state_dict` and moves
    with the module, but is no buffer: it comes and goes, differs from rank to rank, and what treats
    buffers alike, as weight averaging and `DistributedDataParallel` do, would take one for another.

    Attributes:
        sigma: The mean in force, `[*]`, float64; None before the second epoch.
        influence_sum: Sum over the rows of this epoch, `[*]`; None before the first of them.
        row_count: Number of those rows, 0-dimensional.
    """

    sigma: Tensor | None
    influence_sum: Tensor | None
    row_count: Tensor | None

    def __init__(self) -> None:
        """Begin without a mean."""
        super().__init__()
        self.sigma = self.influence_sum = self.row_count = None
        self._has_epochs = False

    def mean_of(self, rows: Tensor) -> Tensor:
        """Average rows that are finite.

        Args:
            rows: Influence of each row, `[B, *]`.

        Returns:
            The mean, `[*]`, in double precision; NaN where no row is finite.
        """
        total, count = _sum_of_finite(rows)
        return total / count

    def count(self, rows: Tensor) -> None:
        """Add rows to the mean of this epoch.

        Args:
            rows: Influence of each row, `[B, *]`.
        """
        if not self._has_epochs:
            self._has_epochs = True  # said once
            warnings.warn(
                "DROCCLoss: call start_epoch() before each epoch, or sigma stays that of the batch "
                "at hand; Trainer does",
                RuntimeWarning,
                stacklevel=4,
            )
        total, count = _sum_of_finite(rows)
        if self.influence_sum is not None and self.row_count is not None:
            # Not in place: who holds the former state, to go back to it, has it unchanged.
            total = self.influence_sum.to(total) + total
            count = self.row_count.to(count) + count
        self.influence_sum, self.row_count = total, count

    def start_epoch(self, group: ProcessGroup | None = None) -> None:
        """Make the mean of the rows counted since the last call the sigma in force.

        Args:
            group: Processes whose rows count together; all of them have to call this.
        """
        self._has_epochs = True
        if group is not None:
            self._add_up(group)
        if self.influence_sum is None or self.row_count is None:
            return
        if int(self.row_count) > 0:  # the rows may all have been left out
            self.sigma = self.influence_sum / self.row_count
        self.forget_counts()

    def _add_up(self, group: ProcessGroup) -> None:
        """Give every process the sums of all; one that counted nothing does not know a shape."""
        distributed = torch.distributed
        own = None
        if self.influence_sum is not None and self.row_count is not None:
            own = (self.influence_sum.shape, self.influence_sum.device.type)
        known: list[Any] = [None] * distributed.get_world_size(group)
        distributed.all_gather_object(known, own, group=group)
        there = [part for part in known if part is not None]
        if not there:
            return
        if self.influence_sum is None or self.row_count is None:
            shape, device = there[0]
            self.influence_sum = torch.zeros(shape, dtype=torch.float64, device=device)
            self.row_count = torch.zeros((), dtype=torch.int64, device=device)
        # New tensors: who holds the former state, to go back to it, has it unchanged.
        self.influence_sum, self.row_count = self.influence_sum.clone(), self.row_count.clone()
        distributed.all_reduce(self.influence_sum, group=group)
        distributed.all_reduce(self.row_count, group=group)

    def pool(self, group: ProcessGroup) -> None:
        """Move what all processes have counted to the first, whose state then is that of all.

        Args:
            group: The processes; all of them have to call this.
        """
        self._add_up(group)
        if torch.distributed.get_rank(group) > 0:
            self.forget_counts()

    def forget_counts(self) -> None:
        """Forget the rows of this epoch; sigma stays."""
        self.influence_sum = self.row_count = None

    def reset(self) -> None:
        """Forget everything, as if newly made."""
        for name in _STATE:
            setattr(self, name, None)
        self._has_epochs = False

    def check_shape(self, caller: str, x: Tensor) -> None:
        """Check that rows are of the shape that is averaged.

        Args:
            caller: Name to begin an error with.
            x: Rows, `[B, *]`.

        Raises:
            ValueError: If they are of another shape.
        """
        for tensor in (self.sigma, self.influence_sum):
            if tensor is not None and tensor.shape != x.shape[1:]:
                raise ValueError(
                    f"{caller}: with influence 'epoch' all rows must have one shape, got "
                    f"{tuple(x.shape[1:])} after {tuple(tensor.shape)}; call reset() before other "
                    "data, or use 'sample'"
                )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InfluenceTracker:
        for name in _STATE:
            value = getattr(self, name)
            if value is not None:  # to another device; sums of a short type would lose rows
                setattr(self, name, value.to(fn(value).device))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for name in _STATE:
            value = getattr(self, name)
            if value is not None:
                destination[prefix + name] = value

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # An entry that is not there means None, as it does where the state is saved.
        given = {key[len(prefix) :] for key in state_dict if key.startswith(prefix)}
        if strict:
            unexpected_keys += [prefix + name for name in sorted(given - set(_STATE))]
            if given & set(_SUMS):
                missing_keys += [prefix + name for name in _SUMS if name not in given]
        for name in _STATE:
            value = state_dict.get(prefix + name)
            setattr(self, name, None if value is None else value.detach().clone())


def _sum_of_finite(rows: Tensor) -> tuple[Tensor, Tensor]:
    finite = rows.flatten(1).isfinite().all(1)
    usable = rows.masked_fill(~finite.view(-1, *[1] * (rows.dim() - 1)), 0.0)
    # MPS has no float64.
    wide = torch.float32 if rows.device.type == "mps" else torch.float64
    return usable.sum(0, dtype=wide), finite.sum()
