"""Rules for replacing arrays: which run may write, which source folders are known, and how ``--overwrite`` begins.

- Only the run that began last may write to a folder of arrays. A remote worker may outlive its killed command until a
  newer run has begun, so workers ask for permission before each file gets its name.
- Sources from another folder than before are reported, and replace nothing unless ``--replace`` is given.
- ``melspec --overwrite`` leaves an earlier conversion alone until the new one is complete. The new conversion is made
  in the bookkeeping folder of the old one (`beside`) and resumes like any other. Then it takes the old one's place
  (`workflows.melspec.exchange`).
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.clips.addresses import is_address
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import sweep_temporaries, write_bytes
from m2dprep.artifacts.folders import remove_folder
from m2dprep.artifacts.layout import PACKED_FOLDER, LmsLayout
from m2dprep.artifacts.log_mels.pack import PackedStore
from m2dprep.artifacts.log_mels.records import OK, frozen_config, read_records, record_parts
from m2dprep.audioprep.remote.address import Address
from m2dprep.audioprep.source import Source
from m2dprep.workflows.melspec.plan import Plan


class SupersededError(UserError):
    """The run that a worker belongs to has ended, or another one has begun."""

    exit_code = 75


@dataclass(frozen=True)
class RunPermit:
    """Permission to write, checked before each write for the run that wrote ``token`` to the file ``path``."""

    path: str
    token: bytes

    def __call__(self) -> None:
        """Raise `SupersededError` if that run is no longer the current one."""
        found = b""
        with suppress(FileNotFoundError):
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = os.read(descriptor, len(self.token) + 1)
            finally:
                os.close(descriptor)
        if found != self.token:
            raise SupersededError(f"{self.path}: this run has ended or another one has begun; nothing more is written.")


@contextmanager
def run_permit(layout: LmsLayout) -> Iterator[RunPermit]:
    """The permit of a run, for the block. Earlier permits become void. The caller holds the lock of ``layout``."""
    path = Path(os.path.abspath(layout.melspec / "run"))  # noqa: PTH100
    token = secrets.token_hex(16).encode()
    write_bytes(path, token, durable=False)  # of no use after a power cut
    try:
        yield RunPermit(str(path), token)
    finally:
        path.unlink(missing_ok=True)


ROOTS = "source_roots"
EARLIER_ROOT = "source_root"  # what earlier versions wrote


def known_roots(frozen: Mapping[str, Any] | None) -> list[str]:
    """The source folders that ``config.json`` names; none if nothing was converted yet."""
    if frozen is None:
        return []
    roots = frozen.get(ROOTS) or [frozen.get(EARLIER_ROOT)]
    return [root for root in roots if isinstance(root, str)]


def is_only_root(frozen: Mapping[str, Any] | None, src: Path | Address) -> bool:
    """Whether everything was converted from ``src``."""
    return frozen is None or known_roots(frozen) == [str(src.resolve())]


def require_replacement(
    layout: LmsLayout, frozen: Mapping[str, Any] | None, src: Path | Address, plan: Plan, allowed: bool
) -> None:
    """Report on stderr if ``src`` is another folder than before.

    Raises `UserError` if arrays of other files with the same names would be replaced and that is not ``allowed``.
    """
    if is_only_root(frozen, src):
        return
    roots = known_roots(frozen)
    others = [root for root in roots if root != str(src.resolve())]
    if others:
        print(
            f"m2dprep: {layout.root} has arrays of {', '.join(others)}; {plan.done:,} of the files in {src} are those "
            f"that were converted, {len(plan.pending):,} are to be converted.",
            file=sys.stderr,
        )
    if plan.replaced and not allowed:
        before = " and ".join(roots) or "another folder"
        raise UserError(
            f"{len(plan.replaced):,} of the files in {src}, such as {plan.replaced[0]}, have the names of others that "
            f"were converted from {before} to {layout.root}, and are not the same: the arrays of those would be "
            "replaced. Convert to another folder, or use --replace."
        )


def roots_with(frozen: Mapping[str, Any] | None, src: Path | Address, plan: Plan) -> list[str]:
    """The roots after ``src`` is converted. A root that is gone, and whose files ``src`` has, was moved there.

    Servers are not asked whether their folders have gone.
    """
    root = str(src.resolve())
    there = [other for other in known_roots(frozen) if other == root or is_address(other) or Path(other).is_dir()]
    kept = there if plan.done else known_roots(frozen)
    return kept if root in kept else [*kept, root]


ANEW = "anew"


def beside(layout: LmsLayout) -> LmsLayout:
    """The place, on the same file system, for the conversion that will replace the one in ``layout``."""
    return LmsLayout(layout.melspec / ANEW)


def is_converted(layout: LmsLayout) -> bool:
    """Whether ``layout`` holds anything of an earlier conversion that must not be lost."""
    return bool(record_parts(layout)) or layout.config.exists() or (layout.root / PACKED_FOLDER).is_dir()


def conversion_layout(layout: LmsLayout, config: Mapping[str, Any], src: Path | Address, overwrite: bool) -> LmsLayout:
    """The layout to convert into: ``layout`` itself, or the place `beside` it.

    The place beside it is used with ``overwrite`` if ``layout`` holds a conversion. Without ``overwrite`` it is used if
    a replacement with ``config`` was begun there and ``layout`` has another configuration. Any other unfinished
    replacement is reported on stderr.
    """
    new = beside(layout)
    if overwrite:
        return new if is_converted(layout) else layout
    if not new.root.is_dir():
        return layout
    old = frozen_config(layout)
    if old is not None and old["config"] != dict(config) and is_resumable(new, config, src):
        print(f"m2dprep: going on with the conversion that is to replace {layout.root}.", file=sys.stderr)
        return new
    print(
        f"m2dprep: {new.root} holds an unfinished conversion that was to replace this one (melspec --overwrite); the "
        "same command goes on with it. This one leaves it alone.",
        file=sys.stderr,
    )
    return layout


def is_resumable(new: LmsLayout, config: Mapping[str, Any], src: Path | Address) -> bool:
    """Whether the conversion begun in ``new`` converts ``src`` with ``config``."""
    try:
        begun = frozen_config(new)
    except UserError:  # damaged: it begins again
        return False
    return begun is not None and begun["config"] == dict(config) and is_only_root(begun, src)


def begin_replacement(new: LmsLayout, config: Mapping[str, Any], src: Path | Address) -> None:
    """Prepare ``new``, and remove a conversion that another request began there."""
    if not is_resumable(new, config, src):
        remove_folder(new.root)
    sweep_temporaries(new.temporaries)
    new.temporaries.mkdir(parents=True, exist_ok=True)


def require_replaceable(layout: LmsLayout, sources: Iterable[Source]) -> None:
    """Raise `UserError` if there are arrays whose sources are not among ``sources``: they would be lost.

    If the records or the pack cannot be read, a line on stderr says so instead.
    """
    outputs = pa.array([source.output for source in sources], pa.string())
    names = _known_arrays(layout)
    others = names.filter(pc.invert(pc.is_in(names, value_set=outputs)))
    if len(others):
        raise UserError(
            f"{layout.root} holds {len(others):,} arrays, such as {pc.min(others).as_py()}, whose sources "
            "are not among those to be converted: --overwrite could not make them again. Convert to another folder, "
            "or remove this one yourself."
        )


def _known_arrays(layout: LmsLayout) -> pa.Array:
    """The distinct array names in the good records and in the pack."""
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
