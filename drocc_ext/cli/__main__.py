"""`python -m drocc_ext.cli`."""

import sys

from drocc_ext.cli.main import main

sys.exit(main())
