"""`m2dprep serve` as a function: from a store and folders to a page that answers until it is told to stop."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from m2dprep.artifacts.embeddings.audio_store import AudioStore
from m2dprep.artifacts.embeddings.store import META
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.settings import build
from m2dprep.audioprep.config import PRESETS, LogMelConfig
from m2dprep.evaluation.search.projection import MapSettings
from m2dprep.evaluation.serving.catalogue import Catalogue
from m2dprep.evaluation.serving.guard import Guard, guard_for
from m2dprep.evaluation.serving.handlers import Work, application
from m2dprep.evaluation.serving.mapping import MapInTheMaking
from m2dprep.evaluation.serving.media import Media
from m2dprep.evaluation.serving.nearest import nearest
from m2dprep.evaluation.serving.site import Site
from m2dprep.evaluation.serving.sources import Sources
from m2dprep.evaluation.serving.stored import StoredLogMels
from m2dprep.evaluation.serving.words import TextSide, Words

LOCAL, USUAL_PORT = "127.0.0.1", 8484
ANY_HOST = ("0.0.0.0", "::", "")
MOST_BODY_BYTES, MOST_HEADER_BYTES = 1 << 16, 1 << 16
IDLE_SECONDS, CLOSING_SECONDS = 120, 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class ServeRequest:
    """What to serve, and to whom. Without ``port``, the usual one is taken, or any if that is taken."""

    store: Path
    audio: Path | None = None
    log_mels: Path | None = None
    captions: Path | None = None
    labels: Path | None = None
    id_column: str | None = None
    checkpoint: Path | None = None
    text_model: str | None = None
    trust_remote_code: bool = False
    device: str = "auto"
    host: str = LOCAL
    port: int | None = None
    names: tuple[str, ...] = ()
    token: bool = False
    map_points: int = 10_000
    seed: int = 0


def open_site(request: ServeRequest) -> Site:
    """Open everything that is served. Raises `UserError` if something of it is not there."""
    store = AudioStore.open(request.store)
    catalogue = Catalogue(
        store.index, windows=store.meta.get("window") is not None, captions=request.captions, labels=request.labels
    )
    if not len(catalogue):
        raise UserError(f"{request.store} has no rows: none of its sounds could be embedded.")
    if request.audio is not None and not request.audio.exists():
        raise UserError(f"{request.audio}: no such folder (the sounds of the store).")
    threading.Thread(target=_warm, args=[store], name="m2dprep-warms", daemon=True).start()
    sources = None if request.audio is None else Sources(request.audio, request.id_column)
    log_mels = None if request.log_mels is None else StoredLogMels(request.log_mels)
    return Site(
        request.store.absolute().name,
        store,
        catalogue,
        Media(sources, log_mels, _front_end(store)),
        _words(store, request),
        MapInTheMaking(store, MapSettings(request.map_points, request.seed)),
    )


def _warm(store: AudioStore) -> None:
    """Search once, so that what a search imports is there when somebody asks."""
    with suppress(UserError, OSError):
        nearest(store, np.asarray(store.embeddings[0], np.float32), 1)


def _front_end(store: AudioStore) -> LogMelConfig:
    """The front end that the store was made with, as far as it says."""
    said = store.meta.get("front_end")
    if not isinstance(said, dict):
        return PRESETS["16k"]
    return build(LogMelConfig, said, f"{store.folder / META}", "front_end.")


def _words(store: AudioStore, request: ServeRequest) -> Words:
    """The text side of the store's checkpoint; it is loaded while the page is served."""
    if not store.has_clap:
        return Words(None, "The store holds conventional embeddings alone, which cannot be compared with words.")
    noted = store.meta.get("checkpoint")
    checkpoint = request.checkpoint or (Path(noted) if isinstance(noted, str) and noted else None)
    if checkpoint is None or not checkpoint.exists():
        where = f"{checkpoint} is not there" if checkpoint else "the store does not say which checkpoint made it"
        return Words(None, f"Words cannot be searched for: {where}. Start with --checkpoint.")

    def load() -> TextSide:
        from m2dprep.evaluation.encoders import CheckpointEncoder  # imports torch, which takes seconds

        encoder = CheckpointEncoder(
            checkpoint, device=request.device, text_model=request.text_model,
            trust_remote_code=request.trust_remote_code,
        )  # fmt: skip
        if encoder.digest != store.checkpoint and store.checkpoint:
            raise UserError(f"{checkpoint} is not the checkpoint that made the store: their digests differ.")
        return encoder

    return Words(load)


def serve(request: ServeRequest, ready: Callable[[str, list[str]], None]) -> None:
    """Serve until SIGINT or SIGTERM. ``ready`` is called with the address of the page and notes, when it answers.

    Raises `UserError` if the store, a folder or the port cannot be had.
    """
    guard = guard_for(request.host, request.names, token=request.token)
    sockets = listening(request.host, request.port)
    try:
        site = open_site(request)
    except BaseException:
        for one in sockets:
            one.close()
        raise
    where = address(request.host, sockets, guard)
    notes = [*site.catalogue.notes, *_notes(site.store, request)]
    asyncio.run(answer_until_told(site, guard, sockets, lambda stop: ready(where, notes)))


def _notes(store: AudioStore, request: ServeRequest) -> list[str]:
    """What a user may have forgotten."""
    made_from = store.meta.get("sounds") or []
    if request.audio is not None or not made_from:
        return []
    return [f"No sound without --audio; the store was made from {', '.join(map(str, made_from))}."]


async def answer_until_told(
    site: Site,
    guard: Guard,
    sockets: Sequence[socket.socket],
    ready: Callable[[Callable[[], None]], None],
    signals: Sequence[signal.Signals] = SIGNALS,
) -> None:
    """Answer until one of the ``signals``, or until what ``ready`` is given is called in the loop's thread."""
    stop, loop, work = asyncio.Event(), asyncio.get_running_loop(), Work()
    for one in signals:
        loop.add_signal_handler(one, stop.set)
    server = HTTPServer(
        application(site, guard, work),
        max_body_size=MOST_BODY_BYTES,
        max_header_size=MOST_HEADER_BYTES,
        idle_connection_timeout=IDLE_SECONDS,
    )
    server.add_sockets(sockets)
    try:
        ready(lambda: loop.call_soon_threadsafe(stop.set))  # type: ignore[arg-type]
        await stop.wait()
    finally:
        server.stop()
        site.close()
        work.close()
        with suppress(TimeoutError):  # of a client that does not take what it asked for
            await asyncio.wait_for(server.close_all_connections(), CLOSING_SECONDS)


def listening(host: str, port: int | None) -> list[socket.socket]:
    """Sockets that listen; those of any free port if no port is asked for and the usual one is taken."""
    for tried in (port,) if port is not None else (USUAL_PORT, 0):
        try:
            return bind_sockets(tried, address=host or None)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and port is None and tried:
                continue
            what = "is taken; --port names another, 0 any that is free" if error.errno == errno.EADDRINUSE else error
            raise UserError(f"cannot listen at {host}, port {tried}: {_said(what)}.") from error
        except (OverflowError, UnicodeError) as error:
            raise UserError(f"cannot listen at {host!r}, port {tried}: {error}.") from error
    raise AssertionError("unreachable")


def _said(what: object) -> str:
    return str(what.strerror or what) if isinstance(what, OSError) else str(what)


def address(host: str, sockets: Sequence[socket.socket], guard: Guard) -> str:
    """The address of the page, with its token."""
    port = sockets[0].getsockname()[1]
    name = socket.gethostname() if host in ANY_HOST else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/{guard.token}{'/' if guard.token else ''}"
