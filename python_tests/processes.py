"""Python, and tests of this suite, in processes of their own with another environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Ends a process that hangs. A busy machine must not reach it.
HANG = 3600


def python(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run Python in `cwd`, with the packages that lie there, and return what it printed.

    It runs on one thread, except if `environment` says otherwise.
    """
    child = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(cwd), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert child.returncode == 0, child.stdout[-8000:] + child.stderr[-4000:]
    return child.stdout


def run_tests(
    files: Sequence[Path], wanted: str, least: int, cwd: Path = ROOT, **environment: str
) -> None:
    """Run the tests of `files` whose names match `wanted`; all pass, and at least `least` do."""
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore", "-k", wanted)
    printed = python("-m", "pytest", *options, *files, cwd=cwd, **environment)
    passed = re.search(r"(\d+) passed", printed)
    assert passed is not None and int(passed[1]) >= least, printed[-1000:]
