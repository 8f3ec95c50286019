"""Everything that `torch.ops.drocc_triton` runs, by the names of the operators."""

from __future__ import annotations

from drocc_ext.triton._launch import traced
from drocc_ext.triton.l2_shell import (
    _l2_shell_step_backward,
    _normalized_ascent_backward,
    _project_l2_shell_backward,
    l2_shell_step,
    l2_shell_step_,
    normalized_ascent,
    normalized_ascent_,
    project_l2_shell,
    project_l2_shell_,
)

__all__ = [
    "_l2_shell_step_backward",
    "_normalized_ascent_backward",
    "_project_l2_shell_backward",
    "l2_shell_step",
    "l2_shell_step_",
    "normalized_ascent",
    "normalized_ascent_",
    "project_l2_shell",
    "project_l2_shell_",
    "traced",
]
