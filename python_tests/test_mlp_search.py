"""All steps of a search in a deep ReLU network in one operator: against autograd, step by step."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from processes import run_python
from torch import Tensor
from torch.nn import functional as F

from drocc_ext.ops import _library
from drocc_ext.ops.eager.mlp_search import mlp_search

pytestmark = pytest.mark.skipif(
    _library.native_error("cpu") is not None, reason="needs the compiled operator"
)

F32, F64 = torch.float32, torch.float64
