"""One row in the table is an operator; a second import uses what the first registered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import drocc_ext
from drocc_ext.ops import _registration, _table

ROOT = Path(drocc_ext.__file__).parents[1]


def _run(code: str, **environment: str) -> str:
    child = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    return child.stdout


USE = """
import torch
from drocc_ext import ops

def use():
    h = torch.tensor([[3.0, 4.0]], requires_grad=True)
    sigma = torch.ones(2, requires_grad=True)
    value = ops.project_mahalanobis_shell(ops.project_l2_shell(h, 1.0, 2.0), sigma, 1.0, 1.5)
    assert torch.allclose(value, torch.tensor([[0.9, 1.2]])), value
    value[0, 0].backward()
    # The normalized row, 1.5 h / ||h||: its derivative is 1.5 / ||h|| (1 - u u^T).
    assert torch.allclose(h.grad, 1.5 / 5 * torch.tensor([[0.64, -0.48]]), atol=1e-6), h.grad
    assert sigma.grad.abs().sum() > 0
    mapped = torch.vmap(lambda h: ops.influence(h))(torch.ones(2, 1, 3))
    assert torch.equal(mapped, torch.ones(2, 1, 3))
    return value

"""


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_a_second_import_works(backend: str) -> None:
    code = """
import sys
use()
first = ops
for name in [name for name in sys.modules if name.partition(".")[0] == "drocc_ext"]:
    del sys.modules[name]
import gc
del first, ops
gc.collect()
import drocc_ext
from drocc_ext import ops
use()
with drocc_ext.use_backend("eager"):
    use()
print(drocc_ext.build_info()["native_cpu"])
"""
    assert _run(USE + code, DROCC_BACKEND=backend)


def test_reloading_keeps_the_gradients() -> None:
    code = """
import gc, importlib, sys
use()
import drocc_ext
for name in sorted(n for n in sys.modules if n.startswith("drocc_ext.ops")) + ["drocc_ext"]:
    importlib.reload(sys.modules[name])
    gc.collect()
    use()
print("reloaded")
"""
    assert _run(USE + code) == "reloaded\n"


def test_a_row_of_the_table_is_an_operator() -> None:
    """Schema, twin, fake, fallback, derivative, vmap and autocast of a row made for the test."""

    def check(op: str, h: Tensor, weight: Tensor, power: float) -> tuple[Tensor, Tensor, float]:
        if h.shape != weight.shape:
            raise ValueError(f"{op}: weight must have the shape of h")
        return h, weight, float(power)

    def forward(h: Tensor, weight: Tensor, power: float) -> Tensor:
        return h**power * weight

    def backward(grad_out: Tensor, h: Tensor, weight: Tensor, power: float) -> tuple[Tensor, ...]:
        return grad_out * weight * power * h ** (power - 1), grad_out * h**power

    arguments = "Tensor h, Tensor weight, float power"
    row = _table.Operator("_made_for_a_test", arguments, check, forward, backward)
    schemas = row.schemas()
    assert list(schemas.values()) == [
        "_made_for_a_test(Tensor h, Tensor weight, float power) -> Tensor",
        "_made_for_a_test_(Tensor(a!) h, Tensor weight, float power) -> ()",
        "__made_for_a_test_backward(Tensor grad_out, Tensor h, Tensor weight, float power) "
        "-> (Tensor, Tensor)",
    ]
    library = torch.library.Library("drocc", "FRAGMENT")
    for schema in schemas.values():
        library.define(schema)
    _registration._register(row, library)
    operator = torch.ops.drocc._made_for_a_test.default

    generator = torch.Generator().manual_seed(torch.initial_seed() % 2**31)
    h, weight = (
        torch.rand(3, 4, dtype=torch.float64, generator=generator).add(0.5).requires_grad_()
        for _ in range(2)
    )
    torch.library.opcheck(operator, (h, weight, 2.5))
    assert torch.autograd.gradcheck(lambda h, w: operator(h, w, 2.5), (h, weight))
    mapped = torch.vmap(lambda w: operator(h.detach(), w, 2.5))(
        weight.detach()[None].repeat(5, 1, 1)
    )
    expected = operator(h, weight, 2.5).detach()
    torch.testing.assert_close(mapped[4], expected, rtol=1e-14, atol=0)
    written = h.detach().clone()
    torch.ops.drocc._made_for_a_test_(written, weight.detach(), 2.5)
    torch.testing.assert_close(written, mapped[0], rtol=1e-14, atol=0)  # vectors, or one by one
    with pytest.raises(ValueError, match="_made_for_a_test_: weight must have the shape of h"):
        torch.ops.drocc._made_for_a_test_(written, weight.detach()[:1], 2.5)
    with torch.autocast("cpu", torch.bfloat16):
        half = operator(h.detach().bfloat16(), weight.detach().bfloat16(), 2.5)
    assert half.dtype == torch.float32
    library._destroy()
