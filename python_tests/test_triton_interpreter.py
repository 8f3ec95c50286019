"""The Triton kernels on every machine: the operators' own suites, in Triton's interpreter.

The interpreter has to be chosen before Triton is imported, hence the processes of their own.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from processes import run_tests

from drocc_ext.ops import _library

pytestmark = pytest.mark.skipif(
    _library.triton_missing is not None, reason=str(_library.triton_missing)
)
TESTS = Path(__file__).parent
# What is about the native library, the eager backend, or code that only a GPU can run.
OTHERS = "native or eager or threads or only_what or inductor or second_derivatives or every_oper"
# Numerical derivatives of the Mahalanobis shell take hours here; test_triton_mahalanobis has one.
GRADCHECKS = "gradcheck or gradgradcheck or is_grads_batched"
# suite -> at least so many tests of it run, and what else is left out; the longest come first
SUITES = {
    "test_mahalanobis_shell_edges.py": (300, ""),
    "test_mahalanobis_shell.py": (150, "brute_force"),
    "test_triton_mahalanobis.py": (100, ""),
    "test_l2_shell.py": (200, ""),
    "test_l2_shell_edges.py": (200, ""),
    "test_l2_shell_autograd.py": (35, ""),
    "test_mahalanobis_shell_autograd.py": (20, GRADCHECKS),
    "test_l2_shell_transforms.py": (50, ""),
    "test_influence.py": (60, ""),
    "test_ops_in_place.py": (16, ""),
    "test_ops_refusals.py": (25, ""),
    "test_triton_search.py": (4, ""),
}
# Each of them takes minutes, so that `make test-slow` runs a share, others each time, and `make
# test-all` the whole.
LONG = list(SUITES)[:6]
SHARE = 1.0 if os.environ.get("DROCC_TEST_ALL") else 0.03


def interpreted(suites: list[str], wanted: str, least: int, share: float = 1.0) -> None:
    """Run the chosen tests of suites with the interpreter; at least so many have to pass."""
    run_tests(
        [TESTS / suite for suite in suites],
        wanted,
        least,
        TRITON_INTERPRET="1",
        DROCC_TEST_IMPLEMENTATION="triton",
        DROCC_BACKEND="auto",
        DROCC_TEST_SHARE=str(share),
    )


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_suite_passes_in_the_interpreter(suite: str) -> None:
    least, left_out = SUITES[suite]
    share = SHARE if suite in LONG else 1.0
    wanted = f"not ({' or '.join(filter(None, (OTHERS, left_out)))})"
    interpreted([suite], wanted, int(share * least), share)


def test_an_operator_of_each_kind_passes_in_the_interpreter() -> None:
    """The quick tier's share of the suites above."""
    interpreted(
        ["test_l2_shell.py", "test_influence.py"], "test_values and 3x37-float32-contiguous", 4
    )
