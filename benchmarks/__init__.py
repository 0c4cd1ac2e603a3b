"""Benchmarks: one harness, peers beside us in the same run, results as JSON with provenance."""
