"""Whether a file is the one that was converted: a digest of some of its bytes, cheap beside decoding it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

# Spread evenly over the file, the first and the last bytes among them.
BLOCKS, BLOCK_BYTES = 8, 2048
DIGEST_BYTES = 8


def sampled_digest(descriptor: int, size: int) -> str:
    """A digest of the length and of 8 blocks of 2 KiB of an open file of ``size`` bytes; of all of a small one.

    Different recordings have different ones. It proves nothing about a byte in between.
    """
    digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=DIGEST_BYTES)
    if size <= BLOCKS * BLOCK_BYTES:
        digest.update(os.pread(descriptor, size, 0))
    else:
        for number in range(BLOCKS):
            digest.update(os.pread(descriptor, BLOCK_BYTES, number * (size - BLOCK_BYTES) // (BLOCKS - 1)))
    return digest.hexdigest()


def digest_of(path: Path) -> str:
    """`sampled_digest` of the file ``path``. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return sampled_digest(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)
