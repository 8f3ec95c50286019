"""The paper's tables and figures.

    python -m benchmarks.paper TABLE [TABLE ...] --data-dir DIR [--seeds 5] [--out DIR] [--jobs 2]
                            [--device cuda]
    python -m benchmarks.paper all --data-dir DIR
    python -m benchmarks.paper page

TABLE is a table or figure of the paper (table2, figure5, ...) or the name of an experiment, which
holds several. Each cell (table, method, case, seed) is kept as it is done, so that a run that was
stopped continues; to measure again what is there, give an --out of its own. Results go to
`results/NAME.json` under --out, pictures beside them, and the page `RESULTS.md` is written anew
from all results that are there. --quick runs a small part of each with little training, to see that
everything works, and without --data-dir on made data; its numbers mean nothing. With --device cuda
the image networks train on a GPU and at full length; the results then need an --out of their own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.paper import made_data, results_page
from benchmarks.paper.cells import Cells
from benchmarks.paper.experiment import Experiment, Options
from benchmarks.paper.registry import EXPERIMENTS, find
from drocc_ext.demo.reporting import environment

OUT = Path("benchmarks/paper")
QUICK_OUT = Path("build/paper-quick")


def run(experiment: Experiment, options: Options, out: Path, jobs: int) -> Path:
    """Fill the cells that are missing, and draw.

    Args:
        experiment: What to run.
        options: Data, seeds, extent.
        out: Directory of `results`.
        jobs: Processes, one thread each.

    Returns:
        The file of results.

    Raises:
        ValueError: If data are missing or damaged, or the file is of other settings.
    """
    settings = {**experiment.settings(options), "quick": options.quick}
    path = out / "results" / f"{experiment.name}.json"
    cells = Cells(path, settings)
    work = experiment.cells(options)
    missing = [name for name in work if name not in cells.content["cells"]]
    cells.fill(work, jobs=jobs)
    seeds = sorted({*cells.content.get("seeds", []), *options.seeds})
    # What was measured before was measured elsewhere.
    measured_on = environment() if missing else cells.content.get("environment", environment())
    cells.save(seeds=seeds, environment=measured_on)
    if not missing:
        print(f"{path}: all {len(work)} cells were there, none was measured", file=sys.stderr)
    if experiment.draw is not None:
        pictures = experiment.draw(cells.content, path.parent, options)
        cells.save(pictures=[picture.name for picture in pictures])
    return path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("tables", nargs="+", metavar="TABLE", help="all, page, or names")
    parser.add_argument("--data-dir", type=Path, help="directory of the data files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help=f"default: {OUT}, with --quick {QUICK_OUT}")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of images")
    arguments = parser.parse_args()
    for name in ("seeds", "jobs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(arguments, name)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch sees, got none")
    out = arguments.out or (QUICK_OUT if arguments.quick else OUT)
    seeds = 1 if arguments.quick else arguments.seeds
    data_dir = arguments.data_dir
    if arguments.quick and data_dir is None:
        data_dir = made_data.make(out / "data")
    options = Options(data_dir, tuple(range(seeds)), arguments.quick, arguments.device)
    try:
        chosen: list[Experiment] = []
        for name in arguments.tables:
            if name != "page":
                found = list(EXPERIMENTS) if name == "all" else find(name)
                chosen += [experiment for experiment in found if experiment not in chosen]
        for experiment in chosen:
            run(experiment, options, out, arguments.jobs)
        print(results_page.write(out))
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped: finished cells are kept, and the same command continues", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
