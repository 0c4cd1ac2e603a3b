"""Triton's kernels. What they are given, and in which shapes they run, is their callers' affair."""
