"""From the bytes of an audio file to samples, and the proof that none are missing."""
