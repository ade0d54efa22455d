"""The HTTP side: addresses, headers, ranges, and errors as JSON. Only GET and HEAD are known.

A clip is addressed by the number of its row; no request has a path of a file in it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from tornado.iostream import StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.log_mels.read_ahead import Threads
from m2dprep.audioprep.decoding.sound import DecodeError
from m2dprep.evaluation.serving.guard import Guard
from m2dprep.evaluation.serving.media import Served
from m2dprep.evaluation.serving.ranges import answer
from m2dprep.evaluation.serving.site import NoSuchRowError, Question, Site
from m2dprep.evaluation.serving.words import NoWordsError

PAGE = Path(__file__).with_name("page.html")
BLOCK_BYTES = 1 << 18
# Threads for lists, for decoding, and for reading files that play: none waits for another kind.
THREADS = {"list": 2, "make": 3, "read": 4}
INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
SAFE_HEADERS = {
    "Server": "m2dprep",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'",
    "Cache-Control": "private, no-cache",
}
T = TypeVar("T")


class Work:
    """Runs what may block in threads. They do not keep the process from ending."""

    def __init__(self) -> None:
        self._threads = {kind: Threads(count) for kind, count in THREADS.items()}

    async def __call__(self, kind: str, function: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(made: Any) -> None:
            if done.cancelled():
                return
            error = made.exception()
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(made.result())

        def tell(made: Any) -> None:
            with suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(settle, made)

        self._threads[kind].call(function).add_done_callback(tell)
        return await done

    def close(self) -> None:
        for threads in self._threads.values():
            threads.close()


class GoneError(Exception):
    """The client does not wait any more."""


class Handler(RequestHandler):
    """What all addresses share. ``token`` is the first part of the path, if there is one."""

    SUPPORTED_METHODS = ("GET", "HEAD")

    def initialize(self, site: Site, guard: Guard, work: Work) -> None:
        self.site, self._guard, self._work, self._gone = site, guard, work, False

    def set_default_headers(self) -> None:
        for name, value in SAFE_HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        if not self._guard.knows(self.request.headers.get("Host", "")):
            raise HTTPError(403, reason="Unknown host name")
        if not self._guard.is_from_here(self.request.headers):
            raise HTTPError(403, reason="Asked for by another site")
        if self._guard.token and not self._guard.has_token(self.path_kwargs.get("token", "")):
            raise HTTPError(404)

    def on_connection_close(self) -> None:
        self._gone = True

    async def work(self, kind: str, function: Callable[[], T]) -> T:
        """The result of ``function``, run in a thread, or not at all if the client has gone by then."""

        def run() -> T:
            if self._gone:
                raise GoneError
            return function()

        return await self._work(kind, run)

    def row(self, text: str) -> int:
        return self.site.require_row(int(text))

    def send_json(self, value: dict[str, Any]) -> None:
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(value)

    def write_error(self, status_code: int, **details: Any) -> None:
        error = details.get("exc_info", (None, None, None))[1]
        said = {"error": self._reason}
        if isinstance(error, DecodeError):
            said = {"error": error.message, "reason": error.reason}
        elif isinstance(error, UserError):
            said = {"error": str(error)}
        elif isinstance(error, OSError):
            said = {"error": str(error.strerror or "the system could not read it"), "reason": "io_error"}
        self.send_json(said)

    def log_exception(self, kind: Any, error: Any, trace: Any) -> None:
        if not isinstance(error, DecodeError | UserError | OSError | GoneError | HTTPError | StreamClosedError):
            super().log_exception(kind, error, trace)

    def _handle_request_exception(self, error: BaseException) -> None:
        """Errors that say what is wrong with the request or the sound have their own status."""
        if isinstance(error, GoneError | StreamClosedError) or self._finished:
            return
        if isinstance(error, DecodeError | UserError | OSError) and not self._headers_written:
            self.send_error(_status_of(error), exc_info=(type(error), error, error.__traceback__))
            return
        super()._handle_request_exception(error)


def _status_of(error: Exception) -> int:
    if isinstance(error, NoSuchRowError | DecodeError):
        return HTTPStatus.NOT_FOUND
    if isinstance(error, NoWordsError):
        return HTTPStatus.CONFLICT
    return HTTPStatus.BAD_REQUEST if isinstance(error, UserError) else HTTPStatus.SERVICE_UNAVAILABLE


class Page(Handler):
    """The page itself, which may run its own script and style, and load from here alone."""

    def get(self, **_: str) -> None:
        text = PAGE.read_text(encoding="utf-8")
        hashes: dict[str, list[str]] = {"script": [], "style": []}
        for kind, content in INLINE.findall(text):
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            hashes[kind].append(f"'sha256-{digest}'")
        self.set_header(
            "Content-Security-Policy",
            f"default-src 'none'; script-src {' '.join(hashes['script'])}; style-src {' '.join(hashes['style'])}; "
            "img-src 'self' data:; media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'",
        )
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(text)

    head = get


class State(Handler):
    def get(self, **_: str) -> None:
        self.send_json(self.site.state())

    head = get


class Clips(Handler):
    async def get(self, **_: str) -> None:
        question = Question(
            text=self.get_query_argument("text", ""),
            words=self.get_query_argument("words", ""),
            like=self._number("like", None),
            labels=tuple(self.get_query_arguments("label", strip=False)),
            stores=tuple(_whole_number(text, "store") for text in self.get_query_arguments("store")),
            rows=self._rows(),
            offset=self._number("offset", 0) or 0,
            limit=self._number("limit", 60) or 0,
        )
        self.send_json(await self.work("list", lambda: self.site.clips(question)))

    head = get

    def _number(self, name: str, otherwise: int | None) -> int | None:
        text = self.get_query_argument(name, "")
        return _whole_number(text, name) if text else otherwise

    def _rows(self) -> tuple[int, ...] | None:
        text = self.get_query_argument("rows", "")
        return tuple(_whole_number(part, "rows") for part in text.split(",")) if text else None


def _whole_number(text: str, name: str) -> int:
    if not re.fullmatch("[0-9]{1,12}", text):
        raise UserError(f"{name}={text[:40]!r} is not a whole number.")
    return int(text)


class Clip(Handler):
    async def get(self, row: str, **_: str) -> None:
        number = self.row(row)
        self.send_json(await self.work("list", lambda: self.site.catalogue.details(number)))

    head = get


class Changes(Handler):
    """Looks at files, and may list an archive first: what is known of the clip does not wait for that."""

    async def get(self, row: str, **_: str) -> None:
        number = self.row(row)
        self.send_json({"row": number, "changes": await self.work("make", lambda: self.site.changes(number))})

    head = get


class Points(Handler):
    async def get(self, **_: str) -> None:
        points = await self.work("list", self.site.points)
        if points is None:
            raise UserError(self.site.map.reason or "The map is being made.")
        self.set_header("Content-Type", "application/octet-stream")
        self.finish(points)

    head = get


class Bytes(Handler):
    """Bytes of a clip, with ranges and conditions; they are sent block by block."""

    def compute_etag(self) -> str | None:
        return None  # the resource has its own

    async def get(self, row: str, **_: str) -> None:
        number = self.row(row)
        served = await self.work("make", lambda: self.find(number))
        try:
            await self._send(served)
        finally:
            served.close()

    head = get

    def find(self, number: int) -> Served:
        raise NotImplementedError

    async def _send(self, served: Served) -> None:
        found = answer(self.request.headers, served.size, served.version)
        self.set_status(found.status)
        self.set_header("Etag", served.version.tag)
        self.set_header("Accept-Ranges", "bytes")
        if served.version.date is not None:
            self.set_header("Last-Modified", served.version.date)
        if found.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            self.set_header("Content-Range", f"bytes */{served.size}")
            self.send_json({"error": "There are no such bytes."})
            return
        if found.status == HTTPStatus.NOT_MODIFIED:
            self.finish()
            return
        if found.status == HTTPStatus.PARTIAL_CONTENT:
            self.set_header("Content-Range", f"bytes {found.start}-{found.stop - 1}/{served.size}")
        self.set_header("Content-Type", served.media_type)
        self.set_header("Content-Length", str(found.stop - found.start))
        if self.request.method != "HEAD":
            for start in range(found.start, found.stop, BLOCK_BYTES):
                count = min(BLOCK_BYTES, found.stop - start)
                block = await self.work("read", lambda start=start, count=count: served.read(start, count))  # type: ignore[misc]
                if len(block) < count:  # the file has become shorter: the client must not take it for whole
                    self.request.connection.stream.close()  # type: ignore[union-attr]
                    return
                self.write(block)
                await self.flush()
        self.finish()


class Sound(Bytes):
    def find(self, number: int) -> Served:
        transcode = self.get_query_argument("as", "") == "wav"
        return self.site.sound(number, transcode=transcode)


class Picture(Bytes):
    def find(self, number: int) -> Served:
        return self.site.log_mel(number)


class Nothing(Handler):
    """All other addresses."""

    def get(self, **_: str) -> None:
        raise HTTPError(404)

    head = get


def application(site: Site, guard: Guard, work: Work) -> Application:
    """The addresses. With a token, it comes before all of them."""
    given = {"site": site, "guard": guard, "work": work}
    before = "/(?P<token>[A-Za-z0-9_-]{1,128})" if guard.token else ""
    row = "(?P<row>[0-9]{1,12})"
    routes = {
        "/": Page,
        "/api/store": State,
        "/api/clips": Clips,
        f"/api/clips/{row}": Clip,
        f"/api/clips/{row}/changes": Changes,
        "/api/map": Points,
        f"/clips/{row}/sound": Sound,
        f"/clips/{row}/log-mel.png": Picture,
    }
    return Application(
        [(before + path, handler, given) for path, handler in routes.items()],
        default_handler_class=Nothing,
        default_handler_args=given,
        compress_response=True,
        log_function=lambda handler: None,
    )
