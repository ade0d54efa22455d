"""Models that listen to recordings by windows, and what they heard, which is kept."""
