"""What one asks of a conversion, and the report of how it went."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2dprep.artifacts.errors import FailureLimit, top_reasons
from m2dprep.audioprep.discover import PassedOver
from m2dprep.audioprep.members import ArchiveOptions
from m2dprep.workflows.engine.pool import WorkerPool

# Longer than a healthy file gives nothing, even over a slow network: such a read hangs.
READ_TIMEOUT = 120.0


@dataclass(frozen=True)
class MelspecReport:
    """How a conversion went: ``inputs = done + skipped + failed``; ``passed_over`` counts the other files in SRC.

    Of the failed sources, ``kept`` still have their arrays of an earlier conversion in place, and ``set_aside`` have
    them in a folder of their own.
    """

    inputs: int
    done: int
    skipped: int
    failed: int
    reasons: dict[str, int]
    seconds: float
    files_csv: str
    listed: int
    records: str
    kept: int = 0
    set_aside: int = 0
    passed_over: PassedOver = field(default_factory=PassedOver)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "passed_over": self.passed_over.to_dict()}

    def summary(self) -> str:
        """``inputs = done + skipped + failed`` in one line, with the commonest reasons and the files passed over."""
        line = f"{self.inputs:,} inputs = {self.done:,} done + {self.skipped:,} skipped + {self.failed:,} failed"
        reasons = f" ({top_reasons(self.reasons)}; rows in {self.records})" if self.failed else ""
        return line + reasons + (f"; {self.passed_over}" if str(self.passed_over) else "")

    def require(self, limit: FailureLimit) -> None:
        """Raise `TooManyFailuresError` if more sources failed than ``limit`` allows."""
        limit.require(self.failed, self.inputs, f"the rows with status failed in {self.records}/records-*.parquet")


@dataclass(frozen=True)
class MelspecOptions:
    """How to carry out a conversion; nothing here changes a byte of its arrays.

    - ``workers``: where workers come from. A number means local processes; 0 works in this process.
    - ``retry_failed``: also convert sources that failed before.
    - ``check_sources``: also convert sources whose size or modification time differs from the record. Sizes are
      compared anyway if the sources lie in another folder than the one recorded.
    - ``files``: a CSV file whose column ``source`` names the sources, in place of a scan.
    - ``ffmpeg``: what decodes files that libsndfile cannot open. None takes FFmpeg's libraries, and then the program
      if it is installed; True requires the program and takes it alone; False takes nothing.
    - ``name``: the name in ``files_<name>.csv``.
    - ``archives``: how members of archives are named.
    - ``device``: a device other than ``cpu`` computes in one process, with as many decoding threads as ``workers``. It
      belongs to a configuration with `DEVICE_RESAMPLER`.
    - ``ignore_space``: start even if the file system looks too small.
    - ``read_timeout``: the seconds for which reading a source may give nothing; 0 means no limit. Such a source becomes
      a failure row, which the next run tries again.
    - ``max_failures``: with ``overwrite`` and a new configuration, how many sources that were converted before may
      fail; if more do, the earlier conversion stays as it is.
    """

    workers: WorkerPool | int = 1
    overwrite: bool = False
    retry_failed: bool = False
    check_sources: bool = False
    replace: bool = False
    files: Path | None = None
    ffmpeg: bool | None = None
    name: str | None = None
    archives: ArchiveOptions = field(default_factory=ArchiveOptions)
    device: str = "cpu"
    ignore_space: bool = False
    read_timeout: float = READ_TIMEOUT
    max_failures: FailureLimit | None = None
