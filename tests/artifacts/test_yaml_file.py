"""Files of settings that people write: whatever is wrong is a line that names the file and the line in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.yaml_files import MAX_DEPTH, read_settings, read_yaml
from m2dprep.workflows.engine.job_settings import read_job_settings
from m2dprep.workflows.recipe.entries import read_recipe_file

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
DEEP_ALIASES = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [[[[*a{n - 1}]]]]\n" for n in range(1, 900))
BAD: list[tuple[str, str, str]] = [
    ("billions of entries by aliases", LAUGHS, r"line \d+: more than 100,000 entries"),
    ("an alias within what it stands for", "a: &a [1, *a]\n", "line 1: an alias stands for something that it is"),
    ("aliases nested deeply", DEEP_ALIASES, r"line \d+: nested more than 64 deep, what aliases stand for included"),
    ("lists in lists", "a: 1\nb: " + "[" * 100_000, f"line 2: nested more than {MAX_DEPTH} deep"),
    ("mappings in mappings", "a: " + "{b: " * 5000, f"line 1: nested more than {MAX_DEPTH} deep"),
    ("blocks in blocks", "- " * 5000 + "x", f"line 1: nested more than {MAX_DEPTH} deep"),
    ("a number of many digits", "x: 1\na: " + "9" * 6000, r"line 2: a: '9+' is no value that there can be"),
    ("a number beyond 64 bits", "a: 1" + "0" * 40, "line 1: a: '10+' is a number beyond 64 bits"),
    ("the 30th of February", "\n\na: 2026-02-30\n", "line 3: a: '2026-02-30' is no value that there can be"),
    ("the 25th hour", "a: 2026-02-03 25:00:00\n", "line 1: .* is no value that there can be"),
    ("a tag that makes objects", "a: !!python/object/apply:os.system [touch marker]\n", "line 1 is not YAML"),
    ("an open bracket", "a: 1\nb: [\n", r"line \d is not YAML"),
    ("bytes that are no text", "a: \udcff\n", "is not YAML"),
    ("control characters", "a: \x00\n", "is not YAML"),
    ("two documents", "a: 1\n---\nb: 2\n", "line 2 is not YAML"),
]  # fmt: skip
READERS: dict[str, Any] = {
    "the reader": lambda path: read_yaml(path, "a file of settings"),
    "a recipe": read_recipe_file,
    "a training's settings": lambda path: read_settings(path, ["a", "b", "x", *(f"a{n}" for n in range(900))]),
    "a cluster's settings": read_job_settings,
}
# Where all values stay texts.
NO_VALUES = ("a number of many digits", "a number beyond 64 bits", "the 30th of February", "the 25th hour", "a tag")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text", "message"), BAD, ids=[name for name, _, _ in BAD])
@pytest.mark.parametrize("reader", list(READERS))
def test_every_file_of_settings_is_refused_by_name_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, name: str, text: str, message: str
) -> None:
    if reader == "a cluster's settings" and name.startswith(NO_VALUES):
        pytest.skip("its values stay texts")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as raised:
        READERS[reader](tmp_path / "settings.yaml")
    assert str(raised.value).startswith(str(tmp_path / "settings.yaml"))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
    assert not (tmp_path / "marker").exists()


def test_aliases_and_merges_of_ordinary_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("\ufeffbase: &b {x: 1, day: 2026-02-03}\nother:\n  <<: *b\n  y: [*b, *b]\n")
    read = read_yaml(tmp_path / "x.yaml", "a file of settings")
    assert read.value["other"]["x"] == 1
    assert read.value["other"]["y"][1]["x"] == 1
    assert read_yaml(tmp_path / "x.yaml", "x", yaml.BaseLoader).value["base"]["day"] == "2026-02-03"
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml", "a file of settings").value is None
    with pytest.raises(UserError, match=r"missing.yaml: no such file"):
        read_yaml(tmp_path / "missing.yaml", "a file of settings")
