"""Checkpoints of many ranks: one file, written by rank 0, with the generators of all.

What differs between ranks is their generators. So the file is that of one process plus a list of
them, and any number of ranks can go on from it: those that were there before with their own
generators, others with new ones, which follow from the seed, the rank and the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import torch

from drocc_ext._files import clear_temporaries
from drocc_ext.training.checkpoint import (
    Checkpointer,
    FitState,
    get_rng_state,
    parse_checkpoint,
    read_checkpoint,
    set_rng_state,
)
from drocc_ext.training.checkpoint_checks import is_rng_state, is_rng_tensor

if TYPE_CHECKING:
    from drocc_ext.training.distributed import Ranks


@dataclass
class RankCheckpointer(Checkpointer):
    """Saves and loads what all ranks' next epoch depends on.

    Attributes:
        ranks: Who takes part.
        noise: This rank's source of the search's noise.
    """

    ranks: Ranks
    noise: torch.Generator

    def start(self, state: FitState, *, resume: bool) -> FitState:
        """Begin a fit on all ranks alike; see `Checkpointer.start`."""

        def look() -> bool:
            clear_temporaries(self.path.parent, self.path.name)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return resume and self.path.is_file()

        if self.ranks.first_alone(look):
            return self.load(state.monitor)
        self.save(state)
        self.ranks.first_alone(lambda: read_checkpoint(self.path) and None)
        return state

    def save(self, state: FitState) -> None:
        """Write the checkpoint from rank 0, or raise on all ranks."""
        tracker, group = self.loss.tracker, self.ranks.group
        if tracker is not None and group is not None:
            tracker.pool(group)
        own = {
            "noise": self.noise.get_state(),
            "generators": [generator.get_state() for generator in self.generators],
            "rng": get_rng_state(),
        }
        every = self.ranks.gather(own)
        content = self._finish(self._content(state), state)
        self.ranks.first_alone(lambda: self._write({**content, "ranks": every}))
        if self.ranks.is_first:
            self._tidy(state)

    def load(self, monitor: str) -> FitState:
        """Bring all ranks to the state of the checkpoint that rank 0 reads, or none."""
        # Only the machine of rank 0 need have the file.
        data = self.ranks.first_alone(self.path.read_bytes)
        content = parse_checkpoint(self.path, BytesIO(data))
        every = content.get("ranks", [])
        if not _are_ranks(every):
            raise ValueError(f"{self.path}: the checkpoint is malformed, its 'ranks' is none")
        state = self._apply(self._complete(content), monitor)
        if self.ranks.rank > 0 and self.loss.tracker is not None:
            self.loss.tracker.forget_counts()  # rank 0 has those of all
        if self.ranks.rank < len(every):
            own = every[self.ranks.rank]
            self.noise.set_state(own["noise"])
            for generator, known in zip(self.generators, own["generators"], strict=True):
                generator.set_state(known)
            set_rng_state(own["rng"])
        else:
            self.noise.manual_seed((self._seed() + state.epoch) % 2**63)
        return state

    def _finish(self, content: dict[str, Any], state: FitState) -> dict[str, Any]:
        """Do what has to be done on all ranks before the file is written."""
        return content

    def _tidy(self, state: FitState) -> None:
        """Do what rank 0 has to do once the file is there."""

    def _seed(self) -> int:
        """The seed of this rank's noise in a fit that begins with the order's seed."""
        return self.ranks.noise_generator(self.generators[0]).initial_seed()


def _are_ranks(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(rank, dict)
        and is_rng_tensor(rank.get("noise"))
        and isinstance(rank.get("generators"), list)
        and all(map(is_rng_tensor, rank["generators"]))
        and is_rng_state(rank.get("rng"))
        for rank in value
    )
