"""The one table of operator cases (shape, dtype, layout), shared by the tests and the benchmarks.

Inputs are drawn in float64 and rounded to the case's dtype; `exact_step` then computes what an
operator should give for exactly those values, in float64, with plain loops that share no line with
the package.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import drocc_ext
from drocc_ext import ops
from drocc_ext.ops import _library

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SHAPES = ((0, 8), (1, 1), (3, 37), (64, 128), (5, 1000), (2, 150528), (4, 3, 8, 8))
LAYOUTS = ("contiguous", "transposed", "sliced", "misaligned", "channels_last", "expanded_grad")
# (batch, features) that benchmarks time: tabular, ten thousand features, CIFAR, a large image.
BENCHMARK_SHAPES = ((256, 6), (256, 274), (256, 3072), (8192, 3072), (64, 150528))

# What rounding may do: relative to the exact value, and absolute where a type turns subnormal.
RELATIVE = {
    torch.float64: 4e-15,
    torch.float32: 2e-6,
    torch.float16: 2.0**-11 + 2e-6,
    torch.bfloat16: 2.0**-8,
}
ABSOLUTE = {
    torch.float64: 1e-320,
    torch.float32: 2e-45,
    torch.float16: 2.0**-25,
    torch.bfloat16: 1e-40,
}


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call, rounded to the dtype and laid out."""

    h: Tensor
    grad: Tensor
    step_size: float
    radius: float
    gamma: float


@dataclass(frozen=True)
class Case:
    """A row of the table; `build` draws inputs for it."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{shape}-{str(self.dtype).removeprefix('torch.')}-{self.layout}"

    def build(self, seed: int, device: str = "cpu") -> Inputs:
        """Rows nearer than, inside and farther than the shell 1.3 sqrt(D) [1, 2], in turn."""
        generator = torch.Generator().manual_seed(seed)
        length = math.prod(self.shape[1:])
        radius = 1.3 * math.sqrt(length)
        h = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        grad = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        # Norms of about 0.4, 1.5 and 4 radii, whatever the number of features.
        wanted = radius * torch.tensor([0.4, 1.5, 4.0]).double().repeat(self.shape[0])
        norms = h.flatten(1).norm(dim=1).clamp_min(1e-30)
        factors = wanted[: self.shape[0]] / norms
        h = h * factors.reshape(-1, *[1] * (h.dim() - 1))
        return Inputs(
            lay_out(h.to(self.dtype), self.layout).to(device),
            lay_out(grad.to(self.dtype), self.layout, expand=True).to(device),
            step_size=0.2 * radius,
            radius=radius,
            gamma=2.0,
        )


def lay_out(t: Tensor, layout: str, expand: bool = False) -> Tensor:
    """The same values in another memory layout ("expanded_grad" repeats some, if `expand`)."""
    if layout == "expanded_grad" and expand:
        return (t[:, :1] if t.dim() == 2 else t[:1]).clone().expand(t.shape)
    if layout in ("contiguous", "expanded_grad"):
        return t.contiguous()
    if layout == "transposed":
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced":  # rows with a gap after each
        wide = t.new_full((*t.shape[:-1], t.shape[-1] + 3), math.nan)
        wide[..., : t.shape[-1]] = t
        return wide[..., : t.shape[-1]]
    if layout == "misaligned":  # starts one element after an aligned address
        flat = t.new_full((t.numel() + 1,), math.nan)
        flat[1:] = t.flatten()
        return flat[1:].view(t.shape)
    if layout == "channels_last":
        if t.dim() != 4:
            return t.contiguous()
        return t.contiguous(memory_format=torch.channels_last)
    raise ValueError(f"unknown layout {layout!r}")


def table() -> list[Case]:
    """Every shape in every dtype, and every layout on the shapes where it means something."""
    cases = [Case(shape, dtype) for shape in SHAPES for dtype in DTYPES]
    for layout in LAYOUTS[1:]:
        for shape in ((4, 3, 8, 8),) if layout == "channels_last" else ((5, 37), (4, 3, 8, 8)):
            cases += [Case(shape, dtype, layout) for dtype in DTYPES]
    return cases


CASES = table()


@dataclass(frozen=True)
class Operator:
    """One operator: which arguments it takes and how it is called."""

    name: str
    ascends: bool
    projects: bool

    def arguments(self, h: Any, grad: Any, step_size: Any, radius: Any, gamma: Any) -> list[Any]:
        ascent = [grad, step_size] if self.ascends else []
        return [h, *ascent, *([radius, gamma] if self.projects else [])]

    def __str__(self) -> str:
        return self.name


OPERATORS = (
    Operator("normalized_ascent", ascends=True, projects=False),
    Operator("project_l2_shell", ascends=False, projects=True),
    Operator("l2_shell_step", ascends=True, projects=True),
)
SHELL_OPERATORS = tuple(op for op in OPERATORS if op.projects)
ASCENT_OPERATORS = tuple(op for op in OPERATORS if op.ascends)

# "operator" calls torch.ops.drocc.* directly. Where the native library is missing, that is the
# registered fallback; where it is loaded, it is what "native" runs.
# The tests of the Triton kernels run the suites in a process of their own, with "triton" alone.
TRITON_ONLY = os.environ.get("DROCC_TEST_IMPLEMENTATION") == "triton"
IMPLEMENTATIONS = ("eager", "operator" if _library.cpu_error else "native")
IMPLEMENTATIONS = ("triton",) if TRITON_ONLY else IMPLEMENTATIONS
# What tests of transforms and tracing choose between.
BACKENDS = ("triton",) if TRITON_ONLY else ("eager", "auto")
# "cuda" is a parameter only where a GPU is.
CUDA = [pytest.param("cuda", marks=pytest.mark.cuda)] * torch.cuda.is_available()
# There: the native kernels on copies of the arguments, with the same memory layout.
EVERY_IMPLEMENTATION: tuple[Any, ...] = (*IMPLEMENTATIONS, *([] if TRITON_ONLY else CUDA))
# Those that run the public functions, which check and cast.
PUBLIC = tuple(name for name in EVERY_IMPLEMENTATION if name != "operator")


def new_seed() -> int:
    """Another one in every run, printed."""
    value = random.SystemRandom().randrange(2**31)
    print(f"seed = {value}")
    return value


def on_cuda(*tensors: Any, device: str = "cuda") -> list[Any]:
    """Copies with the strides and offsets of the originals; what shared memory still does.

    Where gradients are asked for, copies that pass them on.
    """
    if any(isinstance(t, Tensor) and t.requires_grad for t in tensors):
        return [t.to(device) if isinstance(t, Tensor) else t for t in tensors]
    storages: dict[int, Any] = {}

    def copy(t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        storage = t.untyped_storage()
        if storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = storage.cuda(torch.device(device))
        empty = torch.empty(0, dtype=t.dtype, device=device)
        return empty.set_(storages[storage.data_ptr()], t.storage_offset(), t.size(), t.stride())

    return [copy(t) for t in tensors]


def run(
    implementation: str,
    op: Operator,
    h: Tensor,
    grad: Tensor | None,
    step_size: float,
    radius: float | Tensor,
    gamma: float,
    in_place: bool = False,
) -> Tensor:
    """One call by one implementation; the arguments the operator lacks are ignored."""
    name = op.name + "_" * in_place
    if implementation == "cuda":
        copies = on_cuda(h, grad, radius)
        result = run("native", op, copies[0], copies[1], step_size, copies[2], gamma, in_place)
        return h.copy_(result) if in_place else result.cpu()
    if implementation == "operator":
        rows = radius if isinstance(radius, Tensor) else None
        pair = [1.0 if rows is not None else radius, rows, gamma] if op.projects else []
        ascent = [grad, step_size] if op.ascends else []
        result = getattr(torch.ops.drocc, name)(h, *ascent, *pair)
        return h if in_place else result
    function: Callable[..., Tensor] = getattr(ops, name)
    with drocc_ext.use_backend(implementation):
        return function(*op.arguments(h, grad, step_size, radius, gamma))


def norm(row: list[float]) -> float:
    """Euclidean norm to the last bit (`math.hypot` scales and compensates)."""
    return math.hypot(*row)


def unit(row: list[float]) -> list[float]:
    """row / ||row||; zeros for a zero row."""
    largest = max(map(abs, row), default=0.0)
    if largest == 0.0:
        return row
    row = [x / largest for x in row]
    length = norm(row)
    return [x / length for x in row]


def exact_step(
    op: Operator,
    h: Tensor,
    grad: Tensor | None,
    step_size: float,
    radius: float | Tensor,
    gamma: float,
) -> tuple[Tensor, Tensor]:
    """The operator in float64 by plain loops over rows.

    Returns:
        The result, and the size that rounding errors of each coordinate are relative to.
    """
    hs = h.double().flatten(1).tolist()
    grads = grad.double().flatten(1).tolist() if grad is not None and op.ascends else hs
    radii = radius.double().tolist() if isinstance(radius, Tensor) else [radius] * len(hs)
    values, sizes = [], []
    for row, direction, inner in zip(hs, grads, radii, strict=True):
        move = [step_size * v for v in unit(direction)] if op.ascends else [0.0] * len(row)
        y = [a + b for a, b in zip(row, move, strict=True)]
        size = [abs(a) + abs(b) for a, b in zip(row, move, strict=True)]
        if op.projects:
            target = min(max(norm(y), inner), gamma * inner)
            if target != norm(y):
                largest = max(map(abs, y))
                if largest == 0.0:
                    y = size = [target] + [0.0] * (len(y) - 1)
                else:  # errors of y grow as y does, and reach every coordinate through ||y||
                    y, size = [x / largest for x in y], [x / largest for x in size]
                    scale, relative = target / norm(y), norm(size) / norm(y)
                    y = [scale * x for x in y]
                    size = [scale * a + relative * abs(x) for a, x in zip(size, y, strict=True)]
        values.append(y)
        sizes.append(size)
    like = torch.empty(h.shape, dtype=torch.float64)
    as_tensor = [
        torch.tensor(x, dtype=torch.float64).reshape(like.shape) if x else like
        for x in (values, sizes)
    ]
    return as_tensor[0], as_tensor[1]


def assert_close(actual: Tensor, exact: Tensor, sizes: Tensor | None = None) -> None:
    """Compare with an exact float64 result, to the rounding of the actual dtype."""
    assert actual.shape == exact.shape
    sizes = exact.abs() if sizes is None else torch.maximum(sizes, exact.abs())
    allowed = RELATIVE[actual.dtype] * sizes + ABSOLUTE[actual.dtype]
    if actual.dtype not in (torch.float64, torch.float32):
        allowed = RELATIVE[actual.dtype] * exact.abs() + 2e-6 * sizes + ABSOLUTE[actual.dtype]
    error = (actual.detach().double() - exact).abs()
    worst = (error - allowed).flatten().argmax() if error.numel() else 0
    assert bool((error <= allowed).all()), (
        f"got {actual.detach().double().flatten()[worst]}, exact {exact.flatten()[worst]}, "
        f"error {error.flatten()[worst]} > {allowed.flatten()[worst]} at {worst}"
    )


def bits(t: Tensor) -> Tensor:
    """The bit patterns, so that NaN and -0.0 compare too."""
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    return t.detach().contiguous().view(width)
