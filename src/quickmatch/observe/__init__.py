"""Metrics and traces: what an operator sees. Depends on core and store alone."""
