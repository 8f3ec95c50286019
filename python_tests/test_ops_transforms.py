"""What torch's transforms ask of all operators alike: floats that change, sizes that do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import drocc_ext
from drocc_ext import ops

Function = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# ---- floats ------------------------------------------------------------------------------------

# A Python float that also scales a tensor: torch then keeps it symbolic after the first call.
FLOATS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "radius": lambda h, grad, sigma, s: ops.project_l2_shell(h * s, s + 0.5, 1.2),
    "gamma": lambda h, grad, sigma, s: ops.project_l2_shell(h * s, 0.5, 1 + s),
    "step_size": lambda h, grad, sigma, s: ops.normalized_ascent(h * s, grad, s * 2),
    "in_place": lambda h, grad, sigma, s: ops.l2_shell_step_(h * s, grad, s + 1, s + 0.5, 1.2),
    "metric": lambda h, grad, sigma, s: ops.mahalanobis_shell_step_(
        h * s, grad, sigma, s + 1, s + 0.5, 1.2
    ),
    "scaled_after": lambda h, grad, sigma, s: ops.project_l2_shell(h, s * 2 + 0.5, 1.2) * s,
}


@pytest.mark.parametrize("name", FLOATS)
def test_operators_get_floats_as_constants(name: str, seed: int) -> None:
    """A graph that still has them as symbols is the same for every number: caches mix them up."""
    torch.manual_seed(seed)
    h, grad, sigma = 3 * torch.randn(8, 6), torch.randn(8, 6), 0.1 + torch.rand(6)
    calls: list[tuple[object, ...]] = []

    def look(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        calls.extend(n.args for n in graph.graph.nodes if str(n.target).startswith("drocc."))
        return graph.forward

    compiled = torch.compile(
        lambda s: FLOATS[name](h, grad, sigma, s), backend=look, fullgraph=True
    )
    for s in (0.1, 0.2, 0.3, 0.7):
        compiled(s)
    assert len(calls) == 4
    for call in calls:
        assert not any(
            type(getattr(a, "meta", {}).get("example_value")) is torch.SymFloat for a in call
        )
    assert len({tuple(a for a in call if type(a) is float) for call in calls}) == 4


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_a_float_does_not_go_stale_in_inductor(backend: str, seed: int) -> None:
    torch.manual_seed(seed)
    h = 3 * torch.randn(8, 6)
    with drocc_ext.use_backend(backend):
        compiled = torch.compile(lambda s: FLOATS["radius"](h, h, h, s), fullgraph=True)
        for s in (0.1, 0.2, 0.3, 0.7):
            expected = FLOATS["radius"](h, h, h, s)
            assert torch.allclose(compiled(s), expected, rtol=1e-5, atol=1e-6), s


# ---- export ------------------------------------------------------------------------------------


class _Module(torch.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", ["norm", "project", "step"])
def test_export_with_a_dynamic_batch(name: str, shared: bool, strict: bool, seed: int) -> None:
    functions: dict[str, Function] = {
        "norm": lambda h, grad, sigma: ops.mahalanobis_norm(h + grad, sigma),
        "project": lambda h, grad, sigma: ops.project_mahalanobis_shell(h + grad, sigma, 1.0, 2.0),
        "step": lambda h, grad, sigma: ops.mahalanobis_shell_step(h, grad, sigma, 0.1, 1.0, 2.0),
    }
    torch.manual_seed(seed)

    def made(batch: int) -> tuple[Tensor, ...]:
        sigma = torch.rand(5) if shared else torch.rand(batch, 5)
        return torch.randn(batch, 5), torch.randn(batch, 5), sigma

    rows = {0: torch.export.Dim("batch")}
    shapes = (rows, rows, None if shared else rows)
    module = _Module(functions[name])
    program = torch.export.export(module, made(4), dynamic_shapes=(shapes,), strict=strict)
    for batch in (2, 5, 17):
        inputs = made(batch)
        assert torch.equal(program.module()(*inputs), functions[name](*inputs))


# ---- vmap --------------------------------------------------------------------------------------

MAPPED: dict[str, Function] = {
    "normalized_ascent": lambda h, grad, radius: ops.normalized_ascent(h, grad, 0.1),
    "project_l2_shell": lambda h, grad, radius: ops.project_l2_shell(h, radius, 2.0),
    "l2_shell_step": lambda h, grad, radius: ops.l2_shell_step(h, grad, 0.1, 1.0, 2.0),
    "l2_shell_step_": lambda h, grad, radius: ops.l2_shell_step_(h, grad, 0.1, radius, 2.0),
    "influence": lambda h, grad, radius: ops.influence(grad),
    "mahalanobis_norm": lambda h, grad, radius: ops.mahalanobis_norm(h, torch.ones(4)),
    "project_mahalanobis_shell": lambda h, grad, radius: ops.project_mahalanobis_shell(
        h, torch.ones(4), radius, 2.0
    ),
    "mahalanobis_shell_step": lambda h, grad, radius: ops.mahalanobis_shell_step(
        h, grad, h.abs(), 0.1, radius, 2.0, "grid"
    ),
    "mahalanobis_shell_step_": lambda h, grad, radius: ops.mahalanobis_shell_step_(
        h, grad, torch.ones(4), 0.1, radius, 2.0
    ),
}


@pytest.mark.parametrize("sizes", [(0, 3), (0, 0), (2, 0)], ids=str)
@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("name", MAPPED)
def test_vmap_over_nothing(name: str, backend: str, sizes: tuple[int, int]) -> None:
    h, radius = torch.ones(*sizes, 4), torch.ones(*sizes)
    with drocc_ext.use_backend(backend):
        result = torch.vmap(MAPPED[name])(h, torch.ones_like(h), radius)
    assert result.shape == (sizes if name == "mahalanobis_norm" else (*sizes, 4))
