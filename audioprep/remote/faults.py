"""Errors of servers as errors of the system, so that all else treats them alike, and without the secrets in addresses.

The libraries behind fsspec raise errors of their own. What is not there and what is forbidden stay such; everything
else, from a refused connection to a server's 503, is an error of the machine, which passes.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from m2dprep.artifacts.clips.addresses import without_secrets
from m2dprep.artifacts.errors import UserError

NOT_THERE = (404, 410)
FORBIDDEN = (401, 403, 407)
OF_THE_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
MOST_CAUSES = 8
# The libraries that fsspec needs for some kinds of addresses are installed together.
ADVICE = "pip install 'm2dprep[remote]' installs what addresses need"


@contextmanager
def as_system_errors(url: str) -> Iterator[None]:
    """Raise every error of the block that a server may cause as an `OSError` that shows no secrets of ``url``.

    The original errors are not chained to it: they show addresses in full. Raises `UserError` for a missing library.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except ImportError as error:
        raise UserError(f"{without_secrets(url, url)} needs a library: {error}. {ADVICE}.") from None
    except Exception as error:
        raise system_error(error, url) from None


def system_error(error: BaseException, url: str) -> OSError:
    """The `OSError` that an error of a server means."""
    chain = _causes(error)
    said = next((text for each in chain if (text := str(each).strip())), type(chain[0]).__name__)
    text = without_secrets(said.splitlines()[0], url)
    passing = any(_may_pass(each) for each in chain)
    # An answer that was cut off has a status too, in aiohttp, which the server never gave.
    status = None if passing else next((code for each in chain if (code := _status(each)) is not None), None)
    number = next((each.errno for each in chain if isinstance(each, OSError) and each.errno), None)
    if number in OF_THE_PROCESS:
        return OSError(number, text)
    if status is not None:
        number = errno.ENOENT if status in NOT_THERE else errno.EACCES if status in FORBIDDEN else errno.EIO
        return OSError(number, f"the server answered {status} ({text})")
    kinds = (
        (FileNotFoundError, errno.ENOENT),
        (NotADirectoryError, errno.ENOTDIR),
        (IsADirectoryError, errno.EISDIR),
        (PermissionError, errno.EACCES),
    )
    for kind, meaning in () if passing else kinds:
        if isinstance(chain[0], kind):
            return OSError(meaning, "there is no such file" if meaning == errno.ENOENT else text)
    return OSError(errno.EIO, f"{type(chain[-1]).__name__}: {text}" if text else type(chain[-1]).__name__)


def _causes(error: BaseException) -> list[BaseException]:
    """``error``, and what caused it: fsspec calls everything that fails over HTTP a file that is not found."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and len(chain) < MOST_CAUSES:
        chain.append(cause)
    return chain


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error of aiohttp, gcsfs, huggingface_hub, botocore, …"""
    for holder, name in ((error, "status"), (error, "status_code"), (getattr(error, "response", None), "status_code")):
        found = getattr(holder, name, None)
        if isinstance(found, int) and 400 <= found < 600:
            return int(found)
    code = None if hasattr(error, "status") else getattr(error, "code", None)  # gcsfs has it as a number or a text
    text = str(code)
    return int(text) if text.isdecimal() and 400 <= int(text) < 600 else None


def _may_pass(error: BaseException) -> bool:
    """Whether an error is one of the connection."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or bool(
        names & {"ClientConnectionError", "ClientPayloadError", "TransportError", "ConnectionError", "ServerError"}
    )
