"""Tables for the tutorial, from file names: captions, a training list, and a held-out part with class names.

usage: python docs/sonic_pi_tables.py SAMPLES DIR
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from m2dprep.artifacts.tables import write_csv, write_file_list

KINDS = {
    "ambi": "ambience",
    "bass": "bass",
    "bd": "bass drum",
    "drum": "drum kit",
    "elec": "electronic sound",
    "glitch": "glitch",
    "guit": "guitar",
    "loop": "drum loop",
    "perc": "percussion",
    "sn": "snare drum",
    "tabla": "tabla",
    "vinyl": "vinyl record",
}
CLIPS_OF_A_CLASS = 8


def main(samples: Path, folder: Path) -> None:
    files = sorted(samples.glob("*.flac"))
    kind = {path: KINDS.get(path.stem.split("_")[0], "") for path in files}
    counts = Counter(kind.values())
    held_out = [path for path in files[::5] if kind[path] and counts[kind[path]] >= CLIPS_OF_A_CLASS]
    captions = [(path.stem, f"the sound of {kind[path] or 'something'}", path.stem.replace("_", " ")) for path in files]
    write_csv(folder / "captions.csv", ["id", "caption1", "caption2"], captions)
    write_csv(folder / "held_out.csv", ["file_name", "label"], [(path.name, kind[path]) for path in held_out])
    training = [f"sonicpi_lms/{path.stem}.npy" for path in files if path not in held_out]
    write_file_list(folder / "training.csv", training)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
