"""The page of a data directory or of one folder of log-mels: what is in it, what failed, and some clips to hear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.clips.addresses import is_address
from m2dprep.artifacts.clips.matching import NO_CLIP, match_files
from m2dprep.artifacts.embeddings.store import META
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import read_object
from m2dprep.artifacts.layout import DataLayout, LmsLayout
from m2dprep.artifacts.log_mels.records import read_config, record_parts
from m2dprep.artifacts.log_mels.store import find_log_mels
from m2dprep.artifacts.pages.document import document, figures, section
from m2dprep.artifacts.pages.markup import Markup, table, tag
from m2dprep.artifacts.tables import file_column, read_captions, require_column_inside
from m2dprep.artifacts.text_files import read_csv_table
from m2dprep.audioprep.config import PRESETS, ConvertConfig, LogMelConfig
from m2dprep.evaluation.overview.cards import Card, Sounds, cards
from m2dprep.evaluation.overview.conversion import Clip, Conversion, conversion
from m2dprep.evaluation.overview.described import described
from m2dprep.evaluation.overview.parts import (
    captions_section,
    failures_section,
    hours,
    oddities_section,
    sounds_section,
    spectrum_section,
)

CAPTIONS_SHOWN = 4


@dataclass(frozen=True)
class Drawing:
    """How many clips are shown, by which seed they are drawn, and where sounds lie if not where they were converted."""

    clips: int = 12
    seed: int = 0
    audio: Path | None = None


def data_page(root: Path, drawing: Drawing) -> str:
    """The page of the data directory ``root``. Raises `UserError` if there is nothing in it, or it cannot be read."""
    layout = DataLayout(root)
    folders = [LmsLayout(path) for path in layout.lms_folders() if record_parts(LmsLayout(path))]
    if not folders and not layout.captions.exists():
        raise UserError(f"{root} holds no log-mels with records and no captions.parquet: nothing to report.")
    captions = described(layout.captions, drawing.seed) if layout.captions.exists() else None
    matched = _matched(layout) if captions is not None else None
    body: list[Markup] = []
    for folder in folders:
        body += _conversion_sections(folder, drawing, len(folders), matched)
    if captions is not None:
        body.append(captions_section(captions, None if matched is None else matched.coverage))
    body.append(_stores(layout))
    of = "captions" if captions is None else f"{captions.captions:,} captions of {captions.clips:,} clips"
    about = tag("p", f"{len(folders)} folder{'' if len(folders) == 1 else 's'} of log-mels, {of}", class_="quiet")
    return document(f"Data: {place_name(root)}", [tag("h1", f"Data: {place_name(root)}"), about, *body])


def log_mels_page(folder: Path, drawing: Drawing) -> str:
    """The page of one folder of log-mels."""
    title = f"Log-mels: {place_name(folder)}"
    return document(title, [tag("h1", title), *_conversion_sections(LmsLayout(folder), drawing, 1, None)])


def place_name(path: Path) -> str:
    """The last two parts of a path: many data directories are called data."""
    return "/".join(path.resolve().parts[-2:])


def _conversion_sections(layout: LmsLayout, drawing: Drawing, folders: int, matched: _Matched | None) -> list[Markup]:
    config = read_config(layout) or {}
    front_end = ConvertConfig.from_dict(config["config"]).log_mel if "config" in config else PRESETS["16k"]
    found = conversion(layout, sample=max(1, drawing.clips // folders) if drawing.clips else 0, seed=drawing.seed)
    stats = read_object(layout.norm_stats) or {}
    seconds = float(np.nansum(found.seconds, dtype=np.float64))
    shown: list[tuple[object, str]] = [
        (f"{found.converted:,}", "sounds converted"),
        (f"{found.failed:,}", "failed"),
        (hours(seconds), "of sound"),
        (f"{front_end.sample_rate / 1000:g} kHz", f"{front_end.n_mels} mel bins"),
        (_bytes(found.source_bytes), "of audio files"),
    ]
    if found.kept:
        shown.insert(2, (f"{found.kept:,}", "kept from an earlier run"))
    head = [tag("h2", layout.folder)] if folders > 1 else []
    own_stats = stats if stats.get("folder") in (None, layout.folder) else {}
    return [
        *head,
        figures(shown),
        _cards(layout, config, front_end, found, drawing, matched),
        sounds_section(found),
        spectrum_section(own_stats, front_end) if own_stats else Markup(""),
        failures_section(found.reasons, found.examples, layout.root),
        oddities_section(found),
    ]


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _cards(
    layout: LmsLayout,
    config: Mapping[str, Any],
    front_end: LogMelConfig,
    found: Conversion,
    drawing: Drawing,
    matched: _Matched | None,
) -> Markup:
    """The clips that were drawn, with their captions."""
    roots = [Path(root) for root in config.get("source_roots", []) if not is_address(root)]
    sounds = Sounds([drawing.audio] if drawing.audio is not None else roots, front_end)
    names = [f"{layout.folder}/{clip.file_name}" for clip in found.sample]
    log_mels = find_log_mels(layout.data, names)
    captions = matched.captions(names) if matched is not None else {}
    shown = []
    for row, (clip, name) in enumerate(zip(found.sample, names, strict=True)):
        try:
            log_mel: np.ndarray | None = np.array(log_mels[row])
        except (UserError, OSError):
            log_mel = None
        lines = [_about(clip), *captions.get(name, [])[:CAPTIONS_SHOWN]]
        shown.append(Card(clip.source, lines, log_mel, sounds[clip.source]))
    drawn = f"{len(shown)} of the sounds, drawn by the seed {drawing.seed}; each player holds ten seconds at most."
    return (
        section("Some of the sounds", tag("p", drawn, class_="quiet"), cards(shown, front_end)) if shown else Markup("")
    )


def _about(clip: Clip) -> str:
    return f"{clip.seconds:,.1f} s"


@dataclass(frozen=True)
class _Matched:
    """Which captions listed files have: ``clip`` (n,) is the row in ``ids`` of each of the ``names``."""

    path: Path
    names: pa.Array
    ids: pa.Array
    clip: np.ndarray

    @property
    def coverage(self) -> tuple[int, int]:
        """How many of how many files have captions."""
        return int((self.clip != NO_CLIP).sum()), len(self.names)

    def captions(self, names: Sequence[str]) -> dict[str, list[str]]:
        """The captions of these files."""
        rows = pc.index_in(self.names, value_set=pa.array(names, pa.string())).fill_null(-1).to_numpy()
        listed = np.flatnonzero(rows >= 0)
        clips = dict(zip((names[row] for row in rows[listed].tolist()), self.clip[listed].tolist(), strict=True))
        others = [name for name in names if name not in clips]
        clips |= dict(zip(others, match_files(others, self.ids).clip.tolist() if others else (), strict=True))
        wanted = {self.ids[clip].as_py(): name for name, clip in clips.items() if clip != NO_CLIP}
        table_ = read_captions(self.path, ["clip_id", "caption"])
        some = table_.filter(pc.is_in(table_["clip_id"], value_set=pa.array(list(wanted), pa.string())))
        found: dict[str, list[str]] = {}
        for clip, caption in zip(some["clip_id"].to_pylist(), some["caption"].to_pylist(), strict=True):
            found.setdefault(wanted[clip], []).append(f"“{caption}”")
        return found


def _matched(layout: DataLayout) -> _Matched | None:
    """The clips of all listed files; None if there are no lists."""
    lists = [_listed(path) for path in layout.file_lists()]
    names = pc.unique(pa.chunked_array([chunk for one in lists for chunk in one.chunks], pa.string()))
    if not len(names):
        return None
    ids = pc.unique(read_captions(layout.captions, ["clip_id"])["clip_id"])
    return _Matched(layout.captions, names, ids, match_files(names, ids).clip)


def _listed(path: Path) -> pa.ChunkedArray:
    """What a list of log-mels lists, as a column, which takes a part of the memory of as many strings in Python."""
    purpose = "the list of log-mel files"
    column = file_column(path, purpose)
    names = read_csv_table(path, purpose, [column])[column]
    require_column_inside(names, path)
    return names


def _stores(layout: DataLayout) -> Markup:
    rows: list[list[object]] = []
    for folder in layout.embedding_stores():
        meta = read_object(folder / META)
        if meta is None:
            rows.append([folder.name, "unfinished", "", ""])
        else:
            rows.append([folder.name, f"{meta.get('rows', 0):,}", meta.get("dim", ""), meta.get("model") or "unknown"])
    return (
        section("Embeddings of captions", table(["store", "rows", "dimensions", "encoder"], rows))
        if rows
        else Markup("")
    )
