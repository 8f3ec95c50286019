"""DROCC (Deep Robust One-Class Classification, ICML 2020) for PyTorch, with fused operators.

Take as much as you need: the operators (`drocc_ext.ops`), the adversarial search
(`adversarial_search`), the loss (`DROCCLoss`), the `Trainer`, or a whole estimator (`DROCC`,
`DROCCOutlierDetector`).
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from drocc_ext import _moved

if TYPE_CHECKING:
    from drocc_ext import metrics, ops
    from drocc_ext.estimators import DROCC, DROCCOutlierDetector
    from drocc_ext.models import networks
    from drocc_ext.models.persistence import load_model, save_model
    from drocc_ext.ops._backend import use_backend
    from drocc_ext.ops._library import build_info
    from drocc_ext.radius import suggest_radius
    from drocc_ext.search import SearchConfig, adversarial_search
    from drocc_ext.training.callbacks import Callback
    from drocc_ext.training.loss import DROCCLoss, LossTerms
    from drocc_ext.training.trainer import Trainer

__version__ = "0.1.0"

# Where each public name lives; it is imported when first asked for (PEP 562), so that whoever wants
# the operators alone does not wait for scikit-learn.
_HOMES = {
    "DROCC": "estimators",
    "Callback": "training.callbacks",
    "DROCCLoss": "training.loss",
    "DROCCOutlierDetector": "estimators",
    "LossTerms": "training.loss",
    "SearchConfig": "search",
    "Trainer": "training.trainer",
    "adversarial_search": "search",
    "build_info": "ops._library",
    "load_model": "models.persistence",
    "metrics": "",
    "networks": "models",
    "ops": "",
    "save_model": "models.persistence",
    "suggest_radius": "radius",
    "use_backend": "ops._backend",
}

__all__ = [
    "DROCC",
    "Callback",
    "DROCCLoss",
    "DROCCOutlierDetector",
    "LossTerms",
    "SearchConfig",
    "Trainer",
    "adversarial_search",
    "build_info",
    "load_model",
    "metrics",
    "networks",
    "ops",
    "save_model",
    "suggest_radius",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'drocc_ext' has no attribute {name!r}")
    if home == "":
        value: Any = importlib.import_module(f"drocc_ext.{name}")
    elif name == "networks":
        value = importlib.import_module("drocc_ext.models.networks")
    else:
        value = getattr(importlib.import_module(f"drocc_ext.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _is_command() -> bool:
    """Say whether this process is the command line, whose help needs no torch."""
    called = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    return called in ("drocc-ext", "drocc-ext.exe", "-m")


_moved.install()
if not _is_command():
    # `torch.ops.drocc` has its operators from here on.
    importlib.import_module("drocc_ext.ops")
