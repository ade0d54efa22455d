"""Floor 2: caption tables to one table to sentence embeddings."""
