"""A small AudioSet-like set made with code: recordings, segment CSVs, ontology, and caption tables."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from artifacts.atomic import atomic_file, write_json
from artifacts.fingerprint import require_same
from artifacts.json_file import read_object, write_object
from artifacts.progress import Progress
from artifacts.tables import write_csv
from workflows.engine import run_shards, split_into_shards
from workflows.synthesis import CLASSES, SoundClass, synthesise_clip

SECONDS = 10.0
SAMPLE_RATES = (16000, 22050, 32000, 44100, 48000)
ID_ALPHABET = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
TRAIN, HELD_OUT = "balanced_train_segments", "eval_segments"
# Shares of the training clips: two sounds at once; a caption from a person-like source; four more captions.
MIXED, CAPTIONED, ALT_CAPTIONED = 0.15, 0.7, 0.3
CLIPS_A_SHARD = 16

SENTENCES = (
    "{description}.",
    "{description} while the room is quiet.",
    "{description} in the recording.",
    "The recording holds {name}: {lower}.",
    "{name} can be heard throughout.",
)
ALTERNATIVES = (
    "{lower}, recorded close to the microphone",
    "an audio clip of {name}",
    "in this sound, {lower}",
    "{name}, with a little background noise",
)


@dataclass(frozen=True)
class Clip:
    """One recording to be made: its YouTube-like id, part, classes, and what it is stored as."""

    clip_id: str
    part: str
    labels: tuple[int, ...]
    sample_rate: int
    channels: int
    subtype: str
    seed: int

    @property
    def file_name(self) -> str:
        return f"{self.part}/Y{self.clip_id}.wav"


@dataclass(frozen=True)
class SoundSet:
    """What was made: ``training + held_out`` recordings of ``classes``."""

    folder: str
    classes: int
    training: int
    held_out: int


def make_sound_set(
    root: Path, *, train_per_class: int, held_out_per_class: int, seed: int, workers: int, overwrite: bool = False
) -> SoundSet:
    """Write ``root/audio/<part>/Y<id>.wav`` and the tables that AudioSet, Auto-ACD and ACalt4 would come with.

    Held-out clips are in ``eval_segments`` and in ``held_out.csv`` (file_name, label). Equal arguments give equal
    bytes. Raises `FingerprintConflictError` where ``root`` holds a set of other numbers or another seed, unless
    ``overwrite`` removes it.
    """
    _begin(root, {"training_a_class": train_per_class, "held_out_a_class": held_out_per_class, "seed": seed}, overwrite)
    rng = np.random.default_rng(seed)
    clips = _plan(rng, train_per_class, held_out_per_class)
    for part in (TRAIN, HELD_OUT):
        (root / "audio" / part).mkdir(parents=True, exist_ok=True)
    write_clip = functools.partial(write_clips, audio=root / "audio")
    with Progress(len(clips), "synthesis") as progress:
        for done in run_shards(
            write_clip, split_into_shards(clips, workers, CLIPS_A_SHARD), workers, lambda clip: clip
        ):
            progress.advance(len(done))
    training = [clip for clip in clips if clip.part == TRAIN]
    _write_segments(root / f"{TRAIN}.csv", training)
    _write_segments(root / f"{HELD_OUT}.csv", [clip for clip in clips if clip.part == HELD_OUT])
    _write_ontology(root / "ontology.json")
    _write_auto_acd(root / "auto_acd_train.csv", training, rng)
    _write_acalt4(root / "acalt4.csv", training, rng)
    held_out = [(f"audio/{clip.file_name}", CLASSES[clip.labels[0]].name) for clip in clips if clip.part == HELD_OUT]
    write_csv(root / "held_out.csv", ("file_name", "label"), held_out)
    return SoundSet(str(root), len(CLASSES), len(training), len(held_out))


def _begin(root: Path, numbers: dict[str, int], overwrite: bool) -> None:
    """Note what the set is made of, or compare with what is noted."""
    note = root / "sound_set.json"
    if overwrite:
        note.unlink(missing_ok=True)
        shutil.rmtree(root / "audio", ignore_errors=True)
    if note.exists():
        require_same(read_object(note) or {}, numbers, root)
        return
    root.mkdir(parents=True, exist_ok=True)
    write_object(note, numbers)


def _plan(rng: np.random.Generator, train_per_class: int, held_out_per_class: int) -> list[Clip]:
    clips = []
    for part, per_class in ((TRAIN, train_per_class), (HELD_OUT, held_out_per_class)):
        for label in range(len(CLASSES)):
            for _ in range(per_class):
                mixed = part == TRAIN and rng.uniform() < MIXED
                other = (label + int(rng.integers(1, len(CLASSES)))) % len(CLASSES)
                clips.append(
                    Clip(
                        clip_id="".join(rng.choice(ID_ALPHABET, 11)),
                        part=part,
                        labels=(label, other) if mixed else (label,),
                        sample_rate=int(rng.choice(SAMPLE_RATES)),
                        channels=int(rng.integers(1, 3)),
                        subtype=str(rng.choice(["PCM_16", "PCM_24", "PCM_32"])),
                        seed=int(rng.integers(2**31)),
                    )
                )
    return clips


def write_clips(clips: Sequence[Clip], audio: Path) -> list[Clip]:
    """Synthesise and write a shard of clips below ``audio``; whole files that are there already are kept."""
    for clip in clips:
        path = audio / clip.file_name
        if path.exists():
            continue
        rng = np.random.default_rng(clip.seed)
        waveforms = [
            synthesise_clip(CLASSES[label], rng, clip.sample_rate, clip.channels, SECONDS) for label in clip.labels
        ]
        with atomic_file(path) as file:
            soundfile.write(file, sum(waveforms) / len(waveforms), clip.sample_rate, subtype=clip.subtype, format="WAV")
    return list(clips)


def _write_segments(path: Path, clips: Sequence[Clip]) -> None:
    """A segment CSV in AudioSet's own form: three comment lines, comma and space, the mids in one quoted field."""
    mids = {index: sound.mid for index, sound in enumerate(CLASSES)}
    lines = [
        "# Segments csv of a synthetic set in the form of AudioSet",
        f"# num_ytids={len(clips)}, num_segs={len(clips)}, num_unique_labels={len(CLASSES)}, num_positive_labels="
        f"{sum(len(clip.labels) for clip in clips)}",
        "# YTID, start_seconds, end_seconds, positive_labels",
        *(
            f'{clip.clip_id}, 0.000, {SECONDS:.3f}, "{",".join(mids[label] for label in clip.labels)}"'
            for clip in clips
        ),
    ]
    with atomic_file(path) as file:
        file.write("\n".join([*lines, ""]).encode())


def _write_ontology(path: Path) -> None:
    write_json(path, [_ontology_entry(sound) for sound in CLASSES])


def _ontology_entry(sound: SoundClass) -> dict[str, object]:
    return {
        "id": sound.mid,
        "name": sound.name,
        "description": (sound.synthesise.__doc__ or "").strip(),
        "citation_uri": "",
        "positive_examples": [],
        "child_ids": [],
        "restrictions": [],
    }


def _sentence(templates: Sequence[str], clip: Clip, rng: np.random.Generator) -> str:
    parts = []
    for label in clip.labels:
        description = str(rng.choice(CLASSES[label].descriptions))
        name = CLASSES[label].name.split(",")[0].lower()
        template = str(rng.choice(templates))
        lower = description[0].lower() + description[1:]
        parts.append(template.format(description=description, lower=lower, name=name))
    return " ".join(parts)


def _write_auto_acd(path: Path, clips: Sequence[Clip], rng: np.random.Generator) -> None:
    """Captions for some clips only, with what the real table holds: both id forms, wrapped captions, unknown ids."""
    rows = []
    for clip in clips:
        if rng.uniform() >= CAPTIONED:
            continue
        caption = _sentence(SENTENCES, clip, rng)
        if rng.uniform() < 0.1:
            caption = f'The audio caption for the given information could be: "{caption}"'
        form = f"{clip.clip_id}_000000" if rng.uniform() < 0.2 else f"Y{clip.clip_id}"
        rows.append((form, caption))
    rows.append(("Ynot-in-sets", "A clip that no segment knows."))
    write_csv(path, ("youtube_id", "caption"), rows)


def _write_acalt4(path: Path, clips: Sequence[Clip], rng: np.random.Generator) -> None:
    rows = [
        (clip.clip_id, *(_sentence([template], clip, rng) for template in ALTERNATIVES))
        for clip in clips
        if rng.uniform() < ALT_CAPTIONED
    ]
    write_csv(path, ("youtube_id", *(f"caption{number}" for number in range(1, 5))), rows)
