"""Log-mel arrays on disk: single files, packs, and the records of their conversion."""
