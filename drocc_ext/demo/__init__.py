"""The demonstration behind `drocc-ext demo`; needs the packages of `drocc-ext[demo]`."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main(out_dir: str | os.PathLike[str], quick: bool = False) -> dict[str, Any]:
    """Run the demonstration, printing its tables, and write its pictures and results.

    The files are `sine.png`, `noisy_sine.png`, `results.json` and `results.md`.

    Args:
        out_dir: Directory of the files; made where missing, files of a former run are replaced.
        quick: Tiny sizes that show that everything runs, with meaningless numbers.

    Returns:
        What `results.json` holds: "environment", "quick", "sine", "noisy_sine", "real_data",
        "timing" and "seconds", the wall time.

    Raises:
        ModuleNotFoundError: If matplotlib or PyOD is not installed; before any work.
        OSError: If a file cannot be written.
    """
    missing = [name for name in ("matplotlib", "pyod") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{' and '.join(missing)} not installed; run pip install 'drocc-ext[demo]'"
        )
    # Imported here, so that a benchmark that needs a part of the demo does not import all of it.
    from drocc_ext.demo.run import run

    return run(Path(out_dir), quick)
