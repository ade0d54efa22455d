"""Proves everything that m2dprep claims about GPUs in one run of a few minutes: `make gpu`.

The parts run one after another, the most valuable first, each in processes of its own that are ended when its time is
up. After every part the results so far are written, as JSON and as Markdown. A part that fails or hangs costs only
itself, and the time that a part does not use goes to those after it.

It needs no installation of m2dprep and no network: it runs with the Python that has the CUDA build of torch. Packages
that this Python lacks come from the wheels that `make gpu-wheels` collected on another machine.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from _gpu_parts import PARTS, Part
from _gpu_report import markdown
from _machine import machine, write_whole
from gpu_wheels import ROOT, WHEELS, install_missing

GRACE_SECONDS = 5  # between asking a part to end and killing it
SHOWN = 4000  # characters of a part's last output
VERSIONS = ("torch", "torchaudio", "triton", "numpy", "scipy", "transformers", "sentence-transformers", "dask", "soxr")
SOURCES = ("artifacts", "audioprep", "captions", "cli", "m2dclap", "workflows", "benchmarks")
DEFAULT_OUT = ROOT / "benchmarks" / "results" / "gpu"


def about_the_run(options: argparse.Namespace) -> dict[str, Any]:
    """The device, driver, versions and commit that the figures depend on."""
    versions = {}
    for name in VERSIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "device": asked_of_gpu("name,memory.total") if options.device == "cuda" else "cpu",
        "driver": asked_of_gpu("driver_version"),
        "machine": machine(),
        "versions": versions,
        "commit": options.commit or first_line_of(["git", "-C", str(ROOT), "rev-parse", "HEAD"]),
        "sources": digest_of_sources(),
        "quick": options.quick,
        "minutes": options.minutes,
        "started": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    }


def asked_of_gpu(fields: str) -> str | None:
    """Fields of the first GPU, under the names of the driver's program."""
    return first_line_of(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"])


def first_line_of(command: list[str]) -> str | None:
    """The output of a program; None if it cannot be had."""
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip().partition("\n")[0] or None


def digest_of_sources() -> str:
    """A digest of the code that was measured, for checkouts that do not know their commit."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def environment(site: Path) -> dict[str, str]:
    """The environment of every part: the checkout and the missing wheels are importable, and no hub is contacted."""
    path = [str(ROOT), str(site), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }


def run_part(part: Part, options: argparse.Namespace, limit: float, site: Path, scratch: Path) -> dict[str, Any]:
    """Run one part for at most ``limit`` seconds. Returns how it ended, its figures so far, and its last output."""
    figures, log = scratch / f"{part.name}.json", scratch / f"{part.name}.log"
    command = part.command(options.device, options.quick, figures, limit)
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment(site),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            status = "ok" if code == 0 else f"failed (exit code {code})"
        except subprocess.TimeoutExpired:
            status = f"ended after {limit:.0f} s"
        finally:
            end_group(process)
    said = log.read_text(errors="replace")
    found: dict[str, Any] = {}
    with suppress(OSError, json.JSONDecodeError):
        found = json.loads(figures.read_text())
    return {
        "status": status,
        "seconds": round(time.monotonic() - started, 1),
        "limit": round(limit, 1),
        "command": " ".join(command),
        "figures": found,
        "output": said[-SHOWN:],
    }


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a part's process and all processes that it started, so that they do not disturb the next part."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + GRACE_SECONDS
        while group_lives(process) and time.monotonic() < deadline:
            time.sleep(0.05)
    process.wait()


def group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def write_results(out: Path, results: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "gpu.json", json.dumps(results, indent=1) + "\n")
    write_whole(out / "gpu.md", markdown(results))


def main() -> None:
    options = parse()
    ends = time.monotonic() + 60 * options.minutes
    chosen = [part for part in PARTS if not options.only or part.name in options.only]
    results: dict[str, Any] = {**about_the_run(options), "parts": {}}
    with tempfile.TemporaryDirectory(prefix="m2dprep-gpu-") as name:
        scratch = Path(name)
        site = scratch / "site"
        results["brought_along"] = install_missing(options.wheels, site)
        for number, part in enumerate(chosen):
            shares = [one.share for one in chosen[number:]]
            limit = max(ends - time.monotonic(), 0) * part.share / sum(shares)
            print(f"gpu: {part.name}, for {limit:.0f} s at most", file=sys.stderr, flush=True)
            results["parts"][part.name] = run_part(part, options, limit, site, scratch)
            print(f"gpu: {part.name}: {results['parts'][part.name]['status']}", file=sys.stderr, flush=True)
            write_results(options.output, results)
    print(markdown(results))
    sys.exit(any(part["status"] != "ok" for part in results["parts"].values()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="for all parts together (%(default)s)")
    parser.add_argument("--output", "-o", type=Path, default=DEFAULT_OUT, help="folder of the results")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="small models and little data: whether it works at all")
    parser.add_argument("--only", action="append", choices=[part.name for part in PARTS], help="this part; repeatable")
    parser.add_argument("--wheels", type=Path, default=WHEELS, help="what `make gpu-wheels` filled (%(default)s)")
    parser.add_argument("--commit", help="the commit of this checkout, where git cannot tell")
    return parser.parse_args()


if __name__ == "__main__":
    main()
