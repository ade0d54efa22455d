"""Encodes captions into a row-aligned store of sentence embeddings."""
