"""The notebooks run from the first cell to the last, in the order in which a reader runs them, and are stored small."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# The second one searches with the model of the first.
NOTEBOOKS = ("folder_to_model", "search_my_sounds")
MOST_BYTES = 150_000


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_stored_small_and_name_no_place(name: str) -> None:
    text = (EXAMPLES / f"{name}.ipynb").read_text()
    assert len(text) < MOST_BYTES
    assert "/site-packages/" not in text
    assert "/tmp/" not in text
    assert '"ename"' not in text, "stored after an error"
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_notebooks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel runs both: it imports libraries for longer than it computes. In between, it forgets all names."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    both, forgets = [nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4) for name in NOTEBOOKS], "%reset -f"
    first, second = both
    ends = len(first.cells)
    first.cells += [nbformat.v4.new_code_cell(forgets), *second.cells]
    done = NotebookClient(first, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    trained, searched = json.dumps(done.cells[:ends]), json.dumps(done.cells[ends:])
    assert trained.count('"image/png"') == 3
    assert searched.count('"image/png"') == 1
    assert "siren/" in searched[searched.index("wails") :], "words find the sounds that they are about"
