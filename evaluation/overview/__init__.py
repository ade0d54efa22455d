"""What lies in a data directory or a store, in figures, charts and a few sounds, for a page that people read."""
