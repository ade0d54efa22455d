"""Proof that what lies in a data directory fits together."""
