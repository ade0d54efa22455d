"""Words become a query: the text side of the model that made a store, loaded while the page is already there."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from m2dprep.artifacts.errors import UserError, first_line

QUERIES_KEPT = 512
LOADING = "The text encoder is being loaded."


class TextSide(Protocol):
    """What encodes words so that they can be compared with sounds."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, D)."""


class NoWordsError(UserError):
    """Words cannot be searched for; the message says why."""


class Words:
    """The text side of a model, or why there is none. ``load`` runs in a thread of its own."""

    def __init__(self, load: Callable[[], TextSide] | None, reason: str = "") -> None:
        """Without ``load``, the ``reason`` says why words do not work."""
        self._side: TextSide | None = None
        self.reason = LOADING if load is not None else reason
        self._lock = threading.Lock()
        self._known: OrderedDict[str, np.ndarray] = OrderedDict()
        self._done = threading.Event()
        if load is None:
            self._done.set()
        else:
            threading.Thread(target=self._load, args=[load], name="m2dprep-words", daemon=True).start()

    @property
    def state(self) -> str:
        """``loading``, ``ready`` or ``none``."""
        return "loading" if not self._done.is_set() else "ready" if self._side is not None else "none"

    def wait(self, seconds: float) -> bool:
        """Whether it is known, after at most so many seconds, if words work."""
        return self._done.wait(seconds)

    def query(self, text: str) -> np.ndarray:
        """The embedding (D,) of a text, of unit length. Raises `NoWordsError`."""
        if self._side is None:
            raise NoWordsError(self.reason)
        with self._lock:  # one at a time: models are not made for threads
            if text not in self._known:
                try:
                    found = np.asarray(self._side.encode_texts([text])[0], np.float32)
                except UserError as error:
                    raise NoWordsError(str(error)) from error
                self._known[text] = found / max(float(np.linalg.norm(found)), 1e-12)
                while len(self._known) > QUERIES_KEPT:
                    self._known.popitem(last=False)
            self._known.move_to_end(text)
            return self._known[text]

    def _load(self, load: Callable[[], TextSide]) -> None:
        try:
            side = load()
            side.encode_texts(["a sound"])  # what is loaded late is loaded now, and is known to work
            self._side, self.reason = side, ""
        except Exception as error:  # whatever happens, the page stays, and says it
            self.reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
        finally:
            self._done.set()
