"""Writes the page of a data directory, a folder of log-mels, a run, or a store: whichever a path is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from m2dprep.artifacts.embeddings.store import META
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import write_text
from m2dprep.artifacts.folders import make_folder
from m2dprep.artifacts.layout import DataLayout, LmsLayout, require_folder
from m2dprep.artifacts.log_mels.records import record_parts
from m2dprep.evaluation.overview.cards import require_drawing
from m2dprep.evaluation.overview.data_page import Drawing, data_page, log_mels_page
from m2dprep.evaluation.overview.store_page import store_page
from m2dprep.training.reports.run_page import is_run, run_page

SUFFIXES = (".html", ".htm")
# Evaluations write their pages themselves.
OWN_PAGE = "report.html"
RUN = "run"


@dataclass(frozen=True)
class ReportOptions:
    """What a page shows: ``clips`` to hear, and of a run ``encoded`` clips of ``data``; sounds lie below ``audio``.

    ``of_a_run`` names the options that were given and that only the page of a run can follow.
    """

    clips: int = 12
    seed: int = 0
    audio: Path | None = None
    data: Path | None = None
    encoded: int = 200
    device: str = "auto"
    of_a_run: tuple[str, ...] = ()

    @property
    def drawing(self) -> Drawing:
        return Drawing(self.clips, self.seed, self.audio)


@dataclass(frozen=True)
class Written:
    """A page of some ``bytes`` about what is of this ``kind``."""

    output: Path
    kind: str
    bytes: int


def write_report(path: Path, output: Path, options: ReportOptions) -> Written:
    """Write the page of ``path``.

    Raises `UserError` if it is nothing that can be reported, or ``output`` no place for a page.
    """
    require_folder(path, "a data directory, a folder of log-mels, a run, or a store of embeddings")
    if output.suffix.lower() not in SUFFIXES or output.is_dir():
        raise UserError(f"--output {output}: name a file that ends in .html.")
    kind, page = _page_of(path, options)
    if options.of_a_run and kind != RUN:
        raise UserError(f"{', '.join(options.of_a_run)}: only the page of a run shows clips so; {path} is none.")
    require_drawing()
    for folder, what in ((options.audio, "the folder of the sounds"), (options.data, "a data directory")):
        if folder is not None:
            require_folder(folder, what)
    text = page()
    make_folder(output.absolute().parent)
    write_text(output, text)
    return Written(output, kind, len(text.encode()))


def _page_of(path: Path, options: ReportOptions) -> tuple[str, Callable[[], str]]:
    if record_parts(LmsLayout(path)):
        return "log-mels", lambda: log_mels_page(path, options.drawing)
    if is_run(path):
        return RUN, lambda: run_page(path, options.drawing, options.data, options.encoded, options.device)
    if (path / META).exists():
        return "store", lambda: store_page(path, options.drawing)
    if DataLayout(path).holds_anything():
        return "data", lambda: data_page(path, options.drawing)
    if (path / OWN_PAGE).is_file():
        raise UserError(f"{path} holds the results of an evaluation; their page is there already: {path / OWN_PAGE}.")
    raise UserError(
        f"{path} is nothing that can be reported: no data directory, no folder of log-mels with records, no run "
        "(config.json and log.jsonl), and no finished store of embeddings."
    )
