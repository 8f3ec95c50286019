"""`python -m drocc_ext`, the same as `drocc-ext`."""

import sys

from drocc_ext.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
