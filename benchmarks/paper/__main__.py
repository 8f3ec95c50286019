"""The paper's tables and figures.

    python -m benchmarks.paper TABLE [TABLE ...] --data-dir DIR [--seeds 5] [--out DIR] [--jobs 2]
                            [--device cuda]
    python -m benchmarks.paper all --data-dir DIR
    python -m benchmarks.paper page

TABLE is a table or figure of the paper (table2, figure5, ...) or the name of an experiment, which
holds several. Each cell (table, method, case, seed) is kept as it is done, so that a run that was
stopped continues; to measure again what is there, give an --out of its own. Results go to
`results/NAME.json` under --out, pictures beside them, and the pages `RESULTS.md` and
`LIMITED_NEGATIVES.md` are written anew from all results that are there. --quick runs a small part
of each with little training, to see that everything works, and without --data-dir on synthetic
data; its numbers mean nothing. With --device cuda the image networks train on a GPU and at full
length; the results then need an --out of their own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.paper import pages, registry, synthetic_data
from benchmarks.paper.experiment import Options
from benchmarks.paper.runner import run

OUT = Path("benchmarks/paper")
QUICK_OUT = Path("build/paper-quick")


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
    try:
        names = (name for name in arguments.tables if name != "page")
        chosen = list(dict.fromkeys(e for name in names for e in registry.find(name)))
        data_dir = arguments.data_dir
        if arguments.quick and data_dir is None:
            data_dir = synthetic_data.make(out / "data")
        options = Options(data_dir, tuple(range(seeds)), arguments.quick, arguments.device)
        for experiment in chosen:
            run(experiment, options, out, arguments.jobs)
        for page in pages.write(out, registry.EXPERIMENTS):
            print(page)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped: finished cells are kept, and the same command continues", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
