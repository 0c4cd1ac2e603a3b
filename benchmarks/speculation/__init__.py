"""Speculation: every arm of ours and every peer, on the same prompts, in one run."""
