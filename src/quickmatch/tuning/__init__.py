"""Datasets, training jobs and evaluation."""
