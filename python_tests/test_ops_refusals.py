"""What every operator refuses, in the words of the public functions and of the native operators."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import pytest
import torch
from cases import BACKENDS, IMPLEMENTATIONS
from torch import Tensor

import drocc_ext
from drocc_ext import ops

ASCENT, PROJECT, STEP = "normalized_ascent", "project_l2_shell", "l2_shell_step"
METRIC = ("project_mahalanobis_shell", "mahalanobis_shell_step")
IN_PLACE = [f"{name}_" for name in (ASCENT, PROJECT, STEP, *METRIC)]
NAMES = [ASCENT, PROJECT, STEP, *METRIC, "mahalanobis_norm", *IN_PLACE]

backends = pytest.mark.parametrize("backend", BACKENDS)
needs_native = pytest.mark.skipif("native" not in IMPLEMENTATIONS, reason="no native library")


def _h(*shape: int) -> Tensor:
    return torch.ones(shape)


def _good(name: str) -> dict[str, Any]:
    """Arguments that the operator takes."""
    good = {
        "h": _h(2, 3),
        "grad": _h(2, 3),
        "sigma": _h(2, 3),
        "step_size": 1.0,
        "radius": _h(2),
        "gamma": 2.0,
        "solver": "newton",
    }
    taken = inspect.signature(getattr(ops, name)).parameters
    return {argument: value for argument, value in good.items() if argument in taken}


# What is given instead of a good argument, and the sentence after "operator: argument ".
BAD: list[tuple[str, Any, type[Exception], str]] = [
    ("h", [1.0], TypeError, "must be a tensor, got list"),
    (
        "h",
        _h(2, 3).int(),
        TypeError,
        "must be float32, float64, float16 or bfloat16, got torch.int",
    ),
    ("h", _h(3), ValueError, "must have shape [B, *] with at least one feature"),
    ("h", _h(2, 0), ValueError, "must have at least one feature, got [2, 0]"),
    ("grad", 1.0, TypeError, "must be a tensor, got float"),
    ("grad", _h(2, 4), ValueError, "must have the shape of h, [2, 3], got [2, 4]"),
    (
        "grad",
        _h(2, 3).double(),
        TypeError,
        "must have the dtype of h, torch.float32, got torch.float64",
    ),
    ("grad", _h(2, 3).half(), TypeError, "must have the dtype of h, torch.float32"),
    ("grad", _h(2, 3).to("meta"), ValueError, "must be on the device of h, cpu, got meta"),
    ("sigma", 1.0, TypeError, "must be a tensor, got float"),
    (
        "sigma",
        _h(2),
        ValueError,
        "must have the shape of h, [2, 3], or of one row of it, [3], got [2]",
    ),
    (
        "sigma",
        _h(1, 3),
        ValueError,
        "must have the shape of h, [2, 3], or of one row of it, [3], got [1, 3]",
    ),
    (
        "sigma",
        _h(2, 3).double(),
        TypeError,
        "must have the dtype of h, torch.float32, got torch.float64",
    ),
    ("sigma", _h(3).to("meta"), ValueError, "must be on the device of h, cpu, got meta"),
    ("step_size", math.nan, ValueError, "must be finite, got nan"),
    ("step_size", math.inf, ValueError, "must be finite, got inf"),
    ("step_size", "1", TypeError, "must be a number, got '1'"),
    ("radius", 0.0, ValueError, "must be > 0 and finite, got 0.0"),
    ("radius", -1, ValueError, "must be > 0 and finite, got -1.0"),
    ("radius", math.inf, ValueError, "must be > 0 and finite, got inf"),
    ("radius", math.nan, ValueError, "must be > 0 and finite, got nan"),
    ("radius", True, TypeError, "must be a number, got True"),
    ("radius", _h(3), ValueError, "must be a number or have shape [2], got [3]"),
    ("radius", _h(2).int(), TypeError, "must be floating point, got torch.int32"),
    ("radius", _h(2).to("meta"), ValueError, "must be on the device of h, cpu, got meta"),
    ("gamma", 0.99, ValueError, "must be >= 1, got 0.99"),
    ("gamma", math.nan, ValueError, "must be >= 1, got nan"),
    ("gamma", None, TypeError, "must be a number, got None"),
    ("solver", "exact", ValueError, "must be 'newton' or 'grid', got 'exact'"),
]
BAD_GRID_POINTS = [(1, ValueError), (-3, ValueError), (2.5, TypeError), (True, TypeError)]


@backends
@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments(name: str, backend: str) -> None:
    good, function = _good(name), getattr(ops, name)
    with drocc_ext.use_backend(backend):
        for argument, value, error, message in BAD:
            if argument in good:
                with pytest.raises(error, match=re.escape(f"{name}: {argument} {message}")):
                    function(**(good | {argument: value}))
        for points, error in BAD_GRID_POINTS if "solver" in good else ():
            with pytest.raises(error, match=rf"{name}: grid_points must be .*got {points}"):
                function(**(good | {"solver": "grid", "grid_points": points}))
        if not name.endswith("_") and "sigma" in good:
            with pytest.raises(TypeError, match=f"{name}: h must be a dense tensor, got layout"):
                function(**(good | {"h": _h(2, 3).to_sparse()}))
    assert torch.equal(good["h"], _h(2, 3)), "a refused call wrote"


@backends
@pytest.mark.parametrize("name", IN_PLACE)
def test_an_expanded_h_is_refused(name: str, backend: str) -> None:
    expanded = {"h": _h(1, 3).expand(2, 3)}
    message = f"{name}: h must not be an expanded tensor"
    with drocc_ext.use_backend(backend), pytest.raises(ValueError, match=message):
        getattr(ops, name)(**(_good(name) | expanded))


@backends
@pytest.mark.parametrize("name", IN_PLACE)
def test_tensors_that_require_grad_are_refused_in_place(name: str, backend: str) -> None:
    message = rf"{name}: an argument requires grad; .* use {name[:-1]} "
    for argument, value in _good(name).items():
        if not isinstance(value, Tensor):
            continue
        arguments = _good(name) | {argument: value.clone().requires_grad_()}
        with drocc_ext.use_backend(backend):
            with pytest.raises(RuntimeError, match=message):
                getattr(ops, name)(**arguments)
            assert torch.equal(arguments["h"], _h(2, 3)), "a refused call wrote"
            with torch.no_grad():
                getattr(ops, name)(**arguments)


@backends
@pytest.mark.parametrize("name", IN_PLACE)
def test_autograd_notices_the_write(name: str, backend: str) -> None:
    x, h = _h(2, 3).requires_grad_(), _h(2, 3) * 2
    loss = (x * h).sum()  # saves h for its backward
    version = h._version
    with drocc_ext.use_backend(backend):
        getattr(ops, name)(**(_good(name) | {"h": h}))
    assert h._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_native
@pytest.mark.parametrize("name", IN_PLACE)
def test_negated_views(name: str, seed: int) -> None:
    """A lazily negated h is refused; any other tensor stands for its numbers."""
    torch.manual_seed(seed)
    view = torch.randn(2, 3, dtype=torch.complex64).conj().imag
    with pytest.raises(ValueError, match=f"{name}: h must not be a lazily negated view"):
        getattr(ops, name)(**(_good(name) | {"h": view}))
    if "grad" in _good(name):
        arguments = _good(name) | {"h": torch.randn(2, 3)}
        expected = getattr(ops, name[:-1])(**(arguments | {"grad": view.resolve_neg()}))
        found = getattr(ops, name)(**(arguments | {"grad": view}))
        assert torch.equal(found, expected)


@needs_native
def test_the_native_operators_check_for_themselves() -> None:
    """Calls through torch.ops reach the kernels without the public functions' checks."""
    native = torch.ops.drocc
    h, s, rows = _h(2, 3), _h(3), _h(2)
    ascent_, project, step = (
        native.normalized_ascent_,
        native.project_l2_shell,
        native.l2_shell_step,
    )
    in_metric, metric_step = native.project_mahalanobis_shell, native.mahalanobis_shell_step
    calls = [
        (step, (h, _h(2, 4), 1.0, 1.0, None, 2.0), "the shape of h, [2, 3]"),
        (step, (h, h.double(), 1.0, 1.0, None, 2.0), "the dtype of h"),
        (step, (h, h, math.nan, 1.0, None, 2.0), "step_size must be finite"),
        (project, (h, -1.0, None, 2.0), "radius must be > 0 and finite, got -1"),
        (project, (h, 1.0, None, 0.5), "gamma must be >= 1, got 0.5"),
        (project, (h, 1.0, _h(3), 2.0), "shape [2], got [3]"),
        (project, (h, 1.0, rows.double(), 2.0), "radius rows must be float32"),
        (project, (h[0], 1.0, None, 2.0), "project_l2_shell: h must have a batch"),
        (project, (h.int(), 1.0, None, 2.0), "h must be float32, float64"),
        (ascent_, (h[:1].expand(2, 3), h, 1.0), "must not be an expanded"),
        (native._l2_shell_step_backward, (_h(2, 4), h, h, 1.0, 1.0, None, 2.0), "grad_out must"),
        (in_metric, (h, _h(2), 1.0, None, 2.0, 0), "or of one row of it, got [2]"),
        (in_metric, (h, s.double(), 1.0, None, 2.0, 0), "sigma must have the dtype of h"),
        (in_metric, (h, s, -1.0, None, 2.0, 0), "radius must be > 0 and finite, got -1"),
        (in_metric, (h, s, 1.0, _h(3), 2.0, 0), "shape [2], got [3]"),
        (in_metric, (h, s, 1.0, rows.double(), 2.0, 0), "radius rows must be float32"),
        (in_metric, (h, s, 1.0, None, 0.5, 0), "gamma must be >= 1, got 0.5"),
        (in_metric, (h, s, 1.0, None, 2.0, 1), "grid_points must be >= 2, or 0"),
        (in_metric, (h, s, 1.0, None, 2.0, -1), "for the exact solver, got -1"),
        (metric_step, (h, _h(2, 4), s, 1.0, 1.0, None, 2.0, 0), "the shape of h, [2, 3]"),
        (metric_step, (h, h, s, math.inf, 1.0, None, 2.0, 0), "step_size must be finite"),
        (native.mahalanobis_norm, (h, _h(4)), "mahalanobis_norm: sigma must have the shape"),
        (native._mahalanobis_norm_backward, (_h(3), h, s), "grad_out must have shape [2]"),
        (native._project_mahalanobis_shell_backward, (_h(2, 4), h, s, 1.0, None, 2.0, 0), "grad_"),
        (native.project_mahalanobis_shell_, (h[:1].expand(2, 3), s, 1.0, None, 2.0, 0), "expanded"),
    ]
    for function, arguments, message in calls:
        with pytest.raises(RuntimeError, match=re.escape(message)):
            function(*arguments)
