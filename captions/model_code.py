"""Python code that a model takes from other repositories of the hub, as gte-*-v1.5 and nomic-embed do."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from artifacts.errors import UserError, first_line
from captions.model_files import HUB_TIMEOUT_SECONDS, ModelFiles

CONFIGURATIONS = ("config.json", "tokenizer_config.json", "modules.json", "*/config.json")
# What an auto_map and the type of a module name: "owner/repository--file.Class".
REFERENCE = re.compile(r'"([\w.-]+/[\w.-]+)--[\w./]+"')


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
