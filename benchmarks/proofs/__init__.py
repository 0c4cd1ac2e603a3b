"""Proofs that what the product writes is what others read."""
