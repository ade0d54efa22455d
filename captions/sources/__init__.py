"""Captions and labels as others publish them."""
