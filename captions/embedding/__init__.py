"""From captions to an aligned store of sentence embeddings."""
