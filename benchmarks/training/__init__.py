"""Training end to end: the published trainers against ours, on the same configurations."""
