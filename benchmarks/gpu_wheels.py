"""Collects the few wheels that a GPU machine without a network lacks, and installs them beside its own packages.

Such a machine has its own Python and CUDA builds; `make gpu-wheels` is for a machine with a network. The dependencies
of m2dprep are read from the metadata of the installed packages, so a new one need not be named here. Only the large
packages that a GPU machine has anyway are named; they and their own dependencies are left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / ".gpu-wheels"
CONSTRAINTS = ROOT / "constraints.txt"
# Packages that the GPU machine has, together with their dependencies.
THERE = """click hypothesis pandas psutil pyarrow pytest pytest-timeout pytest-xdist pyyaml safetensors scipy
sentence-transformers tensorboard torch torchaudio tqdm transformers""".split()  # noqa: SIM905
PYTHON = (3, 12)
# pip matches each of these literally; a wheel's tag names the oldest glibc that it runs on.
PLATFORMS = ["manylinux_2_34", "manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014",
             "manylinux_2_12", "manylinux2010", "manylinux_2_5", "manylinux1"]  # fmt: skip
MAX_BYTES = 60 << 20


def canonical(name: str) -> str:
    """The normalised name of a distribution."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed_by(names: Iterable[str]) -> set[str]:
    """``names`` and their dependencies, as far as these are installed here, without extras."""
    from packaging.requirements import Requirement

    version = ".".join(map(str, PYTHON))
    environment = {"extra": "", "python_version": version, "python_full_version": f"{version}.0"}
    found: set[str] = set()
    waiting = [canonical(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            requirements = [Requirement(line) for line in importlib.metadata.requires(name) or []]
        except importlib.metadata.PackageNotFoundError:
            if name not in map(canonical, THERE):
                raise SystemExit(f"{name} is needed but not installed here; run `make install` first.") from None
            requirements = []
        found.add(name)
        wanted = [one for one in requirements if one.marker is None or one.marker.evaluate(environment)]
        waiting += [canonical(one.name) for one in wanted]
    return found


def to_carry() -> list[str]:
    """The names of the packages that m2dprep needs and the GPU machine lacks."""
    return sorted(needed_by(["m2dprep"]) - needed_by(THERE) - {"m2dprep"})


def pinned(names: Iterable[str]) -> list[str]:
    """``names`` with their versions in constraints.txt. Raises `SystemExit` if one is not pinned."""
    lines = [line.split("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines()]
    versions = {canonical(line.split("==")[0]): line for line in lines if "==" in line}
    if missing := [name for name in names if name not in versions]:
        raise SystemExit(f"{CONSTRAINTS.name} does not pin {', '.join(missing)}.")
    return [versions[name] for name in names]


def collect(folder: Path) -> None:
    """Download the wheels into ``folder``, which is emptied first. Raises `SystemExit` if they are too large."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    tag = "".join(map(str, PYTHON))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", tag, "--implementation", "cp", "--abi", f"cp{tag}", "--abi", "abi3"]
    command += ["--abi", "none", "--dest", str(folder)]
    command += [part for platform in PLATFORMS for part in ("--platform", f"{platform}_x86_64")]
    subprocess.run([*command, *pinned(to_carry())], check=True)
    wheels = sorted(folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{len(wheels)} wheels, {size / 2**20:.1f} MiB, in {folder}: {', '.join(map(name_of, wheels))}")
    if size > MAX_BYTES:
        raise SystemExit(f"that is more than the {MAX_BYTES >> 20} MiB that travel.")


def name_of(wheel: Path) -> str:
    return canonical(wheel.name.split("-")[0])


def install_missing(folder: Path, site: Path) -> list[str]:
    """Unpack the wheels in ``folder`` whose packages this Python lacks into ``site``. Returns the packages' names.

    Installed packages stay as they are: ``site`` belongs on PYTHONPATH and holds none of them.
    """
    names = []
    for wheel in sorted(folder.glob("*.whl")):
        try:
            importlib.metadata.version(name_of(wheel))
        except importlib.metadata.PackageNotFoundError:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
            names.append(name_of(wheel))
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--to", type=Path, default=WHEELS, help="folder of the wheels (%(default)s)")
    collect(parser.parse_args().to)


if __name__ == "__main__":
    main()
