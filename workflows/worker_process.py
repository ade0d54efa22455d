"""The program of a local worker: shards come in through a socket that only its parent has, rows go out.

It ends at once when that socket closes, whatever it is doing: nothing outlives the command, also where it was killed.
Nothing but the standard library is imported before the parent knows that the process is up.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

# What a worker says: ("up",), ("loaded",) or ("unloadable", error, where), ("done", Done, stuck) or ("raised", error),
# and at any time ("reading", slow reads).


class Parent:
    """The other end of the socket. Messages go out from several threads."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._connection = Connection(descriptor)
        self._lock = threading.Lock()
        self.work: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def say(self, *message: Any) -> None:
        """Send a message; where nobody listens any more, the process ends."""
        packed = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        try:
            with self._lock:
                self._connection.send_bytes(packed)
        except OSError:
            end()

    def listen(self) -> None:
        """Take in what the parent sends, until it is gone."""
        try:
            while True:
                self.work.put(self._connection.recv_bytes())
        except (EOFError, OSError):
            end()


def end() -> None:
    """End this process and what it has started, whatever its threads are doing."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def main(descriptor: int) -> None:
    """Serve the parent behind ``descriptor`` for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent answers it
    parent = Parent(descriptor)
    threading.Thread(target=parent.listen, daemon=True).start()
    parent.say("up")
    _serve(parent)


def _serve(parent: Parent) -> None:
    """Load the function, which comes first, and answer to shards."""
    from artifacts.reading import watch_reads

    def tell(slow: list[tuple[str, float]]) -> None:
        parent.say("reading", slow)

    threading.Thread(target=watch_reads, args=(tell, threading.Event()), daemon=True).start()
    try:
        function = pickle.loads(parent.work.get())  # noqa: S301 (of the parent, as everything here)
    except Exception as error:
        parent.say("unloadable", f"{type(error).__name__}: {error}", traceback.format_exc())
        return
    parent.say("loaded")
    while True:
        _answer(parent, function, parent.work.get())


def _answer(parent: Parent, function: Callable[[Sequence[Any]], list[Any]], shard: bytes) -> None:
    """Send the rows of a shard, or what the function raised, with where that was."""
    from artifacts.reading import reads_given_up
    from workflows.on_worker import timed

    try:
        done = timed(function, pickle.loads(shard))  # noqa: S301
    except Exception as error:
        where = f"in a worker:\n{traceback.format_exc()}"
        parent.say("raised", _portable(error, where))
    else:
        parent.say("done", done, reads_given_up() > 0)


def _portable(error: Exception, note: str) -> Exception:
    """``error`` as another process can read it, with a ``note``."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(note)
    return error
