"""The adversarial search: settings, steps, noise, and fast paths for networks known as MLPs."""

from __future__ import annotations

from drocc_ext.models.modes import frozen
from drocc_ext.models.modules import unwrap  # their home of the release before
from drocc_ext.search.config import SearchConfig
from drocc_ext.search.search import adversarial_search

__all__ = ["SearchConfig", "adversarial_search", "frozen", "unwrap"]
