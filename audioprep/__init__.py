"""Floor 2: wav files to log-mel arrays to normalisation statistics."""
