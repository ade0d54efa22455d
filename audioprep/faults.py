"""What is known of one source, and what can be wrong with it: the short codes of failure rows, and their error."""

from __future__ import annotations

from dataclasses import dataclass

REASONS = {
    "not_found": "there is no such file (any more)",
    "permission": "no permission to read the file",
    "is_directory": "a folder with the name of an audio file",
    "broken_link": "a symbolic link that leads nowhere or in a circle",
    "not_a_file": "a pipe, socket or device with the name of an audio file",
    "empty_file": "the file has 0 bytes",
    "truncated": "the file ends before what its header or its frames promise, or was never finished by its writer",
    "no_samples": "a whole audio file that holds no samples",
    "not_audio": "the content is of no format that can be read, whatever the name says",
    "malformed": "the content begins like a known format and then breaks its rules",
    "unsupported": "an audio file of a kind that cannot be read safely, or several sounds in one file",
    "nonfinite": "samples that are NaN or infinite, or too large for a spectrum",
    "too_long": "longer than --max-seconds, or than the memory of a GPU holds",
    "bad_rate": "a sample rate outside 4 to 192 kHz, or one that --device cuda cannot resample",
    "too_many_channels": "more than 8 channels",
    "io_error": "the system could not read the file",
    "transient": "an error of the machine, several times in a row, not of the file; the next run tries it again",
    "read_timeout": "it could not be read within --read-timeout; the next run tries it again",
    "unreadable_folder": "a folder that could not be listed, so that its files are unknown",
    "bad_name": "a name that is no UTF-8 text, or that is too long for its output",
    "name_conflict": "another source, or the bookkeeping, already has the output's name",
    "worker_died": "the process that converted it was killed, again and again",
    "internal_error": "an error that nobody foresaw; please report it with the message",
}

# These say nothing about the source: the next run takes them up by itself.
TRANSIENT = ("transient", "read_timeout")


@dataclass
class AudioInfo:
    """What is known of a source: rate in Hz, length in seconds, ``peak`` the largest magnitude of its mono mix.

    ``decoder``: what decoded it, with its version. ``clipped``: a channel stays at full scale for some samples in a
    row (`audioprep.mixing`).
    """

    source_bytes: int | None = None
    source_mtime_ns: int | None = None
    source_digest: str | None = None
    sample_rate: int | None = None
    channels: int | None = None
    seconds: float | None = None
    peak: float | None = None
    clipped: bool | None = None
    decoder: str | None = None


class DecodeError(Exception):
    """One source cannot be converted. ``reason`` is a key of `REASONS`, ``message`` one line that says what was found.

    ``info`` is what was known of the source by then.
    """

    def __init__(self, reason: str, message: str, info: AudioInfo | None = None) -> None:
        if reason not in REASONS:
            raise ValueError(f"{reason!r} is not one of the reasons {', '.join(REASONS)}")
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = one_line(message)
        self.info = info


class CannotOpenError(DecodeError):
    """Nobody has opened the source yet: another decoder may. What was opened and found damaged is a `DecodeError`.

    ``seconds`` is how long the sound is, where that is known; a decoder that finds less has not read all of it.
    """

    def __init__(self, reason: str, message: str, seconds: float | None = None) -> None:
        super().__init__(reason, message)
        self.seconds = seconds


def one_line(text: str) -> str:
    """``text`` with every run of white space as one space and what is no Unicode escaped: fit for a table's cell."""
    return " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
