"""Response caches: the exact one, in the gateway and as a decorator."""
