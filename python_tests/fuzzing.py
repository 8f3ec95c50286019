"""Budgets of the fuzz suite: seconds in `make test`, ten minutes in `make fuzz`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

# 1 in `make test`. `make fuzz` multiplies every budget by it.
SCALE = int(os.environ.get("DROCC_FUZZ", "1"))


def budget(examples: int) -> settings:
    """Settings for so many examples, new ones in every run."""
    return settings(
        max_examples=examples * SCALE,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
