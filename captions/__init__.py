"""Floor 3: caption tables to one table to sentence embeddings."""
