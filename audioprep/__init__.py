"""Floor 3: wav files to log-mel arrays to normalisation statistics."""
