"""Certificates of one run: whoever has none of them can neither reach its scheduler nor its workers.

They are made for the run, lie in files that only this user can read, and go when it ends.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError

NAME = re.compile(r"run-(?P<host>.*)-(?P<pid>\d+)-[0-9a-f]+")
# What a killed run on another machine has left goes after so long.
LARGEST_AGE_SECONDS = 60 * 86400.0


@dataclass(frozen=True)
class Certificates:
    """``security`` is Dask's object for this process; ``certificate`` and ``key`` are files for the workers."""

    security: Any
    certificate: Path
    key: Path

    def worker_options(self) -> list[str]:
        """What ``dask worker`` has to be told."""
        return [
            *("--tls-ca-file", str(self.certificate)),
            *("--tls-cert", str(self.certificate)),
            *("--tls-key", str(self.key)),
        ]


@contextmanager
def certificates(folder: Path | None) -> Iterator[Certificates]:
    """New certificates, in a private folder below ``folder``, which every node has to see; by default in the home.

    Raises `UserError` where they cannot be made or written.
    """
    from distributed.security import Security

    try:
        security = Security.temporary()
    except ImportError as error:
        raise UserError("SLURM jobs need the package cryptography: pip install 'm2dprep[cluster]'.") from error
    base = (folder or Path.home() / ".cache" / "m2dprep").expanduser().absolute()
    own = base / f"run-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        base.mkdir(parents=True, exist_ok=True)
        _sweep(base)
        own.mkdir(mode=0o700)
        made = Certificates(security, own / "certificate.pem", own / "key.pem")
        _write(made.certificate, security.tls_worker_cert)
        _write(made.key, security.tls_worker_key)
    except OSError as error:
        raise UserError(
            f"{base}: the certificates of the jobs cannot be written there ({error.strerror}); name a folder that all "
            "nodes see in the file of --cluster-config (private_directory: ...)."
        ) from error
    try:
        yield made
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _sweep(base: Path) -> None:
    """Remove what killed runs have left."""
    for folder in base.iterdir():
        named = NAME.fullmatch(folder.name)
        if named is None:
            continue
        if named["host"] == socket.gethostname():
            gone = not Path("/proc", named["pid"]).exists()
        else:
            gone = time.time() - folder.stat().st_mtime > LARGEST_AGE_SECONDS
        if gone:
            shutil.rmtree(folder, ignore_errors=True)
