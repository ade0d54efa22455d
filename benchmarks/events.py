"""Events and scenes by their names on made-up sets: each route beside random and always-on events, and the placings.

Tiny models learn made-up clips of a second by the commands that a user would type: `m2dprep train` their captions, and
then `m2dprep fine-tune` six AudioSet tags. They find events in sets in the layout of TUT Rare Sound Events, and name
places. How scores are placed in time is chosen on sets of other seeds (``--choose-on``), thresholds on the development
part of each set; what is printed last is of the evaluation part of a set that nothing was chosen on. Prints tables.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from _machine import ONE_THREAD, machine, restart_with, table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from m2dprep.evaluation.events import models
from m2dprep.evaluation.events.detect import HearSettings
from m2dprep.evaluation.events.timeline import PLACINGS
from tests.evaluation.events.made_model import MINILM, Made, done, write_models
from tests.evaluation.events.made_sounds import write_rare_events, write_scenes

ROUTES = ("tags", "clap", "mean")
HOW = ("--window", 1, "--device", "cpu", "--text-model", MINILM, "--clap-text-model", MINILM)


def prepared(root: Path, per_class: int, seed: int) -> Path:
    """A prepared set of events with so many recordings of each class in each part."""
    write_rare_events(root / f"tut{seed}", per_class, seed=seed)
    done("evaluate", "prepare", "tut-rare-2017", root / f"tut{seed}", "-o", root / f"set{seed}")
    return root / f"set{seed}"


def run(command: str, made: Made, place: Path, out: Path, *more: object) -> dict[str, Any]:
    """The details of the result of a run with all routes."""
    ways = ("--head-classes", made.tags, "--clap", made.captioned)
    done(command, made.tagged, place, "-o", out, *ways, *HOW, *more)
    details: dict[str, Any] = json.loads((out / "result.json").read_text())["details"]
    return details


def events(made: Made, place: Path, placing: str) -> dict[str, Any]:
    """Of a set; what was heard is kept beside it, so that only the first placing takes long."""
    out = place.with_name(f"found-{place.name}")
    return run("events", made, place, out, "--hop", 0.5, "--placing", placing, "--pictures", 0)


def choose(made: Made, places: list[Path]) -> str:
    """The default placing, unless another one's event F1, over routes and sets none of which is judged later, is higher
    by more than twice the standard error of the difference; prints all."""
    means = {}
    rows = []
    for placing in PLACINGS:
        found = [events(made, place, placing)["routes"] for place in places]
        scores = np.array([[one[name]["mean"]["event_f1"] for name in ROUTES] for one in found])  # (sets, routes)
        means[placing] = scores.mean(axis=1)
        rows.append([placing, *(f"{own:.1%}" for own in scores.mean(axis=0))])
    default, chosen = HearSettings().placing, HearSettings().placing
    for row, placing in zip(rows, PLACINGS, strict=True):
        difference = means[placing] - means[default]
        error = difference.std(ddof=1) / len(places) ** 0.5 if len(places) > 1 else np.inf
        row += [f"{means[placing].mean():.1%}", "" if placing == default else f"{difference.mean():+.1%} ± {error:.1%}"]
        if difference.mean() > 2 * error and means[placing].mean() > means[chosen].mean():
            chosen = placing
    print(f"\nEvent F1 by placing, on {len(places)} sets of other seeds:\n")
    print(table(["placing", *ROUTES, "all", f"less {default} (standard error)"], rows), flush=True)
    return chosen


def figures(name: str, own: Mapping[str, Any], within: Mapping[str, Any]) -> list[str]:
    f1, error = own["event_f1"], own["event_error_rate"]
    low, high = within.get("event_f1") or (None, None)
    interval = "" if low is None else f" [{low:.1%}, {high:.1%}]"
    return [name, f"{f1:.1%}{interval}", f"{error:.2f}", f"{own['segment_f1']:.1%}", f"{own['clip_auc']:.1%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=240, help="training clips")
    parser.add_argument("--epochs", type=int, default=24, help="epochs of the training on captions")
    parser.add_argument("--per-class", type=int, default=12, help="recordings of each class in each part")
    parser.add_argument("--per-scene", type=int, default=10, help="recordings of each place")
    parser.add_argument(
        "--choose-on", type=int, nargs="*", default=[101, 102, 103, 104], help="seeds of sets to choose on"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the set that is judged")
    parser.add_argument("--folder", type=Path, help="keep everything here")
    options = parser.parse_args()
    restart_with(ONE_THREAD)
    load = cache(models.load_words)
    models.load_words = lambda name, device, **_: load(name, device)  # the same sentence encoder in every run
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        made = write_models(root / "models", options.clips, epochs=options.epochs, tag_epochs=12)
        placing: str = HearSettings().placing
        if options.choose_on:
            placing = choose(made, [prepared(root, options.per_class, seed) for seed in options.choose_on])
        found = events(made, prepared(root, options.per_class, options.seed), placing)
        rows = [figures(name, found["routes"][name]["mean"], found["routes"][name]["intervals"]) for name in ROUTES]
        rows += [figures(name, found["baselines"][key], {}) for key, name in
                 (("random", "at random"), ("always_on", "always on"))]  # fmt: skip
        print(f"\nThe set of seed {options.seed}, placed by {placing}:\n")
        print(table(["events", "event F1", "error rate", "segment F1", "clip AUC"], rows), flush=True)
        write_scenes(root / "places", options.per_scene)
        done("evaluate", "prepare", "tut-scenes-2017", root / "places", "-o", root / "scenes")
        ranked = run("scenes", made, root / "scenes", root / "found-scenes", "--top", 1)
        ways = {**ranked["rankings"], "chance": {**ranked["chance"], "intervals": {}}}
        rows = [[way, f"{own['accuracy']:.1%}"] for way, own in ways.items()]
        print("\n" + table(["scenes ranked by", "first is right"], rows))


if __name__ == "__main__":
    main()
