"""The protocols: pure functions from embeddings, labels and settings to a result."""
