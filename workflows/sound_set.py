"""A small synthetic set in the form of AudioSet: recordings, segment CSVs, an ontology and caption tables.

Only AudioSet classes that can be synthesised honestly are used: each sound is what its ontology entry describes. The
docstrings of the synthesis functions become the descriptions in the ontology.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy  # its part signal is loaded when the first sound needs it, which takes seconds
import soundfile

from m2dprep.artifacts.console import Progress
from m2dprep.artifacts.digests import require_same
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.files import atomic_file, rename_all, sync_folder, write_bytes, write_json
from m2dprep.artifacts.folders import remove_folder
from m2dprep.artifacts.json_files import read_object, write_object
from m2dprep.artifacts.tables import write_csv
from m2dprep.workflows.engine.engine import run_shards, split_into_shards

Synthesis = Callable[[np.random.Generator, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class SoundClass:
    """One class: its AudioSet machine id and name, its synthesis, and descriptions that a person would give."""

    mid: str
    name: str
    synthesise: Synthesis
    descriptions: tuple[str, ...]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _noise(rng: np.random.Generator, time: np.ndarray, exponent: float) -> np.ndarray:
    """Noise of unit variance whose power is proportional to frequency to the power of minus ``exponent``."""
    spectrum = np.fft.rfft(rng.standard_normal(len(time)))
    frequency = np.fft.rfftfreq(len(time), time[1] - time[0])
    spectrum *= np.maximum(frequency, 20.0) ** (-exponent / 2)
    noise = np.fft.irfft(spectrum, len(time))
    return noise / noise.std()


def sine_wave(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """A single steady frequency, 200–3000 Hz."""
    return np.sin(2 * np.pi * _log_uniform(rng, 200, 3000) * time + rng.uniform(0, 2 * np.pi))


def white_noise(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Noise of equal power at all frequencies."""
    return _noise(rng, time, 0.0)


def pink_noise(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Noise of equal power in every octave."""
    return _noise(rng, time, 1.0)


def chirp_tone(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """A tone that sweeps over two octaves or more, again and again, every one to two and a half seconds."""
    period = rng.uniform(1.0, 2.5)
    low = _log_uniform(rng, 200, 500)
    high = low * rng.uniform(4.0, 10.0)
    phase = (time / period + rng.uniform()) % 1.0
    if rng.uniform() < 0.5:
        phase = 1.0 - phase
    frequency = low * (high / low) ** phase
    return np.sin(2 * np.pi * np.cumsum(frequency) * (time[1] - time[0]))


def clicking(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Short broadband clicks, 2 to 8 a second, slightly irregular."""
    rate = 1.0 / (time[1] - time[0])
    gaps = (1.0 / rng.uniform(2.0, 8.0)) * rng.uniform(0.85, 1.15, size=int(time[-1] * 10) + 2)
    onsets = np.cumsum(gaps)
    clicks = np.zeros_like(time)
    positions = (onsets[onsets < time[-1]] * rate).astype(int)
    clicks[positions] = rng.uniform(0.7, 1.0, size=len(positions))
    decay = np.exp(-np.arange(int(0.004 * rate)) / (0.0008 * rate)) * rng.standard_normal(int(0.004 * rate))
    return scipy.signal.fftconvolve(clicks, decay)[: len(time)]


def throbbing(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Low noise and hum below 300 Hz that swell and fade two to five times a second."""
    rate = 1.0 / (time[1] - time[0])
    fundamental = rng.uniform(45, 70)
    hum = sum(np.sin(2 * np.pi * fundamental * k * time) / k for k in (1, 2, 3))
    low = scipy.signal.sosfilt(scipy.signal.butter(4, 300, fs=rate, output="sos"), _noise(rng, time, 0.0))
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(2.0, 5.0) * time + rng.uniform(0, 2 * np.pi))
    return (hum + 2 * low) * swell**2


def harmonic(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """A steady tone of 12 harmonics over a fundamental of 100 to 400 Hz."""
    fundamental = _log_uniform(rng, 100, 400)
    phases = rng.uniform(0, 2 * np.pi, size=12)
    return sum(np.sin(2 * np.pi * fundamental * k * time + phases[k - 1]) / k**0.7 for k in range(1, 13))


def siren(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """A wailing pitch that rises and falls smoothly between about 500 and 1500 Hz, with overtones."""
    centre = _log_uniform(rng, 700, 1000)
    wail = np.sin(2 * np.pi * rng.uniform(0.2, 0.5) * time + rng.uniform(0, 2 * np.pi))
    phase = 2 * np.pi * np.cumsum(centre * 1.6**wail) * (time[1] - time[0])
    return np.sin(phase) + 0.5 * np.sin(2 * phase) + 0.3 * np.sin(3 * phase)


def beep(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """A high tone switched on and off, one to three times a second."""
    tone = np.sin(2 * np.pi * _log_uniform(rng, 800, 3000) * time)
    gate = ((time * rng.uniform(1.0, 3.0) + rng.uniform()) % 1.0) < 0.4
    return tone * scipy.signal.fftconvolve(gate.astype(float), np.full(64, 1 / 64), mode="same")


def dial_tone(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Two steady low tones together, 350 and 440 Hz within a few percent."""
    detune = rng.uniform(0.97, 1.03)
    return np.sin(2 * np.pi * 350 * detune * time) + np.sin(2 * np.pi * 440 * detune * time)


CLASSES = (
    SoundClass("/m/01v_m0", "Sine wave", sine_wave, ("A pure steady tone", "A single sine wave of constant pitch")),
    SoundClass("/m/0chx_", "White noise", white_noise, ("Steady hissing static", "White noise hisses evenly")),
    SoundClass(
        "/m/0cj0r", "Pink noise", pink_noise, ("Soft rushing noise like a waterfall", "Pink noise, deeper than static")
    ),
    SoundClass("/m/0hdsk", "Chirp tone", chirp_tone, ("A tone sweeps up or down again and again", "Repeated chirps")),
    SoundClass("/m/07qc9xj", "Clicking", clicking, ("Short sharp clicks follow one another", "Something is clicking")),
    SoundClass("/m/07p_0gm", "Throbbing", throbbing, ("A deep throbbing hum swells and fades", "Low pulsating throb")),
    SoundClass(
        "/m/0b9m1", "Harmonic", harmonic, ("A rich steady tone with many overtones", "A harmonic buzzing chord")
    ),
    SoundClass("/m/03kmc9", "Siren", siren, ("A siren wails up and down", "An emergency siren rises and falls")),
    SoundClass("/m/02fs_r", "Beep, bleep", beep, ("An electronic device beeps", "A high beep goes on and off")),
    SoundClass(
        "/m/015jpf", "Dial tone", dial_tone, ("A telephone dial tone hums", "Two low tones drone in a receiver")
    ),
)


def synthesise_clip(
    sound: SoundClass, rng: np.random.Generator, sample_rate: int, channels: int, seconds: float
) -> np.ndarray:
    """A recording of ``sound``: float32 (samples, channels) within ±1, with background noise and a random level.

    Two channels carry the sound at different levels with independent noise. There are no partials above Nyquist: every
    synthesis stays below 7 kHz, except for noise and clicks, which end at Nyquist by construction.
    """
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    signal = sound.synthesise(rng, time)
    signal /= np.abs(signal).max()
    background = 10 ** (rng.uniform(-60, -35) / 20)
    level = 10 ** (rng.uniform(-20, -3) / 20)
    pan = rng.uniform(0.5, 1.0, size=channels)
    clip = level * (signal[:, None] * pan + background * rng.standard_normal((len(time), channels)))
    return np.clip(clip, -1.0, 1.0).astype(np.float32)


SECONDS = 10.0
SAMPLE_RATES = (16000, 22050, 32000, 44100, 48000)
ID_ALPHABET = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
TRAIN, HELD_OUT = "balanced_train_segments", "eval_segments"
NOTE, AUDIO = "sound_set.json", "audio"
# Folders within a set: the one that is to replace it, while it is made and once it is whole; in that, the old sounds.
ANEW, WHOLE, EARLIER = "anew", "anew-whole", "earlier"
# Shares of the training clips that have two sounds, a caption from Auto-ACD, and four captions from ACalt4.
MIXED, CAPTIONED, ALT_CAPTIONED = 0.15, 0.7, 0.3
CLIPS_PER_SHARD = 16

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
    """One recording to be made: its YouTube-like id, its part, its classes and its storage format."""

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
    """A finished set: ``training + held_out`` recordings of ``classes`` classes in ``folder``."""

    folder: str
    classes: int
    training: int
    held_out: int


def make_sound_set(
    root: Path, *, train_per_class: int, held_out_per_class: int, seed: int, workers: int, overwrite: bool = False
) -> SoundSet:
    """Write ``root/audio/<part>/Y<id>.wav`` and tables in the form of AudioSet, Auto-ACD and ACalt4.

    Held-out clips are in ``eval_segments`` and in ``held_out.csv`` (file_name, label). Equal arguments give equal
    bytes. Raises `FingerprintConflictError` if ``root`` holds a set with other numbers or another seed, unless
    ``overwrite`` is set: then the new set is made in ``root/anew`` and takes the place of the old one when it is whole.
    """
    numbers = {"training_a_class": train_per_class, "held_out_a_class": held_out_per_class, "seed": seed}
    finished = _take_place(root) and _numbers_in(root) == numbers
    beside = overwrite and not finished and any((root / name).exists() for name in (NOTE, AUDIO))
    if beside and _numbers_in(root / ANEW) != numbers:
        remove_folder(root / ANEW)
    clips = _fill(root / ANEW if beside else root, numbers, workers)
    if beside:
        (root / ANEW / EARLIER).mkdir(exist_ok=True)
        rename_all([(root / ANEW, root / WHOLE), *_moves(root, root / ANEW)])
        _take_place(root)
    training = sum(clip.part == TRAIN for clip in clips)
    return SoundSet(str(root), len(CLASSES), training, len(clips) - training)


def _fill(root: Path, numbers: dict[str, int], workers: int) -> list[Clip]:
    """Write what is missing of the set with these ``numbers`` to ``root``. Returns its clips."""
    _begin(root, numbers)
    rng = np.random.default_rng(numbers["seed"])
    clips = _plan(rng, numbers["training_a_class"], numbers["held_out_a_class"])
    for part in (TRAIN, HELD_OUT):
        (root / AUDIO / part).mkdir(parents=True, exist_ok=True)
    write_clip = functools.partial(write_clips, audio=root / AUDIO)
    with Progress(len(clips), "synthesis") as progress:
        for done in run_shards(
            write_clip, split_into_shards(clips, workers, CLIPS_PER_SHARD), workers, lambda clip: clip
        ):
            progress.advance(len(done))
    training = [clip for clip in clips if clip.part == TRAIN]
    _write_segments(root / f"{TRAIN}.csv", training)
    _write_segments(root / f"{HELD_OUT}.csv", [clip for clip in clips if clip.part == HELD_OUT])
    write_json(root / "ontology.json", [_ontology_entry(sound) for sound in CLASSES])
    _write_auto_acd(root / "auto_acd_train.csv", training, rng)
    _write_acalt4(root / "acalt4.csv", training, rng)
    held_out = [(f"audio/{clip.file_name}", CLASSES[clip.labels[0]].name) for clip in clips if clip.part == HELD_OUT]
    write_csv(root / "held_out.csv", ("file_name", "label"), held_out)
    return clips


def _take_place(root: Path) -> bool:
    """Finish the exchange of a killed run: the whole new set gets the place of the old one.

    Returns whether there was a new set.
    """
    new = root / WHOLE
    if not new.is_dir():
        return False
    (new / EARLIER).mkdir(exist_ok=True)
    rename_all(_moves(root, new))
    sync_folder(root)
    remove_folder(new)
    return True


def _moves(root: Path, new: Path) -> list[tuple[Path, Path]]:
    """The renames that remain until the set ``new``, soon in ``WHOLE``, is in ``root``; its numbers are the last."""
    tables = sorted(path.name for path in new.iterdir() if path.is_file() and path.name != NOTE)
    names = [name for name in (AUDIO, *tables, NOTE) if (new / name).exists()]
    aside = [(root / name, root / WHOLE / EARLIER / name) for name in reversed(names) if (root / name).exists()]
    return aside + [(root / WHOLE / name, root / name) for name in names]


def _numbers_in(root: Path) -> dict[str, int] | None:
    try:
        return read_object(root / NOTE)
    except UserError:  # damaged: whose sounds these are is unknown
        return None


def _begin(root: Path, numbers: dict[str, int]) -> None:
    """Write down the set's numbers, or compare them with those written down."""
    note = root / NOTE
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
    """Synthesise and write a shard of clips below ``audio``; existing files are complete and are kept."""
    for clip in clips:
        path = audio / clip.file_name
        if path.exists():
            continue
        rng = np.random.default_rng(clip.seed)
        waveforms = [
            synthesise_clip(CLASSES[label], rng, clip.sample_rate, clip.channels, SECONDS) for label in clip.labels
        ]
        content, mixed = io.BytesIO(), sum(waveforms) / len(waveforms)  # libsndfile names no error of a disk
        soundfile.write(content, mixed, clip.sample_rate, subtype=clip.subtype, format="WAV")
        write_bytes(path, content.getbuffer())
    return list(clips)


def _write_segments(path: Path, clips: Sequence[Clip]) -> None:
    """Write a segment CSV in AudioSet's own form: three comment lines, comma and space, the mids in a quoted field."""
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


def _ontology_entry(sound: SoundClass) -> dict[str, object]:
    empty: dict[str, object] = {"citation_uri": "", "positive_examples": [], "child_ids": [], "restrictions": []}
    return {"id": sound.mid, "name": sound.name, "description": (sound.synthesise.__doc__ or "").strip(), **empty}


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
    """Write captions for some clips, with traits of the real table: both id forms, wrapped captions, unknown ids."""
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
