"""Caption embeddings on disk: our stores, and the original's dictionaries."""
