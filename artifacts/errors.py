"""Errors that a user can act on, each with the exit code that the command line gives it."""

from __future__ import annotations


class UserError(Exception):
    """A request that cannot be carried out. The message names the file, row and value, and what to do about it."""

    exit_code = 2


class TooManyFailuresError(UserError):
    """The run finished, but more of its inputs failed than ``--max-failures`` allows."""

    exit_code = 3


class CheckFailedError(UserError):
    """What lies on disk does not fit together."""

    exit_code = 4


class FingerprintConflictError(UserError):
    """An output was begun with another configuration than the one asked for now."""

    exit_code = 5


def first_line(error: BaseException) -> str:
    """The first line of an error's text: what went wrong, without a library's internals."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
