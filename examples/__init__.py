"""Applications built on top of Quickmatch."""
