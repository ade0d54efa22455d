"""Helpers of the benchmarks: the machine's name, Markdown tables, and figures for another program."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def machine() -> str:
    """The processor, the cores that this process may use, the memory and the version of Python, in words."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, Python {platform.python_version()}"


def restart_with(environment: Mapping[str, str]) -> None:
    """Restart the script with these variables, unless they are set: some take effect only when a process begins."""
    if any(os.environ.get(name) != value for name, value in environment.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **environment})


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its columns aligned."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(
        [f"| {lines[0]} |", f"|{'|'.join('-' * (width + 2) for width in widths)}|"]
        + [f"| {line} |" for line in lines[1:]]
    )


class Figures:
    """Figures by name, written to the JSON file ``path``, if given, as soon as they are known."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.values = path, dict[str, Any]()

    def add(self, **values: Any) -> None:
        self.values |= values
        if self.path is not None:
            write_whole(self.path, json.dumps(self.values, indent=1))


def write_whole(path: Path, text: str) -> None:
    """Replace ``path`` atomically, so that neither a reader nor a kill ever finds half of it."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
