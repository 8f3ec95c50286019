"""Tests on several ranks: each a process of this machine, joined by gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from processes import HANG


@lru_cache
def context() -> ForkServerContext:
    """Processes from a server that has imported everything: a start takes milliseconds."""
    context = multiprocessing.get_context("forkserver")
    wanted = ["torch._dynamo", "drocc_ext.training.distributed", "drocc_ext.estimators", "pytest"]
    context.set_forkserver_preload(wanted)
    return context


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def run_ranks(
    directory: Path,
    work: Callable[..., Any],
    *arguments: Any,
    ranks: int = 2,
    timeout: float = HANG,
) -> list[Any]:
    """Call `work(*arguments)` on each rank of a group; return what the ranks returned, or raised.

    `timeout` is that of the group, in seconds.
    """
    port = free_port()
    files = [directory / f"rank{rank}.result" for rank in range(ranks)]
    processes = [
        context().Process(
            target=_start, args=(rank, ranks, port, timeout, files[rank], work, arguments)
        )
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(HANG)
    results = [torch.load(file, weights_only=False) for file in files]
    for file in files:
        file.unlink()
    return results


def _start(
    rank: int, ranks: int, port: int, timeout: float, file: Path, work: Any, arguments: Any
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    try:
        result = work(*arguments)
    except Exception as error:
        traceback.print_exc()  # for the report of a failed test
        result = error
    torch.save(result, file)
    if not isinstance(result, Exception) and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os._exit(0)  # a rank whose peers are gone would wait for them
