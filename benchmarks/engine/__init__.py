"""The engine's speed beside its peers, in every precision: `python -m benchmarks.engine`."""
