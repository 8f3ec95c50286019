"""Modules that have moved answer to their old names for one release, with a warning."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_MOVED = {
    "callbacks": "training.callbacks",
    "checkpoint": "training.checkpoint",
    "data": "training.data",
    "evaluation": "training.evaluation",
    "losses": "training.loss",
    "networks": "models.networks",
    "optimization": "training.step",
    "persistence": "models.persistence",
    "reference": "ops.eager",
    "trainer": "training.trainer",
    "triton": "ops.triton",
}


class _Forwarding(ModuleType):
    """Stands for a module elsewhere: what is asked of it is asked there."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        import warnings

        target = _target(self.__name__)
        warnings.warn(
            f"{self.__name__} has moved to {target}; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(target), name)


def _target(name: str) -> str:
    first, *rest = name.split(".")[1:]
    return ".".join(["drocc_ext", _MOVED[first], *rest])


class _Finder:
    """A finder and loader without their base classes, which take longer to import than a help text.

    The same for `importlib.util` and `warnings`, which are imported where they are needed.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        from importlib.util import find_spec

        package, _, rest = fullname.partition(".")
        if package != "drocc_ext" or rest.split(".")[0] not in _MOVED:
            return None
        found = find_spec(_target(fullname))
        if found is None:
            return None
        is_package = found.submodule_search_locations is not None
        return ModuleSpec(fullname, self, is_package=is_package)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Forwarding(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def install() -> None:
    """Let the old names be imported, after everything that exists."""
    if not any(type(finder).__name__ == _Finder.__name__ for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
