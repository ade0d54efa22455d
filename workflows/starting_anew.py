"""What ``melspec --overwrite`` does to an earlier conversion: nothing, until the new one is whole.

The new conversion is made in the bookkeeping folder of the old one (`beside`), as any other is, and goes on as any
other does. Then it takes the old one's place (`workflows.exchange`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from artifacts.atomic import sweep_temporaries
from artifacts.errors import UserError
from artifacts.folders import remove_folder
from artifacts.layout import PACKED_FOLDER, LmsLayout
from artifacts.packed_store import PackedStore
from artifacts.records import OK, frozen_config, read_records, record_parts
from audioprep.discover import Source, output_name
from workflows.source_roots import is_only_root

ANEW = "anew"


def beside(layout: LmsLayout) -> LmsLayout:
    """Where the conversion is made that will take the place of that in ``layout``; on the same file system."""
    return LmsLayout(layout.melspec / ANEW)


def is_converted(layout: LmsLayout) -> bool:
    """Whether there is anything of an earlier conversion that must not be lost."""
    return bool(record_parts(layout)) or layout.config.exists() or (layout.root / PACKED_FOLDER).is_dir()


def where_to_convert(layout: LmsLayout, config: Mapping[str, Any], src: Path, overwrite: bool) -> LmsLayout:
    """``layout`` itself, or the place beside it: with ``overwrite`` where it holds a conversion, and without where a
    replacement by ``config`` was begun that the folder has not. Another one that was begun is spoken of on stderr."""
    new = beside(layout)
    if overwrite:
        return new if is_converted(layout) else layout
    if not new.root.is_dir():
        return layout
    old = frozen_config(layout)
    if old is not None and old["config"] != dict(config) and goes_on(new, config, src):
        print(f"m2dprep: going on with the conversion that is to replace {layout.root}.", file=sys.stderr)
        return new
    print(
        f"m2dprep: {new.root} holds an unfinished conversion that was to replace this one (melspec --overwrite); the "
        "same command goes on with it. This one leaves it alone.",
        file=sys.stderr,
    )
    return layout


def goes_on(new: LmsLayout, config: Mapping[str, Any], src: Path) -> bool:
    """Whether the conversion that was begun in ``new`` is one of ``src`` with ``config``."""
    try:
        begun = frozen_config(new)
    except UserError:  # damaged: it begins again
        return False
    return begun is not None and begun["config"] == dict(config) and is_only_root(begun, src)


def begin_anew(new: LmsLayout, config: Mapping[str, Any], src: Path) -> None:
    """Remove what was begun in ``new`` by another request."""
    if not goes_on(new, config, src):
        remove_folder(new.root)
    sweep_temporaries(new.temporaries)
    new.temporaries.mkdir(parents=True, exist_ok=True)


def require_replaceable(layout: LmsLayout, sources: Iterable[Source]) -> None:
    """Raise `UserError` where there are arrays whose sources are not among ``sources``: they would drop out.

    Records and a pack that cannot be read say nothing; then a line on stderr does.
    """
    outputs = pa.array([output_name(source.relative) for source in sources], pa.string())
    names = _known_arrays(layout)
    others = names.filter(pc.invert(pc.is_in(names, value_set=outputs)))
    if len(others):
        raise UserError(
            f"{layout.root} holds {len(others):,} arrays, such as {pc.min(others).as_py()}, whose sources "
            "are not among those to be converted: --overwrite could not make them again. Convert to another folder, "
            "or remove this one yourself."
        )


def _known_arrays(layout: LmsLayout) -> pa.Array:
    """The names in good records and in the pack, each once."""
    found = [pa.array([], pa.string())]
    try:
        if record_parts(layout):
            records = read_records(layout, ["file_name", "status"])
            found.append(records.filter(pc.equal(records["status"], OK))["file_name"].combine_chunks())
        if (opened := PackedStore.open(layout.root, None)) is not None:
            found.append(opened[1])
    except UserError as error:
        print(f"m2dprep: {error} Arrays of sources that are not converted now stay as they are.", file=sys.stderr)
    return pc.unique(pa.concat_arrays(found))
