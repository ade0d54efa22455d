"""Sound files of every odd kind, made byte by byte or with libsndfile, for tests to convert."""

import io
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (48000, 8))


def coded(
    samples: np.ndarray = NOISE[:22050, :2],
    container: str = "WAV",
    subtype: str = "PCM_16",
    rate: int = 44100,
    **mode: object,
) -> bytes:
    """``samples`` (n, channels) as a file that libsndfile writes."""
    stream = io.BytesIO()
    with soundfile.SoundFile(
        stream, "w", rate, samples.shape[1], format=container, subtype=subtype, **mode
    ) as file:  # fmt: skip
        file.write(samples)
    return stream.getvalue()


def with_bytes(data: bytes, *patches: tuple[int, bytes]) -> bytes:
    """``data`` with other bytes at these offsets."""
    changed = bytearray(data)
    for offset, patch in patches:
        changed[offset : offset + len(patch)] = patch
    return bytes(changed)


def streamed_wav(size: int, data: bytes | None = None, riff: int | None = None) -> bytes:
    """A WAV file as a writer to a pipe leaves it: with ``size`` for that of its samples."""
    data = coded() if data is None else data
    outer = min(size + 36, 2**32 - 1) if riff is None else riff
    at = data.index(b"data") + 4
    return with_bytes(data, (4, struct.pack("<I", outer)), (at, struct.pack("<I", size)))


def streamed(container: str, size: int) -> bytes:
    """The same of another container, whose field for the size of the samples holds ``size``."""
    data = coded(container=container)
    if container == "AIFF":
        return with_bytes(data, (4, struct.pack(">I", size)), (data.index(b"SSND") + 4, struct.pack(">I", size)))
    if container == "AU":
        return with_bytes(data, (8, struct.pack("<I" if data[:4] == b"dns." else ">I", size)))
    if container == "CAF":
        return with_bytes(data, (data.index(b"data") + 4, struct.pack(">Q", size)))
    if container == "W64":
        return with_bytes(data, (data.index(b"data\xf3\xac") + 16, struct.pack("<Q", size)))
    return with_bytes(data, (data.index(b"ds64") + 16, struct.pack("<Q", size)))  # RF64


def with_second_data_chunk() -> bytes:
    data = coded()
    chunk = data[data.index(b"data") :]
    return with_bytes(data + chunk, (4, struct.pack("<I", len(data) + len(chunk) - 8)))


def flac(total: int | None = None, samples: np.ndarray = NOISE[:22050, :2]) -> bytes:
    """A FLAC file whose header states ``total`` samples, 0 for an unknown number."""
    data = coded(samples, "FLAC")
    if total is None:
        return data
    properties = int.from_bytes(data[18:26], "big") >> 36 << 36
    return with_bytes(data, (18, (properties | total).to_bytes(8, "big")))


def flac_frames(data: bytes) -> bytes:
    """The frames of a FLAC file, without its header."""
    return data[data.index(b"\xff\xf8", 42) :]


def mp3(rate: int = 44100, channels: int = 2, samples: int = 22050) -> bytes:
    """An MP3 file of constant bit rate, behind a frame that states the number of the others."""
    return coded(
        NOISE[:samples, :channels], "MP3", "MPEG_LAYER_III", rate, bitrate_mode="CONSTANT", compression_level=0.5
    )


def mp3_frames(data: bytes) -> list[bytes]:
    """The frames of an MP3 file of 128 to 320 kbit/s, the first of which states the number of the others."""
    frames, position = [], 0
    while position + 4 <= len(data):
        length = _frame_length(data[position : position + 4])
        frames.append(data[position : position + length])
        position += length
    return frames


def _frame_length(header: bytes) -> int:
    """Of a frame of MPEG-1 layer III."""
    kbits = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)[header[2] >> 4]
    rate = (44100, 48000, 32000)[header[2] >> 2 & 3]
    return 144000 * kbits // rate + (header[2] >> 1 & 1)


def free_bit_rate(frames: Sequence[bytes]) -> bytes:
    """The same frames, with headers that leave the bit rate open; all must be of one length."""
    return b"".join(with_bytes(frame, (2, bytes([frame[2] & 0x0F]))) for frame in frames)


def mp3_in_wav(data: bytes | None = None) -> bytes:
    data = mp3(48000) if data is None else data
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 2, 48000, 16000, 1, 0, 12, 1, 2, 384, 1, 1393)
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def ogg_crc(page: bytes) -> int:
    """CRC-32 as Ogg has it, bit by bit."""
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        value &= 0xFFFFFFFF
    return value


def ogg_without_end(subtype: str, complete: bool = True) -> bytes:
    """An Ogg file whose last page is not marked as the end; or one whose last packet goes on where the file ends."""
    data = coded(NOISE[:24000, :1], "OGG", subtype, 48000)
    start = data.rindex(b"OggS\0")
    page = bytearray(data[start:])
    page[5] &= ~4
    if not complete:
        last = 26 + page[26]
        page += bytes(255 - page[last])
        page[last] = 255
    page[22:26] = bytes(4)
    page[22:26] = ogg_crc(bytes(page)).to_bytes(4, "little")
    return data[:start] + bytes(page)


def id3(*, picture: bytes = b"") -> bytes:
    """An ID3v2.3 tag, with a cover picture."""
    body = b"\0image/jpeg\0\3cover\0" + picture
    frame = b"APIC" + struct.pack(">IH", len(body), 0) + body
    size = len(frame)
    return b"ID3\3\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + frame


AMR = b"#!AMR\n" + (b"\x3c" + bytes(31)) * 50  # a second, 12.2 kbit/s
# Frames of silence: MPEG-1 layer II, 192 kbit/s, 48 kHz, stereo.
LAYER_TWO = (b"\xff\xfd\xa4\x00" + bytes(572)) * 50


def sphere(samples: int = 16000, *, coding: str = "pcm") -> bytes:
    """A NIST SPHERE file, as TIMIT has them."""
    fields = f"sample_count -i {samples}\nsample_rate -i 16000\nchannel_count -i 1\nsample_n_bytes -i 2\n"
    fields += f"sample_byte_format -s2 01\nsample_sig_bits -i 16\nsample_coding -s{len(coding)} {coding}\nend_head\n"
    data = coded(NOISE[:samples, :1])[44:]
    return ("NIST_1A\n   1024\n" + fields).encode().ljust(1024) + data


NOISE_48K = NOISE[:48000, :2]


def by_ffmpeg(folder: Path, suffix: str, *options: str, samples: np.ndarray = NOISE_48K) -> bytes:
    """``samples`` at 48 kHz through ffmpeg to a file of this suffix."""
    if samples is NOISE_48K and folder.as_posix() not in " ".join(map(str, options)):
        return _noise_by_ffmpeg(suffix, options)
    return _by_ffmpeg(folder, suffix, options, samples)


@lru_cache
def _noise_by_ffmpeg(suffix: str, options: tuple[str, ...]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return _by_ffmpeg(Path(folder), suffix, options, NOISE_48K)


def _by_ffmpeg(folder: Path, suffix: str, options: tuple[str, ...], samples: np.ndarray) -> bytes:
    soundfile.write(folder / "pcm.wav", samples, 48000)
    path = folder / f"made.{suffix}"
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", folder / "pcm.wav", *options, path], check=True)
    (folder / "pcm.wav").unlink()
    data = path.read_bytes()
    path.unlink()
    return data
