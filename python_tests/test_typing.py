"""What a type checker knows of the public interface."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import HANG, ROOT

KNOWN = """
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import drocc_ext
from drocc_ext import DROCC, DROCCLoss, LossTerms, SearchConfig, Trainer, adversarial_search

loss = DROCCLoss(SearchConfig.from_relative_step(1.0, gamma=1.5, noise="rows"))
model, x = nn.Linear(2, 1), torch.zeros(3, 2)
assert_type(loss(model, x), LossTerms)
assert_type(loss(model, x, adversarial=False).total, Tensor)
assert_type(adversarial_search(model, x, radius=1.0, step_size=0.1, num_steps=3), Tensor)
assert_type(drocc_ext.ops.project_l2_shell(x, 1.0, 2.0), Tensor)
with drocc_ext.use_backend("eager"):
    pass
assert_type(Trainer(model, loss, torch.optim.SGD(model.parameters(), 0.1)).score(x), Tensor)
assert_type(DROCC().fit([[0.0], [1.0]]), DROCC)
"""
# Each line is a mistake.
MISTAKES = (
    "SearchConfig.from_relative_step(1.0, gama=1.5)",
    'SearchConfig.from_relative_step(1.0, noise="row")',
    "adversarial_search(model, x, step=1)",
    'drocc_ext.use_backend("cuda")',
    "loss(x)",
    "loss(model, x).mean()",
)


@pytest.mark.slow
def test_a_checker_knows_and_refuses(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="needs mypy")
    first = KNOWN.count("\n") + 1
    (tmp_path / "client.py").write_text(KNOWN + "\n".join(MISTAKES) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "client.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT), "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    errors = [line for line in done.stdout.splitlines() if line.startswith("client.py:")]
    lines = {int(line.split(":")[1]) for line in errors if ": error:" in line}
    assert lines == {first + number for number in range(len(MISTAKES))}, done.stdout + done.stderr


@pytest.mark.slow
def test_types_are_complete(tmp_path: Path) -> None:
    scripts = str(Path(sys.executable).parent)
    pyright = shutil.which("pyright", path=scripts)
    if pyright is None:
        pytest.skip("needs pyright")
    shutil.copytree(ROOT / "drocc_ext", tmp_path / "drocc_ext")
    options = ["--ignoreexternal", "--verifytypes", "drocc_ext", "--pythonpath", sys.executable]
    done = subprocess.run(
        [pyright, *options],
        cwd=tmp_path,
        # It looks for torch with the first python on the path, whatever --pythonpath says.
        env=os.environ
        | {"PYTHONPATH": str(tmp_path), "PATH": scripts + os.pathsep + os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    (score,) = (line for line in done.stdout.splitlines() if line.startswith("Type completeness"))
    assert float(score.split()[-1].rstrip("%")) >= 95, done.stdout[-3000:]
