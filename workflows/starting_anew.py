"""What ``melspec --overwrite`` does to an earlier conversion: nothing before workers are there, nothing that is lost.

Arrays are not removed but replaced, one by one, as their sources are converted again.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.errors import UserError
from artifacts.layout import PACKED_FOLDER, LmsLayout, arrays_below
from artifacts.packed_store import META
from artifacts.records import OK, read_config, read_records, record_parts
from artifacts.unpacked import UNPACKED
from audioprep.discover import Source, output_name


def require_replaceable(layout: LmsLayout, sources: Iterable[Source]) -> None:
    """Raise `UserError` where records speak of arrays whose sources are not among ``sources``: they would drop out.

    Records that cannot be read say nothing; then a line on stderr does.
    """
    if not record_parts(layout):
        return
    try:
        records = read_records(layout, ["file_name", "status"])
    except UserError as error:
        print(f"m2dprep: {error} Arrays of sources that are not converted now stay as they are.", file=sys.stderr)
        return
    made = records.filter(pc.equal(records["status"], OK))
    outputs = pa.array([output_name(source.relative) for source in sources], pa.string())
    others = made.filter(pc.invert(pc.is_in(made["file_name"], value_set=outputs)))
    if others.num_rows:
        raise UserError(
            f"{layout.root} holds {others.num_rows:,} arrays, such as {others['file_name'][0].as_py()}, whose sources "
            "are not among those to be converted: --overwrite could not make them again. Convert to another folder, "
            "or remove this one yourself."
        )


def space_given_back(layout: LmsLayout) -> tuple[int, int]:
    """Bytes and inodes of the arrays and the pack that will be replaced, by the records."""
    config = read_config(layout)
    given, inodes = 0, 0
    if (pack := layout.root / PACKED_FOLDER).is_dir():
        given += sum(path.stat().st_size for path in pack.iterdir())
    if config is None or not record_parts(layout):
        return given, inodes
    try:
        records = read_records(layout, ["file_name", "n"])
    except UserError:
        return given, inodes
    there = pc.is_in(records["file_name"], value_set=pa.array(arrays_below(layout.root), pa.string()))
    values = records.filter(there)["n"].fill_null(0).to_numpy()
    item_bytes = np.dtype(config["config"]["dtype"]).itemsize
    return given + int(item_bytes * values.sum()), inodes + len(values)


def forget(layout: LmsLayout) -> None:
    """Remove what says that an earlier conversion is done: its pack, its records, its configuration; no array."""
    pack = layout.root / PACKED_FOLDER
    if pack.exists():
        (pack / META).unlink(missing_ok=True)  # without it the rest counts as unfinished, however far this gets
        shutil.rmtree(pack)
    for part in record_parts(layout):
        part.unlink()
    (layout.melspec / UNPACKED).unlink(missing_ok=True)
    layout.config.unlink(missing_ok=True)
