"""Benchmarks; each is a module to run and a pytest-benchmark file."""
