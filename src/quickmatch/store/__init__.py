"""Documents of everything that settles: traces, cache entries, datasets, jobs, models."""
