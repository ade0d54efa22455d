"""Archives as folders: lists the members of tar, zip and Parquet files, and reads a member without unpacking it."""
