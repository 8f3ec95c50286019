"""The Triton kernels on every machine: the operators' own suites, in Triton's interpreter.

The interpreter has to be chosen before Triton is imported, hence the processes of their own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from drocc_ext.ops import _library

pytestmark = pytest.mark.skipif(
    _library.triton_missing is not None, reason=str(_library.triton_missing)
)
TESTS = Path(__file__).parent
# What is about the native library, the eager backend, or code that only a GPU can run.
OTHERS = "native or eager or threads or only_what or inductor or second_derivatives or every_oper"
# Numerical derivatives of the Mahalanobis shell take hours here; test_triton_mahalanobis has one.
SLOW = "gradcheck or gradgradcheck or is_grads_batched"
# suite -> at least so many tests of it run, and what else is left out
SUITES = {
    "test_l2_shell.py": (200, ""),
    "test_l2_shell_edges.py": (200, ""),
    "test_l2_shell_autograd.py": (35, ""),
    "test_l2_shell_in_place.py": (20, ""),
    "test_l2_shell_transforms.py": (50, ""),
    "test_influence.py": (60, ""),
    "test_mahalanobis_shell.py": (150, "brute_force"),
    "test_mahalanobis_shell_edges.py": (400, ""),
    "test_mahalanobis_shell_autograd.py": (20, SLOW),
    "test_triton_mahalanobis.py": (100, ""),
    "test_triton_search.py": (4, ""),
}


@pytest.mark.parametrize("suite", SUITES)
def test_suite_passes_in_the_interpreter(suite: str) -> None:
    least, left_out = SUITES[suite]
    chosen = f"not ({' or '.join(filter(None, (OTHERS, left_out)))})"
    options = ("-q", "-x", "-p", "no:cacheprovider", "-W", "ignore", "-k", chosen)
    child = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(TESTS / suite)],
        cwd=TESTS.parent,
        env=os.environ
        | {
            "TRITON_INTERPRET": "1",
            "DROCC_TEST_IMPLEMENTATION": "triton",
            "DROCC_BACKEND": "auto",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), *filter(None, sys.path)]),
        },
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert child.returncode == 0, child.stdout[-4000:] + child.stderr[-2000:]
    passed = re.search(r"(\d+) passed", child.stdout)
    assert passed is not None and int(passed.group(1)) >= least, child.stdout[-300:]
