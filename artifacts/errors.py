"""Errors that a user can act on, each with its exit code, and what may fail without stopping a run.

The words of the house, each for one thing:

- A *failure* (`Failure`) is one item that could not be processed: a clip, a row or a listed file, with a short code for
  the reason and a message. It is a row somewhere, and counts for ``--max-failures``.
- A *fault* (`audioprep.decoding.messages.Fault`) is what a decoder says is wrong with the bytes of a sound. The sound
  is a failure then, unless the rest of it will do.
- A *problem* (`workflows.check.result.Problem`) is what `m2dprep check` finds: files that do not fit together, without
  anything having failed.
- A *finding* of `m2dprep captions check` is a caption that looks odd; people decide what becomes of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class UserError(Exception):
    """A request that cannot be carried out. The message names the file, row and value, and what to do about it."""

    exit_code = 2


class TooManyFailuresError(UserError):
    """The run finished, but more of its inputs failed than ``--max-failures`` allows."""

    exit_code = 3


class CheckFailedError(UserError):
    """The files on disk do not fit together."""

    exit_code = 4


class FingerprintConflictError(UserError):
    """An output was begun with another configuration than the one asked for now."""

    exit_code = 5


class MachineLostError(UserError):
    """What the run needs has gone in the middle of it: a server, a disk, a cluster. The same command goes on later.

    A batch system may start it again.
    """

    exit_code = 75


class Failure(NamedTuple):
    """An item that could not be processed: its name, a short code for the reason, and what is wrong in words."""

    file_name: str
    reason: str
    message: str


def first_line(error: BaseException) -> str:
    """The first line of an error's text: it says what went wrong without a library's internals."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass(frozen=True)
class FailureLimit:
    """``--max-failures``: the number of inputs, or the share of them, that may fail before a run exits with 3."""

    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> FailureLimit:
        """``"25"`` is a number of inputs, ``"1%"`` or ``"0.5 %"`` a share of them."""
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
        if match and match[2] and float(match[1]) <= 100:
            return cls(share=float(match[1]) / 100)
        if match and not match[2] and "." not in match[1]:
            return cls(count=int(match[1]))
        raise UserError(f"--max-failures {text!r} is neither a number like 25 nor a percentage like 1%.")

    def exceeded(self, failed: int, inputs: int) -> bool:
        """Whether ``failed`` of ``inputs`` is more than the limit allows."""
        return failed > (self.count if self.count is not None else (self.share or 0.0) * inputs)

    def require(self, failed: int, inputs: int, where: str) -> None:
        """Raise `TooManyFailuresError` if the limit is exceeded; ``where`` says where the failures are listed."""
        if self.exceeded(failed, inputs):
            raise TooManyFailuresError(f"{failed:,} of {inputs:,} failed, --max-failures allows {self}; see {where}.")

    def __str__(self) -> str:
        return f"{self.count:,}" if self.count is not None else f"{(self.share or 0.0) * 100:g} %"


def top_reasons(reasons: Mapping[str, int], most: int = 5) -> str:
    """``not_audio 12, truncated 3``: the commonest reasons first, those of equal count by name."""
    ordered = sorted(Counter(reasons).items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{reason} {count:,}" for reason, count in ordered[:most])
    return shown + (f", {len(ordered) - most} more" if len(ordered) > most else "")
