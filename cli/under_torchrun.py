"""What torchrun starts in a SLURM job: a command of m2dprep, with a file left behind where it was told to stop.

torchrun makes 1 of every exit code; the script of the job looks for the file instead.
"""

from __future__ import annotations

import sys
from pathlib import Path

from m2dprep.artifacts.console import console
from m2dprep.cli.main import m2dprep

STOPPED = 75


def main() -> None:
    """Arguments: the file, and those of ``m2dprep``."""
    stopped, *arguments = sys.argv[1:]
    try:
        with console():
            m2dprep(arguments, prog_name="m2dprep")
    except SystemExit as end:
        if end.code == STOPPED:
            Path(stopped).touch()
        raise


if __name__ == "__main__":
    main()
