"""Measurements: `python -m benchmarks` (or `make bench`) compares training speed with others."""
