"""One file a contender. Each runs as a process of its own, often in an environment of its own."""
