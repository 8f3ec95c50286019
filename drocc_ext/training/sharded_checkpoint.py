"""Checkpoints of a model that is spread over the ranks: `torch.distributed.checkpoint` keeps it.

What is spread out (parameters, their moments, the best weights) goes to a directory of its own, to
which every rank writes its part, and which any number of ranks can read. The checkpoint's file
names it and holds the rest, with the checksums of its files; it is written last, so that it never
names a directory that is not whole. All ranks need the same file system.

torch keeps a pickle in the directory that says where each part lies. It is read only if it names
nothing but torch's own descriptions of tensors, so that no code of a file runs.
"""

from __future__ import annotations

import hashlib
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from drocc_ext.models.states import bare_names, for_model
from drocc_ext.training.checkpoint import FitState
from drocc_ext.training.rank_checkpoint import RankCheckpointer

_MARK = "spread over the ranks"
_INDEX = ".metadata"
# torch's description of tensors is made of these, and of the classes in a module of its own, of
# which one is left out: that of other objects, which torch would unpickle too.
_DESCRIPTIONS, _OF_OBJECTS = "torch.distributed.checkpoint.metadata", "BytesStorageMetadata"
_KNOWN = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "WindowsPath"),
}


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
        rest["shard_sums"] = self.ranks.first_alone(lambda: _checksums(place))
        return rest

    def _tidy(self, state: FitState) -> None:
        """Remove the directories of former checkpoints."""
        for other in self.path.parent.glob(f"{self._directory('*')}"):
            if other.name != self._directory(state.epoch):
                shutil.rmtree(other, ignore_errors=True)

    def _complete(self, content: dict[str, Any]) -> dict[str, Any]:
        """Read this rank's parts."""
        place = content.get("shards")
        if not isinstance(place, str) or Path(place).name != place:
            raise ValueError(
                f"{self.path}: the checkpoint must be of a sharded model, as this one is, got one "
                "of a whole model"
            )
        parts: dict[str, Tensor] = {}
        named, bare = dict(self.model.state_dict()), bare_names(self.model)
        for name, group in (("model", content), ("best_weights", content["fit"])):
            if group.get(name) is None:
                continue
            group[name] = for_model(self.model, group[name])
            for key, value in group[name].items():
                if value == _MARK and key in named:
                    group[name][key] = parts[f"{name}.{bare[key]}"] = torch.zeros_like(named[key])
        every = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, moments in content["optimizer"]["state"].items():
            for key, value in moments.items():
                if value == _MARK and int(index) < len(every):
                    like = every[int(index)].detach()
                    moments[key] = parts[f"optimizer.{index}.{key}"] = torch.zeros_like(like)
        folder = self.path.parent / place
        sums = content.get("shard_sums")  # former versions had none
        try:
            self.ranks.first_alone(lambda: _check_parts(folder, sums))
            load(parts, checkpoint_id=folder, process_group=self.ranks.group)
        # A directory that is gone or damaged fails in any way; torch's is no Exception.
        except (Exception, CheckpointException) as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ValueError(
                f"{self.path}: its parts in {place} cannot be read: {reason}"
            ) from error
        return content

    def _directory(self, epoch: int | str) -> str:
        return f"{self.path.name}.epoch{epoch}"


class _Descriptions(pickle.Unpickler):
    """Reads torch's description of tensors, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Find what the description is made of."""
        found = None
        if (module, name) in _KNOWN or (module in (_DESCRIPTIONS, "torch") and "." not in name):
            found = super().find_class(module, name)
        own = isinstance(found, type) and found.__module__ == _DESCRIPTIONS and name != _OF_OBJECTS
        if own or isinstance(found, torch.dtype) or (module, name) in _KNOWN:
            return found
        raise ValueError(f"{_INDEX} names {module}.{name}, which is no description of tensors")


def _checksums(folder: Path) -> dict[str, str]:
    sums = {}
    for file in sorted(folder.iterdir()):
        digest = hashlib.sha256()
        with open(file, "rb") as content:
            while block := content.read(2**20):
                digest.update(block)
        sums[file.name] = digest.hexdigest()
    return sums


def _check_parts(folder: Path, sums: Any) -> None:
    """Refuse files that are gone, damaged or made to do harm, before torch reads them."""
    if isinstance(sums, dict):
        there = _checksums(folder)
        for name, digest in sums.items():
            if there.get(name) != digest:
                said = (
                    "is not there" if name not in there else "is damaged, its checksum is another"
                )
                raise ValueError(f"{name} {said}")
    with open(folder / _INDEX, "rb") as file:
        _Descriptions(file).load()


def _without_parts(name: str, tree: Any, parts: dict[str, Tensor]) -> Any:
    """Replace what is spread out by a mark, and collect it under its name."""
    if isinstance(tree, DTensor):
        # The fit's and the optimizer's own levels are no part of a name.
        parts[name.removeprefix("fit.").replace("optimizer.state.", "optimizer.")] = tree
        return _MARK
    if isinstance(tree, dict):
        return {key: _without_parts(f"{name}.{key}", part, parts) for key, part in tree.items()}
    return tree
