"""Measurements of snnfast against its alternatives: ``python -m benchmarks --help``."""
