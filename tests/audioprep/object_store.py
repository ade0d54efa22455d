"""A store of objects in buckets, as S3, Google's and the Hugging Face hub are to fsspec, for tests without them.

There are no folders, only names with slashes; no modification times, but entity tags; and buckets may be forbidden.
"""

from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile


class ObjectStore(AbstractFileSystem):
    """Objects by full name, such as ``bucket/wavs/a.wav``; ``asked`` are the ranges that were asked for."""

    protocol = ("s3", "gs", "hf")
    cachable = False
    objects: ClassVar[dict[str, bytes]] = {}
    forbidden: ClassVar[set[str]] = set()
    asked: ClassVar[list[tuple[str, int]]] = []
    bytes_per_second: ClassVar[float] = 0.0

    @classmethod
    def clear(cls) -> None:
        cls.objects.clear()
        cls.forbidden.clear()
        cls.asked.clear()
        cls.bytes_per_second = 0.0

    @classmethod
    def put_folder(cls, folder: Path, prefix: str) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                cls.objects[f"{prefix}/{path.relative_to(folder)}"] = path.read_bytes()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:  # type: ignore[override]
        return path.partition("://")[2].strip("/") if "://" in path else path.strip("/")

    def _require(self, path: str) -> None:
        if path.partition("/")[0] in self.forbidden:
            raise PermissionError("Forbidden")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        self._require(path)
        if path in self.objects:
            data = self.objects[path]
            tag = hashlib.md5(data).hexdigest()
            modified = datetime.now(UTC)  # nobody shall rely on it
            return {"name": path, "size": len(data), "type": "file", "ETag": f'"{tag}"', "LastModified": modified}
        if any(name.startswith(f"{path}/") for name in self.objects):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        self._require(path)
        below = sorted(name for name in self.objects if name.startswith(f"{path}/"))
        names = {f"{path}/{name[len(path) + 1 :].partition('/')[0]}" for name in below}
        if not names:
            return [self.info(path)] if detail else [path]
        return [self.info(name) for name in sorted(names)] if detail else sorted(names)

    def cat_file(  # type: ignore[override]  # as that of s3fs
        self, path: str, version_id: str | None = None, start: int | None = None, end: int | None = None
    ) -> bytes:
        assert version_id is None
        path = self._strip_protocol(path)
        self._require(path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        data = self.objects[path][start:end]
        self.asked.append((path, len(data)))
        if self.bytes_per_second:
            time.sleep(len(data) / self.bytes_per_second)
        return data


class OpeningStore(ObjectStore):
    """A store that opens files to read ranges of them, as that of the Hugging Face hub does."""

    cat_file = AbstractFileSystem.cat_file

    def _open(self, path: str, mode: str = "rb", **options: Any) -> AbstractBufferedFile:
        return _Opened(self, self._strip_protocol(path), mode, **options)


class _Opened(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        return ObjectStore.cat_file(self.fs, self.path, start=start, end=end)
