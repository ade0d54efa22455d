"""A set in the layout of TUT Rare Sound Events 2017: backgrounds of three scenes, events at −6, 0 and 6 dB, recipes.

What its training clips are labelled with are AudioSet's names, not those of the set: nothing of the set is learned.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import yaml

RATE = 16_000
SECONDS = 8.0
HASHES = {"devtrain": "20b255387a2d0cddc0a3dff5014875e7", "evaltest": "bbb81504db15a03680a0044474633b67"}
RATIOS = (-6.0, 0.0, 6.0)
Sound = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def _noise(rng: np.random.Generator, time: np.ndarray, exponent: float) -> np.ndarray:
    spectrum = np.fft.rfft(rng.standard_normal(len(time)))
    spectrum *= np.maximum(np.fft.rfftfreq(len(time), 1 / RATE), 30.0) ** (-exponent / 2)
    found = np.fft.irfft(spectrum, len(time))
    return found / found.std()


def cry(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """A wailing voice of many harmonics."""
    pitch = rng.uniform(380, 520) * (1 + 0.15 * np.sin(2 * np.pi * rng.uniform(0.8, 1.5) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    return sum((np.sin(k * phase) / k**0.5 for k in range(1, 9)), np.zeros(len(time)))


def glass(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Many high partials, struck again and again."""
    found = np.zeros(len(time))
    for start in np.cumsum(rng.uniform(0.02, 0.12, 30)):
        if start < time[-1]:
            after = np.maximum(time - start, 0)
            ring = np.sin(2 * np.pi * rng.uniform(3000, 7500) * after) * np.exp(-after * rng.uniform(8, 25))
            found += np.where(time >= start, ring, 0)
    return found + 1e-3


def gunshot(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Bursts of noise that die away, two to four of them."""
    found = np.zeros(len(time))
    for start in np.arange(rng.integers(2, 5)) * 0.25:
        after = np.maximum(time - start, 0)
        found += np.where(time >= start, _noise(rng, time, 0.3) * np.exp(-after * 14), 0)
    return found


def bus(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """An engine's rumble."""
    hum = np.sin(2 * np.pi * rng.uniform(60, 90) * time) + 0.5 * np.sin(2 * np.pi * rng.uniform(140, 170) * time)
    return _noise(rng, time, 2.0) + hum


def train(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """A clatter, several times a second, over a hum of middle pitch."""
    beat = (time * rng.uniform(5, 7)) % 1.0
    return _noise(rng, time, 1.0) * np.exp(-beat * 5) * 2 + 0.4 * np.sin(2 * np.pi * rng.uniform(900, 1100) * time)


def beach(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Hissing waves."""
    return _noise(rng, time, -0.5) * (0.7 + 0.3 * np.sin(2 * np.pi * rng.uniform(0.2, 0.4) * time))


EVENTS: dict[str, tuple[Sound, float]] = {"babycry": (cry, 1.5), "glassbreak": (glass, 1.0), "gunshot": (gunshot, 1.0)}
SCENES: dict[str, Sound] = {"bus": bus, "train": train, "beach": beach}
# What people call these sounds in AudioSet.
TAGS = {
    "babycry": "Baby cry, infant cry", "glassbreak": "Glass", "gunshot": "Gunshot, gunfire",
    "bus": "Bus", "train": "Train", "beach": "Waves, surf",
}  # fmt: skip
# And how a caption of their clips begins, or goes on.
SAID = {
    "babycry": ("a baby is crying", "an infant cries loudly"), "glassbreak": ("glass is breaking", "a window shatters"),
    "gunshot": ("a gun is fired", "gunshots ring out"), "bus": ("inside a bus", "a bus is driving"),
    "train": ("in a train", "a train rattles along"), "beach": ("at a beach", "waves roll onto the shore"),
}  # fmt: skip


def mixed(
    rng: np.random.Generator, seconds: float, scene: str, event: str | None, onset: float, ratio: float
) -> tuple[np.ndarray, float]:
    """A background with an event from ``onset`` on, ``ratio`` dB above it; and the event's length."""
    time = np.arange(round(seconds * RATE)) / RATE
    background = SCENES[scene](rng, time)
    background /= background.std()
    length = 0.0
    if event is not None:
        make, usual = EVENTS[event]
        length = min(usual * rng.uniform(0.8, 1.2), seconds - onset)
        sound = make(rng, np.arange(round(length * RATE)) / RATE)
        start = round(onset * RATE)
        sound *= 10 ** (ratio / 20) / np.sqrt(np.mean(sound**2))
        background[start : start + len(sound)] += sound
    return (0.2 * background / np.abs(background).max()).astype(np.float32), length


def write_training_clips(folder: Path, count: int, seed: int = 0) -> Path:
    """Clips of a second with AudioSet's names and captions; three in four have an event. Returns the table of tags."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lines, captions = ["file_name,label,split"], ["id,caption"]
    for number in range(count):
        scene = list(SCENES)[number % 3]
        event = [None, *EVENTS][number // 3 % 4]
        clip, _ = mixed(rng, 1.0, scene, event, float(rng.uniform(0, 0.4)), float(rng.uniform(-6, 9)))
        soundfile.write(folder / f"{number:04}.wav", clip, RATE)
        labels = [TAGS[scene], *([TAGS[event]] if event else [])]
        ids = ",".join(labels_as_ids(labels))
        of = [event, scene] if event and rng.random() < 0.5 else [event or scene]
        said = [str(rng.choice(SAID[one])) for one in of]
        captions.append(f'{number:04},"{", ".join(said)}"')
        lines.append(f'{number:04}.wav,"{ids}",{"test" if number % 5 == 4 else "train"}')
    table = folder / "labels.csv"
    table.write_text("\n".join([*lines, ""]))
    (folder / "captions.csv").write_text("\n".join([*captions, ""]))
    names = [f't{number},"{name}"' for number, name in enumerate(TAGS.values())]
    (folder / "tags.csv").write_text("\n".join(["label,name", *names, ""]))
    return table


def labels_as_ids(names: list[str]) -> list[str]:
    """Labels without commas, in the order of `TAGS`."""
    return [f"t{list(TAGS.values()).index(name)}" for name in names]


def write_rare_events(root: Path, per_class: int, *, seed: int = 1, seconds: float = SECONDS) -> Path:
    """Mixtures of devtrain and evaltest, half of each class with an event, in zenodo's folders.

    Lists of devtrain are separated by tabs, those of evaltest by commas.
    """
    rng = np.random.default_rng(seed)
    for part, code in HASHES.items():
        place = root / "data" / "mixture_data" / part / code
        (place / "audio").mkdir(parents=True)
        (place / "meta").mkdir()
        for event in EVENTS:
            recipes, lines = [], []
            for number in range(per_class):
                present = number % 2 == 0
                name = f"mixture_{part}_{event}_{number:03}_{rng.integers(2**31):08x}.wav"
                scene, ratio = list(SCENES)[number % 3], RATIOS[number // 2 % 3]
                onset = round(float(rng.uniform(0.5, seconds - 2)), 6)
                clip, length = mixed(rng, seconds, scene, event if present else None, onset, ratio)
                soundfile.write(place / "audio" / name, clip, RATE, subtype="PCM_24")
                recipe = {
                    "annotation_string": f"{name}\t{onset}\t{onset + length}\t{event}" if present else name,
                    "bg_classname": scene,
                    "bg_path": f"audio/b{number:03}_0_30.wav",
                    "ebr": ratio if present else float("-inf"),
                    "event_present": present,
                    "mixture_audio_filename": name,
                }
                if present:
                    recipe |= {
                        "event_class": event, "event_length_seconds": length, "event_path": f"{event}.wav",
                        "event_start_in_mixture_seconds": onset, "scaling_factor": 1.0, "segment_start_seconds": 0.0,
                        "segment_end_seconds": length,
                    }  # fmt: skip
                recipes.append(recipe)
                lines.append(recipe["annotation_string"].replace("\t", "\t" if part == "devtrain" else ","))
            (place / "meta" / f"mixture_recipes_{part}_{event}.yaml").write_text(yaml.safe_dump(recipes))
            (place / "meta" / f"event_list_{part}_{event}.csv").write_text("\n".join([*lines, ""]))
    return root


def write_scenes(root: Path, per_scene: int, *, seed: int = 2) -> Path:
    """Recordings of the evaluation set of TUT Acoustic Scenes 2017, in its layout."""
    rng = np.random.default_rng(seed)
    place = root / "TUT-acoustic-scenes-2017-evaluation"
    (place / "audio").mkdir(parents=True)
    lines = []
    for number in range(3 * per_scene):
        scene = list(SCENES)[number % 3]
        clip, _ = mixed(rng, 4.0, scene, None, 0.0, 0.0)
        soundfile.write(place / "audio" / f"{number}.wav", clip, RATE)
        lines.append(f"audio/{number}.wav\t{scene}")
    (place / "meta.txt").write_text("\n".join([*lines, ""]))
    return root
