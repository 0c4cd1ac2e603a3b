"""Requests, completions, sampling parameters, errors, settings: what every package speaks of."""
