"""The check of lists, tables and JSON files: their digests match their bytes, and they belong to one conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m2dprep.artifacts.embeddings.store import INDEX as STORE_INDEX
from m2dprep.artifacts.embeddings.store import META as STORE_META
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import is_proven, read_object
from m2dprep.artifacts.layout import PACKED_FOLDER, DataLayout, LmsLayout
from m2dprep.artifacts.log_mels.pack import META as PACK_META
from m2dprep.artifacts.log_mels.pack import index_path, read_pack_meta
from m2dprep.artifacts.log_mels.record_file import PURPOSE, RecordFile
from m2dprep.artifacts.log_mels.records import read_config, record_parts
from m2dprep.artifacts.log_mels.unpacked import UNPACKED
from m2dprep.artifacts.tables import list_digest_path, verify_export, verify_file_list, verify_parquet
from m2dprep.workflows.check.result import CheckResult, Collecting
from m2dprep.workflows.melspec.results import CONFIG, WRITTEN

# A file, and the function that compares it with its digest and returns False if it has none.
Proof = tuple[Path, Callable[[Path], bool]]


def check_files(layout: DataLayout, quick: bool) -> CheckResult:
    """Check that every list, table and JSON file matches its digest; ``quick`` reads no tables."""
    result = CheckResult("files")
    without: list[str] = []
    for path, proof in _proofs(layout, quick):
        result.checked += 1
        name = path.relative_to(layout.root).as_posix()
        with Collecting(result, name):
            if not proof(path):
                without.append(name)
    for folder in layout.lms_folders():
        with Collecting(result, folder.name):
            _require_of_one_conversion(LmsLayout(folder))
    if without:
        result.notes.append(
            f"{len(without):,} of them have no digest, so not all damage can be seen: {', '.join(without[:5])}"
            + (", …" if len(without) > 5 else "")
            + " (an earlier version or somebody else wrote them)"
        )
    if quick:
        result.notes.append("--quick: headers, sizes and JSON files only; values and tables were not read")
    result.absent = "" if result.checked else "no lists, tables or JSON files"
    return result


def _proofs(layout: DataLayout, quick: bool) -> Iterator[Proof]:
    for path in [*layout.file_lists(), *layout.training_lists().values()]:
        yield path, verify_file_list
    for path in sorted(layout.root.glob(list_digest_path(Path("files_*.csv")).name)):
        yield path, _has_its_list
    if not quick:
        for exported in ("*.npy", "*.parquet"):
            for path in sorted(layout.root.glob(list_digest_path(Path(exported)).name)):
                yield path.with_suffix(""), verify_export
    json_files = [layout.norm_stats]
    tables = sorted(layout.root.glob("*.parquet"))  # captions, and exports
    for folder in layout.lms_folders():
        lms = LmsLayout(folder)
        pack = folder / PACKED_FOLDER
        json_files += [lms.config, lms.melspec / WRITTEN, pack / PACK_META]
        tables += [*record_parts(lms), lms.melspec / UNPACKED, *_pack_index(pack)]
    for store in layout.embedding_stores():
        json_files.append(store / STORE_META)
        tables.append(store / STORE_INDEX)
    yield from ((path, is_proven) for path in json_files if path.exists())
    if not quick:
        yield from ((path, _is_proven_table) for path in tables if path.exists())


def _pack_index(pack: Path) -> list[Path]:
    try:
        meta = read_pack_meta(pack)
    except UserError:  # it has been reported
        return []
    return [] if meta is None else [index_path(pack, meta.get("generation", 1))]


def _is_proven_table(path: Path) -> bool:
    return verify_parquet(path, PURPOSE if path.name.startswith("records-") else "a table")


def _has_its_list(path: Path) -> bool:
    if not path.with_suffix("").exists():
        raise UserError(f"{path} is the digest of a list that is not there.")
    return True


def _require_of_one_conversion(layout: LmsLayout) -> None:
    """Raise `UserError` if records or the digests of lists were written beside another configuration."""
    frozen = read_config(layout)
    if frozen is None:
        return
    config = frozen["fingerprint"]
    for part in record_parts(layout):
        found = RecordFile(part).config_fingerprint
        if found not in (None, config):
            raise UserError(f"{part} was not written beside this {layout.config.name}: one is of another folder.")
    written = (read_object(layout.melspec / WRITTEN) or {}).get(CONFIG, config)
    if written != config:
        raise UserError(f"{layout.melspec / WRITTEN} was not written beside this {layout.config.name}.")


def require_of_listed(layout: DataLayout, stats: Mapping[str, Any], listed: Sequence[str]) -> None:
    """Raise `UserError` if ``stats`` belong to one folder while the lists name files of other folders only."""
    folders = sorted({name.partition("/")[0] for name in listed})
    folder = stats.get("folder")
    here = [path.name for path in layout.lms_folders()]
    if folders and folder in here and folder not in folders:
        raise UserError(
            f"is that of {folder}, and the lists name files of {', '.join(folders)} only: one folder's values would "
            f"be normalised with another's. `m2dprep stats {layout.root / folders[0]}` computes it anew."
        )
