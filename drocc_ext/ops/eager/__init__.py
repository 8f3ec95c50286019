"""Eager PyTorch: the ground truth of every operator, and the fallback on any device."""
