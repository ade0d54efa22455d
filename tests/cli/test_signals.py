"""A signal ends a command with a line and an exit code; the work done by then is recorded."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2dprep.artifacts.layout import LmsLayout
from m2dprep.artifacts.log_mels.records import read_records

pytestmark = pytest.mark.slow

CLIPS = 400


@pytest.mark.parametrize(
    ("number", "code", "message"), [(signal.SIGTERM, 75, "told to stop (SIGTERM)"), (signal.SIGINT, 130, "interrupted")]
)
@pytest.mark.parametrize("workers", [0, 1])
def test_melspec_records_what_is_done(
    tmp_path: Path, number: signal.Signals, code: int, message: str, workers: int
) -> None:
    (tmp_path / "wavs").mkdir()
    soundfile.write(tmp_path / "wavs" / "0.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 441000), 44100)
    for clip in range(1, CLIPS):
        (tmp_path / "wavs" / f"{clip}.wav").hardlink_to(tmp_path / "wavs" / "0.wav")
    layout = LmsLayout(tmp_path / "x_lms")
    command = [sys.executable, "-m", "m2dprep", "melspec", str(tmp_path / "wavs"), str(layout.root)]
    process = subprocess.Popen(
        [*command, "--workers", str(workers)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests may run in the background, and shells make background processes ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 240
    while len(list(layout.root.glob("*.npy"))) < CLIPS // 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, number)  # as a terminal and most batch systems do
    _, errors = process.communicate(timeout=240)
    assert process.returncode == code, errors
    assert f"m2dprep: {message}" in errors
    assert "Traceback" not in errors
    assert CLIPS // 4 <= read_records(layout).num_rows < CLIPS
