"""Runs a module where torch is all there is: a machine with a GPU and nothing installed.

    python -m benchmarks.bare MODULE [ARGUMENT ...]

`import drocc_ext` needs scikit-learn, tqdm and safetensors, of which operators, search and losses
use nothing. Where one of them is missing an empty module stands in, whose names are empty classes.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import runpy
import sys
from types import ModuleType
from typing import Any

PACKAGES = ("sklearn", "tqdm", "safetensors")


class _Empty(ModuleType):
    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class StandIns:
    """Finds and loads an empty module for every name in the missing packages."""

    def __init__(self) -> None:
        self.missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] not in self.missing:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it empty."""


def main() -> None:
    stand_ins = StandIns()
    if stand_ins.missing:
        print(f"empty modules stand in for {', '.join(stand_ins.missing)}", file=sys.stderr)
        sys.meta_path.append(stand_ins)  # type: ignore[arg-type]
    sys.argv = sys.argv[1:]
    if not sys.argv:
        sys.exit("usage: python -m benchmarks.bare MODULE [ARGUMENT ...]")
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
