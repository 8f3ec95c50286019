"""The paper's hyperparameters (Tables 10 to 14), and the fixed settings used here."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any


@functools.cache
def hyperparameters() -> dict[str, Any]:
    """Read `hyperparameters.json`."""
    path = Path(__file__).with_suffix(".json")
    return dict(json.loads(path.read_text(encoding="utf-8")))
