"""One training on many processes: `torchrun`, `DistributedDataParallel` and FSDP2 do the work.

What is decided here: that the search runs on the inner module, that every rank takes part in the
same steps with the weight its rows have, and that what one rank knows (a loss, a wish to stop, a
full disk) all ranks know before they act on it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from drocc_ext.models.modules import uncompiled
from drocc_ext.training.checkpoint import Checkpointer
from drocc_ext.training.data import Batches
from drocc_ext.training.loss import DROCCLoss
from drocc_ext.training.rank_checkpoint import RankCheckpointer
from drocc_ext.training.rank_step import RankStep
from drocc_ext.training.ranks import Distributed, OneProcess
from drocc_ext.training.sharded_checkpoint import ShardedCheckpointer
from drocc_ext.training.shares import SharedBatches, in_order, is_dealt, share_of

if TYPE_CHECKING:
    from drocc_ext.training.trainer import Trainer

__all__ = ["Ranks", "join_ranks", "ranks_of"]

_T = TypeVar("_T")

# Errors that ranks tell each other; what is none of these becomes the last.
_KINDS = (FloatingPointError, FileNotFoundError, OSError, TypeError, ValueError, RuntimeError)

# Modules of fewer parameters are gathered with the module around them: a message costs time too.
_LEAST_SHARDED = 2**20
# These read their children's weights instead of calling them, so they are gathered as a whole.
_WHOLE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


class Ranks(OneProcess):
    """The processes that train one model together.

    Args:
        group: The process group.
        device: Where numbers are added up.
        sharded: Whether the model's parameters are spread over the ranks (FSDP2).
        wraps: Whether the trainer has wrapped the model in `DistributedDataParallel` itself.

    Attributes:
        current: The batches that all ranks take.
    """

    current: SharedBatches

    def __init__(
        self,
        group: dist.ProcessGroup,
        device: torch.device,
        *,
        sharded: bool = False,
        wraps: bool = False,
    ) -> None:
        """Ask the group who takes part."""
        self.group: dist.ProcessGroup = group
        self.rank: int = dist.get_rank(group)
        self.size: int = dist.get_world_size(group)
        self.device = device
        self.sharded = sharded
        self.wraps = wraps

    def shared(self, value: _T) -> _T:
        """Give the value that rank 0 has."""
        values = [_pack(value) if self.is_first else b""]
        dist.broadcast_object_list(values, group=self.group, group_src=0, device=self.device)
        result: _T = _unpack(values[0])
        return result

    def gather(self, value: _T) -> list[_T]:
        """Give the values of all ranks, in their order."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, _pack(value), group=self.group)
        return list(map(_unpack, values))

    def whole(
        self, batches: Batches, scores: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Put together what the ranks have of their shares, where they have shares."""
        if self.sharded:
            return scores, labels
        parts, dealt = self.gather((scores, labels)), is_dealt(batches)
        whole = in_order([part for part, _ in parts], dealt=dealt)
        given = [own for _, own in parts if own is not None]
        if not given or any(own is None for part, own in parts if len(part) > 0):
            return whole, None
        # A rank without rows has no labels either.
        every = [given[0][:0] if own is None else own for _, own in parts]
        return whole, in_order(every, dealt=dealt)

    def stops(self, flag: bool) -> bool:
        """Say what the ranks have agreed on: a flag that is set now is not known to the others."""
        return self.current.stops

    def add(self, values: list[float]) -> list[float]:
        """Add numbers up over the ranks."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total, group=self.group)
        added: list[float] = total.tolist()
        return added

    def any(self, flag: bool) -> bool:
        """Say whether a flag is set on some rank."""
        return self.add([float(flag)])[0] > 0

    def first_alone(self, work: Callable[[], _T]) -> _T:
        """Let rank 0 work; its result, or its error, is everybody's."""
        result, failure = None, None
        if self.is_first:
            try:
                result = work()
            except Exception as error:
                failure = error
        outcome = None if failure is None else (_kind_of(failure), str(failure))
        result, outcome = self.shared((result, outcome))
        if failure is not None:
            raise failure
        if outcome is not None:
            number, text = outcome
            raise _KINDS[number](f"rank 0: {text}")
        return result  # type: ignore[return-value]

    def noise_generator(self, order: torch.Generator) -> torch.Generator:
        """Give the source of a rank's own noise, made from that of the order all ranks share."""
        # Multiplied: seeds that users count up by one do not meet other ranks' seeds.
        seed = order.initial_seed() ^ ((self.rank + 1) * 0x9E3779B97F4A7C15)
        return torch.Generator(order.device).manual_seed(seed % 2**63)

    def split(self, batches: Batches, seed: int, *, trains: bool = True) -> Batches:
        """Give this rank its share of data that all ranks were given alike."""
        if self.sharded and not trains:  # a forward takes all ranks, so all run the same ones
            return batches
        return share_of(batches, self.rank, self.size, seed)

    def in_step(self, batches: Batches, trainer: Trainer) -> SharedBatches:
        """Let all ranks take as many batches, and stop together."""
        self.current = SharedBatches(batches, self.add, self.size, trainer)
        return self.current

    def start_epoch(self, loss: DROCCLoss) -> None:
        """Begin an epoch of the loss."""
        loss.start_epoch(self.group)

    def end_epoch(self, model: nn.Module, sums: list[float]) -> list[float]:
        """Make all models one, and add up what the ranks' steps have summed.

        Every rank has its own BatchNorm statistics since the last forward, before which DDP gave
        it those of rank 0. Now it gets them again: the model is scored, kept and saved.
        """
        inner = uncompiled(model)
        if not isinstance(inner, DistributedDataParallel) or inner.broadcast_buffers:
            for buffer in model.buffers():
                self._take_from_first(buffer)
        return self.add(sums)

    def _take_from_first(self, buffer: Tensor) -> None:
        """Give a buffer rank 0's values, whatever its type and the order of its memory."""
        if buffer.numel() == 0:
            return
        whole = buffer.detach().contiguous()  # what talks to other ranks ignores strides
        dist.broadcast(whole.reshape(-1).view(torch.uint8), group=self.group, group_src=0)
        if not buffer.is_contiguous():
            with torch.no_grad():
                _without_repeats(buffer, buffer).copy_(_without_repeats(whole, buffer))

    def checkpoint_name(self) -> str:
        """Name the checkpoint's file."""
        return "checkpoint.pt"

    def checkpointer(self, noise: torch.Generator, **parts: Any) -> Checkpointer:
        """Make what saves and loads: of `Checkpointer`'s parts, and a rank's own generator."""
        kind = ShardedCheckpointer if self.sharded else RankCheckpointer
        return kind(**parts, ranks=self, noise=noise)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Say in a sentence what a lost rank looks like to the others."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            if not _is_of_communication(error):
                raise
            raise RuntimeError(
                f"Trainer.fit: rank {self.rank} waited in vain for the other {self.size - 1}: one "
                "of them hangs, or has ended, longer ago than the process group's timeout allows; "
                f"their own messages say more ({reason})"
            ) from error


def join_ranks(
    device: torch.device | None = None, timeout: timedelta = timedelta(minutes=10)
) -> None:
    """Join the processes that `torchrun` has started; nothing where that was done before.

    Args:
        device: Where this process trains. A GPU becomes the process's current one.
        timeout: How long a rank waits for the others before it takes one of them for lost.

    Raises:
        ValueError: If neither torchrun has started this process nor a process group exists, or
            if the machine has fewer GPUs than processes.
    """
    if device is not None and device.type == "cuda":
        index = int(os.environ.get("LOCAL_RANK", device.index or 0))
        if index >= torch.cuda.device_count():
            raise ValueError(
                f"join_ranks: each process needs a GPU of its own, got process {index} (from 0) of "
                f"a machine with {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(index)
    if dist.is_initialized():
        return
    if "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        raise ValueError(
            "Trainer: distributed training needs processes that torchrun started, or "
            "torch.distributed.init_process_group, got neither"
        )
    # After a restart the store still holds where the dead ranks could be reached, and a rank that
    # reads that before it is overwritten waits for ever: each life has names of its own.
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"life {life}", store)
    dist.init_process_group(store=store, rank=rank, world_size=size, timeout=timeout)


def ranks_of(
    model: nn.Module, optimizer: Optimizer, device: torch.device, distributed: Distributed | None
) -> tuple[nn.Module, OneProcess]:
    """Find out who trains a model, and wrap it where that is asked for.

    Args:
        model: The model, on its device.
        optimizer: Over its parameters; with "fsdp" it is given the sharded ones.
        device: The device.
        distributed: "ddp" or "fsdp" wraps the model; None takes it as it is, wrapped or not.

    Returns:
        The model to train, and its ranks.

    Raises:
        ValueError: If distributed is unknown, asked for a model that is wrapped already, or if
            there are no processes to share the work.
    """
    if distributed not in (None, "ddp", "fsdp"):
        raise ValueError(f"Trainer: distributed must be 'ddp', 'fsdp' or None, got {distributed!r}")
    inner = uncompiled(model)
    _refuse_other_wrappers(model, inner)
    wrapped = isinstance(inner, DistributedDataParallel | FSDPModule)
    if distributed is not None:
        if wrapped:
            raise ValueError(
                f"Trainer: distributed must be None for a model that is wrapped already, got "
                f"{distributed!r} and {type(inner).__name__}"
            )
        join_ranks(device)
        if distributed == "ddp":
            inner = model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        else:
            _shard(inner, optimizer)
    if isinstance(inner, FSDPModule):
        return model, Ranks(_world(), device, sharded=True)
    if isinstance(inner, DistributedDataParallel):
        group = inner.process_group
        if dist.get_world_size(group) > 1:
            return model, Ranks(group, device, wraps=distributed == "ddp")
    return model, OneProcess()


def _without_repeats(tensor: Tensor, like: Tensor) -> Tensor:
    """Leave out what another tensor, of the same shape, has by expansion."""
    for dim, stride in enumerate(like.stride()):
        if stride == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _refuse_other_wrappers(model: nn.Module, whole: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, FullyShardedDataParallel):
            raise ValueError(
                "Trainer: model must be sharded by torch.distributed.fsdp.fully_shard (FSDP2), got "
                "FullyShardedDataParallel"
            )
        apart = isinstance(module, DistributedDataParallel | FSDPModule) and module is not whole
        if apart and not isinstance(whole, FSDPModule):
            raise ValueError(
                f"Trainer: model must be wrapped as a whole, got {type(whole).__name__} around a "
                f"{type(module).__name__}"
            )


def _world() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None  # a sharded model has one
    return group


def _shard(model: nn.Module, optimizer: Optimizer) -> None:
    """Spread the parameters over the ranks, those of large modules one by one."""
    if optimizer.state:
        raise ValueError(
            "Trainer: with distributed='fsdp' the optimizer must be new, got one that has stepped; "
            "shard the model yourself, by torch.distributed.fsdp.fully_shard, before it is made"
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in list(_large_parts(model)):
        fully_shard(module)
    fully_shard(model)
    sharded = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [sharded[names[id(p)]] if id(p) in names else p for p in group["params"]]


def _large_parts(model: nn.Module) -> Iterator[nn.Module]:
    for child in model.children():
        if isinstance(child, _WHOLE) or not any(True for _ in child.children()):
            if sum(parameter.numel() for parameter in child.parameters()) >= _LEAST_SHARDED:
                yield child
        else:
            yield from _large_parts(child)


def _kind_of(error: Exception) -> int:
    return next((i for i, kind in enumerate(_KINDS) if isinstance(error, kind)), -1)


def _pack(value: Any) -> bytes:
    """Make bytes of plain values and tensors; the ranks' own pickles fail for some tensors."""
    torch.save(value, file := io.BytesIO())
    return file.getvalue()


def _unpack(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _is_of_communication(error: RuntimeError) -> bool:
    if isinstance(error, dist.DistError):
        return True
    words = ("Timed out", "timed out", "Connection closed", "Connection reset", "gloo", "NCCL")
    return any(word in str(error) for word in words)


Ranks.step_type = RankStep
