"""What a fit does: the default of the detector, and Algorithm 1 of the paper."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from drocc_ext.search.config import Noise
from drocc_ext.training.loss import Labels


@dataclass(frozen=True)
class Recipe:
    """Settings of a fit, see the parameters of `DROCC`.

    Attributes:
        keeps_rare_columns: Whether columns with one value in almost all rows are used; see
            `columns.ColumnScaler` and `columns.Standardizer`.
        scores_in_double: Whether the network scores in float64.
        few_rows: Below so many rows several networks are trained; 0 for never.
        members_on_few_rows: How many; their mean logit counts.
        nearest: Whether the distance to the nearest training row counts beside the logit; not for
            modules and in the metric "mahalanobis".
    """

    network: tuple[int, ...]
    labels: Labels
    noise: Noise
    radius_range: tuple[float, float] | None
    gamma: float
    num_steps: int
    step_size: float
    mu: float
    max_steps: int
    batch_size: int
    learning_rate: float
    calibration: str | float
    keeps_rare_columns: bool
    scores_in_double: bool
    few_rows: int
    members_on_few_rows: int
    nearest: bool


# Chosen on 22 public tables, one for all, without a label in any fit; what each part gives is on
# the study's page (benchmarks/paper).
DEFAULT = Recipe(
    network=(256, 256),
    labels="distance",
    noise="blend",
    radius_range=(0.4, 2.5),
    gamma=1.0,
    num_steps=3,
    step_size=0.2,
    mu=1.0,
    max_steps=400,
    batch_size=128,
    learning_rate=3e-3,
    calibration="auto",
    keeps_rare_columns=True,
    scores_in_double=False,
    few_rows=500,
    members_on_few_rows=3,
    nearest=True,
)

ALGORITHM_1 = Recipe(
    network=(128,),
    labels="hard",
    noise="isotropic",
    radius_range=None,
    gamma=2.0,
    num_steps=5,
    step_size=0.1,
    mu=2.0,
    max_steps=300,
    batch_size=256,
    learning_rate=2e-3,
    calibration="training",
    keeps_rare_columns=False,
    scores_in_double=True,
    few_rows=0,
    members_on_few_rows=1,
    nearest=False,
)


def recipe_of(parameters: dict[str, Any]) -> Recipe:
    """Fill in what an estimator's parameters leave open.

    Args:
        parameters: Of the estimator. `hidden`, if given, asks for Algorithm 1 with so many units;
            a parameter that is None is the recipe's.

    Returns:
        The recipe.
    """
    hidden = parameters.get("hidden")
    recipe = DEFAULT if hidden is None else replace(ALGORITHM_1, network=(int(hidden),))
    given = {
        field.name: parameters[field.name]
        for field in fields(Recipe)
        if field.name != "network" and parameters.get(field.name) is not None
    }
    # Those of numpy compute otherwise than what is saved of them.
    given = {k: v.item() if isinstance(v, np.generic) else v for k, v in given.items()}
    return replace(recipe, **given)
