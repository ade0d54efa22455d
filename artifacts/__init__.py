"""The files on disk: their names, schemas, atomic writes, stores and digests. Imports no other room."""
