"""Reads captions that lie beside sounds as text files: ``dog/001.flac`` and ``dog/001.txt``."""

from __future__ import annotations

from pathlib import Path

from m2dprep.artifacts.clips.clip_id import has_audio_suffix, without_suffix
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.folders import APPLE_DOUBLE_PREFIX, walk
from m2dprep.artifacts.layout import require_folder
from m2dprep.artifacts.text_files import EXAMPLES, Tally, decode, read_bytes
from m2dprep.captions.sources.json_readers import Notes, Pairs

PURPOSE = "the text of a sound"


def read_text_beside(folder: Path, notes: Notes) -> Pairs:
    """(path of the sound without its suffix, text of the .txt of that name) for every sound, sorted by path.

    A sound without a text has an empty caption, so that it is counted. Texts without a sound, such as a README.txt, are
    left out and counted in ``notes``; in a folder without any sound every text is a caption.
    """
    require_folder(folder, "sounds with a .txt file beside each")
    names = sorted(
        prefix + entry.name
        for prefix, entry, is_folder in walk(folder)
        if not is_folder and not entry.name.startswith(APPLE_DOUBLE_PREFIX)
    )
    text_of = {name.rpartition(".")[0]: name for name in names if name.lower().endswith(".txt")}
    if not text_of:
        raise UserError(f"{folder} holds no .txt file.")
    stems = list(dict.fromkeys(without_suffix(name) for name in names if has_audio_suffix(name)))
    alone = [name for stem, name in text_of.items() if stem not in set(stems)] if stems else []
    if stems and len(alone) == len(text_of):
        raise UserError(f"{folder}: no .txt file has the name of a sound: {alone[0]}, but {stems[0]}.")
    if alone:
        notes.append((f"{folder}: .txt files of no sound, left out", Tally(len(alone), tuple(alone[:EXAMPLES]))))
    pairs = []
    for stem in stems or list(text_of):
        name = text_of.get(stem)
        pairs.append((stem, "" if name is None else decode(folder / name, read_bytes(folder / name, PURPOSE))))
    return pairs
