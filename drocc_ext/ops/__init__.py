"""The operators of DROCC's adversarial search, row by row over `[B, *]` tensors.

Each has an in-place twin with a trailing underscore, which is what a search loop wants.
"""

from __future__ import annotations

from drocc_ext.ops._registration import register
from drocc_ext.ops.influence import influence
from drocc_ext.ops.l2_shell import (
    l2_shell_step,
    l2_shell_step_,
    normalized_ascent,
    normalized_ascent_,
    project_l2_shell,
    project_l2_shell_,
)
from drocc_ext.ops.mahalanobis_shell import (
    mahalanobis_norm,
    mahalanobis_shell_step,
    mahalanobis_shell_step_,
    project_mahalanobis_shell,
    project_mahalanobis_shell_,
)

__all__ = [
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
]

register()
