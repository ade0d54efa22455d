"""The names of all files and folders in a data directory. They are those of the original M2D-CLAP repository."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.folders import APPLE_DOUBLE_PREFIX, holds_no_data, walk

LMS_SUFFIX, LMS_FILE_SUFFIX = "_lms", ".npy"
MELSPEC_FOLDER, PACKED_FOLDER = "_melspec", "_packed"
EVALUATION_FOLDER = "eval_segments"
# The beginnings of the names of lists: of all log-mels, and of those to train on.
LISTED, TRAINED = "files_", "train_"


@dataclass(frozen=True)
class LmsLayout:
    """A folder of log-mel arrays, ``data/<name>_lms``, and the files that describe it."""

    root: Path

    @property
    def folder(self) -> str:
        """The folder's name in the data directory, even if it is a link to another disk."""
        return self._absolute().name

    @property
    def name(self) -> str:
        """The data set's name: the folder's, without ``_lms``."""
        return self.folder.removesuffix(LMS_SUFFIX) or self.folder

    @property
    def melspec(self) -> Path:
        """The folder of the conversion's configuration, records and temporary files."""
        return self.root / MELSPEC_FOLDER

    @property
    def config(self) -> Path:
        return self.melspec / "config.json"

    @property
    def temporaries(self) -> Path:
        """The folder of half-written arrays, on the file system of the finished ones; it is swept at every start."""
        return self.melspec / "tmp"

    def array_files(self) -> list[str]:
        """The .npy files (one per clip), sorted, relative to the folder, without the shards of a pack."""
        found = arrays_below(self.root) if self.root.is_dir() else []
        return sorted(name for name in found if name.partition("/")[0] not in (MELSPEC_FOLDER, PACKED_FOLDER))

    @property
    def data(self) -> Path:
        """The data directory that contains the folder; paths in the file list are relative to it."""
        return self.root.parent if self.root.name not in ("", "..") else self._absolute().parent

    def _absolute(self) -> Path:
        return Path(os.path.abspath(self.root))  # noqa: PTH100 (links are not followed)

    @property
    def archives(self) -> Path:
        """The indices of archives of sounds."""
        return self.melspec / "archives"

    @property
    def files_csv(self) -> Path:
        return self.data / f"files_{self.name}.csv"

    @property
    def norm_stats(self) -> Path:
        return self.data / "norm_stats.json"


@dataclass(frozen=True)
class DataLayout:
    """A data directory: file lists, statistics, captions and embedding stores."""

    root: Path

    @property
    def norm_stats(self) -> Path:
        return self.root / "norm_stats.json"

    @property
    def captions(self) -> Path:
        return self.root / "captions.parquet"

    def file_lists(self) -> list[Path]:
        return sorted(self.root.glob(f"{LISTED}*.csv"))

    def training_lists(self) -> dict[Path, Path]:
        """The existing training lists, by the list that each is read in place of (`artifacts.training_lists`)."""
        return {files: path for files in self.file_lists() if (path := training_list_of(files)).exists()}

    def holds_anything(self) -> bool:
        """Whether there are lists, log-mels, captions or embeddings."""
        return bool(self.file_lists() or self.lms_folders() or self.captions.exists() or self.embedding_stores())

    def embedding_stores(self) -> list[Path]:
        """Folders named ``capemb_*``, finished or not, sorted by name."""
        return sorted(path for path in self.root.glob("capemb_*") if path.is_dir())

    def lms_folders(self) -> list[Path]:
        """Folders to which a conversion has written."""
        found = (path for path in self.root.glob(f"*/{MELSPEC_FOLDER}") if path.is_dir())
        return sorted(path.parent for path in found if not holds_no_data(path.parent.name))


def training_list_of(files: Path) -> Path:
    """The training list that is read in place of the list ``files``, existing or not."""
    return files.with_name(TRAINED + files.name.removeprefix(LISTED))


def arrays_below(root: Path) -> list[str]:
    """Relative paths of the .npy files under ``root``, bookkeeping and packs included, in no order.

    Linked folders are entered, but not in circles (`artifacts.folders.walk`): parts of a large data set lie on other
    disks. Folders and broken links do not count, whatever their names. Raises `OSError` if a folder cannot be listed.
    """
    return [
        prefix + entry.name
        for prefix, entry, is_folder in walk(root)
        if entry.name.endswith(LMS_FILE_SUFFIX) and not is_folder and _is_array(entry)
    ]


def _is_array(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.name.startswith(APPLE_DOUBLE_PREFIX) and entry.is_file()
    except OSError:  # a link in a circle
        return False


def require_folder(path: Path, purpose: str) -> Path:
    """``path``; raises `UserError`, naming the ``purpose``, unless it is a folder."""
    if not path.exists():
        raise UserError(f"{path}: no such folder ({purpose}).")
    if not path.is_dir():
        raise UserError(f"{path} is not a folder ({purpose}).")
    return path


def require_file(path: Path, purpose: str) -> Path:
    """``path``; raises `UserError`, naming the ``purpose``, unless it is a file."""
    if not path.exists():
        raise UserError(f"{path}: no such file ({purpose}).")
    if not path.is_file():
        raise UserError(f"{path} is not a file ({purpose}).")
    return path


def require_lms_folder(path: Path) -> Path:
    """``path``; raises `UserError` unless it is a folder of log-mels. A data directory, which holds such, is none."""
    require_folder(path, "a folder of log-mels")
    if (path / MELSPEC_FOLDER).is_dir() or (path / PACKED_FOLDER).is_dir():
        return path
    data = DataLayout(path)
    folders = data.lms_folders() or sorted(path.glob(f"*{LMS_SUFFIX}"))
    what = [*data.file_lists(), *data.embedding_stores(), *folders]
    what += [file for file in (data.captions, data.norm_stats) if file.exists()]
    if what:
        example = folders[0] if folders else path / f"<name>{LMS_SUFFIX}"
        raise UserError(
            f"{path} is a data directory (it holds {what[0].name}), not a folder of log-mels; give one of those in it, "
            f"such as {example}."
        )
    return path


def conversion_folder(place: Path) -> Path | None:
    """The folder of log-mels, made by a conversion, that ``place`` is or lies in; None if it lies in none."""
    whole = Path(os.path.abspath(place))  # noqa: PTH100 (links are not followed)
    return next((each for each in (whole, *whole.parents) if (each / MELSPEC_FOLDER).is_dir()), None)


def is_evaluation_clip(file_name: str) -> bool:
    """Whether a relative path lies in AudioSet's evaluation part, which stays out of training lists and statistics."""
    return EVALUATION_FOLDER in file_name and EVALUATION_FOLDER in Path(file_name).parts[:-1]


def inside(root: Path, relative: str) -> Path:
    """``root / relative``. Raises `UserError` for absolute paths and ``..``: paths in tables stay inside their root.

    Links below ``root`` are followed: parts of a large data set lie on other disks.
    """
    if leads_out(relative):
        raise UserError(f"{relative!r} leads out of {root}; {STAY_INSIDE}.")
    return root / relative


def leads_out(relative: str) -> bool:
    """Whether a path is absolute or has ``..`` as one of its parts."""
    return relative.startswith("/") or (".." in relative and ".." in relative.split("/"))


STAY_INSIDE = "paths in tables are relative to their root and stay inside"
