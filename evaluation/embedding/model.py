"""A trained model in three lines of Python: `load` it, and embed, compare and tag sounds and words.

>>> model = m2dprep.load("runs/base")  # doctest: +SKIP
>>> sounds = model.encode_audio(["dog.wav", "rain.flac"])  # doctest: +SKIP
>>> model.similarity(sounds, ["a dog barks", "it rains"])  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from m2dprep.artifacts.errors import Failure, UserError
from m2dprep.audioprep.config import ConvertConfig
from m2dprep.audioprep.convert import front_end
from m2dprep.evaluation.embedding.arrays import as_array, waveform_of
from m2dprep.evaluation.embedding.rows import FLAT, STACKED, require_captions_head, unit_rows
from m2dprep.evaluation.embedding.sources import open_checkpoint
from m2dprep.evaluation.encoders import CLAP, CheckpointEncoder
from m2dprep.evaluation.reading import MAX_SECONDS, ClipLoader, Crop
from m2dprep.evaluation.tagging.opening import reading_threads
from m2dprep.m2dclap.fusion.kinds import INTERPOLATED

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["clap", "stacked", "flat"]
KINDS: tuple[Kind, ...] = ("clap", "stacked", "flat")
# Sounds that are read together, while those before them are encoded.
SOUNDS_AT_ONCE = 64
# A batch is (sounds, samples), which two channels are not.
MOST_CHANNELS_ALONE = 2


def load(
    name_or_path: str | Path,
    *,
    device: str = "auto",
    batch_size: int = 32,
    text_model: str | None = None,
    trust_remote_code: bool = False,
    length: str | None = None,
    positions: str = INTERPOLATED,
) -> Model:
    """The model in a run folder, a checkpoint of any layout, a released zip, or a repository of the Hugging Face hub.

    ``device`` is auto, cpu or cuda. ``text_model`` is a folder or a name on the hub, by default the text encoder of the
    training; it is loaded when words are first encoded. ``length`` says how sounds longer than the model's input are
    encoded: ``chunks`` that are averaged, ``whole`` (with ``positions`` interpolated or chunked), or ``fused``, as is
    the default of a checkpoint with fusion. Raises `UserError` if there is no such model.
    """
    encoder = CheckpointEncoder(
        open_checkpoint(name_or_path),
        device=device,
        batch_size=batch_size,
        text_model=text_model,
        trust_remote_code=trust_remote_code,
        length=length,
        positions=positions,
    )
    return Model(encoder)


class Model:
    """A trained model. What it returns are NumPy arrays of float32, one row per sound or text."""

    def __init__(self, encoder: CheckpointEncoder) -> None:
        self.encoder, self.checkpoint = encoder, encoder.checkpoint
        self._config = ConvertConfig(self.checkpoint.front_end, min_seconds=0.0, max_seconds=MAX_SECONDS)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {size:,}" for name, size in self.sizes.items())
        return f"<m2dprep model {self.checkpoint.path}: {sizes}; {self.sample_rate:,} Hz>"

    @property
    def sample_rate(self) -> int:
        """The rate in Hz that sounds are resampled to."""
        return self.checkpoint.front_end.sample_rate

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The number of values of each kind of embedding that the model makes: clap (unless it has no head for
        captions), stacked and flat."""
        parts = self.encoder.parts
        own = {CLAP: parts[CLAP]} if CLAP in parts else {}
        return {**own, STACKED: parts[STACKED], FLAT: self.checkpoint.config.embed_dim}

    def encode_audio(self, sounds: Any, sample_rate: int | None = None, *, kind: Kind = "clap") -> np.ndarray:
        """Sounds → (N, D): ``clap`` embeddings of length 1, comparable with `encode_text`, or conventional ones.

        ``sounds`` is a path or an array, or a sequence of them. Files are of any format that `m2dprep melspec` reads,
        or log-mels (``.npy``). An array has the shape (samples,), (samples, channels) or (channels, samples), float
        from -1 to 1, int16, int32 or uint8, and needs ``sample_rate`` in Hz; channels are averaged, and any rate is
        resampled. ``stacked`` is the original's feature, the latents of a column of patches averaged over time,
        and ``flat`` the average over all patches.

        Raises `UserError`, naming the sound, if one cannot be read or is no sound.
        """
        if kind not in KINDS:
            raise UserError(f"kind {kind!r} is none of {', '.join(KINDS)}.")
        if kind == CLAP:
            require_captions_head(self.checkpoint)
        parts = self._log_mels(_listed(sounds), sample_rate)
        rows = [self.encode_log_mels(log_mels, kind=kind) for log_mels in parts]
        return np.concatenate([np.zeros((0, self.sizes[kind]), np.float32), *rows])

    def encode_log_mels(self, log_mels: Sequence[np.ndarray], *, kind: Kind = "clap") -> np.ndarray:
        """Log-mels (1, n_mels, frames) of any length, not normalised, as this model's front end makes them → (N, D).

        Raises `UserError` if one has another shape.
        """
        bins = self.checkpoint.front_end.n_mels
        checked = []
        for place, log_mel in enumerate(log_mels):
            values = np.asarray(as_array(log_mel), np.float32)
            values = values[None] if values.ndim == 2 else values
            if values.ndim != 3 or values.shape[:2] != (1, bins) or values.shape[2] == 0:
                raise UserError(f"log-mel {place} has the shape {values.shape}; this model takes (1, {bins}, frames).")
            checked.append(values)
        if not checked:
            return np.zeros((0, self.sizes[kind]), np.float32)
        encoded = self.encoder.encode_all(checked, clap=kind == CLAP)
        if kind == CLAP:
            require_captions_head(self.checkpoint)
            assert encoded.clap is not None
            return unit_rows(encoded.clap)
        conventional = encoded.stacked if kind == STACKED else encoded.flat
        found: np.ndarray = conventional.float().cpu().numpy()
        return found

    def encode_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Texts → (N, D), of length 1, comparable with `encode_audio`.

        Raises `UserError` if the model has no head for captions, or its text encoder is not to be found.
        """
        listed = [texts] if isinstance(texts, str) or not isinstance(texts, Iterable) else list(texts)
        for text in listed:
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{text!r} is no text.")
        require_captions_head(self.checkpoint)
        if not listed:
            return np.zeros((0, self.sizes[CLAP]), np.float32)
        return self.encoder.encode_texts(listed)

    def similarity(self, audio: Any, text: Any, sample_rate: int | None = None) -> np.ndarray:
        """Cosines (N, M) between sounds and texts.

        Both may be embeddings, (N, D) and (M, D); else ``audio`` is what `encode_audio` takes, and ``text`` what
        `encode_text` takes. Raises `UserError` as they do.
        """
        require_captions_head(self.checkpoint)
        sounds = audio if self._are_embeddings(audio) and sample_rate is None else self.encode_audio(audio, sample_rate)
        words = text if self._are_embeddings(text) else self.encode_text(text)
        found: np.ndarray = _unit(np.asarray(as_array(sounds))) @ _unit(np.asarray(as_array(words))).T
        return found

    def tag(self, sounds: Any, sample_rate: int | None = None, **options: Any) -> pd.DataFrame:
        """What is heard, as a table with file_name, start, end, label, score and, if classes have ids, id.

        A fine-tuned model scores its own classes; its options are those of `m2dprep tag`: ``top`` (5), ``threshold``,
        ``window`` and ``hop`` in seconds, ``classes`` (a file of their names) and ``activation``. Any model with a head
        for captions scores ``labels``, a list of words, by the cosine between the sound and "<label> can be heard".
        Raises `UserError` as `encode_audio`, or if the model has no classes and no ``labels`` are given.
        """
        from m2dprep.evaluation.embedding.tags import tag_sounds

        return tag_sounds(self.encoder, _listed(sounds), sample_rate, **options)

    def _are_embeddings(self, value: Any) -> bool:
        found = as_array(value)
        return found is not None and found.ndim == 2 and found.shape[1] == self.sizes[CLAP] and found.dtype.kind == "f"

    def _log_mels(self, sounds: Sequence[Any], sample_rate: int | None) -> Iterator[list[np.ndarray]]:
        """The log-mels of some sounds at a time; threads read the next ones."""
        loader = ClipLoader(self.checkpoint.front_end, Crop())
        loader.remember_records(Path(sound) for sound in sounds if isinstance(sound, str | Path))
        log_mel = front_end(self.checkpoint.front_end)

        def read(place: int) -> np.ndarray:
            sound = sounds[place]
            if not isinstance(sound, str | Path):
                return log_mel(waveform_of(sound, sample_rate, self._config, f"sound {place}"))
            found = loader(Path(sound), str(sound))
            if isinstance(found, Failure):
                raise UserError(f"{found.file_name}: {found.message} ({found.reason}).")
            return found.values

        starts = range(0, len(sounds), SOUNDS_AT_ONCE)
        with ThreadPoolExecutor(reading_threads()) as pool:
            parts = [range(start, min(start + SOUNDS_AT_ONCE, len(sounds))) for start in starts]
            waiting = [pool.submit(read, place) for place in parts[0]] if parts else []
            for number in range(len(parts)):
                ahead = [pool.submit(read, place) for place in parts[number + 1]] if number + 1 < len(parts) else []
                try:
                    yield [future.result() for future in waiting]
                except BaseException:
                    for future in [*waiting, *ahead]:
                        future.cancel()
                    raise
                waiting = ahead


def _listed(sounds: Any) -> list[Any]:
    """The sounds one by one: a path or an array alone is one of them."""
    if isinstance(sounds, str | Path):
        return [sounds]
    array = as_array(sounds)
    if array is None:
        try:
            return list(sounds)
        except TypeError:
            raise UserError(f"{sounds!r} is no sound: give a path, an array, or a sequence of them.") from None
    if array.ndim == 2 and min(array.shape) > MOST_CHANNELS_ALONE:
        raise UserError(
            f"an array of the shape {array.shape} could be several sounds, or one of {min(array.shape)} channels: give "
            "a list of sounds, list(array) or [array]."
        )
    return [array]


def _unit(rows: np.ndarray) -> np.ndarray:
    wide = np.asarray(rows, np.float32)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(lengths > 0, lengths, 1)
