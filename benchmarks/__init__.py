"""Speed and memory against the published formulation: `python -m benchmarks.lam`, `.training_step`."""
