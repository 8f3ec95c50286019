"""The paper's experiments; each is a module to run."""
