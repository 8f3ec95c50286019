"""Compiles every CUDA kernel and holds the compiler's report to what the kernels promise.

    python benchmarks/cuda_check.py [ARCH ...]      (80 86 89 90 100 120), or: make cuda-check

No spill, no stack frame; and for every launch that csrc/cuda/launch.h chooses on the architecture's
devices, registers and shared memory leave at least 512 threads resident per multiprocessor. Needs
nvcc, a C++20 compiler and torch's headers; neither a GPU nor a CUDA build of torch.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Of the device each architecture is best known by: multiprocessors, shared memory per one and per
# block, largest cluster, resident threads, resident blocks.
DEVICES = {
    80: (108, 167936, 166912, 1, 2048, 32),
    86: (84, 102400, 101376, 1, 1536, 16),
    89: (128, 102400, 101376, 1, 1536, 24),
    90: (132, 233472, 232448, 16, 2048, 32),
    100: (148, 233472, 232448, 16, 2048, 32),
    120: (170, 102400, 101376, 8, 1536, 24),
}
REGISTERS = 65536
LEAST_RESIDENT = 512
SIZES = {"float": 4, "double": 8, "Half": 2, "BFloat16": 2}
ENTRY = re.compile(r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry function|\Z)", re.S)


def compile_kernels(arch: int, directory: Path) -> str:
    """The assembler's report on every kernel."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit("torch's headers are needed: install torch")
    include = Path(spec.origin).parent / "include"

    def compiled(source: Path) -> str:
        command = ["nvcc", "-std=c++20", "-O3", f"-arch=sm_{arch}", "--expt-relaxed-constexpr"]
        command += ["-Xptxas", "-v", "-cubin", "-DUSE_CUDA"]
        command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(include)]
        command += ["-isystem", str(include / "torch/csrc/api/include")]
        command += ["-o", str(directory / f"{source.stem}.cubin"), str(source)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(result.stderr)
        return result.stderr

    sources = sorted(path for path in (ROOT / "csrc/cuda").glob("*.cu") if path.name != "device.cu")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return "".join(pool.map(compiled, sources))


def launches(arch: int, directory: Path) -> dict[tuple[str, int, int, int], set[tuple[int, int]]]:
    """(family, element bytes, slots, held) -> (threads, dynamic shared memory) that are chosen."""
    program = directory / "launches"
    source = ROOT / "csrc/tests/cuda_launches.cpp"
    if not program.exists():
        subprocess.run(["c++", "-std=c++20", "-O1", "-o", program, source], check=True)
    numbers = map(str, DEVICES[arch][:4])
    output = subprocess.run([program, *numbers], check=True, capture_output=True, text=True).stdout
    chosen = defaultdict(set)
    for line in output.splitlines():
        family, *rest = line.split()
        size, slots, held, threads, shared = map(int, rest)
        chosen[family, size, slots, held].add((threads, shared))
    return chosen


def demangled(names: list[str]) -> list[str]:
    """`l2_shell<float, 4, true, true>` and the like."""
    text = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True
    ).stdout
    plain = [
        re.sub(r"drocc::cpu::|drocc::cuda::|\(anonymous namespace\)::", "", x)
        for x in text.splitlines()
    ]
    return [re.sub(r"^(?:void )?(\w+<[^>]*>).*", r"\1", name) for name in plain]


def key(kernel: str) -> list[tuple[str, int, int, int]]:
    """The families of launches that a kernel serves."""
    name, arguments = kernel.rstrip(">").split("<")
    words = arguments.split(", ")
    size = SIZES[words[0]]
    if name == "l2_shell":
        return [("registers", size, int(words[1]), held) for held in (0, 1)]
    if name in ("mahalanobis_shell", "mahalanobis_shell_backward"):
        return [("shared", size, 4, int(words[2] == "true"))]
    if name == "mlp_search":
        return [("mlp", size, int(words[1]), held) for held in (0, 1)]
    if name == "mlp_transpose":
        return [("transpose", size, 4, 0)]
    if name == "hidden_search":
        return [("hidden", size, 4, held) for held in (0, 1)]
    return [("nothing", size, 4, 0)]


def resident(arch: int, registers: int, static: int, threads: int, shared: int) -> int:
    """Threads that one multiprocessor holds at once."""
    _, per_processor, _, _, most_threads, most_blocks = DEVICES[arch]
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256
    blocks = min(
        most_blocks,
        most_threads // (warps * 32),
        REGISTERS // per_warp // warps,
        per_processor // (shared + static + 1024),
    )
    return blocks * warps * 32


def check(arch: int) -> bool:
    """One architecture's table; whether all of it holds."""
    with tempfile.TemporaryDirectory() as directory:
        start = time.monotonic()
        report = compile_kernels(arch, Path(directory))
        seconds = time.monotonic() - start
        chosen = launches(arch, Path(directory))
    entries = ENTRY.findall(report)
    names = demangled([name for name, _ in entries])
    ok = bool(entries)
    print(f"\nsm_{arch}: {len(entries)} kernels, {seconds:.0f} s")
    print(f"{'kernel':54}{'registers':>10}{'static':>8}{'spills':>8}{'stack':>7}{'resident':>18}")
    for name, (_, text) in sorted(zip(names, entries, strict=True)):
        registers = int(re.findall(r"Used (\d+) registers", text)[0])
        static = int((re.findall(r"(\d+) bytes smem", text) or ["0"])[0])
        stack, stores, loads = map(
            int,
            re.findall(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text
            )[0],
        )
        counts = [
            resident(arch, registers, static, threads, shared)
            for family in key(name)
            for threads, shared in chosen[family]
        ]
        # A kernel that no launch on these devices uses has no occupancy.
        span = f"{min(counts)} .. {max(counts)}" if counts else "not launched"
        bad = stack > 0 or stores + loads > 0 or (bool(counts) and min(counts) < LEAST_RESIDENT)
        ok = ok and not bad
        mark = "  FAILS" if bad else ""
        print(f"{name:54}{registers:10}{static:8}{stores + loads:8}{stack:7}{span:>18}{mark}")
    return ok


def main() -> None:
    archs = [int(arch) for arch in sys.argv[1:]] or list(DEVICES)
    results = [check(arch) for arch in archs]
    if not all(results):
        sys.exit("some kernels spill, use a stack frame or leave fewer than 512 resident threads")
    print("no spills, no stack frames, 512 resident threads or more")


if __name__ == "__main__":
    main()
