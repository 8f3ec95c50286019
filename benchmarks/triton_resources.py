"""What the compiler makes of the Triton kernels: registers, spills, shared memory. Needs no GPU.

Every operator is called once for each row of the launch table and dtype; its launches are recorded
instead of made, and then compiled ahead of time for an architecture.

    python -m benchmarks.triton_resources    # rewrites benchmarks/results/triton_resources.json
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.reporting import write_json
from drocc_ext.ops import _library, _table

RESULTS = Path(__file__).parent / "results" / "triton_resources.json"
CAPABILITIES = (80, 90, 100)
# One length for each row of the table in drocc_ext/ops/triton/_launch.py, and a row that loops.
LENGTHS = (6, 200, 1000, 3072, 8192, 150528)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}


@dataclass(frozen=True)
class Launch:
    """A launch: which kernel, with which types of arguments and constants."""

    operator: str
    length: int
    dtype: str
    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    warps: int

    @property
    def key(self) -> tuple[Any, ...]:
        """What decides about the compiled code."""
        constants = tuple((k, str(v)) for k, v in self.constants)
        return (self.kernel.__name__, self.signature, constants, self.aligned, self.warps)


def _type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return "*" + _TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _is_aligned(value: Any) -> bool:
    """What a launch tells the compiler about pointers and integers: multiples of 16."""
    return isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)


def record(operator: str, length: int, dtype: torch.dtype, call: Callable[[], Any]) -> list[Launch]:
    """Return the launches that a call on CPU tensors would make."""
    launches: list[Launch] = []

    def run(kernel: Any, *args: Any, grid: Any, num_warps: int, **flags: Any) -> None:
        names = kernel.arg_names
        given = dict(zip(names, args, strict=False))
        signature = {name: _type_of(value) for name, value in given.items()}
        constants = dict(flags) | {n: v for n, v in given.items() if type(v) is int and v == 1}
        signature |= dict.fromkeys(constants, "constexpr")
        launches.append(
            Launch(
                operator,
                length,
                _TYPES[dtype],
                kernel,
                tuple((name, signature[name]) for name in names),
                tuple((name, constants[name]) for name in names if name in constants),
                tuple(
                    p.name
                    for p in kernel.params
                    if p.name in given
                    and p.name not in constants
                    and not p.do_not_specialize
                    and _is_aligned(given[p.name])
                ),
                num_warps,
            )
        )

    jitted = triton.runtime.jit.JITFunction
    with (
        mock.patch.object(jitted, "run", lambda self, *a, warmup=False, **k: run(self, *a, **k)),
        mock.patch.object(_library, "triton_is_interpreted", True),
    ):
        call()
    return launches


def calls(dtype: torch.dtype, length: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every operator on rows of `length`, by name."""
    h = torch.zeros(2, length, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rows = torch.zeros(2, dtype=wide)
    shell: dict[str, Any] = {"radius": 1.5, "radius_rows": None, "gamma": 2.5}
    numbers: dict[str, Any] = shell | {"step_size": 0.5, "grid_points": 0}
    for row in _table.OPERATORS.values():
        kernels = importlib.import_module(f"drocc_ext.ops.triton.{row.module}")
        for name, schema in row.schemas().items():
            if name == row.twin:
                continue  # the same launches
            names = re.findall(r"(?:Tensor\??|float|int) (\w+)", schema)
            values = [numbers.get(n, h) for n in names]
            if name == "_mahalanobis_norm_backward":
                values[0] = rows
            yield name, partial(getattr(kernels, name), *values)


def launches(dtypes: Any = DTYPES, lengths: Any = LENGTHS) -> list[Launch]:
    """Every launch of every operator that differs in what is compiled."""
    found: dict[Any, Launch] = {}
    for dtype in dtypes:
        for length in lengths:
            for name, call in calls(dtype, length):
                for launch in record(name, length, dtype, call):
                    found.setdefault(launch.key, launch)
    return list(found.values())


@dataclass(frozen=True)
class Resources:
    """What a thread and a program take, as the assembler reports it."""

    registers: int
    spill_bytes: int
    shared_bytes: int


def compiled(launch: Launch, capability: int) -> tuple[str, Resources]:
    """Compile for an NVIDIA architecture (80 is sm_80); return the PTX and what it takes."""
    order = [name for name, _ in launch.signature]
    source = ASTSource(
        fn=launch.kernel,
        signature=dict(launch.signature),
        constexprs={(order.index(name),): value for name, value in launch.constants},
        attrs={(order.index(name),): [["tt.divisibility", 16]] for name in launch.aligned},
    )
    target = GPUTarget("cuda", capability, 32)
    log = io.StringIO()
    with (
        mock.patch.dict(os.environ, TRITON_DUMP_PTXAS_LOG="1", TRITON_ALWAYS_COMPILE="1"),
        contextlib.redirect_stdout(log),
    ):
        kernel = triton.compile(source, target=target, options={"num_warps": launch.warps})
    report = log.getvalue()
    registers = max(map(int, re.findall(r"Used (\d+) registers", report)))
    spills = sum(map(int, re.findall(r"(\d+) bytes spill", report)))
    return kernel.asm["ptx"], Resources(registers, spills, kernel.metadata.shared)


def programs_per_multiprocessor(warps: int, registers: int) -> int:
    """How many programs fit one multiprocessor of an H200 (65,536 registers, 64 warps)."""
    per_warp = -(-registers * 32 // 256) * 256
    return min(64 // warps, 65536 // (per_warp * warps), 32)


def main() -> None:
    """Compile the float32 kernels for sm_90 and write the table."""
    table = []
    for launch in launches((torch.float32,), (6, 200, 3072, 150528)):
        constants = dict(launch.constants)
        _, used = compiled(launch, 90)
        table.append(
            {
                "operator": launch.operator,
                "length": launch.length,
                "on_chip": constants["RESIDENT"],
                "tile": [constants["ROWS"], constants["BLOCK"]],
                "warps": launch.warps,
                **asdict(used),
                "programs": programs_per_multiprocessor(launch.warps, used.registers),
            }
        )
    report = {
        "command": "python -m benchmarks.triton_resources",
        "triton": triton.__version__,
        "target": "sm_90, float32",
        "kernels": table,
    }
    write_json(RESULTS, report)
    print(f"{len(table)} kernels, at most {max(row['registers'] for row in table)} registers")


if __name__ == "__main__":
    main()
