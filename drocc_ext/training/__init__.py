"""Training: the objective, a step, epochs with selection, checkpoints and callbacks."""
