"""Clip ids: which clip the name of a file or a row means."""
