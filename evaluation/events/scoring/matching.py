"""Which found events are hits: the largest set of pairs in which every event has at most one partner.

With an event as a partner of the first one that takes it, an earlier event may take the only partner of a later one; a
largest matching (Hopcroft and Karp, 1973) counts as many hits as there can be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def largest_matching(possible: np.ndarray) -> list[tuple[int, int]]:
    """The pairs (row, column) of a largest matching of a bool matrix (R, S), by rows.

    How many there are is unique, and which they are is not. Columns are tried in the order of the first row that they
    could belong to, as in sed_eval, whose counts of substitutions depend on it.
    """
    rows, columns = np.nonzero(possible)
    choices: dict[int, list[int]] = {}
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        choices.setdefault(column, []).append(row)
    owner: dict[int, int] = {}  # of each row the column that has it
    for column, wanted in choices.items():
        free = next((row for row in wanted if row not in owner), None)
        if free is not None:
            owner[free] = column
    while _augmented(choices, owner):
        pass
    return sorted(owner.items())


def _augmented(choices: dict[int, list[int]], owner: dict[int, int]) -> bool:
    """Lengthen the matching by disjoint shortest paths; False if there is none."""
    taken = set(owner.values())
    reached: dict[int, int | None] = {column: None for column in choices if column not in taken}
    layer, before, ends = list(reached), dict[int, list[int]](), list[int]()
    while layer and not ends:
        nearby: dict[int, list[int]] = {}
        for column in layer:
            for row in choices[column]:
                if row not in before:
                    nearby.setdefault(row, []).append(column)
        before |= nearby
        layer = []
        for row in nearby:
            if row in owner:
                layer.append(owner[row])
                reached[owner[row]] = row
            else:
                ends.append(row)
    for row in ends:
        _take(row, before, reached, owner)
    return bool(ends)


def _take(end: int, before: dict[int, list[int]], reached: dict[int, int | None], owner: dict[int, int]) -> None:
    """Give the row ``end`` to a column, its row to another, …, to a free one; rows and columns are used once.

    A loop, since paths can be as long as the lists of events.
    """
    path = [(end, iter(before.pop(end, ())))]
    exchanges: list[tuple[int, int]] = []
    while path:
        row, columns = path[-1]
        for column in columns:
            if column not in reached:
                continue
            previous = reached.pop(column)
            if previous is None:
                owner |= dict([*exchanges, (row, column)])
                return
            if previous in before:
                exchanges.append((row, column))
                path.append((previous, iter(before.pop(previous))))
                break
        else:
            path.pop()
            if exchanges:
                exchanges.pop()


def substitutions(in_time: np.ndarray, pairs: Sequence[tuple[int, int]]) -> int:
    """Events that have no partner, but are in time for a found one without a partner: it then has another label.

    ``in_time`` (R, S) is without regard to labels. Reference events take the first such found event, in their order.
    """
    left = in_time.copy()
    for row, column in pairs:
        left[row, :] = False
        left[:, column] = False
    count = 0
    for row in range(len(left)):
        free = np.flatnonzero(left[row])
        if len(free):
            left[:, free[0]] = False
            count += 1
    return count
