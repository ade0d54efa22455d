"""Floor 1: what lies on disk. Names, schemas, atomic writes, stores, fingerprints. Imports nothing of ours."""
