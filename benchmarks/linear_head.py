"""Claim: a linear probe takes a third of the time of EVAR's loop at most, with the same result.

EVAR's loop, written again: scikit-learn's scaler, a `DataLoader` that collates rows one by one, autograd, Adam, and the
validation rows through a loader too, one seed after the other. Ours is `evaluation.protocols.linear`, as `m2dprep
evaluate linear` calls it. Both run the same epochs with the same ``--seeds`` (42,43,44 as the command, or one alone) on
the same random features and with ``--threads`` of PyTorch's, the two in turn ``--repeats`` times in one process; the
best time of each counts. On a busy machine, compare processor time, with one thread: threads that wait for each other
measure the others' work.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from _machine import machine, table
from torch.utils.data import DataLoader, TensorDataset

from m2dprep.evaluation.protocols.linear import LinearSettings, linear, parse_seeds
from m2dprep.evaluation.protocols.linear_head import HeadSettings

VALID_SHARE = 10


def problem(rows: int, dim: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features that tell their classes a little: training and validation rows, and their classes."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, dim)).astype(np.float32)
    found = []
    for count in (rows, rows // VALID_SHARE):
        targets = rng.integers(0, classes, count)
        found += [rng.normal(size=(count, dim)).astype(np.float32) * 4 + centres[targets], targets]
    return found[0], found[1], found[2], found[3]


def by_loader(data: tuple[np.ndarray, ...], classes: int, settings: HeadSettings, seed: int) -> float:
    """EVAR's way; returns the best validation accuracy."""
    from sklearn.preprocessing import LabelBinarizer, StandardScaler

    rows, targets, valid, valid_targets = data
    scaler, binarizer = StandardScaler().fit(rows), LabelBinarizer().fit(np.arange(classes))
    sets = [
        TensorDataset(torch.Tensor(scaler.transform(x)), torch.Tensor(binarizer.transform(y)))
        for x, y in ((rows, targets), (valid, valid_targets))
    ]
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(rows.shape[1], classes))
    loaders = [DataLoader(sets[0], settings.batch, shuffle=True), DataLoader(sets[1], settings.batch)]
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    best = 0.0
    for _ in range(settings.epochs):
        model.train()
        total = 0.0
        for x, y in loaders[0]:
            optimizer.zero_grad()
            loss = -torch.mean(y * F.log_softmax(model(x), dim=-1))
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
        model.eval()
        truth, predicted = [], []
        with torch.no_grad():
            for x, y in loaders[1]:
                truth.extend(y.numpy())
                out = model(x)
                total += float(-torch.mean(y * F.log_softmax(out, dim=-1))) * len(x)
                predicted.extend(out.sigmoid().numpy())
        best = max(best, float((np.argmax(np.array(truth), -1) == np.argmax(np.array(predicted), -1)).mean()))
    return best


def by_protocol(data: tuple[np.ndarray, ...], classes: int, settings: LinearSettings) -> float:
    """Ours: the protocol with the same splits; returns the mean of the best validation accuracies."""
    rows, targets, valid, valid_targets = data
    # The test rows that the protocol needs are two: EVAR's loop above has none.
    splits = ["train"] * len(rows) + ["valid"] * len(valid) + ["test"] * 2
    result = linear(
        np.concatenate([rows, valid, valid[:2]]), np.concatenate([targets, valid_targets, valid_targets[:2]]),
        [str(number) for number in range(classes)], settings, splits=splits,
    )  # fmt: skip
    assert all(run["epochs_run"] == settings.head.epochs for run in result.details["runs"])
    return float(np.mean([run["best_valid"] for run in result.details["runs"]]))


def in_turn(data: tuple[np.ndarray, ...], classes: int, settings: LinearSettings) -> float:
    return float(np.mean([by_loader(data, classes, settings.head, seed) for seed in settings.seeds]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=3840)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", default="42,43,44")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = HeadSettings(epochs=options.epochs, patience=options.epochs)
    settings = LinearSettings(head, parse_seeds(options.seeds), device="cpu")
    data = problem(options.rows, options.dim, options.classes)
    ways = {"EVAR's loop": in_turn, "m2dprep": by_protocol}
    times: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    scores = {}
    for _ in range(options.repeats):
        for name, run in ways.items():
            started, before = time.perf_counter(), time.process_time()
            scores[name] = run(data, options.classes, settings)
            times[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - before)
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}, torch threads {torch.get_num_threads()}")
    print(
        f"{options.rows:,} x {options.dim:,}, {options.classes} classes, {options.epochs} epochs, seeds "
        f"{options.seeds}\n"
    )
    rows = [[name, f"{min(times[name]):.2f}", f"{min(processor[name]):.2f}", f"{scores[name]:.4f}"] for name in ways]
    print(table(["", "s", "processor s", "best accuracy"], rows))
    ratios = [min(of["EVAR's loop"]) / min(of["m2dprep"]) for of in (times, processor)]
    print(f"\nratio {ratios[0]:.2f}, of processor time {ratios[1]:.2f}")


if __name__ == "__main__":
    main()
