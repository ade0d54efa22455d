"""Reads captions and labels in the forms in which others publish them."""
