"""Sounds on servers: folders and files behind addresses that fsspec knows, read by ranges, never copied to disk."""
