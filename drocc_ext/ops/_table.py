"""The operators, one row each. Schemas, fakes, derivatives and transforms follow from the row.

Three names have a meaning here. `radius_rows` takes the place of the number `radius` before it, and
the two are one argument for checks and eager functions. `sigma` may be `[*]`, shared by all rows.
`grad_out` is the upstream gradient.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from drocc_ext.ops import _checks
from drocc_ext.ops.eager import influence, l2_shell, mahalanobis_shell

Arguments = tuple[Any, ...]


@dataclass(eq=False)
class Operator:
    """A differentiable operator over the rows of `[B, *]` tensors.

    Attributes:
        name: Of the public function, and of the operator in `torch.ops`.
        arguments: Those of the schema, tensors before numbers. Autograd saves them all.
        check: Takes the caller's name and the public arguments; returns the schema's.
        forward: Eager PyTorch, of the public arguments.
        backward: Eager PyTorch, of the upstream gradient and the public arguments; returns one
            gradient for each tensor.
        in_place: Whether there is a twin that writes to its first argument.
        per_row: Whether the result is one number a row, in the compute type, instead of `[B, *]`.
        adds_first: Whether the first argument is added to a function of the others: its gradient is
            the upstream one, and `backward` does not take it.
        module: Basename of the files that hold the operator.
        twin: Name of the in-place twin.
        types: Of the schema's arguments, by their names.
        radius: Position of `radius`, if there is one.
        floats: Where the numbers stand among the public arguments that a schema takes as float.
    """

    name: str
    arguments: str
    check: Callable[..., Arguments]
    forward: Callable[..., Tensor]
    backward: Callable[..., Tensor | tuple[Tensor, ...]]
    in_place: bool = True
    per_row: bool = False
    adds_first: bool = False
    module: str = field(init=False)
    twin: str = field(init=False)
    types: dict[str, str] = field(init=False)
    radius: int | None = field(init=False)
    floats: slice = field(init=False)

    def __post_init__(self) -> None:
        self.module = self.forward.__module__.rpartition(".")[2]
        self.twin = f"{self.name}_"
        self.types = {name: kind for kind, name in re.findall(r"([^\s,]+) (\w+)", self.arguments)}
        names = list(self.types)
        self.radius = names.index("radius") if "radius" in names else None
        public = [kind for name, kind in self.types.items() if name != "radius_rows"]
        first = sum(kind == "Tensor" for kind in public)
        self.floats = slice(first, first + public.count("float"))

    def saved(self) -> dict[str, str]:
        """Return the types of what the backward operator takes besides `grad_out`."""
        return dict(list(self.types.items())[self.adds_first :])

    def schemas(self) -> dict[str, str]:
        """Return name and schema of the operator, its twin and its derivative."""
        saved = self.saved()
        gradients = ["Tensor" for kind in saved.values() if kind.startswith("Tensor")]
        returns = gradients[0] if len(gradients) == 1 else f"({', '.join(gradients)})"
        taken = ", ".join(["Tensor grad_out", *(f"{kind} {name}" for name, kind in saved.items())])
        written = self.arguments.replace("Tensor ", "Tensor(a!) ", 1)
        schemas = {self.name: f"({self.arguments}) -> Tensor"}
        if self.in_place:
            schemas[self.twin] = f"({written}) -> ()"
        schemas[f"_{self.name}_backward"] = f"({taken}) -> {returns}"
        return {name: f"{name}{rest}" for name, rest in schemas.items()}

    def public(self, arguments: Arguments) -> Arguments:
        """Return the schema's arguments with `radius` and `radius_rows` as one."""
        at = self.radius
        if at is None:
            return arguments
        number, rows = arguments[at : at + 2]
        return (*arguments[:at], number if rows is None else rows, *arguments[at + 2 :])

    def plain(self, public: Arguments) -> Arguments | None:
        """Return the schema's arguments if all numbers are floats, which need no conversion."""
        for number in public[self.floats]:
            if type(number) is not float:
                return None
        at = self.radius
        return public if at is None else (*public[: at + 1], None, *public[at + 1 :])


_SHELL = "float radius, Tensor? radius_rows, float gamma"

_ROWS = (
    Operator(
        "normalized_ascent",
        "Tensor h, Tensor grad, float step_size",
        _checks.check_ascent,
        l2_shell.normalized_ascent,
        l2_shell.normalized_ascent_backward,
        adds_first=True,
    ),
    Operator(
        "project_l2_shell",
        f"Tensor h, {_SHELL}",
        _checks.check_shell,
        l2_shell.project_l2_shell,
        l2_shell.project_l2_shell_backward,
    ),
    Operator(
        "l2_shell_step",
        f"Tensor h, Tensor grad, float step_size, {_SHELL}",
        _checks.check_step,
        l2_shell.l2_shell_step,
        l2_shell.l2_shell_step_backward,
    ),
    Operator(
        "influence",
        "Tensor grad",
        _checks.check_gradient,
        influence.influence,
        influence.influence_backward,
        in_place=False,
    ),
    Operator(
        "mahalanobis_norm",
        "Tensor h, Tensor sigma",
        _checks.check_metric,
        mahalanobis_shell.mahalanobis_norm,
        mahalanobis_shell.mahalanobis_norm_backward,
        in_place=False,
        per_row=True,
    ),
    Operator(
        "project_mahalanobis_shell",
        f"Tensor h, Tensor sigma, {_SHELL}, int grid_points",
        _checks.check_metric_shell,
        mahalanobis_shell.project_mahalanobis_shell,
        mahalanobis_shell.project_mahalanobis_shell_backward,
    ),
    Operator(
        "mahalanobis_shell_step",
        f"Tensor h, Tensor grad, Tensor sigma, float step_size, {_SHELL}, int grid_points",
        _checks.check_metric_step,
        mahalanobis_shell.mahalanobis_shell_step,
        mahalanobis_shell.mahalanobis_shell_step_backward,
    ),
)

OPERATORS = {operator.name: operator for operator in _ROWS}

# The schemas of csrc/*.cpp, word for word (a test compares them), by the names of the operators.
SCHEMAS = {name: text for row in _ROWS for name, text in row.schemas().items()}
