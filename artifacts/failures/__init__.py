"""What failed and why, whatever command made the rows: read from disk, and shown."""
