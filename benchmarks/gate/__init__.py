"""The parts of `benchmarks.quality_gate`: what is compared, runs, gradients, verdicts, pictures."""
