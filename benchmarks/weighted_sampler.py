"""Claim: an epoch of AudioSet's weighted sampler is drawn in a moment, and classes come as often as they should.

Makes a table of labels of AudioSet's size (2,005,132 clips, 527 classes whose clips number from dozens to a million),
weighs the clips as EVAR does, and draws epochs of 200,000 clips, without repeats as EVAR does and with repeats.
Prints seconds, the peak memory that a step adds, and how far classes' counts over the epochs are from those expected:
all clips of classes together, and the classes one by one where the noise of counting allows 1 %. ``--scale`` is for
trying it out.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from _machine import machine, table

from m2dprep.captions.label_weights import label_weights
from m2dprep.training.dataset import TrainOrder
from m2dprep.training.sampling.draws import expected_draws

CLIPS, CLASSES, DRAWS, BATCH = 2_005_132, 527, 200_000, 64
LABELS_PER_CLIP = 1.98
# Classes for which the counting noise of all epochs together is below this share are compared one by one.
NOISE = 0.003


def label_table(clips: int, rng: np.random.Generator) -> pa.ListArray:
    """One to eight labels per clip; class number c is met in proportion to (c + 1)^-1.6."""
    lengths = np.minimum(1 + rng.poisson(LABELS_PER_CLIP - 1, clips), 8)
    shares = np.arange(1, CLASSES + 1) ** -1.6
    drawn = rng.choice(CLASSES, lengths.sum(), p=shares / shares.sum())
    drawn[: CLASSES * 60] = np.tile(np.arange(CLASSES), 60)[: len(drawn)]  # no class has fewer than about 60
    names = pa.array([f"/m/{number:05d}" for number in range(CLASSES)])
    labels = names.take(pa.array(drawn))
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)), labels)


def measured(what: str, rows: list[list[str]], work: Callable[[], object]) -> object:
    before, started = _peak_mb(), time.perf_counter()
    made = work()
    rows.append([what, f"{time.perf_counter() - started:.3f}", f"{_peak_mb():,.0f}", f"{_peak_mb() - before:,.0f}"])
    return made


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def counts_of(weights: np.ndarray, draws: int, epochs: int, *, distinct: bool) -> tuple[np.ndarray, float]:
    """How often each clip came in all epochs together, and the median seconds of an epoch's order."""
    order = TrainOrder(
        len(weights), BATCH, 0, total_steps=epochs * (draws // BATCH), weights=weights, draws=draws, distinct=distinct
    )
    counts, seconds = np.zeros(len(weights)), []
    for epoch in range(epochs):
        started = time.perf_counter()
        order.batch(epoch * order.steps_per_epoch)
        seconds.append(time.perf_counter() - started)
        for step in range(order.steps_per_epoch):
            np.add.at(counts, order.batch(epoch * order.steps_per_epoch + step).clips, 1)
    return counts, float(np.median(seconds))


def compared(labels: pa.ListArray, counts: np.ndarray, expected: np.ndarray) -> tuple[int, float, float]:
    """Classes that are compared one by one, the largest relative difference among them, and that of all together."""
    clip = np.repeat(np.arange(len(labels)), np.diff(labels.offsets.to_numpy()))
    of = labels.values.dictionary_encode().indices.to_numpy()
    got, wanted = (np.bincount(of, weights=values[clip], minlength=CLASSES) for values in (counts, expected))
    sure = wanted**-0.5 < NOISE
    off = np.abs(got / wanted - 1)
    return int(sure.sum()), float(off[sure].max()), float(np.abs(got - wanted).sum() / wanted.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    clips, draws = int(CLIPS * options.scale), int(DRAWS * options.scale)
    labels = label_table(clips, np.random.default_rng(7))
    print(machine())
    rows: list[list[str]] = []
    weights = measured(f"weights of {clips:,} clips", rows, lambda: label_weights(labels))
    assert isinstance(weights, np.ndarray)
    lines = []
    for name, distinct in (("without repeats", True), ("with repeats", False)):
        made = measured(
            f"{options.epochs} epochs of {draws:,} draws {name}",
            rows,
            lambda distinct=distinct: counts_of(weights, draws, options.epochs, distinct=distinct),  # type: ignore[misc]
        )
        counts, seconds = made  # type: ignore[misc]
        used = draws // BATCH * BATCH
        expected = expected_draws(weights, draws, distinct=distinct) * options.epochs * used / draws
        classes, largest, together = compared(labels, counts, expected)
        most = str(int(counts.max()))
        lines.append([name, f"{seconds:.3f}", most, str(classes), f"{largest:.2%}", f"{together:.2%}"])
    print(table(["step", "seconds", "peak MB", "added MB"], rows))
    titles = ["draws", "seconds per epoch", "a clip at most", "classes compared", "largest difference", "of all counts"]
    print(table(titles, lines))


if __name__ == "__main__":
    main()
