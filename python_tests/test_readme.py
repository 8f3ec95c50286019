"""Every command and every line of code in the README does what it says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from processes import python

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
EXAMPLES = [
    (code, BLOCKS[i + 1][1])
    for i, (language, code) in enumerate(BLOCKS)
    if language == "python" and i + 1 < len(BLOCKS) and BLOCKS[i + 1][0] == "text"
]
COMMANDS = [
    shlex.split(line, comments=True)
    for language, code in BLOCKS
    if language == "sh"
    for line in code.splitlines()
]


def test_there_is_something_to_check() -> None:
    assert len(EXAMPLES) == 4
    assert {command[0] for command in COMMANDS} == {"make", "pip", "drocc-ext", "python"}


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_print_what_they_show(number: int) -> None:
    code, shown = EXAMPLES[number]
    assert python("-c", code) == shown


def test_equivalent_is_equivalent() -> None:
    import torch

    from drocc_ext import ops

    (code,) = (code for _, code in BLOCKS if code.startswith("def l2_shell_step"))
    namespace: dict[str, object] = {}
    exec(code, namespace)
    h, grad = torch.randn(2, 7, 5, dtype=torch.float64)
    shown = namespace["l2_shell_step"](h, grad, 0.3, 2.0, 1.2)
    torch.testing.assert_close(ops.l2_shell_step(h, grad, 0.3, 2.0, 1.2), shown)


def test_make_commands_run_in_ci() -> None:
    """`make test` and `make demo` are CI's; `make bench` is timing, its cases run in CI untimed."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in COMMANDS:
        if command[0] != "make":
            continue
        assert re.search(rf"^{command[1]}:", makefile, re.M)
        assert f"make {command[1]}" in ci or command[1] == "bench"
    assert "pytest benchmarks --benchmark-disable" in ci


def test_python_commands_run_in_ci() -> None:
    """Of the paper's tables, whose data are not here, the small run."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    modules = {tuple(command[:3]) for command in COMMANDS if command[0] == "python"}
    assert modules == {("python", "-m", "benchmarks.paper")}
    assert "python -m benchmarks.paper all --quick" in ci


def test_pip_command_is_what_make_runs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert ["pip", "install", "--no-build-isolation", "."] in COMMANDS
    assert "pip wheel --quiet --no-build-isolation" in makefile


def test_measured_table_is_the_committed_measurement() -> None:
    pytest.importorskip("matplotlib", reason="benchmarks need drocc-ext[bench]")
    from benchmarks import bench_l2_shell, bench_mahalanobis_shell
    from benchmarks.training import report as training

    for name, benchmark in (("l2", bench_l2_shell), ("mahalanobis", bench_mahalanobis_shell)):
        path = ROOT / "benchmarks" / "results" / f"{name}_shell_cpu.json"
        assert benchmark.readme_table(json.loads(path.read_text())) in README
    path = ROOT / "benchmarks" / "results" / "training_cpu.json"
    assert training.readme_table(json.loads(path.read_text())) in README


def test_cli_commands_run(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(120, 3))
    np.savetxt(tmp_path / "data.csv", rows, delimiter=",", header="a,b,c", comments="")
    for command in COMMANDS:
        if command[0] == "drocc-ext":
            python("-m", "drocc_ext.cli", *command[1:], cwd=tmp_path, PYTHONPATH=str(ROOT))
    scored = (tmp_path / "scores.csv").read_text().splitlines()
    assert len(scored) == 121
