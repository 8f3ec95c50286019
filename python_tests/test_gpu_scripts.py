"""What the commands for a GPU do as far as it can be seen without one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import python

from benchmarks import cuda_check

ROOT = Path(__file__).resolve().parent.parent

# Runs a module where torch and numpy are all there is, as on a machine with a GPU.
BARE = (
    "-c",
    "import runpy, sys\n"
    "for name in ('sklearn', 'scipy', 'tqdm', 'safetensors', 'matplotlib', 'pyod', 'pandas'):\n"
    "    sys.modules[name] = None\n"
    "del sys.argv[0]\n"
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)",
)

REPORT = """\
ptxas info    : Compiling entry function '_ZN5drocc4cuda13hidden_searchIfEEvi' for 'sm_90'
ptxas info    : Function properties for _ZN5drocc4cuda13hidden_searchIfEEvi
    {stack} bytes stack frame, {spills} bytes spill stores, 0 bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, 1584 bytes smem
"""


def test_the_script_is_a_script() -> None:
    subprocess.run(["bash", "-n", ROOT / "benchmarks/gpu.sh"], check=True)


@pytest.mark.slow
def test_every_line_of_the_benchmark_runs(tmp_path: Path) -> None:
    python(*BARE, "benchmarks.bench_cuda", "--dry-run", "--out", tmp_path)
    report = json.loads((tmp_path / "cuda.json").read_text())
    for part in ("operators", "providers, seconds", "search, seconds", "training step, seconds"):
        assert report[part] and "failed" not in report[part]
    assert report["bars"]


def test_the_suites_of_a_gpu_can_be_collected_without_other_packages() -> None:
    script = (ROOT / "benchmarks/gpu.sh").read_text(encoding="utf-8")
    (named,) = re.findall(r"^suites=\((.*)\)$", script, re.M)
    files = [f"python_tests/test_{name}.py" for name in named.split()]
    files += map(str, (ROOT / "python_tests").glob("test_l2_shell*.py"))
    command = [
        sys.executable,
        *BARE,
        "pytest",
        "-m",
        "cuda",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    result = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode in (0, 5), result.stdout + result.stderr  # 5: none without a GPU


@pytest.mark.parametrize(
    "numbers, passes",
    [
        ({"stack": 0, "spills": 0, "registers": 128}, True),
        ({"stack": 8, "spills": 0, "registers": 128}, False),
        ({"stack": 0, "spills": 4, "registers": 128}, False),
        ({"stack": 0, "spills": 0, "registers": 160}, False),  # leaves 384 threads
    ],
)
def test_the_compiler_report_is_judged(
    numbers: dict[str, int], passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {("hidden", 4, 4, 1): {(128, 20480)}, ("hidden", 4, 4, 0): {(512, 0)}}
    monkeypatch.setattr(cuda_check, "compile_kernels", lambda *_: REPORT.format(**numbers))
    monkeypatch.setattr(cuda_check, "launches", lambda *_: chosen)
    assert cuda_check.check(90) is passes
