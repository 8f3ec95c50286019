"""The command `drocc-ext`."""
