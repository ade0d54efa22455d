"""``m2dprep pack``: its output and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from m2dprep.cli.main import m2dprep


def run(*arguments: object) -> Result:
    return CliRunner().invoke(m2dprep, ["pack", *map(str, arguments)])


def test_summary_json_and_exit_codes(tmp_path: Path, make_data: Callable[..., Path]) -> None:
    lms = make_data(tmp_path / "data", clips=6, frames=40) / "made_lms"
    result = run(lms)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(lms / "_packed")
    assert "6 clips = 6 packed" in result.stderr
    value = json.loads(run(lms, "--json").stdout)
    assert (value["clips"], value["packed_before"]) == (6, 6)
    assert run(lms, "--dtype", "float32").exit_code == 5
    damaged = lms / "clip0000-0.npy"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"")
    result = run(lms, "--overwrite", "--clips-per-shard", 2, "--threads", 1)
    assert result.exit_code == 2
    assert "stays as it is: it has 1 clips whole that could not be packed again" in result.stderr
    assert "0 packed + 6 packed before" in run(lms).stderr
    damaged.write_bytes(whole)
    assert run(lms, "--overwrite", "--clips-per-shard", 2, "--threads", 1).exit_code == 0


def test_clips_that_cannot_be_packed_are_counted(tmp_path: Path, make_data: Callable[..., Path]) -> None:
    lms = make_data(tmp_path / "data", clips=6, frames=40) / "made_lms"
    (lms / "clip0000-0.npy").write_bytes(b"")
    result = run(lms, "--clips-per-shard", 2, "--threads", 1)
    assert result.exit_code == 3
    assert "1 of 6 failed" in result.stderr


@pytest.mark.parametrize("arguments", [("nowhere",), ("nowhere", "--dtype", "int8"), ("nowhere", "--threads", "0")])
def test_bad_requests_exit_with_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2
