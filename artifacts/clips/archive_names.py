"""Names of sounds and texts inside archives, one rule for what is heard and what is read of the same shards.

The clip of a member is named by its path in the archive without its suffix, or with the archive's path before it; the
clip of a row in a Parquet file by the first of `ROW_ID_COLUMNS`, or else by the path beside the bytes of its audio.
"""

from __future__ import annotations

from collections.abc import Mapping

# The ends of archives' names, in lower case.
COMPRESSED_TAR_ENDINGS = (
    *(".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz"),
    *(".tar.xz", ".txz", ".tar.lzma", ".tlz"),
)
ARCHIVE_ENDINGS = (".tar", *COMPRESSED_TAR_ENDINGS, ".zip")
PARQUET_ENDING = ".parquet"
# Columns that name a row, the best first.
ROW_ID_COLUMNS = ("video_id", "ytid", "youtube_id", "id", "path", "file_name", "file")


def without_ending(name: str) -> str:
    """The path of an archive without the end that says what it is: ``a/shard-000.tar.gz`` → ``a/shard-000``."""
    lower = name.lower()
    endings = [ending for ending in (*ARCHIVE_ENDINGS, PARQUET_ENDING) if lower.endswith(ending)]
    return name[: -len(max(endings, key=len))] if endings else name


def member_path(name: str) -> str:
    """The path of a member without what adds nothing: ``./a//b.flac`` → ``a/b.flac``."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


# In the global header of a tar that we pack: dots in its members' names are written as %2E, because WebDataset takes
# what follows the first dot of a name for a suffix.
NAMES_MARK, PERCENT = "M2DPREP.names", "percent"


def packed_name(path: str) -> str:
    """The path of a sample without its suffix as our tars have it: ``a/Y_30.000`` → ``a/Y_30%2E000``."""
    folder, slash, last = path.replace("%", "%25").rpartition("/")
    return folder + slash + last.replace(".", "%2E")


def unpacked_name(name: str, header: Mapping[str, str]) -> str:
    """The name of a member of a tar with this global header, as it was before it was packed."""
    if header.get(NAMES_MARK) != PERCENT or "%" not in name:
        return name
    return name.replace("%2E", ".").replace("%25", "%")
