"""A few clips to look at and to hear: thumbnails of their log-mels, drawn by librosa, and players that hold the sound.

What a page holds of a clip is small: a picture of some ten kilobytes, and at most ten seconds of sound as MP3.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.pages.markup import Markup, tag
from m2dprep.artifacts.pages.sounds import data_uri, player_of
from m2dprep.artifacts.reading import MISSING
from m2dprep.audioprep.config import ConvertConfig, LogMelConfig
from m2dprep.audioprep.decode import decode
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.audioprep.discover import named_sources
from m2dprep.audioprep.logmel import LogMel
from m2dprep.evaluation.tagging.stamps import how_changed, stamp_of_source

SECONDS = 10.0
# All sounds of a page together.
ALL_SOUND_BYTES = 8_000_000
# Columns of a thumbnail; a longer log-mel is averaged.
COLUMNS, MOST_COLUMNS = 320, 480
PICTURE_INCHES, PICTURE_DPI = (3.2, 1.28), 100
DECIBELS_PER_NATURAL = 10 / np.log(10)
FADE_SECONDS = 0.05


@dataclass(frozen=True)
class Card:
    """A clip as it is shown: its name, lines of text, its log-mel (F, T), and its sound (content, media type)."""

    name: str
    lines: Sequence[str] = ()
    log_mel: np.ndarray | None = None
    sound: tuple[bytes, str] | None = None


def cards(shown: Sequence[Card], front_end: LogMelConfig) -> Markup:
    """The clips side by side; nothing if there are none."""
    if not shown:
        return Markup("")
    left, figures = ALL_SOUND_BYTES, []
    for card in shown:
        parts = []
        if card.log_mel is not None:
            picture = thumbnail(card.log_mel, front_end)
            parts.append(tag("img", src=data_uri(picture, "image/jpeg"), alt=f"log-mel of {card.name}"))
        player = Markup("")
        if card.sound is not None and len(card.sound[0]) <= left:
            left -= len(card.sound[0])
            player = player_of(*card.sound)
        lines = [tag("p", line) for line in card.lines]
        parts.append(tag("figcaption", player, tag("p", tag("b", card.name)), *lines))
        figures.append(tag("figure", *parts))
    return tag("div", *figures, class_="clips")


def require_drawing() -> Any:
    """librosa.display. Raises `UserError` if it or matplotlib is not installed."""
    try:
        import matplotlib
        from librosa import display
    except ImportError as error:
        raise UserError("reports need matplotlib and librosa: pip install 'm2dprep[viz]'.") from error
    matplotlib.use("Agg")
    return display


def thumbnail(log_mel: np.ndarray, front_end: LogMelConfig) -> bytes:
    """A log-mel (F, T) as a small JPEG without axes: time from left to right, mel bins from below."""
    display = require_drawing()
    from matplotlib.figure import Figure

    step = -(-log_mel.shape[1] // MOST_COLUMNS)
    kept = log_mel.shape[1] // step * step
    averaged = log_mel[:, :kept].astype(np.float32).reshape(len(log_mel), -1, step).mean(axis=2)
    loud = averaged * DECIBELS_PER_NATURAL
    top = float(loud.max())
    figure = Figure(figsize=PICTURE_INCHES, dpi=PICTURE_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    display.specshow(
        loud, sr=front_end.sample_rate, hop_length=front_end.hop_length * step, fmin=front_end.f_min,
        fmax=front_end.f_max, y_axis="mel", ax=axes, cmap="magma", vmin=max(top - 80, float(loud.min())), vmax=top,
    )  # fmt: skip
    axes.set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, format="jpg", pil_kwargs={"quality": 82})
    return file.getvalue()


class Sounds:
    """Sounds by the names in the records, below the folders that they were converted from."""

    def __init__(self, roots: Sequence[Path], front_end: LogMelConfig) -> None:
        self._roots = [root for root in roots if root.exists()]
        self._config = ConvertConfig(front_end, min_seconds=0.0)

    def __bool__(self) -> bool:
        return bool(self._roots)

    def __getitem__(self, name: str) -> tuple[bytes, str] | None:
        """The beginning of a sound, mono at the rate that the model hears, as MP3; None if it cannot be read."""
        waveform = self._waveform(name)
        return None if waveform is None else encoded(waveform, self._config.log_mel.sample_rate)

    def with_log_mel(self, name: str, start: float = 0.0) -> tuple[np.ndarray, tuple[bytes, str]] | None:
        """The log-mel (F, T) of a sound from the second ``start`` on, and that as MP3; None if it cannot be read."""
        waveform, rate = self._waveform(name), self._config.log_mel.sample_rate
        cut = None if waveform is None else waveform[round(start * rate) :][: round(SECONDS * rate)]
        return None if cut is None or not len(cut) else (LogMel(self._config.log_mel)(cut)[0], encoded(cut, rate))

    def change(self, name: str, then: str) -> str:
        """How a sound differs from what it was when its stamp was ``then``; empty if it does not, or is not found."""
        for root in self._roots:
            with suppress(UserError, OSError, ValueError):
                (source,) = named_sources(root, [name])
                now = MISSING if source.reason else stamp_of_source(source)[0]
                if now != MISSING:
                    return how_changed("The sound", then, now)
        return ""

    def _waveform(self, name: str) -> np.ndarray | None:
        for root in self._roots:
            try:
                (source,) = named_sources(root, [name])
                if not source.reason:
                    waveform, _ = decode(source.input(), self._config)
                    return waveform if len(waveform) else None
            except (DecodeError, UserError, OSError, ValueError):
                continue
        return None


def encoded(waveform: np.ndarray, sample_rate: int) -> tuple[bytes, str]:
    """At most ten seconds of a waveform as MP3; as 16-bit WAV where libsndfile cannot write that or at that rate."""
    import soundfile

    cut = waveform[: round(SECONDS * sample_rate)].copy()
    if len(cut) < len(waveform):
        fade = min(len(cut), round(FADE_SECONDS * sample_rate))
        cut[len(cut) - fade :] *= np.linspace(1, 0, fade, dtype=cut.dtype)
    file = io.BytesIO()
    try:
        soundfile.write(file, cut, sample_rate, format="MP3")
        return file.getvalue(), "audio/mpeg"
    except (soundfile.LibsndfileError, ValueError):
        file = io.BytesIO()
        soundfile.write(file, cut, sample_rate, format="WAV", subtype="PCM_16")
        return file.getvalue(), "audio/wav"
