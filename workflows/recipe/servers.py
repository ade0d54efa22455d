"""What a stage reads from servers: how a recipe notices that it has changed there, and shows it without its secrets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from m2dprep.artifacts.clips.addresses import without_secrets
from m2dprep.artifacts.digests import fingerprint
from m2dprep.artifacts.errors import UserError

if TYPE_CHECKING:
    from m2dprep.audioprep.remote.address import Address, Status

# How long a server may give nothing, and how much of a folder is looked at, its upper folders first.
PATIENCE_SECONDS = 20.0
MAX_ENTRIES, MAX_LISTINGS = 4096, 16
UNSEEN = "unseen"


def shown(texts: Iterable[str]) -> list[str]:
    """Settings or words of a command line as they may be written down: addresses without their secrets."""
    return [without_secrets(text, text) if "://" in text else text for text in texts]


def server_identity(url: str) -> dict[str, Any] | None:
    """JSON values that change with what is listed at an address; None if nothing is there.

    Those of a file are its size and its stamp. Those of a folder are the names of its first entries, and their sizes
    and stamps where the server lists them. If the server does not answer, they say why.
    """
    from m2dprep.audioprep.remote.address import address_of

    try:
        place = address_of(url).patient(PATIENCE_SECONDS)
        if _is_file(place):
            size, stamp, _ = place.status()
            return {"size": size, "stamp": stamp}
        return {"listing": fingerprint({"seen": sorted(map(list, _entries(place)))})}
    except FileNotFoundError:
        return None
    except (OSError, UserError) as error:
        return {UNSEEN: str(getattr(error, "strerror", None) or error)}


def _is_file(place: Address) -> bool:
    from m2dprep.artifacts.clips.clip_id import has_audio_suffix
    from m2dprep.audioprep.archives.place import archive_kind

    return archive_kind(place.name) is not None or has_audio_suffix(place.name)


def _entries(root: Address) -> list[tuple[str, int, int]]:
    """Path, size and stamp of the first entries of a folder and of those in it, level by level."""
    root.forget()
    found: list[tuple[str, int, int]] = []
    folders = [""]
    for number, prefix in enumerate(folders):
        if number == MAX_LISTINGS or len(found) >= MAX_ENTRIES:
            break
        place = root / prefix.rstrip("/") if prefix else root
        listed: list[tuple[str, Status]] = sorted(place.entries())
        for name, status in listed[: MAX_ENTRIES - len(found)]:
            found.append((prefix + name, status.size, status.stamp))
            if status.is_folder:
                folders.append(f"{prefix}{name}/")
    root.forget()
    return found
