"""`drocc-ext bench`, and how little a help text imports."""

from __future__ import annotations

import re

import pytest
import torch
from cli_cases import check_one_sentence
from processes import python

from drocc_ext import ops
from drocc_ext.cli import bench
from drocc_ext.cli.main import main
from drocc_ext.ops import _library
from drocc_ext.ops._table import OPERATORS


def test_bench_prints_a_line_for_each_operator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--rows", "8", "--columns", "5", "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    assert f"torch: {torch.__version__}" in printed and "float32 rows: 8 x 5 on cpu" in printed
    lines = re.findall(r"^(\w+)((?: +[\d.]+)+)x$", printed, re.M)
    assert {name for name, _ in lines} == set(OPERATORS)
    columns = 3 if _library.native_error("cpu") is None else 2
    for _, cells in lines:
        numbers = [float(cell) for cell in cells.split()]
        assert len(numbers) == columns and min(numbers) > 0
        assert numbers[-1] >= 0.9  # eager's divided by the fastest, each rounded


def test_bench_refuses_wrong_results(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.influence
    monkeypatch.setattr(ops, "influence", lambda grad: right(grad) * 1.01)
    monkeypatch.setattr(
        bench, "_calls", lambda *_: {"influence": lambda t: lambda: noisy(torch.ones(2, 3).to(t))}
    )

    def noisy(grad: torch.Tensor) -> torch.Tensor:
        return ops.influence(grad) if grad.dtype is torch.float32 else right(grad)

    with pytest.raises(RuntimeError, match="influence is wrong with backend"):
        bench.table("cpu", 2, 3, 1)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--rows", "0"], "--rows must be from 1 to"),
        (["--repeats", "-1"], "--repeats must be from 1 to"),
        (["--device", "nowhere"], "cannot use device 'nowhere'"),
        (["--device", "meta"], "cannot use device 'meta': the operators run on cpu and cuda"),
        (["--device", "hpu"], "cannot use device 'hpu'"),
    ],
)
def test_bench_errors(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *options]) == 2
    check_one_sentence(capsys, message)


def test_help_and_version_import_little() -> None:
    """What took most of the time to `--help`, which is to be there in a tenth of a second."""
    code = """
import sys
before = set(sys.modules)
sys.argv = ["drocc-ext"]
from drocc_ext.cli.main import main
for option in ("--help", "--version"):
    try:
        main([option])
    except SystemExit as end:
        assert end.code == 0
heavy = ("torch", "numpy", "sklearn", "tempfile", "inspect", "importlib.abc", "traceback")
print("imported:", [name for name in heavy if name in set(sys.modules) - before])
print("modules:", len(set(sys.modules) - before) < 60)
"""
    printed = python("-S", "-c", code)
    assert "imported: []" in printed and "modules: True" in printed
