"""Measurements of single parts, for whoever tunes them; the product's figures come from above."""
