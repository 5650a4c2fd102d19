"""Measurements of speed and memory; `python -m benchmarks` runs those that need no GPU."""

from common.devices import grow_memory_in_place

grow_memory_in_place()  # as the scripts do, and before a benchmark imports torch
