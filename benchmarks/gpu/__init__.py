"""The engine on a GPU beside its ceilings and its peers: `python -m benchmarks.gpu`."""
