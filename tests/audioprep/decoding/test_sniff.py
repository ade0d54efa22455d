"""Sounds are known by their first bytes, texts and pictures are not taken for any."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2dprep.audioprep.decoding.sniff import begins_as_sound, holds_sound

FORMATS = ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3", "NIST", "VOC", "SVX"]
OTHERS = {
    "nothing": b"",
    "a text": b"MAC addresses of the recorders\n" * 200,
    "a text about tags": b"ID3 is a format of tags\n" * 200,
    "a script": b"#!/bin/sh\necho\n",
    "UTF-16": "\ufeffa text".encode("utf-16"),
    "zeros": bytes(4096),
    "0xff": b"\xff" * 4096,
    "a picture": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(4000),
    "WebP": b"RIFF\x00\x01\x00\x00WEBPVP8 " + bytes(4000),
    "HEIC": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00" + bytes(4000),
    "a zip": b"PK\x03\x04" + bytes(4000),
    ".npy": b"\x93NUMPY\x01\x00" + bytes(4000),
    "an IFF picture": b"FORM\x00\x00\x01\x00ILBM" + bytes(4000),
}


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind in soundfile.available_formats()])
def test_what_libsndfile_writes(kind: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip", np.sin(np.arange(16000) / 9), 16000, format=kind)
    assert holds_sound(str(tmp_path / "clip"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["mp4", "matroska", "webm", "adts", "mp2", "mp3", "mpegts", "mpeg", "avi", "flv", "asf", "wv", "tta", "caf", "mov"],
)
def test_what_ffmpeg_writes(kind: str, tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    soundfile.write(tmp_path / "clip.wav", np.sin(np.arange(48000) / 9), 48000)
    command = ["ffmpeg", "-v", "error", "-i", tmp_path / "clip.wav", "-f", kind, tmp_path / "clip"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this ffmpeg does not write it")
    assert holds_sound(str(tmp_path / "clip"))


@pytest.mark.parametrize("head", OTHERS.values(), ids=OTHERS)
def test_what_is_no_sound(head: bytes) -> None:
    assert not begins_as_sound(head[:4096])


def test_random_bytes_are_seldom_taken_for_a_sound() -> None:
    rng = np.random.default_rng(0)
    assert sum(begins_as_sound(rng.bytes(4096)) for _ in range(2000)) <= 4
