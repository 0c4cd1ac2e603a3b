"""Weights in few bits: formats, the folders they are kept in, and what they cost in quality."""
