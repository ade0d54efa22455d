"""TUT Rare Sound Events 2017, as zenodo ships it: recipes of mixtures and lists of events in folders named by a hash.

```
…/mixture_data/devtrain/<hash>/audio/mixture_devtrain_babycry_000_….wav
…/mixture_data/devtrain/<hash>/meta/mixture_recipes_devtrain_babycry.yaml    what each mixture is made of
…/mixture_data/devtrain/<hash>/meta/event_list_devtrain_babycry.csv          file, onset, offset, class
```

The hash is of the settings of the synthesis, so it is not looked at. Recipes say more (loudness, background); where
there are none, the list alone is read. Where both are there and differ, the list's times hold, and the difference is
told. The baseline and dcase_util synthesise into ``generated_data/mixtures_devtrain_<hash>/``, with the same folders,
and write whole paths into their lists.

Thirteen mixtures of the first release have the cry of a baby in their background. The challenge withdrew them in June
2017; they are left out whether a download has them or not. (Their names, and the form of recipes and lists, are those
of the repository TUT-ARG/TUT_Rare_sound_events_mixture_synthesizer.)
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.yaml_files import read_yaml
from m2dprep.evaluation.events.scoring.lists import Event, Events, read_event_list
from m2dprep.evaluation.events.sets.collected import (
    DIFFERENT,
    MALFORMED,
    MISSING,
    REPEATED,
    WITHDRAWN,
    CollectedEvents,
    Row,
)
from m2dprep.evaluation.preparation.download import Download

PARTS = {"devtrain": "train", "devtest": "valid", "evaltest": "test"}
FILES = re.compile(
    r"(?P<kind>mixture_recipes|event_list)_(?P<part>devtrain|devtest|evaltest)_(?P<label>.+)\.(yaml|csv)"
)
SAME_SECONDS = 0.02
NOT_JUDGED = frozenset(
    f"mixture_{name}.wav"
    for name in (
        "devtest_babycry_038_ba5436f2be7796e0610e850bf9a56d0b",
        "devtest_babycry_154_c1eed228c61bcfab91a99fb55b634bee",
        "devtest_babycry_161_48703813b6307ecd546ad49af284628a",
        "devtest_babycry_225_e5da7a77261857a433a0637b5e1b55cf",
        "devtrain_babycry_066_71268bdc57bb18f02637aeb63ae1ce00",
        "devtrain_babycry_067_3e39598e94849a602bda8decb9978520",
        "devtrain_babycry_099_bf4407b309f98e28f0f07f28d2fa3304",
        "devtrain_babycry_145_d2267f4c5cd824088a481cb313e3716f",
        "devtrain_babycry_152_71268bdc57bb18f02637aeb63ae1ce00",
        "devtrain_babycry_164_c16d41b61423fcd9f0b76264bf10bea3",
        "devtrain_babycry_216_637657a1f45d1c2f23f57baa011e95f8",
        "devtrain_babycry_332_94ab6854cebb0160cb5dd7fdcec44935",
        "devtrain_babycry_392_dad1a854cd94851bd825af9f6c1dab86",
    )
)


def collect_tut_rare(download: Download) -> CollectedEvents:
    """All mixtures of a download. Raises `UserError` if there are none, or a file cannot be read."""
    found = CollectedEvents()
    there = _descriptions(download)
    if not there:
        raise UserError(
            f"{download.root} does not look like TUT Rare Sound Events 2017 as it is downloaded: it holds no "
            "mixture_recipes_<part>_<class>.yaml and no event_list_<part>_<class>.csv (part: devtrain, devtest, "
            "evaltest)."
        )
    seen: set[str] = set()
    for (part, label), files in sorted(there.items(), key=lambda item: (list(PARTS).index(item[0][0]), item[0][1])):
        _collect(download, part, label, files, found, seen)
    return found


def _descriptions(download: Download) -> dict[tuple[str, str], dict[str, str]]:
    """(part, class) → the recipes and the list. Raises `UserError` if there are several."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in download.other:
        if match := FILES.fullmatch(posixpath.basename(name)):
            own = found.setdefault((match["part"], match["label"]), {})
            if match["kind"] in own:
                raise UserError(
                    f"{download.root} holds {own[match['kind']]} and {name}, mixtures of two syntheses; name the "
                    "folder of one."
                )
            own[match["kind"]] = name
    return found


def _collect(
    download: Download, part: str, label: str, files: Mapping[str, str], found: CollectedEvents, seen: set[str]
) -> None:
    found.sources += files.values()
    listed = _listed(download.root / files["event_list"]) if "event_list" in files else None
    where = files.get("mixture_recipes") or files["event_list"]
    recipes = _recipes(download.root / where) if "mixture_recipes" in files else None
    if recipes is None:
        assert listed is not None
        mixtures = {name: _of_list(events) for name, events in listed.items()}
    else:
        mixtures = _of_recipes(recipes, label, where, found)
        if listed is not None:
            _compare(mixtures, listed, files["event_list"], found)
    for name, (events, ratio, scene) in mixtures.items():
        if name in NOT_JUDGED:
            found.leave_out(name, where, WITHDRAWN, "the challenge withdrew it: its background has a baby's cry")
            continue
        path = _audio(download, posixpath.dirname(where), name)
        if path is None:
            found.leave_out(name, where, MISSING, "no such file in the download")
            continue
        if path in seen:
            found.leave_out(path, where, REPEATED, "an earlier row has this file")
            continue
        seen.add(path)
        split = PARTS[part]
        rows = [Row(path, label, event, split, scene, ratio) for event in events]
        rows = rows or [Row(path, label, None, split, scene)]
        found.rows += rows
        found.count(f"{part} {label}", rows)


Mixture = tuple[list[Event], float | None, str]


def _listed(path: Path) -> Events:
    """The events of each mixture, by its file's name without folders."""
    found: Events = {}
    for name, events in read_event_list(path).items():
        found.setdefault(posixpath.basename(name.replace("\\", "/")), []).extend(events)
    return found


def _of_list(events: list[Event]) -> Mixture:
    return events, None, ""


def _recipes(path: Path) -> list[Mapping[str, Any]]:
    """The entries, all values as texts: what wrote them may have given numbers types of its own."""
    value = read_yaml(path, "the recipes of mixtures", yaml.BaseLoader).value
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise UserError(f"{path} is no list of recipes of mixtures.")
    return value


def _of_recipes(recipes: list[Mapping[str, Any]], label: str, where: str, found: CollectedEvents) -> dict[str, Mixture]:
    mixtures: dict[str, Mixture] = {}
    for number, one in enumerate(recipes, 1):
        place = f"{posixpath.basename(where)}, entry {number}"
        name = str(one.get("mixture_audio_filename", "")).strip()
        scene, ratio = str(one.get("bg_classname", "")).strip(), _number(one.get("ebr"))
        present = str(one.get("event_present", "")).strip().lower()
        if not name or present not in ("true", "false"):
            found.leave_out(name, place, MALFORMED, "it names no mixture_audio_filename, or no event_present")
        elif name in mixtures:
            found.leave_out(name, place, REPEATED, "an earlier entry has this mixture")
        elif present == "false":
            mixtures[name] = [], None, scene
        else:
            event = _event(one, label)
            if event is None:
                found.leave_out(name, place, MALFORMED, "its event has no time, or another class")
            else:
                mixtures[name] = [event], ratio, scene
    return mixtures


def _event(recipe: Mapping[str, Any], label: str) -> Event | None:
    """The event of a recipe: where it starts in the mixture, and its length."""
    start = _number(recipe.get("event_start_in_mixture_seconds"))
    length = _number(recipe.get("event_length_seconds"))
    own = str(recipe.get("event_class") or label).strip()
    if start is None or length is None or own != label or not (start >= 0 and 0 <= length < math.inf):
        return None
    return Event(start, start + length, label)


def _number(value: Any) -> float | None:
    text = str(value).strip().lower() if value is not None else ""
    try:
        return float({".inf": "inf", "-.inf": "-inf", "+.inf": "inf"}.get(text, text))
    except ValueError:
        return None


def _compare(mixtures: dict[str, Mixture], listed: Events, where: str, found: CollectedEvents) -> None:
    """Take the times of the list, which is what systems are scored with, and note where the recipes say otherwise."""
    for name, (events, ratio, scene) in mixtures.items():
        if name in NOT_JUDGED:
            continue
        if name not in listed:
            found.leave_out(name, where, DIFFERENT, "the recipes have this mixture, and the list has not")
            continue
        own = listed[name]
        same = len(own) == len(events) and all(
            abs(one.onset - other.onset) <= SAME_SECONDS
            and abs(one.offset - other.offset) <= SAME_SECONDS
            and one.label == other.label
            for one, other in zip(own, events, strict=True)
        )
        if not same:
            found.leave_out(name, where, DIFFERENT, "its events are not those of the recipe; the list's are taken")
        mixtures[name] = own, ratio if own else None, scene
    for name in sorted(listed.keys() - mixtures.keys() - NOT_JUDGED):
        found.leave_out(name, where, DIFFERENT, "the list has this mixture, and the recipes have not")


def _audio(download: Download, meta: str, name: str) -> str | None:
    """The file of a mixture: in the folder audio beside the folder of its recipe, or beside the recipe."""
    for folder in (posixpath.join(posixpath.dirname(meta), "audio"), meta):
        if (there := download.audio(posixpath.join(folder, name))) is not None:
            return there[0]
    return None
