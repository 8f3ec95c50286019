"""`python -m drocc_ext.demo [--out DIR]`, the same as `drocc-ext demo`."""

from __future__ import annotations

import sys

from drocc_ext.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
