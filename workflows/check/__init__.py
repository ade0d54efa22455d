"""Checks that the files of a data directory are sound and belong together."""
