"""Floor 4: work lists, shards, Dask, the demo and the check of a data directory."""
