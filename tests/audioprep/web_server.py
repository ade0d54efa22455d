"""A web server of a folder, for tests: pages that list it, ranges, and faults that can be switched on."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Web:
    """What a server does, and what it was asked for. ``answers`` counts the requests for files that it has answered."""

    folder: Path
    url: str = ""
    ranges: bool = True
    tags: bool = False
    fails_every: int = 0
    """Every so many requests for files it closes the connection without an answer, or says 503, by turns."""
    hangs: tuple[str, ...] = ()
    """For these files it sends nothing at all."""
    forbidden: tuple[str, ...] = ()
    needs: str = ""
    """The query, or the header Authorization, without which it says 403."""
    drip_bytes: int = 0
    drip_seconds: float = 0.0
    """It sends so many bytes at a time, files and pages, and pauses between them."""
    cuts: bool = False
    """It sends half of each file and closes the connection."""
    stops_after: int = -1
    """Having sent so many bytes of an answer, it sends nothing more of it."""
    asked: list[str] = field(default_factory=list)
    bytes_sent: int = 0
    count: int = 0
    server: Any = None
    stopped: bool = False

    @property
    def port(self) -> int:
        return int(self.server.server_port)

    def stop(self) -> None:
        """Answer nobody any more: connections are refused, and those that there are end after their next answer."""
        self.stopped = True
        self.server.shutdown()
        self.server.server_close()


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, directory=str(arguments[2].state.folder), **more)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        pass

    def refuse(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        state: Web = self.server.state  # type: ignore[attr-defined]
        parts = urlsplit(self.path)
        name = unquote(parts.path)
        path = state.folder / name.lstrip("/")
        if state.stopped:
            self.close_connection = True
            return self.connection.close()
        state.asked.append(name)
        if state.needs and state.needs not in (parts.query, self.headers.get("Authorization", "")):
            return self.refuse(403)
        if path.is_dir():
            return self.page(path, body)
        state.count += 1
        if self.faulty(state, name):
            return None
        if not path.is_file():
            return self.refuse(404)
        return self.send(path, body)

    def faulty(self, state: Web, name: str) -> bool:
        """Whether a fault was the answer."""
        if any(part in name for part in state.hangs):
            time.sleep(3600)
        if any(part in name for part in state.forbidden):
            self.refuse(403)
            return True
        if state.fails_every and state.count % state.fails_every == 0:
            if state.count // state.fails_every % 2:
                self.close_connection = True
                self.connection.close()
                return True
            self.refuse(503)
            return True
        return False

    def send(self, path: Path, body: bool) -> None:
        state: Web = self.server.state  # type: ignore[attr-defined]
        data = path.read_bytes()
        begin, end = 0, len(data)
        wanted = self.headers.get("Range") if state.ranges else None
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            begin, end = int(first), min(len(data), int(last) + 1)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(end - begin))
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        status = path.stat()
        self.send_header("Last-Modified", self.date_time_string(status.st_mtime))
        if state.tags:
            self.send_header("ETag", f'"{status.st_mtime_ns:x}-{len(data):x}"')
        self.end_headers()
        if body:
            state.bytes_sent += end - begin
            if state.cuts:
                end, self.close_connection = begin + (end - begin) // 2, True
            self.drip(data[begin:end])

    def page(self, folder: Path, body: bool) -> None:
        """A page that lists a folder."""
        stream = self.list_directory(folder)  # it sends the header
        if stream is not None:
            with stream:
                if body:
                    self.drip(stream.read())

    def drip(self, data: bytes) -> None:
        state: Web = self.server.state  # type: ignore[attr-defined]
        portion = state.drip_bytes or len(data)
        for start in range(0, len(data), max(1, portion)):
            if 0 <= state.stops_after <= start:
                time.sleep(3600)
            self.wfile.write(data[start : start + portion])
            self.wfile.flush()
            time.sleep(state.drip_seconds)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass  # clients that were killed


@contextmanager
def web(folder: Path, port: int = 0, **faults: Any) -> Iterator[Web]:
    """``folder`` at an address of this machine, during the block."""
    state = Web(folder, **faults)

    state.server = Server(("127.0.0.1", port), Handler)
    state.server.state = state
    state.url = f"http://127.0.0.1:{state.server.server_port}"
    thread = threading.Thread(target=state.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        if not state.stopped:
            state.stop()
        thread.join()
