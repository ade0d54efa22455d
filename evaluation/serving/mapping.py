"""The map of stores while the page is served: read if it was made before, else made in a process of its own.

t-SNE of ten thousand points takes its time. It must neither hold up the page nor the end of the server.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.process import die_with_parent
from m2dprep.evaluation.search.projection import Map, MapSettings, make_map, map_from_bytes, read_map
from m2dprep.evaluation.search.shelf import Shelf
from m2dprep.evaluation.serving.catalogue import Colouring

# People look at the page while the map is made: it gives way, but on a machine that is busy it still gets its share.
NICENESS = 2
FAILED, CHANGED = "The map could not be made", "the store has been made anew since the page was started"


class MapInTheMaking:
    """The map of stores: ``state`` is ``making``, ``ready`` or ``none``, and ``reason`` says why there is none."""

    def __init__(self, shelf: Shelf, settings: MapSettings, note: Callable[[str], None] = lambda words: None) -> None:
        """``note`` is told, in another thread, if a map that was made could not be kept."""
        self._shelf, self._settings, self._note = shelf, settings, note
        self.map = read_map(shelf, settings)
        self.reason = ""
        # Of t-SNE: how many are done, and how many there are at most. It may need fewer.
        self.steps = self.most_steps = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._ended = self.map is not None
        if not self._ended:
            threading.Thread(target=self._make, name="m2dprep-map", daemon=True).start()

    @property
    def state(self) -> str:
        return "ready" if self.map is not None else "none" if self._ended else "making"

    def close(self) -> None:
        """Stop making it."""
        with self._lock:
            self._ended = True
            if self._process is not None:
                with suppress(OSError):
                    self._process.kill()

    def _make(self) -> None:
        command = [sys.executable, "-P", "-m", __name__, str(os.getpid())]
        folders = [str(store.folder.absolute()) for store in self._shelf.stores]
        request = json.dumps({"stores": folders, "settings": asdict(self._settings)})
        try:
            with tempfile.TemporaryFile() as errors:
                with self._lock:
                    if self._ended:
                        return
                    self._process = subprocess.Popen(
                        command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=errors,
                        env={
                            "OMP_WAIT_POLICY": "passive",
                            **os.environ,
                        },  # waiting threads leave the processor to others
                    )
                with self._process as process:
                    made, trouble = self._followed(process, request.encode())
                errors.seek(0)
                last = next(iter(errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]), "")
            self._take(made, trouble, process.returncode, last)
        except (OSError, ValueError) as error:
            self.reason = f"{FAILED}: {error}"
        finally:
            self._ended = True

    def _followed(self, process: subprocess.Popen[bytes], request: bytes) -> tuple[bytes, str]:
        """The file that the process makes, and why it could not be kept; meanwhile, its steps are noted."""
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError), process.stdin:  # of one that has ended, which says why
            process.stdin.write(request)
        for line in process.stdout:
            told = json.loads(line)
            if "trouble" in told:
                return process.stdout.read(), str(told["trouble"])
            self.steps, self.most_steps = told["steps"], told["most_steps"]
        return b"", ""

    def _take(self, made: bytes, trouble: str, code: int, last: str) -> None:
        """What has come of it; ``last`` is the last line that the process said of errors."""
        if code:
            self.reason = f"{FAILED}: {last or f'its process ended with {code}'}"
            return
        self.map = map_from_bytes(made, self._shelf, self._settings)
        if self.map is None:
            self.reason = f"{FAILED}: {CHANGED}."
        elif trouble:
            self._note(f"The map is not kept, and will be made anew the next time: {trouble}.")


def points_as_bytes(made: Map, colouring: Colouring) -> bytes:
    """The points for the page, little-endian: the number of points and that of the bytes of a JSON object (uint32), the
    object (what the groups are, and their names) and spaces, then all rows and groups (uint32, int32), then all places
    (float32)."""
    about = json.dumps({"by": colouring.by, "groups": colouring.groups}).encode()
    about += b" " * (-len(about) % 4)
    parts = (
        made.rows.astype("<u4"),
        colouring.number.astype("<i4"),
        made.points.astype("<f4"),
    )
    return np.array([len(made.rows), len(about)], "<u4").tobytes() + about + b"".join(part.tobytes() for part in parts)


def main() -> None:
    """The process that makes a map: a request as JSON on stdin, and what is wrong on stderr.

    On stdout are lines of JSON with its steps, one with the ``trouble`` of keeping the file, and then the file.
    """
    die_with_parent(int(sys.argv[1]))
    os.nice(NICENESS)
    request, out = json.load(sys.stdin), sys.stdout.buffer

    def tell(**told: int | str) -> None:
        out.write(f"{json.dumps(told)}\n".encode())
        out.flush()

    try:
        shelf = Shelf.open([Path(folder) for folder in request["stores"]])
        steps = lambda done, most: tell(steps=done, most_steps=most)  # noqa: E731
        made = make_map(shelf, MapSettings(**request["settings"]), steps)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    tell(trouble=made.trouble)
    out.write(made.data)


if __name__ == "__main__":
    main()
