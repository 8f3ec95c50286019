"""What the commands for a GPU do as far as it can be seen without one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import HANG, python

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


FAKE = """\
#!/usr/bin/env bash
# Every command that the script starts; FAULT names the one that fails or hangs.
case "$0 $*" in
  *get_device_capability*) echo 90; exit ;;
  *"import pybind11"* | *"import triton"* | *"import hypothesis"*) exit 1 ;;
  *dirname*) echo /nowhere; exit ;;
esac
for step in nvcc benchmarks.loaded "-m pytest" compute-sanitizer benchmarks.bench_cuda; do
  if [[ "$0 $*" == *$step* && "$*" != *"-c import"* ]]; then
    [ "$step" != benchmarks.bench_cuda ] || echo "a measured row"
    case "$FAULT" in "$step") exit 3 ;; "$step hangs") exec sleep 60 ;; esac
    break
  fi
done
exit 0
"""


@pytest.mark.parametrize(
    "fault, status, measured, words",
    [
        ("", 0, True, "failed: nothing"),
        ("nvcc", 1, False, "failed: build"),
        ("benchmarks.loaded", 1, False, "failed: library loads"),
        ("-m pytest", 1, True, "test_cuda"),
        ("-m pytest hangs", 1, True, "not done in time"),
        ("compute-sanitizer", 1, True, "memcheck racecheck"),
        ("benchmarks.bench_cuda", 1, True, "failed: benchmarks"),
        ("benchmarks.bench_cuda hangs", 1, True, "failed: benchmarks"),
    ],
)
def test_the_script_prints_its_table_whatever_fails(
    fault: str, status: int, measured: bool, words: str, tmp_path: Path
) -> None:
    for folder in ("benchmarks", "csrc/cuda", "csrc/cpu", "python_tests", "drocc_ext", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "benchmarks/gpu.sh", tmp_path / "benchmarks/gpu.sh")
    for source in ("csrc/checks.cpp", "csrc/cpu/a.cpp", "csrc/cpu/a_kernel.cpp", "csrc/cuda/a.cu"):
        (tmp_path / source).touch()
    for name in ("test_l2_shell.py", "test_mahalanobis_shell.py"):
        (tmp_path / "python_tests" / name).touch()
    for command in ("python", "nvcc", "g++", "compute-sanitizer"):
        (tmp_path / "bin" / command).write_text(FAKE, encoding="utf-8")
        (tmp_path / "bin" / command).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "PYTHON": f"{tmp_path}/bin/python",
        "CXX": f"{tmp_path}/bin/g++",
        "FAULT": fault,
        "DROCC_GPU_SECONDS": "20" if "hangs" in fault else "720",
    }
    environment.pop("DROCC_CUDA_ARCHS", None)
    done = subprocess.run(
        ["bash", tmp_path / "benchmarks/gpu.sh", tmp_path / "out"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    table = done.stdout[done.stdout.index("finished in ") :]
    assert done.returncode == status, done.stdout + done.stderr
    assert words in table, table
    assert ("a measured row" in table) is measured, table
    assert re.search(r"^build +(ok|FAILED) +\d+ s$", table, re.M), table


@pytest.mark.slow
def test_every_line_of_the_benchmark_runs(tmp_path: Path) -> None:
    python(*BARE, "benchmarks.bench_cuda", "--dry-run", "--out", tmp_path)
    report = json.loads((tmp_path / "cuda.json").read_text())
    for part in ("operators", "providers, seconds", "search, seconds", "training step, seconds"):
        assert report[part] and "failed" not in report[part]
    assert report["bars"]


@pytest.mark.slow
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
