"""Explaining credit card ratings: a small model learns it from a teacher, then takes over."""
