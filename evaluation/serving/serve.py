"""`m2dprep serve` as a function: from stores and folders to a page that answers until it is told to stop."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.serving.guard import Guard, guard_for
from m2dprep.evaluation.serving.handlers import Work, application
from m2dprep.evaluation.serving.opening import Shown, open_site
from m2dprep.evaluation.serving.site import Site

LOCAL, USUAL_PORT = "127.0.0.1", 8484
ANY_HOST = ("0.0.0.0", "::", "")
MOST_BODY_BYTES, MOST_HEADER_BYTES = 1 << 16, 1 << 16
IDLE_SECONDS, CLOSING_SECONDS = 120, 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Listening:
    """Whom to serve. Without ``port``, the usual one is taken, or any if that is taken."""

    host: str = LOCAL
    port: int | None = None
    names: tuple[str, ...] = ()
    token: bool = False


def serve(shown: Shown, where: Listening, ready: Callable[[str], None], note: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. ``ready`` is called with the address of the page when it answers, ``note`` with
    what a user may have overlooked.

    Raises `UserError` if a store, a folder or the port cannot be had.
    """
    guard = guard_for(where.host, where.names, token=where.token)
    sockets = listening(where.host, where.port)
    try:
        site = open_site(shown, note)
    except BaseException:
        for one in sockets:
            one.close()
        raise
    page = address(where.host, sockets, guard)
    asyncio.run(answer_until_told(site, guard, sockets, lambda stop: ready(page)))


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
