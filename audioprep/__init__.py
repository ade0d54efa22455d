"""From audio files to log-mel arrays, packs and normalisation statistics."""
