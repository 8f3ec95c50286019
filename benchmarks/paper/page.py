"""The page `LIMITED_NEGATIVES.md`, written anew from the JSON files of the experiments.

python -m benchmarks.paper.page [--out DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.paper import mnist_limited_negatives, noisy_sine
from benchmarks.paper.cells import read
from drocc_ext.demo.reporting import paragraph
from drocc_ext.models.persistence import atomic_write

PAGE = "LIMITED_NEGATIVES.md"


def write(out: Path) -> Path:
    """Write the page from the results that are there.

    Args:
        out: Directory of the page; the results are in `results` under it.

    Returns:
        The page.

    Raises:
        ValueError: If a file of results is damaged.
    """
    parts = [
        "# One-class classification with limited negatives (section 5.2)",
        "Written by `python -m benchmarks.paper.page` from the files in `results/`.",
    ]
    for experiment, choice in (
        (noisy_sine, noisy_sine.TUNING),
        (mnist_limited_negatives, mnist_limited_negatives.STUDY),
    ):
        results = _finished(out, experiment.NAME, "seeds")
        if results is not None:
            parts.append(experiment.section(results, _finished(out, choice, "environment")))
            parts.append(_measured_on(results["environment"]))
    page = out / PAGE
    atomic_write(page, lambda file: file.write(("\n\n".join(parts) + "\n").encode()))
    return page


def _finished(out: Path, name: str, last_entry: str) -> dict[str, Any] | None:
    path = out / "results" / f"{name}.json"
    if not path.is_file():
        return None
    content = read(path)
    return content if last_entry in content else None


def _measured_on(environment: dict[str, Any]) -> str:
    return paragraph(
        f"Measured with torch {environment['torch']}, {environment['threads']} thread, "
        f"{environment['processor']}, operators: {environment['native_cpu']} "
        f"({environment['cpu_instruction_set']})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=noisy_sine.OUT)
    print(write(parser.parse_args().out))


if __name__ == "__main__":
    main()
