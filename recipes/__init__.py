"""Recipes: how the files that the package ships were made."""
