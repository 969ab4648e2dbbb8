"""Measured speed and memory; run from a checkout, `python -m benchmarks.bench_step`."""
