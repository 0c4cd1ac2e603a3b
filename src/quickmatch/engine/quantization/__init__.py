"""Weights in few bits: their formats, the folders they are kept in, and what they cost in quality."""
