"""Checkpoints of a model that is spread over the ranks: `torch.distributed.checkpoint` keeps it.

What is spread out (parameters, their moments, the best weights) goes to a directory of its own, to
which every rank writes its part, and which any number of ranks can read. The checkpoint's file
names it and holds the rest; it is written last, so that it never names a directory that is not
whole. All ranks need the same file system.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from drocc_ext.models.states import for_model
from drocc_ext.training.checkpoint import FitState
from drocc_ext.training.rank_checkpoint import RankCheckpointer

_MARK = "spread over the ranks"


@dataclass
class ShardedCheckpointer(RankCheckpointer):
    """Saves and loads what all ranks' next epoch depends on, each its part of the parameters."""

    def _finish(self, content: dict[str, Any], state: FitState) -> dict[str, Any]:
        """Write the parts of all ranks; give what is left for the file."""
        parts: dict[str, Tensor] = {}
        rest = {name: _without_parts(name, part, parts) for name, part in content.items()}
        rest["shards"] = self._directory(state.epoch)
        place = self.path.parent / rest["shards"]
        self.ranks.first_alone(lambda: shutil.rmtree(place, ignore_errors=True))
        save(parts, checkpoint_id=place, process_group=self.ranks.group)
        return rest

    def _tidy(self, state: FitState) -> None:
        """Remove the directories of former checkpoints."""
        for other in self.path.parent.glob(f"{self._directory('*')}"):
            if other.name != self._directory(state.epoch):
                shutil.rmtree(other, ignore_errors=True)

    def _complete(self, content: dict[str, Any]) -> dict[str, Any]:
        """Read this rank's parts."""
        place = content.get("shards")
        if not isinstance(place, str):
            raise ValueError(
                f"{self.path}: the checkpoint must be of a sharded model, as this one is, got one "
                "of a whole model"
            )
        parts: dict[str, Tensor] = {}
        named = dict(self.model.state_dict())
        for name, group in (("model", content), ("best_weights", content["fit"])):
            if group.get(name) is None:
                continue
            group[name] = for_model(self.model, group[name])
            for key, value in group[name].items():
                if value == _MARK and key in named:
                    group[name][key] = parts[f"{name}.{key}"] = torch.zeros_like(named[key])
        every = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, moments in content["optimizer"]["state"].items():
            for key, value in moments.items():
                if value == _MARK and int(index) < len(every):
                    like = every[int(index)].detach()
                    moments[key] = parts[f"optimizer.{index}.{key}"] = torch.zeros_like(like)
        try:
            load(parts, checkpoint_id=self.path.parent / place, process_group=self.ranks.group)
        except Exception as error:  # a directory that is gone or damaged fails in any way
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"{self.path}: its parts in {place} cannot be read: {reason}"
            ) from error
        return content

    def _directory(self, epoch: int | str) -> str:
        return f"{self.path.name}.epoch{epoch}"


def _without_parts(name: str, tree: Any, parts: dict[str, Tensor]) -> Any:
    """Replace what is spread out by a mark, and collect it under its name."""
    if isinstance(tree, DTensor):
        # The fit's and the optimizer's own levels are no part of a name.
        parts[name.removeprefix("fit.").replace("optimizer.state.", "optimizer.")] = tree
        return _MARK
    if isinstance(tree, dict):
        return {key: _without_parts(f"{name}.{key}", part, parts) for key, part in tree.items()}
    return tree
