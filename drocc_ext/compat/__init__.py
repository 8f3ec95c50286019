"""Stand-ins with the signatures of other packages: `compat.edgeml`, the authors' trainers."""
