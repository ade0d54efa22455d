"""Several stages in one file, run in order, and again where something has changed."""
