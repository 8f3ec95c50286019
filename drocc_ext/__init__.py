"""DROCC (Deep Robust One-Class Classification, ICML 2020) for PyTorch, with fused operators.

Take as much as you need: the operators (`drocc_ext.ops`), the adversarial search
(`adversarial_search`), the loss (`DROCCLoss`), the `Trainer`, or a whole estimator (`DROCC`,
`DROCCOutlierDetector`).
"""

from __future__ import annotations

from drocc_ext import metrics, networks, ops
from drocc_ext._backend import use_backend
from drocc_ext._library import build_info
from drocc_ext.callbacks import Callback
from drocc_ext.estimators import DROCC, DROCCOutlierDetector
from drocc_ext.losses import DROCCLoss, LossTerms
from drocc_ext.persistence import load_model, save_model
from drocc_ext.radius import suggest_radius
from drocc_ext.search import SearchConfig, adversarial_search
from drocc_ext.trainer import Trainer

__version__ = "0.1.0"

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
