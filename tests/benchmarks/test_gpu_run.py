"""`make gpu`, rehearsed on a processor: every part runs and reports; a part that fails or hangs costs only itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run_gpu(python: str, out: Path, *options: str, timeout: float = 280) -> tuple[int, dict[str, Any], str]:
    command = [python, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--quick", "--output", str(out), *options]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    return finished.returncode, json.loads((out / "gpu.json").read_text()), (out / "gpu.md").read_text()


@pytest.mark.timeout(290)
@pytest.mark.parametrize(
    ("part", "figures"),
    [
        ("train-step", ["peak_tflops", "step.samples_per_second", "step.times_plain", "step.utilisation"]),
        ("captions", ["summary.captions_per_second", "summary.times_library", "stages.tokenize"]),
        ("melspec", ["decoding_clips_per_second", "cpu.clips_per_second"]),
        ("feed", ["loading_samples_per_second", "training.samples_per_second", "training.data_wait"]),
    ],
)
def test_a_part_on_a_processor(tmp_path: Path, warm_python: str, part: str, figures: list[str]) -> None:
    from _gpu_report import at

    code, results, report = run_gpu(warm_python, tmp_path, "--only", part, "--minutes", "4.5")
    found = results["parts"][part]
    assert (code, found["status"]) == (0, "ok"), found["output"]
    for name in figures:
        value = at(found["figures"], name)
        assert value is not None, name
        assert value >= 0, name
    assert f"## {part}: ok" in report
    assert "A quick rehearsal" in report


def test_parts_that_hang_or_fail_cost_only_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts: one never ends and has a child that outlives SIGTERM, one fails, one succeeds."""
    import gpu
    from _gpu_parts import Part

    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
    scripts = {
        "hangs": f"import subprocess, sys\nprint(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True)\n"
        f"json_file.write_text('{{\"first\": 1}}')\n{child}",
        "fails": "raise SystemExit('it went wrong')",
        "well": "json_file.write_text('{\"value\": 2.5}')",
    }
    for name, body in scripts.items():
        start = "import pathlib, sys\njson_file = pathlib.Path(sys.argv[sys.argv.index('--json') + 1])\n"
        (tmp_path / f"{name}.py").write_text(start + body)
    monkeypatch.setattr("_gpu_parts.FOLDER", tmp_path)
    parts = tuple(Part(name, 1, f"{name}.py", lambda device, quick: []) for name in scripts)
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--device", "cpu", "--minutes", "0.5", "--output", str(tmp_path / "out")]
    )
    started = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    assert time.monotonic() - started < 240
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())["parts"]
    assert found["hangs"]["status"] == "ended after 10 s"
    assert found["hangs"]["figures"] == {"first": 1}, "what it knew is kept"
    pid = int(found["hangs"]["output"].split()[0])
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text(), "nothing is left running"
    assert found["fails"]["status"] == "failed (exit code 1)"
    assert "it went wrong" in found["fails"]["output"]
    assert (found["well"]["status"], found["well"]["figures"]) == ("ok", {"value": 2.5})


def test_the_tests_marked_gpu_are_counted(tmp_path: Path, warm_python: str) -> None:
    """The quick tests of the front end run; if all tests are skipped, nothing has been shown."""
    script = BENCHMARKS / "_gpu_parity.py"
    command = [warm_python, str(script), "--seconds", "100", "--json", str(tmp_path / "parity.json"), "--device"]
    quick = "test_the_originals_encoding"
    finished = subprocess.run([*command, "cpu", "--match", quick], capture_output=True, text=True, check=False)
    found = json.loads((tmp_path / "parity.json").read_text())
    assert finished.returncode == 0, finished.stdout[-2000:]
    assert (found["passed"], found["failed"]) == (2, 0)
    import torch

    if not torch.cuda.is_available():
        finished = subprocess.run([*command, "cuda", "--match", quick], capture_output=True, text=True, check=False)
        found = json.loads((tmp_path / "parity.json").read_text())
        assert finished.returncode != 0
        assert (found["passed"], found["skipped"], found["reasons"]) == (0, 2, ["no GPU here"])


def test_the_report_says_what_holds_and_what_does_not() -> None:
    from _gpu_report import markdown

    def part(figures: dict[str, Any]) -> dict[str, Any]:
        return {"status": "ok", "seconds": 1, "limit": 2, "command": "x.py", "output": "", "figures": figures}

    results = {
        "device": "H100", "driver": "1", "machine": "m", "versions": {"torch": "2.11"}, "commit": None,
        "sources": "ab", "started": "now", "quick": False, "brought_along": ["dask"],
        "parts": {
            "parity": part({"failed": 0}),
            "train-step": part({"step": {"times_plain": 2.5, "utilisation": 0.41, "host_waits": None}}),
            "melspec": part({"times_cpu": 3.0, "share_of_decoding": 0.97}),
        },
    }  # fmt: skip
    lines = {line.split("|")[1].strip(): line for line in markdown(results).splitlines() if line.startswith("| ")}
    cells = [cell.strip() for cell in lines["training step, times plain eager"].split("|")]
    assert cells[2:5] == ["≥ 2.00", "2.50", "yes"]
    assert "41.0%" in lines["training step, share of the bf16 peak"]
    assert "**no**" in lines["training step, share of the bf16 peak"]
    assert "**no** (share of decoding: 97%)" in lines["melspec, times all cores"]
    for words in ("2,084,320 captions, seconds", "times that a step makes the host wait"):
        assert "not measured" in lines[words]


def test_only_what_is_missing_is_brought_along(tmp_path: Path) -> None:
    from gpu_wheels import install_missing

    for name in ("numpy-0.0.1-py3-none-any.whl", "not_there_at_all-1.0-py3-none-any.whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(f"{name.split('-')[0]}/__init__.py", "")
    assert install_missing(tmp_path, tmp_path / "site") == ["not-there-at-all"]
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["not_there_at_all"]


def test_what_travels_is_what_the_dependencies_need() -> None:
    """The large packages of a GPU machine and their dependencies are left out; every other package is pinned."""
    from gpu_wheels import pinned, to_carry

    names = to_carry()
    assert {"dask", "distributed", "soundfile", "soxr"} <= set(names)
    assert not {"torch", "numpy", "transformers", "pyarrow", "triton"} & set(names)
    assert len(pinned(names)) == len(names)


def test_the_bounds_admit_what_a_gpu_machine_has() -> None:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((BENCHMARKS.parent / "pyproject.toml").read_text())["project"]
    bounds = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    for name, versions in {
        "torch": ["2.11.0", "2.12.0", "2.13.0"],
        "sentence-transformers": ["5.6.0", "6.0.1", "6.2.0"],
        "numpy": ["2.5.2"],
        "pyarrow": ["22.0.0"],
    }.items():
        assert all(version in bounds[name] for version in versions), name
