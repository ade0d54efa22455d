"""`m2dprep scenes` as a function: models, names, recordings → a folder of rankings, figures and a page.

```
DIR/
  scenes_<way>.csv   of every recording its scene and the five best ones, by each way to rank
  report.html        all of it as a page
  result.json        figures, settings, digests
  heard/             what was heard
```
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from m2dprep.artifacts.digests import file_digest
from m2dprep.artifacts.errors import Failure, UserError
from m2dprep.artifacts.files import replace_together, write_text
from m2dprep.artifacts.folders import make_folder
from m2dprep.artifacts.locks import exclusive
from m2dprep.artifacts.tables import write_csv
from m2dprep.evaluation.encoders import CLAP
from m2dprep.evaluation.events.detect import HearSettings, failures_of, hear_all, heard_by_all
from m2dprep.evaluation.events.listening.ear import TAGS
from m2dprep.evaluation.events.listening.prune import prune
from m2dprep.evaluation.events.models import Listeners, Models, listeners
from m2dprep.evaluation.events.presets import TMRL_HOP, TMRL_SCENE_WINDOW, TMRL_TOP
from m2dprep.evaluation.events.routes import ByCaptions
from m2dprep.evaluation.events.scenes import WAYS, SceneRanker, SceneScores, SceneSettings
from m2dprep.evaluation.events.sets.names import names_of
from m2dprep.evaluation.events.sets.table import Recording, plain_name
from m2dprep.evaluation.events.words import Likeness
from m2dprep.evaluation.prepared import EvaluationSet
from m2dprep.evaluation.protocols.result import Result, software_versions
from m2dprep.evaluation.protocols.zero_shot import TOP, zero_shot
from m2dprep.evaluation.reports.outcomes import Reported
from m2dprep.evaluation.reports.page import page

PROTOCOL = "scenes"
HEARD, RESULT, REPORT = "heard", "result.json", "report.html"
AT_ONCE = 64
TAGS_KEPT = 20
DRAWS, SEED = 1000, 0


@dataclass(frozen=True)
class SceneRequest:
    """The options of the command; see there."""

    clips: EvaluationSet
    output: Path
    models: Models
    names: Sequence[str] = ()
    ways: Sequence[str] = ()
    settings: SceneSettings = field(default_factory=SceneSettings)
    hearing: HearSettings = field(default_factory=lambda: HearSettings(window=6.0, hop=1.0))
    template: str = "{label} can be heard"
    preset: str | None = None
    seed: int = 0
    quiet: bool = False
    say: Callable[[str], object] = bool
    """Is told, in a line, what became of the recordings."""


def run_scenes(request: SceneRequest) -> Result:
    """Rank the scenes of every recording of the last part, judge the ranking, and write the folder."""
    settings, hearing, ways = request.settings, request.hearing, tuple(request.ways)
    if request.preset is not None:
        settings = SceneSettings(TMRL_TOP, forward=True)
        hearing = replace(hearing, window=TMRL_SCENE_WINDOW, hop=TMRL_HOP)
        if CLAP in ways:
            raise UserError(f"--preset {request.preset} reads tags; it has no --rank {CLAP}.")
        ways = ways or WAYS[:3]
    clips = request.clips
    labels = scenes_of(clips)
    names = names_of(clips.classes, _table_names(clips), request.names)
    wanted = [TAGS] * any(way != CLAP for way in ways) + [CLAP] * (CLAP in ways)
    heard_by = listeners(request.models, wanted)
    ranker = ranker_of(heard_by, names, settings, request.template)
    make_folder(request.output)
    recordings = [Recording(name) for name in labels]
    hearings = hear_all(
        heard_by.ears, recordings, clips.root, hearing, request.output / HEARD, request.say, request.quiet
    )
    scores: list[SceneScores] = []
    coming = heard_by_all(hearings)
    while part := list(islice(coming, AT_ONCE)):
        scores += ranker.score(part)
    failures = failures_of(hearings)
    if not scores:
        raise UserError(
            f"none of the {len(labels):,} recordings of {clips.place} could be heard ({failures[0].file_name}: "
            f"{failures[0].message}, first)."
        )
    chosen = [way for way in (ways or ranker.ways) if way in ranker.ways]
    result = _result(request, clips, chosen, ranker, scores, labels, failures)
    digests = {ear.encoder.name: ear.encoder.digest for ear in heard_by.ears}
    result = result.about(
        digests=digests,
        model={key: value for ear in heard_by.ears for key, value in ear.encoder.describe().items()},
        settings={"window": hearing.window, "hop": hearing.hop, "preset": request.preset, "seed": request.seed},
        details={"names": {label: list(own) for label, own in names.items()},
                 "heard": {"judged": [one.counts() for one in hearings]}},
    )  # fmt: skip
    with exclusive(request.output):
        _write(request.output, result, chosen, scores, labels, clips.classes)
    prune(request.output / HEARD)
    return result


def scenes_of(clips: EvaluationSet) -> dict[str, str]:
    """The scene of each recording that is judged: those of the test part, or of the last that there is."""
    for split in ("test", "valid", "train"):
        rows = clips.rows(split) if not clips.folds else np.arange(len(clips.files))
        if len(rows):
            found = {plain_name(clips.files[row]): clips.labels[row] for row in rows.tolist()}
            if len(found) < len(rows):
                raise UserError(f"{clips.place} lists a recording twice, in two spellings of its path.")
            return found
    raise UserError(f"{clips.place} lists no recordings.")


def _table_names(clips: EvaluationSet) -> dict[str, list[str]]:
    return {label: [name] for label, name in clips.task.caption.names.items()}


def ranker_of(
    heard_by: Listeners, names: dict[str, tuple[str, ...]], settings: SceneSettings, template: str
) -> SceneRanker:
    """What ranks scenes of these names."""
    likeness, captions = None, None
    for ear in heard_by.ears:
        if ear.names is not None:
            assert heard_by.words is not None
            likeness = Likeness.of(heard_by.words, ear.names.labels, names)
        if CLAP in ear.parts:
            captions = ByCaptions.of(ear.encoder, names, template, ())
    return SceneRanker(settings, likeness, heard_by.words, captions, names)


def _result(
    request: SceneRequest,
    clips: EvaluationSet,
    ways: Sequence[str],
    ranker: SceneRanker,
    scores: Sequence[SceneScores],
    labels: dict[str, str],
    failures: Sequence[Failure],
) -> Result:
    classes = clips.classes
    targets = np.array([classes.index(labels[one.name]) for one in scores], np.int64)
    rankings: dict[str, Any] = {}
    results = {}
    for way in ways:
        matrix = np.stack([one.by_way[way] for one in scores])
        results[way] = zero_shot(matrix, targets, classes)
        rankings[way] = _figures(matrix, targets)
    best = results[ways[0]]
    first = np.stack([one.by_way[ways[0]] for one in scores])
    predicted = first.argmax(axis=1)
    details = {key: value for key, value in best.details.items() if key not in ("margins", "chance")}
    return Result(
        PROTOCOL, clips.task.name, "accuracy", rankings[ways[0]]["accuracy"],
        n={"recordings": len(scores), "classes": len(classes), "failed": len(failures)},
        digests=clips.digests() | ({"table": file_digest(clips.place)} if clips.place.is_file() else {}),
        versions=software_versions(),
        details={
            **details,
            "top5": rankings[ways[0]]["top5"],
            "way": ways[0],
            "rankings": rankings,
            "chance": chance(targets, len(classes), request.seed),
            "tags": _tags(ranker, scores, labels, classes),
            "how": ranker.describe(),
            "files": [one.name for one in scores],
            "labels": targets.tolist(),
            "predicted": predicted.tolist(),
            "correct_share": hit_shares(first, targets, 1).tolist(),
            "notes": _notes(rankings),
        },
        failures=tuple(one._asdict() for one in failures),
    )  # fmt: skip


def _figures(matrix: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Accuracy and the share among the best five, with 95 % intervals over recordings; equal places share a hit."""
    first, five = hit_shares(matrix, targets, 1), hit_shares(matrix, targets, TOP)
    drawn = np.random.default_rng(SEED).integers(len(targets), size=(DRAWS, len(targets)))
    intervals = {
        name: [float(one) for one in np.quantile(own[drawn].mean(axis=1), (0.025, 0.975))]
        for name, own in (("accuracy", first), ("top5", five))
    }
    ties = int(((matrix == matrix.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum())
    return {"accuracy": float(first.mean()), "top5": float(five.mean()), "ties": ties, "intervals": intervals}


def hit_shares(matrix: np.ndarray, targets: np.ndarray, most: int) -> np.ndarray:
    """The chance (N,) that the target is among the best ``most`` if equal places (N, S) are drawn by lot."""
    own = np.take_along_axis(matrix, targets[:, None], axis=1)
    better, equal = (matrix > own).sum(axis=1), (matrix == own).sum(axis=1)
    shares: np.ndarray = np.clip((most - better) / equal, 0.0, 1.0)
    return shares


def chance(targets: np.ndarray, classes: int, seed: int) -> dict[str, float]:
    """What a ranking at random reaches on these recordings, over a thousand runs."""
    rng = np.random.default_rng(seed)
    places = rng.integers(classes, size=(DRAWS, len(targets)))  # of the target
    return {"accuracy": float((places < 1).mean()), "top5": float((places < TOP).mean())}


def _tags(
    ranker: SceneRanker, scores: Sequence[SceneScores], labels: dict[str, str], classes: Sequence[str]
) -> dict[str, list[tuple[str, float]]]:
    """The commonest tags of every scene, and their share of all its tags."""
    if ranker.likeness is None:
        return {}
    found = {}
    for label in classes:
        total: Counter[int] = Counter()
        for one in scores:
            if labels[one.name] == label:
                total.update(one.tags)
        every = max(1, total.total())
        found[label] = [(ranker.likeness.tags[tag], n / every) for tag, n in total.most_common(TAGS_KEPT)]
    return found


def _notes(rankings: dict[str, Any]) -> list[str]:
    return [
        f"by {way}, {own['ties']:,} recordings have several best scenes; the figures give each an equal share, and the "
        "confusions the first of them"
        for way, own in rankings.items()
        if own["ties"]
    ]


def _write(
    folder: Path,
    result: Result,
    ways: Sequence[str],
    scores: Sequence[SceneScores],
    labels: dict[str, str],
    classes: Sequence[str],
) -> None:
    """Replace the tables, the page and the result, all together."""

    def rows(way: str) -> Iterator[list[str]]:
        for one in scores:
            order = np.argsort(-one.by_way[way], kind="stable")[:TOP]
            yield [one.name, labels[one.name], *(classes[number] for number in order), *[""] * (TOP - len(order))]

    def write(place: Path) -> None:
        for way in ways:
            write_csv(place / file_of(way), ["file", "scene", *(f"best{n}" for n in range(1, TOP + 1))], rows(way))
        write_text(place / REPORT, page(Reported(result, path=place / RESULT)))
        result.write(place / RESULT)

    replace_together(folder, (*map(file_of, WAYS), REPORT, RESULT), write)


def file_of(way: str) -> str:
    return f"scenes_{way.replace(' ', '_')}.csv"
