"""embeddings export m2d and embeddings import: to and from the original's own format."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from m2dprep.artifacts.embeddings.store import EmbeddingStore
from m2dprep.cli.main import m2dprep


def run(*words: object) -> Result:
    return CliRunner().invoke(m2dprep, [str(word) for word in words])


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    rows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float16)
    np.save(tmp_path / "capemb.npy", {"a": rows[0], "b": rows[1:]})  # type: ignore[arg-type]
    return tmp_path / "capemb.npy"


def test_to_a_store_and_back(dictionary: Path, tmp_path: Path) -> None:
    imported = run("embeddings", "import", dictionary, tmp_path / "store")
    assert imported.exit_code == 0, imported.output
    assert imported.stdout == f"{tmp_path / 'store'}: 3 x 4 float16\n"
    assert not EmbeddingStore.open(tmp_path / "store").has_captions
    exported = run("embeddings", "export", "m2d", tmp_path / "store", tmp_path / "back.npy", "--json")
    assert json.loads(exported.stdout) == {"file": str(tmp_path / "back.npy"), "clips": 2, "rows": 3, "dim": 4}
    there, back = (np.load(path, allow_pickle=True).item() for path in (dictionary, tmp_path / "back.npy"))
    assert all(np.array_equal(there[key], back[key]) and there[key].shape == back[key].shape for key in there)
    refused = run("embeddings", "export", "m2d", tmp_path / "store", tmp_path / "back.npy")
    assert refused.exit_code == 5
    assert "--overwrite" in refused.stderr
    assert run("embeddings", "export", "m2d", tmp_path / "store", tmp_path / "back.npy", "--overwrite").exit_code == 0


@pytest.mark.parametrize(("form", "options"), [("m2d", []), ("parquet", ["--dtype", "float16"])])
def test_an_export_that_fails_late_leaves_the_old_file_and_its_digest(
    dictionary: Path, tmp_path: Path, form: str, options: list[str]
) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    rows[-1, -1] = 1e6  # does not fit float16
    np.save(tmp_path / "other.npy", {f"{number:03}": row for number, row in enumerate(rows)})  # type: ignore[arg-type]
    for name in ("capemb", "other"):
        assert run("embeddings", "import", tmp_path / f"{name}.npy", tmp_path / name).exit_code == 0
    (tmp_path / "exported").mkdir()
    file = tmp_path / "exported" / "file"
    assert run("embeddings", "export", form, tmp_path / "capemb", file, *options).exit_code == 0
    before = {path.name: path.read_bytes() for path in file.parent.iterdir()}
    assert sorted(before) == ["file", "file.xxh3"]
    failed = run("embeddings", "export", form, tmp_path / "other", file, *options, "--overwrite")
    assert failed.exit_code == 2
    assert "does not fit" in failed.stderr
    assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == before


def test_bad_input(dictionary: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path / 'marker'}",)

    np.save(tmp_path / "evil.npy", {"a": Evil()})  # type: ignore[arg-type]
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "folder").mkdir()
    store = tmp_path / "store"
    bad = {
        ("embeddings", "import", tmp_path / "evil.npy", store): "refused",
        ("embeddings", "import", tmp_path / "array.npy", store): "not a dictionary",
        ("embeddings", "import", tmp_path / "missing.npy", store): "no such file",
        ("embeddings", "import", dictionary): "Missing argument 'OUT'",
        ("embeddings", "import", dictionary, "captions.parquet", store): "unexpected extra argument",
        ("embeddings", "import", dictionary, store, "--text-model", "x"): "No such option",
        ("embeddings", "export", "m2d", tmp_path / "missing", tmp_path / "x.npy"): "no such folder",
        ("embeddings", "export", "m2d", tmp_path / "folder", tmp_path / "x.npy"): "no store of caption embeddings",
        ("embeddings", "export", "m2d"): "Missing argument",
    }
    for words, message in bad.items():
        result = run(*words)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["array.npy", "capemb.npy", "evil.npy", "folder"]
