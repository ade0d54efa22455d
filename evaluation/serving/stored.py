"""The log-mels of rows from a folder of log-mels or a pack, where they need not be computed again."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import PACKED_FOLDER, LmsLayout, require_lms_folder
from m2dprep.artifacts.log_mels.pack import META, PackedStore
from m2dprep.artifacts.log_mels.records import read_config, read_records, record_parts
from m2dprep.artifacts.log_mels.store import LogMels, find_log_mels
from m2dprep.artifacts.reading import MISSING, stamp_of
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.evaluation.serving.excerpts import Stretch
from m2dprep.evaluation.serving.sources import log_mel_names


class StoredLogMels:
    """The log-mels below ``folder``; they are listed when the first is asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises `UserError` if it is no folder of log-mels."""
        self._layout = LmsLayout(require_lms_folder(folder))
        made = (self._layout.melspec, self._layout.root / PACKED_FOLDER)
        if not any(path.is_dir() for path in made) and not self._layout.array_files():
            raise UserError(f"{folder} holds no log-mels: no .npy files, and no pack.")
        config = read_config(self._layout)
        self._fingerprint = None if config is None else config["fingerprint"]
        self._front_end = PRESETS["16k"] if config is None else ConvertConfig.from_dict(config["config"]).log_mel
        self._lock = threading.Lock()
        self._rows: dict[str, int] = {}
        self._sounds: dict[str, str] | None = None
        self._store: LogMels | None = None

    @property
    def root(self) -> Path:
        return self._layout.root

    def read(self, name: str, stretch: Stretch) -> np.ndarray:
        """The log-mel (n_mels, T) of a stretch of the sound that a row calls ``name``. Raises `DecodeError`."""
        with self._lock:
            own = self._own_name(name)
            assert self._store is not None
            try:
                whole = np.array(self._store[self._rows[own]])
            except UserError as error:
                raise DecodeError("malformed", str(error)) from error
        hop = self._front_end.hop_length
        first, stop = (sample // hop for sample in stretch.samples(self._front_end.sample_rate))
        part = whole[:, first : stop + 1]
        if not part.shape[1] or not np.isfinite(part).all():
            raise DecodeError("malformed", "the log-mel is too short, or holds values that are not numbers")
        return part

    def stamp(self, name: str) -> str:
        """What the log-mel of a row is known by, as `embed-audio` notes it. Raises `DecodeError` if there is none."""
        with self._lock:
            own = stamp_of(self.root / self._own_name(name))
        return stamp_of(self.root / PACKED_FOLDER / META) if own == MISSING else own

    def stamp_of_sound(self, name: str) -> str:
        """What the sound was known by that the log-mel of a row was made from; empty if that is not recorded.

        Raises `DecodeError` if there is no log-mel of it.
        """
        with self._lock:
            own = self._own_name(name)
            if self._sounds is None:
                self._sounds = self._recorded()
        return self._sounds.get(own, "")

    def _own_name(self, name: str) -> str:
        """The log-mel of a row, by its name here. Raises `DecodeError` if there is none."""
        names = log_mel_names(name)
        names += [one.removeprefix(f"{self._layout.folder}/") for one in names]
        if self._store is None:
            self._list()
        own = next((one for one in names if one in self._rows), None)
        if own is None:
            raise DecodeError("not_found", f"{self.root} holds no log-mel of this sound")
        return own

    def _recorded(self) -> dict[str, str]:
        """The stamps of the sounds that the log-mels were made from, by the log-mels' names."""
        if not record_parts(self._layout):
            return {}
        try:
            found = read_records(self._layout, ["file_name", "source_bytes", "source_mtime_ns"]).to_pydict()
        except UserError:
            return {}
        return {name: f"{size} {time_ns}" for name, size, time_ns in zip(*found.values(), strict=True)}

    def _list(self) -> None:
        packed = PackedStore.open(self._layout.root, self._fingerprint)
        names = sorted({*self._layout.array_files(), *(packed[1].to_pylist() if packed is not None else ())})
        self._rows = {name: row for row, name in enumerate(names)}
        self._store = find_log_mels(self._layout.data, [f"{self._layout.folder}/{name}" for name in names])
