"""Runs shards of work with local processes, a Dask cluster or SLURM jobs."""
