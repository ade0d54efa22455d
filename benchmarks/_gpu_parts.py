"""The parts of `gpu.py` and their scripts, each in full for a GPU and as a quick rehearsal for any machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Part:
    """One part, which takes ``share`` of the whole time.

    ``script`` is a file beside this one. It writes its figures to the file given with ``--json`` as soon as it knows
    them. ``arguments`` turns (device, quick) into its arguments.
    """

    name: str
    share: float
    script: str
    arguments: Callable[[str, bool], list[str]]

    def command(self, device: str, quick: bool, figures: Path, limit: float) -> list[str]:
        """The arguments for Python. ``limit`` is in seconds, for scripts that plan with it."""
        script = str(FOLDER / self.script)
        given = [word.replace("LIMIT", f"{limit:.0f}") for word in self.arguments(device, quick)]
        return [script, *given, "--device", device, "--json", str(figures)]


def words(line: str) -> list[str]:
    """The arguments in a command line."""
    return line.split()


def _train_step(device: str, quick: bool) -> list[str]:
    if quick:
        return words("--model tiny --batch 4 --amp bf16 --rounds 1 --steps 1")
    return words("--model base --batch 512 --amp bf16 --rounds 5 --steps 4 --also-compiled --largest")


def _embed(device: str, quick: bool) -> list[str]:
    if quick:
        return words("--model minute --captions 400 --loop-captions 200 --library-captions 200 --stages")
    return words("--model gte-base --captions 400000 --loop-captions 20000 --library-captions 100000 --stages")


def _melspec(device: str, quick: bool) -> list[str]:
    return ["--clips", "12" if quick else "1500"]


def _feed(device: str, quick: bool) -> list[str]:
    if quick:
        return words("--model tiny --clips 16 --batch 8 --epochs 2")
    return words("--model base --clips 5120 --batch 512 --steps 200")


PARTS = (
    Part("parity", 0.20, "_gpu_parity.py", lambda device, quick: ["--seconds", "LIMIT"]),
    Part("train-step", 0.26, "train_step.py", _train_step),
    Part("captions", 0.22, "embed.py", _embed),
    Part("melspec", 0.16, "melspec_gpu.py", _melspec),
    Part("feed", 0.16, "feed.py", _feed),
)
