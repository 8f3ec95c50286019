"""DROCC for tables, in two conventions over one core: PyOD's and scikit-learn's."""

from drocc_ext.estimators.drocc import DROCC
from drocc_ext.estimators.outlier_detector import DROCCOutlierDetector

__all__ = ["DROCC", "DROCCOutlierDetector"]
