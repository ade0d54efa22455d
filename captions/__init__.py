"""Floor 3: joins caption tables into one, and turns its captions into sentence embeddings."""
