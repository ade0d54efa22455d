"""Search: the rows of stores of audio embeddings that are nearest to a text, a sound, or another row."""
