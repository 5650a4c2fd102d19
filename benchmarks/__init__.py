"""Measurements of speed and memory; `python -m benchmarks` runs those that need no GPU."""
