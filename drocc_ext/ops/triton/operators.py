"""Everything that `torch.ops.drocc_triton` runs, by the names of the operators."""

from __future__ import annotations

from drocc_ext.ops.triton._launch import traced
from drocc_ext.ops.triton.influence import _influence_backward, influence
from drocc_ext.ops.triton.l2_shell import (
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
from drocc_ext.ops.triton.mahalanobis_shell import (
    _mahalanobis_norm_backward,
    _mahalanobis_shell_step_backward,
    _project_mahalanobis_shell_backward,
    mahalanobis_norm,
    mahalanobis_shell_step,
    mahalanobis_shell_step_,
    project_mahalanobis_shell,
    project_mahalanobis_shell_,
)

__all__ = [
    "_influence_backward",
    "_l2_shell_step_backward",
    "_mahalanobis_norm_backward",
    "_mahalanobis_shell_step_backward",
    "_normalized_ascent_backward",
    "_project_l2_shell_backward",
    "_project_mahalanobis_shell_backward",
    "influence",
    "l2_shell_step",
    "l2_shell_step_",
    "mahalanobis_norm",
    "mahalanobis_shell_step",
    "mahalanobis_shell_step_",
    "normalized_ascent",
    "normalized_ascent_",
    "project_l2_shell",
    "project_l2_shell_",
    "project_mahalanobis_shell",
    "project_mahalanobis_shell_",
    "traced",
]
