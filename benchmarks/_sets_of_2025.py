"""Look-alikes of the lists, metadata and captions that M2D-CLAP 2025 was trained on: real sizes, overlaps and traps."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from _caption_tables import LABELS, one_array, sentences, write_segments, youtube_ids

from m2dprep.artifacts.tables import write_file_list

# Segments of AudioSet, and the recordings that the authors had of those to train on.
SEGMENTS = {"eval": 20_371, "balanced_train": 22_160, "unbalanced_train": 2_041_789}
AUDIOSET, VGGSOUND, VGGSOUND_LISTED = 2_005_132, 197_956, 199_176
VGGSOUND_CAPTIONED, VGGSOUND_TEST = 185_197, 15_510
FREESOUND, BBC, SOUNDBIBLE, AUDIOSET_SL = 262_300, 31_201, 1_232, 108_317
AUDIOCAPS_TRAIN, AUDIOCAPS_THERE, AUDIOCAPS_OTHER = 49_838, 49_274, 1_470
CLOTHO, CLOTHO_THERE = 3_839, 3_835
# Blacklists: their ids of YouTube and of FreeSound (some of them twice), and how many of each are in a set.
ALL_AC, ALL_AC_FREESOUND, ALL_AC_FREESOUND_ONCE, ESC_US = 50_725, 5_929, 5_905, 2_219
AC_IN_AUDIOSET, AC_IN_VGGSOUND, AC_IN_AUDIOSET_SL = 50_311, 7_293, 8_999
CLOTHO_IN_FREESOUND, ESC_US_IN_FREESOUND, ESC_US_IN_CLOTHO = 5_260, 2_060, 97


class Sizes:
    """The real numbers, or ``scale`` of each."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, number: int) -> int:
        return number if self.scale == 1 else max(2, round(number * self.scale))

    def steps_of_wavcaps(self) -> list[int]:
        """What is left of WavCaps without the clips of AudioCaps, then of Clotho, then of ESC-50 and UrbanSound8K."""
        left = [sum(map(self, (FREESOUND, BBC, SOUNDBIBLE, AUDIOSET_SL)))]
        for removed in (AC_IN_AUDIOSET_SL, CLOTHO_IN_FREESOUND, ESC_US_IN_FREESOUND):
            left.append(left[-1] - self(removed))
        return left

    def expected(self) -> dict[str, int]:
        """The files of every list, and the clips of every table."""
        audioset = self(AUDIOSET) - self(AC_IN_AUDIOSET)
        vggsound = self(VGGSOUND) - self(AC_IN_VGGSOUND)
        parts, *_, wavcaps = self.steps_of_wavcaps()
        both = self(AUDIOCAPS_THERE) + self(CLOTHO_THERE) - self(ESC_US_IN_CLOTHO)
        return {
            "audioset": audioset,
            "vggsound": vggsound,
            "wavcaps": wavcaps,
            "stage_1": audioset + vggsound + wavcaps,
            "stage_2": audioset + vggsound + wavcaps + both,
            "stage_2_1": wavcaps + both,
            "auto_acd": sum(map(self, SEGMENTS.values())),
            "auto_acd_vggsound": self(VGGSOUND_LISTED),
            "wav_caps": parts,
            "audio_caps": self(AUDIOCAPS_TRAIN),
            "clotho": self(CLOTHO),
        }


def make_sets(root: Path, scale: float = 1.0, seed: int = 0) -> Sizes:
    """Write what the recipe reads below ``root``, and the lists that `melspec` would write in ``root/data``."""
    n, rng = Sizes(scale), np.random.default_rng(seed)
    for folder in ("audioset", "vggsound", "wavcaps/json_files/blacklist", "audiocaps", "clotho", "auto_acd", "data"):
        (root / folder).mkdir(parents=True)
    blocked = np.unique(youtube_ids(rng, n(ALL_AC) + 9))[: n(ALL_AC)]
    rng.shuffle(blocked)
    _blacklists(root / "wavcaps/json_files/blacklist", n, rng, blocked)
    _audioset(root, n, rng, blocked)
    _vggsound(root, n, rng, blocked)
    _wavcaps(root, n, rng, blocked)
    _audiocaps(root, n, rng, blocked)
    _clotho(root, n)
    return n


def _freesound_numbers(n: Sizes) -> tuple[range, range]:
    """The numbers at FreeSound that the blacklists name: Clotho's, and those of ESC-50 and UrbanSound8K."""
    return range(1, 1 + n(ALL_AC_FREESOUND_ONCE)), range(500_000, 500_000 + n(ESC_US))


def _blacklists(folder: Path, n: Sizes, rng: np.random.Generator, blocked: np.ndarray) -> None:
    clotho, esc_us = _freesound_numbers(n)
    numbers = [*clotho, *clotho[: n(ALL_AC_FREESOUND) - len(clotho)]]  # some of them twice
    ids = [f"Y{one.decode()}.wav" for one in blocked]
    (folder / "blacklist_exclude_all_ac.json").write_text(
        json.dumps({"AudioSet": ids, "FreeSound": [str(number) for number in numbers]})
    )
    tested = [f"Y{one.decode()}.wav" for one in _vggsound_ids(n)[: n(VGGSOUND_TEST)]]
    (folder / "blacklist_exclude_ub8k_esc50_vggsound.json").write_text(
        json.dumps({"AudioSet": tested, "FreeSound": [str(number) for number in esc_us]})
    )


def _vggsound_ids(n: Sizes) -> np.ndarray:
    """The videos of VGGSound that no blacklist of AudioCaps names; the first are those of its test part."""
    return youtube_ids(np.random.default_rng(99), n(VGGSOUND_LISTED))


def _texts(values: np.ndarray | pa.Array) -> pa.Array:
    return one_array(pa.array(values)).cast(pa.string()) if isinstance(values, np.ndarray) else values


def _joined(*parts: str | np.ndarray | pa.Array) -> pa.Array:
    return one_array(
        pc.binary_join_element_wise(*(part if isinstance(part, str) else _texts(part) for part in parts), "")
    )


def _list(root: Path, name: str, *files: pa.Array) -> None:
    write_file_list(root / f"data/files_{name}.csv", [one for part in files for one in part.to_pylist()])


def _audioset(root: Path, n: Sizes, rng: np.random.Generator, blocked: np.ndarray) -> None:
    mids = [f"/m/0{number:05x}" for number in range(LABELS)]
    entries = [{"id": mid, "name": f"Sound {at}", "child_ids": []} for at, mid in enumerate(mids)]
    (root / "audioset/ontology.json").write_text(json.dumps(entries))
    sizes = {split: n(size) for split, size in SEGMENTS.items()}
    total, eval_size, there = sum(sizes.values()), sizes["eval"], n(AC_IN_AUDIOSET)
    ids = youtube_ids(rng, total)
    ids[eval_size : eval_size + there] = blocked[:there]
    rng.shuffle(ids[eval_size:])
    starts, at = 10 * rng.integers(0, 30, total), 0
    for split, size in sizes.items():
        place = root / f"audioset/{split}_segments.csv"
        write_segments(place, rng, ids[at : at + size], starts[at : at + size], mids)
        at += size
    # those that could be downloaded: all that a blacklist names, and some of the others
    trained = ids[eval_size:]
    named = np.isin(trained, blocked[:there])
    kept = np.concatenate([trained[named], trained[~named][: n(AUDIOSET) - there]])
    half = len(kept) // 2
    _list(
        root,
        "audioset",
        _joined("audioset_lms/unbalanced_train_segments/Y", kept[:half], ".npy"),
        _joined("audioset_lms/balanced_train_segments/", kept[half:], "_30.000.npy"),
    )
    captioned = _joined("Y", ids[rng.random(total) < 0.83])
    vggsound = _vggsound_names(n, blocked)[: n(VGGSOUND_CAPTIONED)]
    names = pa.concat_arrays([captioned, vggsound])
    rows = pa.table({"youtube_id": names, "caption": sentences(rng, len(names))})
    pyarrow.csv.write_csv(rows.take(pa.array(rng.permutation(len(names)))), root / "auto_acd/train.csv")


def _vggsound_names(n: Sizes, blocked: np.ndarray) -> pa.Array:
    """``<id>_<start>`` of every clip; the last ones of those that are there are of AudioCaps' videos."""
    ids = _vggsound_ids(n)
    ids[n(VGGSOUND) - n(AC_IN_VGGSOUND) : n(VGGSOUND)] = blocked[: n(AC_IN_VGGSOUND)]
    starts = pc.utf8_lpad(pa.array(np.arange(len(ids)) % 600).cast(pa.string()), 6, "0")
    return _joined(ids, "_", starts)


def _vggsound(root: Path, n: Sizes, rng: np.random.Generator, blocked: np.ndarray) -> None:
    names = _vggsound_names(n, blocked)
    lines = [f'{name[:11]},{int(name[12:])},"dog, barking",train\n' for name in names.to_pylist()]
    (root / "vggsound/vggsound.csv").write_text("".join(lines))
    _list(root, "vggsound", _joined("vggsound_lms/", names[: n(VGGSOUND)], ".npy"))


def _wavcaps(root: Path, n: Sizes, rng: np.random.Generator, blocked: np.ndarray) -> None:
    clotho, esc_us = _freesound_numbers(n)
    named = [*clotho[: n(CLOTHO_IN_FREESOUND)], *esc_us[: n(ESC_US_IN_FREESOUND)]]
    freesound = np.array([*named, *range(10**6, 10**6 + n(FREESOUND) - len(named))])
    # numbers of the other sites that the blacklists have too, of FreeSound
    bbc = _joined("", np.array([*named[: n(BBC)], *range(2 * 10**6, 2 * 10**6 + max(0, n(BBC) - len(named)))]))
    soundbible = _joined("", np.array(named[: n(SOUNDBIBLE)]))
    others = youtube_ids(rng, n(AUDIOSET_SL) - n(AC_IN_AUDIOSET_SL))
    audioset = np.concatenate([blocked[-n(AC_IN_AUDIOSET_SL) :], others])
    _list(
        root,
        "wavcaps",
        _joined("wavcaps_lms/FreeSound_flac/", freesound, ".npy"),
        _joined("wavcaps_lms/BBC_Sound_Effects_flac/", bbc, ".npy"),
        _joined("wavcaps_lms/SoundBible_flac/", soundbible, ".npy"),
        _joined("wavcaps_lms/AudioSet_SL_flac/Y", audioset, ".npy"),
    )
    parts = {
        "FreeSound/fsd_final.json": _texts(freesound).to_pylist(),
        "BBC_Sound_Effects/bbc_final.json": bbc.to_pylist(),
        "SoundBible/sb_final.json": soundbible.to_pylist(),
        "AudioSet_SL/as_final.json": _joined("Y", audioset, ".wav").to_pylist(),
    }
    for name, ids in parts.items():
        path = root / "wavcaps/json_files" / name
        path.parent.mkdir()
        captions = sentences(rng, len(ids)).to_pylist()
        entries = [{"id": one, "caption": text, "duration": 9.5} for one, text in zip(ids, captions, strict=True)]
        path.write_text(json.dumps({"num_captions_per_audio": 1, "data": entries}))


def _audiocaps(root: Path, n: Sizes, rng: np.random.Generator, blocked: np.ndarray) -> None:
    train = blocked[: n(AUDIOCAPS_TRAIN)]
    captions = sentences(rng, len(train)).to_pylist()
    rows = ([at, one.decode(), 30, text] for at, (one, text) in enumerate(zip(train, captions, strict=True)))
    _csv(root / "audiocaps/train.csv", ["audiocap_id", "youtube_id", "start_time", "caption"], rows)
    others = youtube_ids(rng, n(AUDIOCAPS_OTHER))  # of its other parts
    _list(root, "audiocaps", _joined("audiocaps_lms/Y", np.append(train[: n(AUDIOCAPS_THERE)], others), ".npy"))


def _clotho(root: Path, n: Sizes) -> None:
    """Names with characters that file systems forbid, one that looks like a suffix, and some of ESC-50's sounds."""
    names = [f"What is: this? {at}.wav" if at % 9 == 0 else f"Sound of {at}.wav" for at in range(n(CLOTHO))]
    names[-3 % len(names)] = "20061208.waves.02.wav"
    _, esc_us = _freesound_numbers(n)
    shared, header = n(ESC_US_IN_CLOTHO), ["file_name", "keywords", "sound_id", "sound_link"]
    sound_ids = [*esc_us[:shared], *range(900_000, 900_000 + len(names) - shared)]
    rows = ([name, "a;b", number, ""] for name, number in zip(names, sound_ids, strict=True))
    _csv(root / "clotho/clotho_metadata_development.csv", header, rows)
    columns = ["file_name", *(f"caption_{number}" for number in range(1, 6))]
    texts = ([name, *(f"Sound {at} is heard {number}." for number in range(5))] for at, name in enumerate(names))
    _csv(root / "clotho/clotho_captions_development.csv", columns, texts)
    there = names[:shared] + names[shared + len(names) - n(CLOTHO_THERE) :]
    files = [name.removesuffix(".wav").replace(":", "_").replace("?", "_") for name in there]
    _list(root, "clotho", _joined("clotho_lms/development/", pa.array(files), ".npy"))


def _csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
