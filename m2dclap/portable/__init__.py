"""An encoder as one Python file that needs only torch: the file is put together from our own modules."""
