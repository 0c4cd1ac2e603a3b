"""Speculation: drafts of the next tokens, chosen by what they are worth, verified by the target."""
