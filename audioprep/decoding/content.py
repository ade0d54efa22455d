"""The bytes of an open file: read at any place, searched, passed on with a corrected header, recognised, and digested.

Formats are recognised by their first bytes alone; names and suffixes say nothing. The table `READ` lists every format
that libsndfile may read, with the check of the file's end: without one, half a sound could be lost silently, so formats
that are not listed are not read. A digest of sampled bytes, cheap compared with decoding, tells whether a file is the
one that was converted.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping

from m2dprep.artifacts.reading import progress

# Bytes that a search reads at once, so that an hour of sound needs no more memory than ten seconds.
BLOCK_BYTES = 1 << 18
# Enough for all chunks before the samples of most files, and one page of the page cache.
HEAD_BYTES = 4096


class Content:
    """The bytes of an open file, or of a part of it: ``size`` is their number, ``head`` the first of them.

    The part begins at ``start`` of the file. ``descriptor`` is closed by `close`.
    """

    def __init__(self, descriptor: int, start: int = 0, size: int | None = None) -> None:
        self.descriptor, self.start = descriptor, start
        self.size = os.fstat(descriptor).st_size if size is None else size
        self._is_whole = size is None
        self._copy: int | None = None
        self._others: list[int] = []
        self.head = os.pread(descriptor, min(HEAD_BYTES, self.size), start)

    def at(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes from ``offset`` on; fewer only at the end."""
        if offset + length <= len(self.head):
            return self.head[offset : offset + length]
        wanted = max(0, min(length, self.size - offset))
        progress()
        data = os.pread(self.descriptor, wanted, self.start + offset)
        while 0 < len(data) < wanted:
            more = os.pread(self.descriptor, wanted - len(data), self.start + offset + len(data))
            if not more:
                break
            data += more
        return data

    def file(self) -> int:
        """The descriptor of a file that holds these bytes alone: the open file, or a copy of the part in memory."""
        if self._is_whole:
            return self.descriptor
        if self._copy is None:
            copy = in_memory(self.at(start, BLOCK_BYTES) for start in range(0, self.size, BLOCK_BYTES))
            self._copy = copy
            self._others.append(copy)
        return self._copy

    def instead(self, data: bytes) -> int:
        """The descriptor of a file in memory that holds ``data``; it is closed together with these bytes."""
        descriptor = in_memory([data])
        self._others.append(descriptor)
        return descriptor

    def close(self) -> None:
        for descriptor in (self.descriptor, *self._others):
            os.close(descriptor)
        self._others.clear()
        self._copy = None

    def positions(self, wanted: bytes, start: int = 0) -> Iterator[int]:
        """Every offset from ``start`` on at which the bytes ``wanted`` occur."""
        pattern = re.compile(re.escape(wanted))
        while start < self.size:
            block = self.at(start, min(BLOCK_BYTES, self.size - start))
            for found in pattern.finditer(block):
                yield start + found.start()
            if start + len(block) >= self.size or len(block) < len(wanted):
                return
            start += len(block) - len(wanted) + 1


def in_memory(blocks: Iterable[bytes]) -> int:
    """The descriptor of an unnamed file in memory that holds ``blocks``; it is read from its beginning."""
    descriptor = os.memfd_create("m2dprep", os.MFD_CLOEXEC)
    try:
        for block in blocks:
            view = memoryview(block)
            while view:
                view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class Stretch(io.RawIOBase):
    """A readable file of the bytes from ``start`` to the end of ``content``, some of them replaced.

    ``patches`` maps offsets in ``content`` to the bytes that replace those there.
    """

    def __init__(self, content: Content, start: int = 0, patches: Mapping[int, bytes] | None = None) -> None:
        self._content, self._start, self._patches = content, start, dict(patches or {})
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._position, self._content.size - self._start)[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        begin = self._start + self._position
        data = bytearray(self._content.at(begin, len(view)))
        for offset, patch in self._patches.items():
            first, last = max(offset, begin), min(offset + len(patch), begin + len(data))
            if first < last:
                data[first - begin : last - begin] = patch[first - offset : last - offset]
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


# Formats by libsndfile's names, and the evidence that a file of that format is whole.
READ = {
    "WAV": "the sizes of its chunks",
    "WAVEX": "the sizes of its chunks",
    "RF64": "the sizes of its chunks",
    "W64": "the sizes of its chunks",
    "AIFF": "the sizes of its chunks",
    "SVX": "the sizes of its chunks",
    "CAF": "the sizes of its chunks",
    "AU": "the size in its header",
    "NIST": "the number of samples in its header",
    "FLAC": "the number of samples in its header, the numbers of its frames",
    "OGG": "the checksums, numbers and packets of its pages",
    "MP3": "its frames, counted one by one",
}
# Formats that libsndfile could open, but whose end nobody checks.
REFUSED = {
    "AVR": "Audio Visual Research",
    "HTK": "HMM Tool Kit",
    "IRCAM": "Berkeley/IRCAM/CARL",
    "MAT4": "MATLAB 4 or GNU Octave 2.0",
    "MAT5": "MATLAB 5 or GNU Octave 2.1",
    "MPC2K": "Akai MPC 2000",
    "PAF": "Ensoniq PARIS",
    "PVF": "Portable Voice Format",
    "RAW": "headerless samples",
    "SD2": "Sound Designer II",
    "SDS": "MIDI Sample Dump Standard",
    "VOC": "Creative Voice",
    "WVE": "Psion Series 3",
    "XI": "FastTracker 2",
}

# Bytes at the beginning of files that libsndfile may read (see `READ`), as patterns.
OWN = {
    "WAV": rb"(RIFF|RIFX)....WAVE",
    "RF64": rb"(RF64|BW64)....WAVE",
    "W64": rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0",
    "AIFF": rb"FORM....AIF[FC]",
    "SVX": rb"FORM....(8SVX|16SV)",
    "CAF": rb"caff\0[\0-\x7f]\0[\0-\x7f]",
    "AU": rb"\.snd\0...|dns\....\0",
    "NIST": rb"NIST_1A[\r\n]",
    "FLAC": rb"fLaC[\0\x80]\0\0\x22",
    "OGG": rb"OggS\0",
}
# First bytes of formats that only ffmpeg reads.
FOREIGN = {
    "MP4": rb"\0...(ftyp|moov|wide|free|skip)|....mdat",
    "WebM/Matroska": rb"\x1a\x45\xdf\xa3",
    "WMA/ASF": rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    "AAC": rb"\xff[\xf0\xf1\xf8\xf9]",
    "AAC (LATM)": rb"\x56[\xe0-\xff]",
    "MPEG layer I": rb"\xff(\xfe(?!.\0.\0)|[\xff\xf7\xf6])[\x10-\xef]",
    "AMR": rb"#!AMR",
    "WavPack": rb"wvpk",
    "True Audio": rb"TTA1",
    "Monkey's Audio": rb"MAC [\0-\xff]{2}",
    "Musepack": rb"MPCK|MP\+",
    "DSF": rb"DSD ",
    "AVI": rb"RIFF....AVI ",
    "Flash video": rb"FLV\x01",
    "MPEG program stream": rb"\0\0\x01\xba",
    "MPEG transport stream": rb"\x47.{187}\x47",
    "RealMedia": rb"\.RMF|\.ra\xfd",
    "AC-3": rb"\x0b\x77",
    "DTS": rb"\x7f\xfe\x80\x01",
    "TrueHD": rb"....\xf8\x72\x6f[\xba\xbb]",
}
# First bytes of formats in `REFUSED`.
UNCHECKED = {
    "AVR": rb"2BIT",
    "IRCAM": rb"\x64\xa3[\x01-\x04]\0|\0[\x01-\x04]\xa3\x64",
    "MAT4": rb"(\0\0\x03\xe8|\0\0\0\0)\0\0\0\x01\0\0\0\x01\0\0\0\0",
    "MAT5": rb"MATLAB 5\.0 MAT-file",
    "PAF": rb" paf|fap ",
    "PVF": rb"PVF1\n",
    "SDS": rb"\xf0\x7e.\x01",
    "VOC": rb"Creative Voice File\x1a",
    "WVE": rb"ALawSoundFile\*\*",
    "XI": rb"Extended Instrument: ",
}
COMPILED = {name: re.compile(pattern, re.DOTALL) for name, pattern in {**OWN, **FOREIGN, **UNCHECKED}.items()}
# Bytes that no text holds. A file of text is not a sound, whatever a program might make of it.
NOT_IN_TEXT = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")


def format_of(head: bytes) -> str | None:
    """The name of the format of a file's first bytes (in `READ`, `FOREIGN` or `REFUSED`); None for other bytes.

    MP3 is not recognised here, because its frames have to be walked (`audioprep.decoding.mp3`).
    """
    for name, pattern in COMPILED.items():
        if pattern.match(head):
            return name
    return None


def is_plainly_no_sound(head: bytes) -> bool:
    """Whether a file with this beginning is text or only zeros, so that no decoder need try it."""
    return not head.strip(b"\0") or not NOT_IN_TEXT.search(head)


def id3_bytes(content: Content) -> int:
    """The length in bytes of the ID3v2 tags at the start of a file; the bytes after them decide its format."""
    position = 0
    while (header := content.at(position, 10))[:3] == b"ID3" and len(header) == 10:
        size = sum((byte & 0x7F) << shift for byte, shift in zip(header[6:], (21, 14, 7, 0), strict=True))
        position += 10 + size + (10 if header[5] & 0x10 else 0)
    return position


# Blocks are spread evenly over the file, including its first and last bytes.
BLOCKS, IDENTITY_BLOCK_BYTES = 8, 2048
DIGEST_BYTES = 8


def sampled_digest(content: Content) -> str:
    """A digest of the length and of 8 blocks of 2 KiB of a file; of all bytes of a small one.

    Different recordings have different digests, but the digest proves nothing about the bytes between the blocks.
    """
    size = content.size
    digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=DIGEST_BYTES)
    if size <= BLOCKS * IDENTITY_BLOCK_BYTES:
        digest.update(content.at(0, size))
    else:
        for number in range(BLOCKS):
            digest.update(content.at(number * (size - IDENTITY_BLOCK_BYTES) // (BLOCKS - 1), IDENTITY_BLOCK_BYTES))
    return digest.hexdigest()
