"""The log-mels of a folder that `m2dprep melspec` made, as sources of an export, whether they are packed or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import LmsLayout, inside
from m2dprep.artifacts.log_mels.array import OK
from m2dprep.artifacts.log_mels.records import read_config, read_records
from m2dprep.artifacts.log_mels.store import find_log_mels
from m2dprep.artifacts.npy_files import npy_header
from m2dprep.artifacts.tables import read_file_list
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.audioprep.source import Source


def holds_log_mels(folder: Path) -> bool:
    """Whether `m2dprep melspec` has written to a folder."""
    return LmsLayout(folder).melspec.is_dir()


class LogMelsToExport:
    """Log-mels in the order of their names; ``fingerprint`` is that of the configuration that they were made with.

    ``files`` is a list of some of them, relative to the folder or to the data directory, as files_<name>.csv is.
    """

    def __init__(self, folder: Path, files: Path | None) -> None:
        self.folder = folder.resolve()
        config = read_config(LmsLayout(self.folder))
        self.fingerprint = None if config is None else str(config["fingerprint"])
        records = read_records(LmsLayout(self.folder), ["file_name", "status"])
        made = set(records.filter(pc.equal(records["status"], OK))["file_name"].to_pylist())
        names = sorted(made) if files is None else self._listed(files)
        if not names:
            raise UserError(f"{folder} holds no log-mels" + (f" of {files}." if files is not None else "."))
        self.sources = [self._source(name, known=name in made) for name in names]
        self._numbers = {name: number for number, name in enumerate(names)}
        self._log_mels = find_log_mels(self.folder.parent, [f"{self.folder.name}/{name}" for name in names])
        self._begun = False

    def _listed(self, files: Path) -> list[str]:
        names, prefix = read_file_list(files), f"{self.folder.name}/"
        if all(name.startswith(prefix) for name in names):
            names = [name.removeprefix(prefix) for name in names]
        return list(dict.fromkeys(names))

    def _source(self, name: str, *, known: bool) -> Source:
        reason = "" if known else "not_found"
        return Source(name, str(self.folder), reason, "" if known else "it has no record as a log-mel", array=name)

    def content(self, source: Source) -> bytes:
        """The .npy file of a log-mel (1, n_mels, T), its values compared with its digest. Raises `DecodeError`."""
        name = source.relative
        number = self._numbers[name]
        if not self._begun:
            self._begun = True
            rest = [later for later in range(number, len(self.sources)) if not self.sources[later].reason]
            self._log_mels.expect(np.array(rest))
        try:
            log_mel = np.ascontiguousarray(self._log_mels[number])[None]
        except UserError as error:
            if not inside(self.folder, name).exists():
                raise DecodeError("not_found", "it has gone since it was converted") from error
            raise DecodeError("malformed", str(error)) from error
        except OSError as error:
            raise DecodeError("transient", f"the system could not read it: {error.strerror}") from error
        return npy_header(log_mel.shape, log_mel.dtype) + log_mel.tobytes()

    def digest(self) -> str:
        """What decides the bytes beside the names: the configuration, and how many lie in packs, maybe in float16."""
        packed = self._log_mels.packed
        return f"{self.fingerprint} {packed}" if packed else str(self.fingerprint)
