"""Floor 2: what lies on disk. Names, schemas, atomic writes, stores, digests. Imports nothing of ours."""
