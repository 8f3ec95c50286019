"""The Triton kernels without a GPU: compiled ahead of time, traced, refused where they must be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import python
from torch import Tensor

import drocc_ext
from drocc_ext import DROCCLoss, SearchConfig, adversarial_search, ops
from drocc_ext.models import networks
from drocc_ext.ops import _library

triton = pytest.importorskip("triton", reason="Triton is not installed")
if _library.triton_missing is not None:
    pytest.skip(_library.triton_missing, allow_module_level=True)

from benchmarks import triton_resources  # noqa: E402

CAPABILITIES = triton_resources.CAPABILITIES
# Launches are chosen for Triton 3.9; older compilers need a few registers more.
MOST_SPILLED = 0 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9) else 64


def _lengths(dtype: torch.dtype, capability: int) -> tuple[int, ...]:
    """Rows on chip and rows that loop; on sm_90 also the shortest and the longest on chip."""
    both = (500 if dtype == torch.float64 else 3072, 150528)
    return (6, *both, 8192) if capability == 90 and dtype.itemsize > 2 else both


def _compiled(launch: triton_resources.Launch, dtype: torch.dtype, capability: int) -> str:
    """Compile the kernel, look at what it takes, and return its PTX."""
    ptx, used = triton_resources.compiled(launch, capability)
    what = (launch.operator, launch.length, used)
    assert used.spill_bytes <= MOST_SPILLED, what
    assert used.registers * 32 * launch.warps <= 65536, what
    # Gradients of half rows are written in two widths: a tile of floats changes hands.
    exchanged = dtype.itemsize == 2 and "mahalanobis" in launch.operator
    assert used.shared_bytes <= (16384 if exchanged else 4096), what
    # Roots and quotients are rounded correctly, and subnormal numbers are kept.
    assert ".approx" not in ptx and ".ftz" not in ptx and "div.full" not in ptx, what
    assert "sqrt.rn" in ptx or "influence" in launch.operator, what
    # Long rows are read sixteen bytes at a time.
    if dtype == torch.float32 and launch.length in (3072, 150528) and capability == 90:
        wide = "ld.global.v4.b32" in ptx and "st.global.v4.b32" in ptx
        assert wide or "norm" in launch.operator, what
    return ptx


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", triton_resources.DTYPES, ids=str)
def test_every_kernel_compiles_without_spills(dtype: torch.dtype, capability: int) -> None:
    launches = triton_resources.launches((dtype,), _lengths(dtype, capability))
    assert len(launches) >= 14 * 2
    for launch in launches:
        _compiled(launch, dtype, capability)


def test_one_operator_compiles_without_spills() -> None:
    """The quick tier's share of the test above."""
    launches = triton_resources.launches((torch.float32,), (3072,))
    chosen = [launch for launch in launches if launch.operator == "l2_shell_step"]
    assert len(chosen) == 1
    assert "st.global" in _compiled(chosen[0], torch.float32, 90)


# ---- torch.compile -----------------------------------------------------------------------------


class _Driver:
    """What Triton and torch ask of a GPU's driver while tracing."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_library, "triton_error", lambda device_type: None)
    if not torch.cuda.is_available():
        monkeypatch.setattr(triton.runtime.driver, "_active", _Driver(), raising=False)
    torch._dynamo.reset()
    with drocc_ext.use_backend("triton"):
        yield
    torch._dynamo.reset()


def _traced(function: Callable[..., Tensor], *args: Tensor) -> list[tuple[str, list[str]]]:
    """Compile without running: the operators and launches of forward and backward graphs."""
    from torch._dynamo.backends.common import aot_autograd

    found: list[tuple[str, list[str]]] = []

    def look(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        for node in graph.graph.nodes:
            if "triton" in str(node.target) or "drocc" in str(node.target):
                found.append((str(node.target), node.kwargs.get("tensors_to_clone", [])))
        outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]

        def run(_: Any) -> list[Any]:
            values = [getattr(output, "meta", {}).get("val") for output in outputs]
            return [torch.zeros(v.shape) if isinstance(v, Tensor) else v for v in values]

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    backend = aot_autograd(fw_compiler=look, bw_compiler=look)
    out = torch.compile(function, backend=backend, fullgraph=True)(*args)
    if out.requires_grad:
        out.sum().backward()
    return found


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_traces_are_kernel_launches_that_write_their_outputs_only() -> None:
    h, grad = torch.randn(5, 37), torch.randn(5, 37)
    sigma, radius = torch.rand(37), torch.rand(5)
    leaves = [t.requires_grad_() for t in (h, grad, sigma, radius)]
    launch = "triton_kernel_wrapper_functional"

    def l2(h: Tensor, grad: Tensor, sigma: Tensor, radius: Tensor) -> Tensor:
        return ops.l2_shell_step(h, grad, 0.5, radius, 2.0)

    assert _traced(l2, *leaves) == [
        (launch, ["out_ptr"]),
        (launch, ["grad_h_ptr", "grad_grad_ptr", "grad_radius_ptr"]),
    ]

    def mahalanobis(h: Tensor, grad: Tensor, sigma: Tensor, radius: Tensor) -> Tensor:
        return ops.mahalanobis_shell_step(h, grad, sigma, 0.5, radius, 2.0, "grid", 16)

    assert _traced(mahalanobis, *leaves) == [
        (launch, ["out_ptr"]),
        (launch, ["grad_h_ptr", "grad_grad_ptr", "grad_sigma_ptr", "grad_radius_ptr"]),
    ]

    def search(h: Tensor, grad: Tensor) -> Tensor:
        h = h * 1.0
        for _ in range(2):
            ops.l2_shell_step_(h, grad, 0.5, 1.0, 2.0)
        return h

    detached = [t.detach() for t in leaves[:2]]
    assert _traced(search, *detached) == [(launch, ["out_ptr"])] * 2


def test_fake_cuda_tensors_need_no_gpu() -> None:
    """`auto` takes Triton on CUDA where the native CUDA library is absent."""
    if _library.native_error("cuda") is None:
        pytest.skip("the native CUDA library is loaded")
    from torch._subclasses import FakeTensorMode

    calls: list[str] = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), Spy():
        h = torch.empty(3, 4, 5, device="cuda")
        out = ops.project_l2_shell(h, 1.0, 2.0)
        assert out.shape == h.shape and out.device.type == "cuda"
        assert ops.mahalanobis_norm(h, h).shape == (3,)
    assert "drocc_triton.project_l2_shell.default" in calls


# ---- where there is none -----------------------------------------------------------------------


def test_cpu_tensors_are_refused() -> None:
    h = torch.ones(2, 3)
    message = "project_l2_shell: Triton kernels need CUDA tensors, got cpu"
    with drocc_ext.use_backend("triton"), pytest.raises(RuntimeError, match=message):
        ops.project_l2_shell(h, 1.0, 2.0)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.drocc_triton.project_l2_shell(h, 1.0, None, 2.0)


def test_nothing_native_takes_the_place_of_a_refused_search() -> None:
    """Networks linear - ReLU - linear have a native operator for all steps, Triton one a step."""
    model, x = networks.MLP(6, 9), torch.randn(4, 6)
    loss = DROCCLoss(SearchConfig(1.5, step_size=0.1, num_steps=4))
    message = "Triton kernels need CUDA tensors, got cpu"
    with drocc_ext.use_backend("triton"):
        with pytest.raises(RuntimeError, match=message):
            adversarial_search(model, x, radius=1.5, step_size=0.1, num_steps=4)
        with pytest.raises(RuntimeError, match=message):
            loss(model, x)


@pytest.mark.parametrize("version", [None, "3.1.0"])
def test_a_missing_or_old_triton_is_told_by_the_call(version: str | None, tmp_path: Path) -> None:
    """Import works; the call says what to install."""
    if version is not None:
        (tmp_path / "triton").mkdir()
        (tmp_path / "triton" / "__init__.py").write_text(f"__version__ = '{version}'\n")
    code = f"""
import importlib.util, sys
sys.path.insert(0, {str(tmp_path)!r})
if {version is None}:
    real = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *a: None if name == "triton" else real(name, *a)
import torch, drocc_ext
from drocc_ext import ops
assert "triton" not in sys.modules
print(ops.project_l2_shell(torch.ones(1, 4), 1.0, 1.0).tolist())
for call in (
    lambda: drocc_ext.use_backend("triton"),
    lambda: torch.ops.drocc_triton.project_l2_shell(torch.ones(1, 4), 1.0, None, 1.0),
):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""
    lines = python("-c", code).splitlines()
    assert lines[0] == "[[0.5, 0.5, 0.5, 0.5]]"
    reason = "Triton is not installed" if version is None else "Triton 3.1 is too old"
    install = f"install it with `pip install 'triton>={_library.OLDEST_TRITON}'`"
    assert lines[1] == f"use_backend: {reason}; {install}"
    assert lines[2] == f"project_l2_shell: {reason}; {install}"
