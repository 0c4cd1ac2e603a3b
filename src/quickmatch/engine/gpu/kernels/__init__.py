"""Triton's kernels. What they are given, and in which shapes they run, is their callers' affair.

Callers ask for fused multiplications and additions by name: whether that is the default differs
from version to version of Triton, and roundings are not to change with it.
"""
