"""Searches and methods as a results file notes them."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from drocc_ext.demo.methods import Method
from drocc_ext.search import SearchConfig

_ALWAYS = (
    *("radius", "step_size", "num_steps", "gamma", "project_every"),
    *("noise_scale", "project_start", "freeze", "solver", "grid_points"),
)


def of_search(search: SearchConfig | None) -> dict[str, Any] | None:
    """Describe a search, so that results stay valid where `SearchConfig` gets another field.

    Args:
        search: The search, or None for none.

    Returns:
        Value by field. A field that came after the first results is noted only if it is not at its
        default, which is what they were measured with.
    """
    if search is None:
        return None
    defaults = {field.name: field.default for field in fields(search)}
    return {
        name: value
        for name, value in asdict(search).items()
        if name in _ALWAYS or value != defaults[name]
    }


def of_method(method: Method) -> dict[str, Any]:
    """Describe a method, its search by `of_search`."""
    return {**asdict(method), "search": of_search(method.search)}
