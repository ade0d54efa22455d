"""Python code that a model's folder asks for, its own or that of other repositories of the hub, as nomic-embed does.

Nothing of it runs unless it is asked for. sentence-transformers before release 6 runs what modules.json names in a
local folder, and models of the hub are loaded as folders too, so the names are looked at here, before any library does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, first_line
from artifacts.json_text import read_json
from captions.model_files import HUB_TIMEOUT_SECONDS, ModelFiles

CONFIGURATIONS = ("config.json", "tokenizer_config.json", "modules.json", "*/config.json")
# What an auto_map and the type of a module name: "owner/repository--file.Class".
REFERENCE = re.compile(r'"([\w.-]+/[\w.-]+)--[\w./]+"')
# Configurations of modules: their folders' and the root's. Others hold vocabularies, or weights' names.
MODULE_FILES = re.compile(r"modules\.json|\w*config\w*\.json")
# The keys by which such files name what is imported, and what may be: classes of the library, and of torch.nn.
LIBRARY_CLASS = re.compile(r"sentence_transformers(\.\w+)*\.[A-Z]\w*")
ACTIVATION_CLASS = re.compile(r"torch\.nn\.(\w+\.)*[A-Z]\w*")


def require_no_code(files: ModelFiles) -> ModelFiles:
    """``files``, if no configuration in its folder names a class outside of sentence-transformers and torch.nn.

    What ``auto_map`` names is left to transformers, which does not run it when told so. Raises `UserError` where a
    class is named, or a configuration cannot be read.
    """
    for path in sorted(files.folder.rglob("*.json")):
        if MODULE_FILES.fullmatch(path.name) and path.is_file():
            for key, name in _imported(
                read_json(path, "a configuration of a text encoder", any_number=True), path.name
            ):
                known = ACTIVATION_CLASS if key == "activation_function" else LIBRARY_CLASS
                if not known.fullmatch(name):
                    raise UserError(
                        f"{files.name} brings Python code of its own: {path.relative_to(files.folder)} names {name!r}, "
                        f"which is no part of sentence-transformers. Read it in {files.folder}; --trust-remote-code "
                        "runs it on this machine."
                    )
    return files


def _imported(value: Any, file: str) -> Iterator[tuple[str, str]]:
    """``(key, dotted name)`` of all that a configuration asks the library to import."""
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        if file == "modules.json":
            yield "type", str(entry.get("type"))
        if isinstance(entry.get("types"), dict):  # of a router
            yield from (("types", str(name)) for name in entry["types"].values())
        if isinstance(activation := entry.get("activation_function"), str) and "." in activation:
            yield "activation_function", activation
        if isinstance(tokenizer := entry.get("tokenizer_class"), str) and "." in tokenizer:
            yield "tokenizer_class", tokenizer


def with_code(files: ModelFiles) -> ModelFiles:
    """``files`` with the commits of the other repositories whose code they name, which are downloaded.

    Without a network cached ones are used. Raises `UserError` where one cannot be reached and is not cached.
    """
    return replace(files, code=tuple((name, _fetched(name, files)) for name in code_repositories(files.folder)))


def code_repositories(folder: Path) -> list[str]:
    """The repositories, ``owner/name``, whose code the configurations in ``folder`` ask for, sorted."""
    found: set[str] = set()
    for pattern in CONFIGURATIONS:
        for path in folder.glob(pattern):
            found.update(REFERENCE.findall(path.read_text(errors="replace")))
    return sorted(found)


def _fetched(name: str, files: ModelFiles) -> str:
    """The commit of the code in the hub's cache, the newest where the hub can be reached: what libraries load then."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_SECONDS)
        return Path(snapshot_download(name, allow_patterns=["*.py"])).name
    except Exception as error:  # the hub's client raises another library's errors where there is no network
        cause = error
    try:
        return Path(snapshot_download(name, allow_patterns=["*.py"], local_files_only=True)).name
    except Exception:
        raise UserError(
            f"{files.name} needs the code in {name}, which is not in the hub's cache and cannot be downloaded "
            f"({first_line(cause)})."
        ) from cause


def unloadable(error: Exception) -> str:
    """Why a library could not load a model, in a line; one that needs code of its own is told by name."""
    if "trust_remote_code" in str(error):
        return "it brings Python code of its own, which this command does not run"
    return first_line(error)
