"""The files of a text encoder: where they lie, a digest of its weights, and the Python code that it may ask for.

A model is a local folder or a snapshot of the Hugging Face hub. Its configuration may name Python code, its own or that
of other repositories of the hub, as nomic-embed does. None of it runs unless that is asked for. sentence-transformers
before release 6 runs whatever modules.json names in a local folder, and models of the hub are loaded as folders too, so
the names are checked here before any library reads them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from m2dprep.artifacts.digests import file_digest
from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.json_files import read_json

UNLIMITED_TOKENS = 1_000_000  # tokenizers use a number beyond any text for "no limit"

HUB_ORGANISATION = "sentence-transformers"  # for names without one, as in sentence-transformers itself
HUB_TIMEOUT_SECONDS = 10.0
# Files of other frameworks, which would be downloaded for nothing.
OTHER_FRAMEWORKS = ["onnx/*", "openvino/*", "coreml/*", "*.onnx", "*.h5", "*.ot", "*.msgpack", "*.tflite", "*.gguf"]


# Tokenizers, the list of modules, their configurations, code.
SETTINGS = (
    "tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "special_tokens_map.json", "added_tokens.json",
    "modules.json", "*config*.json", "*.py",
)  # fmt: skip
OWN_SETTINGS = "config_sentence_transformers.json"
LIBRARIES = ("transformers", "sentence-transformers")
EXPORTS = ("onnx", "openvino")  # folders of other frameworks, which nothing here loads


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder; ``name`` is its name in metadata, ``revision`` the hub's commit (None for a local folder).

    ``code`` names other repositories of the hub whose code the model runs, and their commits.
    """

    name: str
    folder: Path
    revision: str | None
    code: tuple[tuple[str, str], ...] = ()

    def weights_digest(self) -> str:
        """``sha256:<hex>`` of the weights file, or of the names and digests of several."""
        digests = [(path.relative_to(self.folder).as_posix(), file_digest(path)) for path in self._weights()]
        if not digests:
            raise UserError(
                f"{self.folder} cannot be loaded as a text encoder: it holds no weights (*.safetensors or *.bin)."
            )
        return f"sha256:{digests[0][1]}" if len(digests) == 1 else _digest_of(digests)

    def settings_digest(self) -> str:
        """``sha256:<hex>`` of the names and digests of the files besides the weights that decide an embedding.

        These are the tokenizer, the list of modules after the transformer, the configuration of each, and code in the
        folder.
        """
        return _digest_of(
            sorted((path.relative_to(self.folder).as_posix(), file_digest(path)) for path in self._settings())
        )

    def require_readable(self) -> None:
        """Raise `OSError`, naming the file, if a file of `weights_digest` or `settings_digest` cannot be read."""
        for path in (*self._weights(), *self._settings()):
            file_digest(path)

    def is_broken(self) -> bool:
        """Whether a file that can be read is no JSON, or a safetensors file that was cut off. Raises `OSError`."""
        for path in self.folder.glob("*.json"):
            try:
                json.loads(path.read_bytes())
            except (ValueError, RecursionError):
                return True
        return any(_is_cut_off(path) for path in self.folder.glob("*.safetensors"))

    def made_with(self) -> dict[str, str]:
        """The versions of libraries with which its files were written, as far as they say so."""
        found: dict[str, str] = {}
        for file, keys in (("config.json", ("transformers_version",)), (OWN_SETTINGS, ("__version__",))):
            said = self._said(file)
            for key in keys:
                versions = said.get(key)
                named = versions if isinstance(versions, dict) else {"transformers": versions}
                found |= {
                    name.replace("_", "-"): number
                    for name, number in named.items()
                    if name.replace("_", "-") in LIBRARIES and isinstance(number, str)
                }
        return found

    def has_code(self) -> bool:
        """Whether its configuration names Python code of its own."""
        return bool(self._said("config.json").get("auto_map"))

    def _said(self, file: str) -> dict[str, Any]:
        try:
            said = json.loads((self.folder / file).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return said if isinstance(said, dict) else {}

    def _settings(self) -> set[Path]:
        folders = [self.folder, *(path for path in self.folder.iterdir() if path.is_dir())]
        folders = [
            path for path in folders if path.name not in EXPORTS and (path == self.folder or path.name[0] != ".")
        ]
        return {path for folder in folders for pattern in SETTINGS for path in folder.glob(pattern) if path.is_file()}

    def _weights(self) -> list[Path]:
        """The files that loading reads; if a folder has safetensors, its .bin files are another copy of them."""
        files = [path for path in self.folder.rglob("*") if path.suffix in (".safetensors", ".bin") and path.is_file()]
        files = [path for path in files if path.relative_to(self.folder).parts[0] not in EXPORTS]
        safe = {path.parent for path in files if path.suffix == ".safetensors"}
        return sorted(path for path in files if path.suffix == ".safetensors" or path.parent not in safe)


def _is_cut_off(path: Path) -> bool:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            tensors = json.loads(file.read(min(length, size)))
            ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
            return True
    return bool(8 + length + max(ends, default=0) != size)


def _digest_of(digests: Iterable[tuple[str, str]]) -> str:
    listing = "".join(f"{name} {digest}\n" for name, digest in digests)
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


def find_model(name_or_path: str, revision: str | None = None) -> ModelFiles:
    """The files of a model, downloaded if they are neither in a local folder nor in the hub's cache.

    Without a network the cached snapshot is used. Raises `UserError` if there is no such folder, the hub knows no such
    model, or the hub cannot be reached and nothing is cached.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "modules.json")):
            raise UserError(f"{path} holds no text encoder (neither modules.json nor config.json).")
        if revision is not None:
            raise UserError(f"{path} is a folder, which has no revision {revision!r}; revisions are those of the hub.")
        return ModelFiles(path.resolve().name, path, None)
    if path.exists() or name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1:
        raise UserError(f"{path} is no folder with a text encoder; give a folder, or a name on the hub.")
    return _from_hub(name_or_path, revision)


def _from_hub(name: str, revision: str | None) -> ModelFiles:
    # Imported here since only hub names need it; it is quick beside sentence-transformers.
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    candidates = [name] if "/" in name else [f"{HUB_ORGANISATION}/{name}", name]
    unknown: Exception | None = None
    for candidate in candidates:
        try:
            info = HfApi().model_info(candidate, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
            files = [file.rfilename for file in info.siblings or []]
            copies = ["pytorch_model*.bin"] if any(_is_root_safetensors(file) for file in files) else []
            folder = snapshot_download(candidate, revision=revision, ignore_patterns=OTHER_FRAMEWORKS + copies)
            return ModelFiles(candidate, Path(folder), Path(folder).name)
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            unknown = error
        except Exception as error:  # without a network, the hub's client raises another library's errors
            return _from_cache(candidates, revision, snapshot_download, error)
    raise UserError(
        f"the hub knows no model {name!r}{f' with revision {revision!r}' if revision else ''}, and there is no such "
        f"folder here: {first_line(unknown) if unknown else ''}"
    )


def _is_root_safetensors(file: str) -> bool:
    return "/" not in file and file.endswith(".safetensors")


def _from_cache(
    candidates: list[str], revision: str | None, snapshot_download: Callable[..., str], cause: Exception
) -> ModelFiles:
    for candidate in candidates:
        try:
            folder = Path(snapshot_download(candidate, revision=revision, local_files_only=True))
        except Exception:  # nothing is cached, which is reported below
            continue
        return ModelFiles(candidate, folder, folder.name)
    raise UserError(
        f"the model {candidates[-1]!r} is neither a folder here nor in the hub's cache, and the hub cannot be reached "
        f"({first_line(cause)}). Give a local folder, or download the model first."
    ) from cause


CONFIGURATIONS = ("config.json", "tokenizer_config.json", "modules.json", "*/config.json")
# The form in which an auto_map and the type of a module name code: "owner/repository--file.Class".
REFERENCE = re.compile(r'"([\w.-]+/[\w.-]+)--[\w./]+"')
# Configurations of modules, in their folders and the root. Other JSON files hold vocabularies or names of weights.
MODULE_FILES = re.compile(r"modules\.json|\w*config\w*\.json")
# The keys under which such files name imports, and the names allowed: classes of the library and of torch.nn.
LIBRARY_CLASS = re.compile(r"sentence_transformers(\.\w+)*\.[A-Z]\w*")
ACTIVATION_CLASS = re.compile(r"torch\.nn\.(\w+\.)*[A-Z]\w*")


def require_no_code(files: ModelFiles) -> ModelFiles:
    """``files``, if no configuration in its folder names a class outside sentence-transformers and torch.nn.

    Names in ``auto_map`` are left to transformers, which does not run them unless told to. Raises `UserError` if
    another class is named, or a configuration cannot be read.
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
    """``(key, dotted name)`` for everything that a configuration asks the library to import."""
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

    Without a network cached ones are used. Raises `UserError` if one cannot be reached and is not cached.
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
    """The commit of the code in the hub's cache, or the newest if the hub can be reached: libraries load that one."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_SECONDS)
        return Path(snapshot_download(name, allow_patterns=["*.py"])).name
    except Exception as error:  # without a network, the hub's client raises another library's errors
        cause = error
    try:
        return Path(snapshot_download(name, allow_patterns=["*.py"], local_files_only=True)).name
    except Exception:
        raise UserError(
            f"{files.name} needs the code in {name}, which is not in the hub's cache and cannot be downloaded "
            f"({first_line(cause)})."
        ) from cause


def unloadable(error: Exception) -> str:
    """One line on why a library could not load a model; a model that needs code of its own is named as such."""
    if "trust_remote_code" in str(error):
        return "it brings Python code of its own, which this command does not run"
    return first_line(error)


def refusal(files: ModelFiles, error: Exception) -> str:
    """Why a library could not load an encoder; with versions, if code of the model's own may need others."""
    if "trust_remote_code" in str(error):
        return (
            f"{files.name} brings Python code of its own. Read it in {files.folder}; --trust-remote-code runs it on "
            "this machine."
        )
    return f"{files.folder} cannot be loaded as a text encoder: {first_line(error)}{_versions(files, error)}"


def _versions(files: ModelFiles, error: Exception) -> str:
    """What is installed, and what a model's files were written with, if its code may have needed that."""
    made = files.made_with()
    installed = {name: version(name) for name in made}
    if made == installed or not (files.has_code() or isinstance(error, ImportError | AttributeError | TypeError)):
        return ""
    theirs, ours = (", ".join(f"{name} {number}" for name, number in found.items()) for found in (made, installed))
    return (
        f". Its files were written with {theirs}; {ours} is installed here. Encode with the former in an environment "
        "of its own, and read the vectors with `m2dprep embeddings import`."
    )
