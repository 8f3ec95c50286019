"""What a rank without rows does, so that the others do not wait for it in vain."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from drocc_ext.models.modes import frozen, modules_of
from drocc_ext.models.modules import as_logits, full_precision, uses_batch_statistics


def is_sharded(model: nn.Module) -> bool:
    """Say whether a call of the model is one of all ranks, which gather its weights (FSDP).

    Args:
        model: The model.

    Returns:
        Whether it, or a part of it, is.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where it is not loaded, nothing is sharded
    if fsdp is None:
        return False
    kinds = (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
    return any(isinstance(module, kinds) for module in modules_of(model))


def spare_row(x: Tensor) -> Tensor:
    """Give a row to call a model with where there is none to train on.

    Args:
        x: Rows `[B, *]`, perhaps none.

    Returns:
        `[1, *]`: the first row, else zeros.
    """
    return x[:1] if x.shape[0] > 0 else x.new_zeros((1, *x.shape[1:]))


def zero_of_model(model: nn.Module, x: Tensor) -> Tensor:
    """Make a zero whose backward gives zero gradients.

    Args:
        model: The model. With ranks that add up gradients, or gather weights, it is called.
        x: Rows `[0, *]`.

    Returns:
        0-dimensional, float32 or, for float64 rows, float64.
    """
    total = full_precision(x.new_zeros(()))
    if _reduces(model) or not isinstance(model, nn.Module):  # whose parameters cannot be seen
        # One row, frozen: many networks take no empty batch, and it is to leave no trace. Batch
        # statistics of all ranks need this one too, and count no row.
        rows = x if _has_shared_statistics(model) else spare_row(x)
        with nullcontext() if rows is x else frozen(model):
            logits = as_logits(model(rows), rows.shape[0])
        return total + logits[:0].sum().to(total)
    for parameter in model.parameters():
        # An empty slice, not 0 * sum: NaN weights would make that NaN.
        total = total + parameter.reshape(-1)[:0].sum().to(total)
    return total


def joint_forward(model: nn.Module, rows: Tensor) -> Tensor:
    """Call a model on rows; on a single one as at inference time, where BatchNorm needs two.

    Args:
        model: Maps `[B, *]` to logits.
        rows: `[B, *]`.

    Returns:
        The logits `[B]`, float32 or float64.
    """
    single = rows.shape[0] == 1 and uses_batch_statistics(model)
    with frozen(model) if single and not _has_shared_statistics(model) else nullcontext():
        return full_precision(as_logits(model(rows), rows.shape[0]))


def _reduces(model: nn.Module) -> bool:
    wrapped = any(isinstance(module, DistributedDataParallel) for module in modules_of(model))
    return (wrapped and torch.is_grad_enabled()) or is_sharded(model)


def _has_shared_statistics(model: nn.Module) -> bool:
    if not (dist.is_available() and dist.is_initialized()):
        return False
    return any(
        isinstance(module, nn.SyncBatchNorm)
        and module.training
        and dist.get_world_size(module.process_group) > 1
        for module in modules_of(model)
    )
