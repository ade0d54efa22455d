"""A trained model in use: embeddings of sounds and words in Python, and stores of the embeddings of many sounds."""
