"""Networks recognized as multilayer perceptrons: search and losses in few operators."""
