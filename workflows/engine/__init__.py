"""Shards through workers: processes here, a Dask cluster, or SLURM jobs."""
