"""The kinds of caption sources, in one table. A new one is a row here and a reader beside this file.

A reader takes a file, and the options that the row names, and gives the captions in the file's order, each with the id
that the file has for its clip: a table of `captions.sources.readers.CAPTION_ROWS`, or pairs of an id and a caption.
Which clip an id means is decided later, and for all sources alike (`artifacts.clips`); a reader changes ids only as its
row says.
"""

from __future__ import annotations

from dataclasses import dataclass

ID_COLUMN, CAPTION_COLUMNS = "id_column", "caption_columns"


@dataclass(frozen=True)
class Kind:
    """A kind of source: its option's ``help``, its ``reader`` (module.function), and the rule for its ``ids``.

    ``options`` are those of `captions.sources.readers.ReadOptions` that the reader takes, and ``required`` says that
    they must be given. ``any_name``: files of this form have no name of their own for the column source.
    ``of_audioset``: the captions are for clips of AudioSet and need a table that has these; other sources bring clips.
    """

    help: str
    reader: str
    ids: str
    options: tuple[str, ...] = ()
    required: bool = False
    any_name: bool = False
    of_audioset: bool = False


PATHS = "paths without an audio suffix"
BOTH = (ID_COLUMN, CAPTION_COLUMNS)
KINDS = {
    "acalt4": Kind(
        "Read ACalt4's table: youtube_id,caption1,…,caption4.",
        "readers.read_acalt4",
        "YouTube ids",
        of_audioset=True,
    ),
    "auto_acd": Kind(
        "Read Auto-ACD's train.csv: youtube_id,caption.",
        "readers.read_auto_acd",
        "Y<id> (AudioSet) or <id>_<start second> (VGGSound)",
        of_audioset=True,
    ),
    "audiocaps": Kind(
        "Read AudioCaps' train.csv, val.csv or test.csv.",
        "readers.read_audiocaps",
        "YouTube ids",
    ),
    "clotho": Kind(
        "Read Clotho's captions: file_name,caption_1,…,caption_5.",
        "readers.read_clotho",
        "names of the files, in which _ replaces : and ?",
    ),
    "wavcaps": Kind(
        "Read a JSON file of WavCaps (FreeSound, BBC, SoundBible, AudioSet_SL).",
        "json_readers.read_wavcaps",
        "<part>/<id>, as the parts share numbers; YouTube ids in the part AudioSet_SL",
    ),
    "laion": Kind(
        "Read a folder with a JSON file per clip, as LAION has it.",
        "json_readers.read_laion",
        "paths of the files in the folder",
        options=(CAPTION_COLUMNS,),
    ),
    "csv": Kind(
        "Read any CSV table of an id and one or more captions.",
        "readers.read_caption_csv",
        PATHS,
        options=BOTH,
        any_name=True,
    ),
    "jsonl": Kind(
        "Read any file of JSON lines with an id and captions.",
        "json_readers.read_jsonl",
        PATHS,
        options=BOTH,
        required=True,
        any_name=True,
    ),
    "parquet": Kind(
        "Read any Parquet file of an id and captions.",
        "readers.read_caption_parquet",
        PATHS,
        options=BOTH,
        required=True,
        any_name=True,
    ),
}
