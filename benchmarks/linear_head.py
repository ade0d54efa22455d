"""Claim: a linear head trains several times as fast as in EVAR's loop, with the same result.

EVAR's loop, written again: scikit-learn's scaler, a `DataLoader` that collates rows one by one, autograd, Adam, and the
validation rows through a loader too. Both run the same number of epochs on the same random features, the two in turn
``--repeats`` times in one process; the best time of each counts. On a busy machine, compare processor time, with
OMP_NUM_THREADS=1: threads that wait for each other measure the others' work.
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

from m2dprep.evaluation.protocols.linear_head import Draws, HeadSettings, Part, Scaler, score_of, train_head

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


def by_loader(data: tuple[np.ndarray, ...], classes: int, settings: HeadSettings) -> float:
    """EVAR's way; returns the validation accuracy of the last epoch."""
    from sklearn.preprocessing import LabelBinarizer, StandardScaler

    rows, targets, valid, valid_targets = data
    scaler, binarizer = StandardScaler().fit(rows), LabelBinarizer().fit(np.arange(classes))
    sets = [
        TensorDataset(torch.Tensor(scaler.transform(x)), torch.Tensor(binarizer.transform(y)))
        for x, y in ((rows, targets), (valid, valid_targets))
    ]
    torch.manual_seed(42)
    model = torch.nn.Sequential(torch.nn.Linear(rows.shape[1], classes))
    loaders = [DataLoader(sets[0], settings.batch, shuffle=True), DataLoader(sets[1], settings.batch)]
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    accuracy = 0.0
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
        accuracy = float((np.argmax(np.array(truth), -1) == np.argmax(np.array(predicted), -1)).mean())
    return accuracy


def by_head(data: tuple[np.ndarray, ...], classes: int, settings: HeadSettings) -> float:
    """Ours; returns the same."""
    rows, targets, valid, valid_targets = data
    every = np.arange(len(rows))
    scaler = Scaler.fit(rows, every)
    train = Part(scaler(rows, every), torch.from_numpy(targets))
    held = Part(scaler(valid, np.arange(len(valid))), torch.from_numpy(valid_targets))
    draws = Draws(42)
    initial = draws.weights(classes, rows.shape[1])
    head = train_head(train, held, initial, draws.orders(len(rows)), settings)
    assert score_of(head.logits(held.features), held.targets, several=False, squashed=False) >= 0
    return head.curve[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=3840)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    settings = HeadSettings(epochs=options.epochs, patience=options.epochs)
    data = problem(options.rows, options.dim, options.classes)
    ways = {"EVAR's loop": by_loader, "m2dprep": by_head}
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
    print(f"{options.rows:,} x {options.dim:,}, {options.classes} classes, {options.epochs} epochs\n")
    rows = [[name, f"{min(times[name]):.2f}", f"{min(processor[name]):.2f}", f"{scores[name]:.4f}"] for name in ways]
    print(table(["", "s", "processor s", "accuracy"], rows))
    ratios = [min(of["EVAR's loop"]) / min(of["m2dprep"]) for of in (times, processor)]
    print(f"\nratio {ratios[0]:.2f}, of processor time {ratios[1]:.2f}")


if __name__ == "__main__":
    main()
