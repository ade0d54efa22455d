"""Tells by its first bytes whether a file holds sound; used for files whose names do not tell."""

from __future__ import annotations

import os

from m2dprep.audioprep.decoding.mp3 import walk_mp3

HEAD_BYTES = 4096
# Suffixes of files that hold no sound and are never opened: there may be one beside every sound.
OTHER_SUFFIXES = frozenset(
    """
    txt md rst pdf doc docx odt rtf tex html htm xml css log out err json jsonl ndjson yaml yml toml ini cfg conf csv
    tsv xls xlsx ods npy npz pkl pickle pt pth ckpt safetensors onnx h5 hdf5 mat parquet arrow feather tfrecord
    tfrecords db sqlite sqlite3 lmdb mdb lock idx index zip tar gz tgz bz2 xz zst 7z rar iso deb whl jar cab dmg exe jpg
    jpeg png gif bmp tif tiff webp heic svg ico eps ps psd py pyc ipynb sh c h cc cpp hpp rs go java js tsx m r jl lab
    textgrid eaf phn wrd ctm stm trs rttm jams svl srt vtt ass lrc mid midi musicxml mxl m3u m3u8 pls cue nfo sfk pek
    asd reapeaks sfv md5 sha1 sha256 sig asc torrent url lnk desktop part partial crdownload download aria2 ytdl tmp
    temp bak old swp swo orig rej pid license
    """.split()  # noqa: SIM905
)
# First bytes of sounds. `TEXT_BEGINNINGS` begin formats of text; some of the others could also begin a text file.
TEXT_BEGINNINGS = (b"NIST_1A\n", b"#!AMR")
BEGINNINGS = (
    *(
        b"fLaC",
        b"OggS",
        b"caff",
        b".snd",
        b"dns.",
        b"wvpk",
        b"MAC ",
        b"TTA1",
        b"TTA2",
        b"tBaK",
        b"ID3",
        b"MPCK",
        b"MP+",
    ),
    *(b"ajkg", b"OFR ", b"DSD ", b"FRM8", b"2BIT", b"Creative Voice File", b"\x7f\xfe\x80\x01", b"\xfe\x7f\x01\x80"),
    *(b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b".RMF", b".ra\xfd", b"FLV\x01", b"\x00\x00\x01\xba"),
    *(b"\x64\xa3\x01\x00", b"\x64\xa3\x02\x00", b"\x64\xa3\x03\x00", b"riff\x2e\x91\xcf\x11"),
)
RIFF_FAMILY = (b"RIFF", b"RIFX", b"RF64", b"BW64")
RIFF_KINDS, IFF_KINDS = (b"WAVE", b"AVI ", b"RMP3", b"QLCM"), (b"AIFF", b"AIFC", b"8SVX", b"16SV")
# MP4 and related formats have brands; these are the brands of still images.
IMAGE_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis", b"crx ", b"jpeg")
TRANSPORT_PACKET, ADTS_HEADER = 188, 7


def holds_sound(path: str) -> bool:
    """Whether a file begins like a sound or a video. Raises `OSError` if it cannot be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return begins_as_sound(os.read(descriptor, HEAD_BYTES))
    finally:
        os.close(descriptor)


def begins_as_sound(head: bytes) -> bool:
    """Whether ``head`` (4,096 bytes, or all that there are) begins a sound or a video in a known format."""
    if head.startswith(TEXT_BEGINNINGS):
        return True
    if not any(byte < 9 for byte in head[:64]):  # a text that begins "MAC addresses …"
        return False
    if head.startswith(BEGINNINGS) or _is_mp4(head) or _is_chunked(head):
        return True
    return _is_transport_stream(head) or _is_mpeg_audio(head) or _is_adts(head)


def _is_chunked(head: bytes) -> bool:
    return (head[:4] in RIFF_FAMILY and head[8:12] in RIFF_KINDS) or (head[:4] == b"FORM" and head[8:12] in IFF_KINDS)


def _is_mp4(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] not in IMAGE_BRANDS


def _is_transport_stream(head: bytes) -> bool:
    return head[::TRANSPORT_PACKET][:4] == b"GGGG"


def _is_mpeg_audio(head: bytes) -> bool:
    found = walk_mp3(head)
    return found is not None and found.start == 0 and found.frames > 0


def _is_adts(head: bytes) -> bool:
    """Whether ``head`` begins with an AAC header whose frame is followed by another AAC header."""
    first = _adts_length(head, 0)
    return first > ADTS_HEADER and _adts_length(head, first) > ADTS_HEADER


def _adts_length(head: bytes, at: int) -> int:
    header = head[at : at + ADTS_HEADER]
    if len(header) < ADTS_HEADER or header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
        return 0
    return (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
