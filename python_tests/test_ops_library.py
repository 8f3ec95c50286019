"""The compiled library: schemas, instruction sets, what build_info says, and life without it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from cases import OPERATORS, run
from processes import python, run_tests
from torch import Tensor

import drocc_ext
from drocc_ext import ops
from drocc_ext.ops import _library, _table

native_only = pytest.mark.skipif(_library.cpu_error is not None, reason="no native library")
TESTS = Path(__file__).parent
PACKAGE = Path(drocc_ext.__file__).parent
INSTRUCTION_SETS = ("generic", "avx2", "avx512")


# ---- registration ------------------------------------------------------------------------------


def test_schemas_in_python_and_cpp_are_the_same() -> None:
    """They stand twice: where the library is missing, Python defines the operators."""
    for name, schema in _table.SCHEMAS.items():
        for namespace in ("drocc", "drocc_triton"):
            operator = getattr(getattr(torch.ops, namespace), name).default
            assert str(operator._schema) == f"{namespace}::{schema}"
    public = {name for name in ops.__all__}
    assert set(_table.SCHEMAS) >= public


@native_only
def test_every_schema_has_a_cpu_kernel_and_a_fallback() -> None:
    for name in (f"drocc::{name}" for name in _table.SCHEMAS):
        for key in ("CPU", "CompositeExplicitAutograd", "Meta"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(name, key), (name, key)


# ---- backends ----------------------------------------------------------------------------------


def test_backends_nest_and_restore() -> None:
    h = torch.full((1, 4), 3.0)

    def native_calls() -> bool:
        with torch.profiler.profile() as profile:
            ops.project_l2_shell(h, 1.0, 2.0)
        return any("drocc::project_l2_shell" in e.name for e in profile.events())

    loaded = _library.cpu_error is None
    assert native_calls() == loaded
    with drocc_ext.use_backend("eager"):
        assert not native_calls()
        with drocc_ext.use_backend("auto"):
            assert native_calls() == loaded
        assert not native_calls()
        with pytest.raises(KeyError), drocc_ext.use_backend("auto"):
            raise KeyError
        assert not native_calls()
    drocc_ext.use_backend("eager")
    assert not native_calls(), "without `with` the choice stays"
    drocc_ext.use_backend("auto")
    assert native_calls() == loaded


def test_bad_backends_change_nothing() -> None:
    with pytest.raises(ValueError, match=r"use_backend: backend must be one of auto.*got 'fast'"):
        drocc_ext.use_backend("fast")
    ops.project_l2_shell(torch.ones(1, 2), 1.0, 2.0)


@native_only
def test_native_is_refused_where_there_are_no_kernels() -> None:
    h = torch.ones(1, 2, device="meta")
    assert ops.project_l2_shell(h, 1.0, 2.0).device.type == "meta"
    with (
        drocc_ext.use_backend("native"),
        pytest.raises(RuntimeError, match="project_l2_shell: no native kernels for meta tensors"),
    ):
        ops.project_l2_shell(h, 1.0, 2.0)


def test_the_environment_chooses_the_first_backend() -> None:
    code = """
import importlib, os
import torch
from drocc_ext.ops import _backend
for name in ("eager", "auto", "fast", "triton"):
    os.environ["DROCC_BACKEND"] = name
    try:
        importlib.reload(_backend)  # reads the variable as a first import does
        print(name, _backend._selected, _backend.kernels("op", torch.ones(1)) is None)
    except (ValueError, RuntimeError) as error:
        print(name, error)
os.environ |= {"DROCC_BACKEND": "auto", "DROCC_CPU_ISA": "avx3"}
try:
    importlib.reload(_backend)
except ValueError as error:
    print(error)
"""
    lines = python("-c", code).splitlines()
    assert lines[0] == "eager eager True"
    assert lines[1] == f"auto auto {_library.cpu_error is not None}"
    assert lines[2].startswith("fast DROCC_BACKEND: backend must be one of")
    assert lines[3].startswith("triton op: Triton ")
    assert lines[4] == "DROCC_CPU_ISA must be generic, avx2 or avx512, got 'avx3'"


# ---- what the build says -----------------------------------------------------------------------


def test_build_info() -> None:
    info = drocc_ext.build_info()
    assert info["native_cpu"] == (_library.cpu_error or "loaded")
    assert info["native_cuda"] == "loaded" or len(info["native_cuda"].split()) > 3
    if "native_module" in info:
        assert info["native_module"].startswith("missing: ")
        return
    assert info["version"] == drocc_ext.__version__
    assert re.fullmatch(r"\d+\.\d+", info["torch_stable_abi"])
    assert re.match(r"gcc|clang", info["compiler"])
    assert set(info["cpu_instruction_sets"]) <= set(INSTRUCTION_SETS)
    assert info["cpu_instruction_set"] in info["cpu_instruction_sets"]
    assert "generic" in info["cpu_instruction_sets"]


# ---- every instruction set ---------------------------------------------------------------------


def _patterns(dtype: torch.dtype) -> Tensor:
    """All 65536 values of a half type."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def _same_values(actual: Tensor, expected: Tensor) -> Tensor:
    """Equal bits, or both NaN (whose payload is nobody's business)."""
    return (actual.view(torch.int16) == expected.view(torch.int16)) | (
        actual.isnan() & expected.isnan()
    )


@native_only
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_conversions_keep_every_value(dtype: torch.dtype) -> None:
    """In and out again, in the exact path (zero gradient) and in the vectorized one (zero step).

    One value per row, since a NaN takes its row with it; 19 copies reach full vectors and a tail.
    """
    values = _patterns(dtype)
    bad = ~values.float().isfinite()
    expected = torch.where(bad, torch.nan, values.float()).to(dtype)
    h = values[:, None].expand(-1, 19).contiguous()
    exact = run("native", OPERATORS[0], h, torch.zeros_like(h), 1.0, 1.0, 1.0)
    fast = run("native", OPERATORS[0], h, torch.ones_like(h), 0.0, 1.0, 1.0)
    for out in (exact, fast):
        wrong = ~_same_values(out, expected[:, None].expand_as(out)).all(1)
        # A zero step may turn -0 into 0.
        wrong &= ~((values == 0) & (out == 0).all(1))
        assert not wrong.any(), values[wrong][:5]


@native_only
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_results_round_to_nearest_even(dtype: torch.dtype) -> None:
    """h + step with one gradient coordinate, where the float32 sum is exact: torch rounds alike."""
    values = _patterns(dtype)
    values = values[values.float().isfinite()]
    h = torch.zeros(len(values), 19, dtype=dtype)
    grad = torch.zeros_like(h)
    for column in (0, 18):
        h.zero_()
        grad.zero_()
        h[:, column], grad[:, column] = values, 2.0
        for step in (2.0**-3, 2.0**-12, -3 * 2.0**-11, 2.0**-24, 2.0**-25, 37.0, 65504.0):
            out = run("native", OPERATORS[0], h, grad, step, 1.0, 1.0)[:, column]
            total = values.double() + step
            representable = total.float().double() == total
            same = _same_values(out, total.float().to(dtype)) | (out == 0) & (total == 0)
            assert same[representable].all(), (step, values[representable & ~same][:5])


def _selected_by(isa: str) -> str:
    """What a process that is told to use `isa` uses; the module needs neither torch nor package."""
    from drocc_ext import _C

    code = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("_C", {_C.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.build_info()["cpu_instruction_set"])
"""
    return python("-c", code, DROCC_CPU_ISA=isa).strip()


# What this build and this machine have, without the one that the tests around these run on.
_INFO = drocc_ext.build_info()
OTHER_SETS = [
    isa for isa in _INFO.get("cpu_instruction_sets", []) if isa != _INFO["cpu_instruction_set"]
]
other_sets = pytest.mark.parametrize("isa", OTHER_SETS)


@native_only
@pytest.mark.parametrize("isa", _INFO.get("cpu_instruction_sets", []))
def test_the_environment_selects_the_instruction_set(isa: str) -> None:
    assert _selected_by(isa) == isa


@pytest.mark.parametrize("isa", OTHER_SETS[:1])
def test_a_row_of_the_table_on_another_instruction_set(isa: str) -> None:
    """The quick tier's share of the next test."""
    run_tests([TESTS / "test_l2_shell.py"], "native and 3x37-float32", 3, DROCC_CPU_ISA=isa)


@pytest.mark.slow
@other_sets
def test_each_instruction_set(isa: str) -> None:
    """Values, edge rows and conversions again, in a process that is told which set to use."""
    wanted = "values or long_rows or normalized or any_size or bad_row or contrived or hard_rows"
    wanted = f"native and ({wanted}) or half or torchs or (joint and float) or loop_is_followed"
    names = ("l2_shell", "l2_shell_edges", "influence", "ops_library", "search_noise", "mlp_loss")
    names += ("mahalanobis_shell", "mahalanobis_shell_edges", "mlp_joint", "mlp_epoch")
    files = [TESTS / f"test_{name}.py" for name in names]
    run_tests(files, f"({wanted}) and not 2x150528", 300, DROCC_CPU_ISA=isa)


@native_only
def test_an_unknown_instruction_set_is_ignored() -> None:
    assert _selected_by("sse9") == drocc_ext.build_info()["cpu_instruction_sets"][-1]


# ---- without the library -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package without its compiled libraries, with the tests beside it."""
    root = tmp_path_factory.mktemp("bare")
    compiled = shutil.ignore_patterns("*.so", "*.dylib", "*.dll", "*.pyd", "__pycache__")
    shutil.copytree(PACKAGE, root / "drocc_ext", ignore=compiled)
    (root / "python_tests").mkdir()
    for path in TESTS.glob("*.py"):
        shutil.copy(path, root / "python_tests")
    return root


def test_the_package_works_without_its_libraries(bare_copy: Path) -> None:
    code = """
import torch, drocc_ext
info = drocc_ext.build_info()
print(info["native_cpu"])
print(info["native_module"])
print(drocc_ext.ops.project_l2_shell(torch.tensor([[3.0, 4.0]]), 1.0, 2.5).tolist())
print(torch.ops.drocc.project_l2_shell(torch.tensor([[3.0, 4.0]]), 1.0, None, 2.5).tolist())
try:
    drocc_ext.use_backend("native")
except RuntimeError as error:
    print(error)
"""
    lines = python("-c", code, cwd=bare_copy).splitlines()
    assert re.fullmatch(r"libdrocc_cpu\.\w+ was not built with this installation", lines[0])
    assert lines[1].startswith("missing: ")
    assert lines[2] == lines[3] == "[[1.5, 2.0]]"
    assert re.match(r"use_backend: the native kernels are not available \(libdrocc_", lines[4])
    assert "reinstall drocc_ext" in lines[4]


def test_a_broken_library_does_not_break_import(bare_copy: Path) -> None:
    broken = bare_copy / "drocc_ext" / f"libdrocc_cpu{_library._SUFFIX}"
    broken.write_bytes(b"not a library")
    try:
        code = "import drocc_ext; print(drocc_ext.build_info()['native_cpu'])"
        output = python("-c", code, cwd=bare_copy)
    finally:
        broken.unlink()
    assert output.startswith(f"{broken.name} did not load: ")
    assert len(output.splitlines()) == 1


def test_a_row_of_the_table_without_kernels(bare_copy: Path) -> None:
    """The quick tier's share of the next test."""
    names = ("l2_shell", "l2_shell_autograd", "influence", "mahalanobis_shell_autograd")
    files = [bare_copy / "python_tests" / f"test_{name}.py" for name in names]
    wanted = "operator and (3x37-float32 or (gradients_in_each_dtype and float32))"
    run_tests(files, wanted, 8, cwd=bare_copy)


@pytest.mark.slow
def test_the_registered_fallback(bare_copy: Path) -> None:
    """Without kernels `torch.ops.drocc` runs the fallback: the operators' tests, against it."""
    names = ("l2_shell", "l2_shell_edges", "l2_shell_autograd", "l2_shell_transforms", "influence")
    names += ("mahalanobis_shell", "mahalanobis_shell_edges", "mahalanobis_shell_autograd")
    files = [bare_copy / "python_tests" / f"test_{name}.py" for name in names]
    run_tests(files, "(operator or opcheck) and not 2x150528", 400, cwd=bare_copy)
