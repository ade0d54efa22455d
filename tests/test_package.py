"""One name is installed and imported, ``m2dprep``, whatever a user's folder holds, and its public names work."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile

import m2dprep

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("artifacts", "audioprep", "captions", "m2dclap", "evaluation", "training", "workflows", "cli")
# Files that other people's folders hold, and the names of other distributions.
TAKEN = (*ROOMS, "config", "train", "model", "check", "engine")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
RUN = "from m2dprep.cli.main import main; main()"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with two sounds, and with a file for every name that ours could be taken for."""
    for name in TAKEN:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the user\\'s {name}.py ran')\n")
    (tmp_path / "wavs").mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).normal(0, 0.1, 16000)
        soundfile.write(tmp_path / "wavs" / f"{number}.wav", noise, 16000)
    return tmp_path


@pytest.mark.parametrize(
    ("program", "path"),
    [(("-c", RUN), ""), (("-c", RUN), f":{os.devnull}:"), (("-m", "m2dprep"), ""), (("-m", "m2dprep"), ".")],
    ids=["command", "command, trailing colon", "module", "module, PYTHONPATH=."],
)
def test_sounds_are_converted_where_files_have_the_names_of_our_folders(
    hostile: Path, program: tuple[str, ...], path: str
) -> None:
    command = [sys.executable, *program, "melspec", "wavs", "data/a_lms", "--workers", "1"]
    done = subprocess.run(
        command, cwd=hostile, env={**ENVIRONMENT, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in (hostile / "data/a_lms").glob("*.npy")) == ["0.npy", "1.npy"]


@pytest.mark.parametrize("module", ["m2dprep", "m2dprep.cli.under_torchrun"])
def test_torchrun_and_the_scripts_for_slurm_start_our_code(hostile: Path, module: str) -> None:
    """Both name the module, as ``python -m`` does."""
    more = [] if module == "m2dprep" else ["stopped-file"]
    shown = subprocess.run(
        [sys.executable, "-m", module, *more, "train", "--help"],
        cwd=hostile,
        env={**ENVIRONMENT, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ran" not in shown.stderr
    assert "train" in shown.stdout, shown.stderr


def test_public_names_are_there_and_cost_nothing_before_they_are_used() -> None:
    code = "import sys, m2dprep; assert not {'numpy', 'torch', 'pyarrow'} & set(sys.modules); print(*dir(m2dprep))"
    shown = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert set(m2dprep.__all__) <= set(shown.stdout.split())
    for name in m2dprep.__all__:
        assert name in (m2dprep.__doc__ or ""), "every public name is described"
        assert getattr(m2dprep, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Waveform'"):
        m2dprep.Waveform  # noqa: B018


def test_the_front_end_by_its_public_names() -> None:
    log_mel = m2dprep.LogMel(m2dprep.PRESETS["16k"])(np.zeros(16000, np.float32))
    assert log_mel.shape == (1, 80, 101)


def test_what_is_installed_is_one_package() -> None:
    """With all rooms and nothing beside them: tests and benchmarks stay here."""
    setuptools = pytest.importorskip("setuptools")
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    found = set(setuptools.find_packages(str(ROOT), include=include))
    folders = {path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("__init__.py")}
    assert found == {"m2dprep"} | {f"m2dprep.{'.'.join(folder.parts)}" for folder in folders}


def test_no_test_has_imported_a_folder_by_its_bare_name() -> None:
    """A twin of a module, imported by another name, would have its own classes and its own state."""
    own = {name for name, module in sys.modules.items() if name in ROOMS and getattr(module, "__file__", None)}
    assert own == set()
