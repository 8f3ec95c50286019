"""Networks, what the package does with anyone's module, and models on disk."""
