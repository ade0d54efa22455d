"""Asks servers for bytes such that a slow answer can be told from none: what has arrived so far counts as progress.

Of web servers, every part of an answer is seen as it arrives. The libraries of other servers return an answer only when
it is complete, so they are asked for as much as came within seconds lately.
"""

from __future__ import annotations

import errno
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from m2dprep.artifacts.reading import end_of_progress, last_progress, progress

T = TypeVar("T")
LOOK_SECONDS = 0.5
# Bytes of a request: the first one, the fewest, and the most.
FIRST_BYTES, LEAST_BYTES, MOST_BYTES = 1 << 18, 1 << 14, 1 << 21
# A request that takes less time is followed by one of twice its size, and one that takes longer by a smaller one.
QUICK_SECONDS, SLOW_SECONDS = 0.5, 2.0
# A thread that has computed for so long meanwhile has received something.
LIFE_SECONDS = 0.0002


class Portions:
    """How many bytes to ask for at once, from how long the latest requests of this process took."""

    def __init__(self) -> None:
        self.size = FIRST_BYTES

    def took(self, size: int, seconds: float) -> None:
        """Note how long a request for ``size`` bytes took."""
        if seconds > SLOW_SECONDS:
            self.size = max(LEAST_BYTES, min(self.size, size // 2))
        elif seconds < QUICK_SECONDS and size >= self.size:
            self.size = min(MOST_BYTES, 2 * self.size)


PORTIONS = Portions()


def is_web(files: Any) -> bool:
    """Whether a file system of fsspec is that of the web."""
    protocol = files.protocol
    return "https" in ((protocol,) if isinstance(protocol, str) else protocol) and hasattr(files, "set_session")


def fetch(files: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of a file in a file system of fsspec, or those of a range. Raises the errors of its library.

    A web server that gives no ranges gives all its bytes. Other servers may give fewer than are asked for.
    """
    if is_web(files):
        from fsspec.asyn import sync

        return bytes(sync(files.loop, _streamed, files, path, start, end, threading.get_ident()))
    if start is None or end is None:
        return bytes(files.cat_file(path))
    if not _opens_to_read(files):
        return _in_portions(lambda at, size: files.cat_file(path, start=at, end=at + size), start, end)
    with files.open(path, "rb", cache_type="none") as file:
        file.seek(start)
        return _in_portions(lambda _, size: file.read(size), start, end)


def _opens_to_read(files: Any) -> bool:
    """Whether a file system opens a file to read a range, as that of the Hugging Face hub does.

    It would then read 5 MiB ahead, and again for the next range.
    """
    from fsspec import AbstractFileSystem

    return type(files).cat_file is AbstractFileSystem.cat_file and "file" not in files.protocol


def _in_portions(read: Callable[[int, int], bytes], start: int, end: int) -> bytes:
    """The bytes from ``start`` to ``end``, of which ``read`` gives a number of bytes from an offset on."""
    parts = []
    while start < end:
        size = min(PORTIONS.size, end - start)
        begun = time.monotonic()
        part = read(start, size)
        PORTIONS.took(size, time.monotonic() - begun)
        progress()
        parts.append(part)
        start += size
        if len(part) != size:
            break
    return b"".join(parts)


async def _streamed(files: Any, url: str, start: int | None, end: int | None, thread: int) -> bytes:
    """What a web server sends, which is noted as progress of ``thread`` as it arrives.

    It is asked not to compress what it sends, so that sizes and ranges are those of the file.
    """
    from aiohttp import ClientTimeout

    options = dict(files.kwargs)
    headers = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
    if start is not None and end is not None:
        headers["Range"] = f"bytes={start}-{end - 1}"
    if "timeout" not in {**options, **files.client_kwargs}:
        options["timeout"] = ClientTimeout(total=None)  # that of aiohttp ends every answer after five minutes
    session = await files.set_session()
    received = bytearray()
    async with session.get(files.encode_url(url), headers=headers, **options) as response:
        files._raise_not_found_for_status(response, url)
        progress(thread)
        async for part in response.content.iter_any():
            received += part
            progress(thread)
    return bytes(received)


def within(call: Callable[[], T], seconds: float, files: Any) -> T:
    """What ``call`` gives, which asks the server behind ``files``.

    What the server gives counts as progress of this thread too. Raises the errors of ``call``, and `TimeoutError` if
    the server gives nothing for ``seconds``. Where the library does not tell what it has received, the processor time
    that it spends shows that something comes.
    """
    found: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
    clocks: list[int] = [] if (own := _clock_of_library(files)) is None else [own]

    def work() -> None:
        if not clocks:  # the library works in this thread
            clocks.append(time.pthread_getcpuclockid(threading.get_ident()))
        try:
            found.put((call(), None))
        except BaseException as error:
            found.put((None, error))
        finally:
            end_of_progress()

    thread = threading.Thread(target=work, name="m2dprep-asks", daemon=True)
    thread.start()
    alive, computed = time.monotonic(), _seconds_on(clocks)
    while True:
        try:
            value, error = found.get(timeout=min(LOOK_SECONDS, seconds / 4))
            break
        except queue.Empty:
            now, spent = time.monotonic(), _seconds_on(clocks)
            latest = max(last_progress(thread.ident), now if spent > computed + LIFE_SECONDS else 0.0)
            computed = spent
            if latest > alive:
                alive = latest
                progress()
            if now - alive >= seconds:
                raise TimeoutError(errno.ETIMEDOUT, f"the server gave nothing for {seconds:g} s") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def _clock_of_library(files: Any) -> int | None:
    """The clock of the thread in which an asynchronous library works; None if it has none."""
    if not getattr(files, "async_impl", False):
        return None
    from fsspec.asyn import iothread

    thread = iothread[0]
    return None if thread is None or thread.ident is None else time.pthread_getcpuclockid(thread.ident)


def _seconds_on(clocks: list[int]) -> float:
    try:
        return time.clock_gettime(clocks[0]) if clocks else 0.0
    except OSError:  # the thread has ended
        return 0.0
