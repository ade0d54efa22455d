"""Charts as inline SVG and tables: they take the page's colours, and need no library and no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from m2dprep.artifacts.pages.document import bar
from m2dprep.artifacts.pages.markup import Markup, table, tag

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 10, 40
# The page has so many colours for groups.
COLOURS = 10
# Numbers with more decimals than this are written as 1.5e-4: the others would not fit beside an axis.
MOST_DECIMALS = 4
Points = Sequence[tuple[float, float]]


class Axis(NamedTuple):
    """Values from ``low`` to ``high`` along an axis; ``labels`` are shown at their places."""

    low: float
    high: float
    labels: Sequence[tuple[float, str]]

    @classmethod
    def of(cls, low: float, high: float, unit: str = "", most: int = 6, *, whole: bool = False) -> Axis:
        """An axis with round numbers, which reach beyond neither end; ``whole`` ones for what is counted."""
        if not high > low:
            low, high = low - 0.5, high + 0.5
        step = max(nice_step((high - low) / most), 1 if whole else 0)
        first = math.ceil(low / step - 1e-9)
        places = [(first + n) * step for n in range(int((high - first * step) / step + 1e-9) + 1)]
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return cls(low, high, [(place, f"{_number(place, decimals)}{unit}") for place in places])

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


def _number(value: float, decimals: int) -> str:
    if decimals <= MOST_DECIMALS:
        return f"{value:,.{decimals}f}"
    if abs(value) < 10.0**-decimals / 2:
        return "0"
    digits = max(0, decimals + math.floor(math.log10(abs(value)) + 1e-9))
    mantissa, _, power = f"{value:.{digits}e}".partition("e")
    return f"{mantissa}e{int(power)}"


def nice_step(rough: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _x(axis: Axis, value: float) -> float:
    return round(LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT), 1)


def _y(axis: Axis, value: float) -> float:
    return round(HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM), 1)


def _frame(across: Axis, up: Axis, name: str, *content: Markup) -> Markup:
    """A chart with both axes; ``name`` is written below."""
    lines = [
        tag("path", d=f"M{LEFT} {_y(up, place)}H{WIDTH - RIGHT}", class_="axis") for place, _ in up.labels
    ]  # fmt: skip
    lines += [
        tag("text", text, x=LEFT - 6, y=_y(up, place) + 4, text_anchor="end", class_="dim") for place, text in up.labels
    ]
    lines += [
        tag("text", text, x=_x(across, place), y=HEIGHT - BOTTOM + 17, text_anchor="middle", class_="dim")
        for place, text in across.labels
    ]
    lines.append(tag("text", name, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 3, text_anchor="middle"))
    return tag("svg", *lines, *content, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")


def histogram(edges: Sequence[float], counts: Sequence[int], name: str, unit: str = "") -> Markup:
    """Counts between edges, as bars."""
    if not counts or not max(counts):
        return Markup("")
    across, up = Axis.of(edges[0], edges[-1], unit), Axis.of(0, max(counts), most=4, whole=True)
    bars = []
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            x, y = _x(across, low), _y(up, count)
            box = {"x": x, "y": y, "width": max(0.5, round(_x(across, high) - x - 0.6, 1)), "height": _y(up, 0) - y}
            bars.append(tag("rect", tag("title", f"{low:,.4g} to {high:,.4g}{unit}: {count:,}"), **box))
    return _frame(across, up, name, tag("g", *bars, class_="bars"))


def spectrum(hertz: Sequence[float], mean: Sequence[float], spread: Sequence[float], name: str) -> Markup:
    """Means over mel bins at their frequencies, with one standard deviation around them."""
    low = min(m - s for m, s in zip(mean, spread, strict=True))
    high = max(m + s for m, s in zip(mean, spread, strict=True))
    kilohertz = [(at, f"{of:,.0f}" if of < 1000 else f"{of / 1000:,.1f}k") for at, of in enumerate(hertz)]
    step = max(1, len(kilohertz) // 9)
    across, up = Axis(0, max(1, len(hertz) - 1), kilohertz[::step]), Axis.of(low, high, most=5)
    above = [(_x(across, at), _y(up, m + s)) for at, (m, s) in enumerate(zip(mean, spread, strict=True))]
    below = [(_x(across, at), _y(up, m - s)) for at, (m, s) in enumerate(zip(mean, spread, strict=True))]
    middle = [(_x(across, at), _y(up, m)) for at, m in enumerate(mean)]
    area = tag("path", d=f"{_path([*above, *below[::-1]])}Z", class_="soft")
    return _frame(across, up, name, area, _line(middle, 0, "mean"))


def curves(named: Mapping[str, Points], name: str) -> Markup:
    """Lines through points (x, y), each with its name in a legend if there are several."""
    named = {key: [(x, y) for x, y in points if math.isfinite(y)] for key, points in named.items()}
    everything = [point for points in named.values() for point in points]
    if not everything:
        return Markup("")
    xs = [x for x, _ in everything]
    across = Axis.of(min(xs), max(xs), whole=all(float(x).is_integer() for x in xs))
    up = Axis.of(min(y for _, y in everything), max(y for _, y in everything), most=4)
    lines = [
        _line([(_x(across, x), _y(up, y)) for x, y in _thinned(points)], number, key)
        for number, (key, points) in enumerate(named.items())
    ]
    drawn = _frame(across, up, name, *lines)
    return Markup(drawn + legend(list(named))) if len(named) > 1 else drawn


MOST_POINTS = 800


def _thinned(points: Points) -> Points:
    """At most `MOST_POINTS` points; more are averaged."""
    step = -(-len(points) // MOST_POINTS)
    if step <= 1:
        return points
    parts = [points[at : at + step] for at in range(0, len(points), step)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _path(points: Points) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in points)


def _line(points: Points, colour: int, name: str) -> Markup:
    style = f"stroke:var(--c{colour % COLOURS})"
    if len(points) == 1:
        (x, y) = points[0]
        return tag("circle", tag("title", name), cx=x, cy=y, r=3, style=f"fill:var(--c{colour % COLOURS})")
    return tag("path", tag("title", name), d=_path(points), class_="line", style=style)


def legend(names: Sequence[str]) -> Markup:
    """The colours of groups."""
    parts = [
        Markup(tag("i", style=f"background:var(--c{number % COLOURS})") + tag("span", name))
        for number, name in enumerate(names)
    ]
    return tag("p", *parts, class_="legend")


def scatter(places: Points, groups: Sequence[int], names: Sequence[str], titles: Sequence[str]) -> Markup:
    """A map of points without axes, coloured by the number of their group; titles show where the pointer is."""
    if not places:
        return Markup("")
    xs, ys = [x for x, _ in places], [y for _, y in places]
    across, up = Axis.of(min(xs), max(xs)), Axis.of(min(ys), max(ys))
    size = 480
    dots = [
        tag(
            "circle", tag("title", title), cx=round(12 + across.share(x) * (size - 24), 1),
            cy=round(12 + (1 - up.share(y)) * (size - 24), 1), r=4,
            style=f"fill:var(--c{group % COLOURS});fill-opacity:.8",
        )
        for (x, y), group, title in zip(places, groups, titles, strict=True)
    ]  # fmt: skip
    return Markup(tag("svg", *dots, viewBox=f"0 0 {size} {size}", role="img") + legend(names))


def counted(header: Sequence[object], counts: Sequence[tuple[object, int]], more: str = "") -> Markup:
    """A table of names and counts, each with its bar; ``more`` says what is not shown."""
    if not counts:
        return Markup("")
    top = max(count for _, count in counts)
    rows: list[list[object]] = [[name, bar(count / top if top else 0, f"{count:,}", 12)] for name, count in counts]
    return Markup(table(list(header), rows) + (tag("p", more, class_="quiet") if more else ""))


def matrix(corner: str, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Markup:
    """A table of classes by classes, shaded by the share of a row; the diagonal is in another colour."""
    head = tag("tr", tag("th", corner), *(tag("th", n, title=label) for n, label in enumerate(classes)))
    rows = []
    for number, (label, row) in enumerate(zip(classes, counts, strict=True)):
        total = max(1, sum(row))
        cells = [
            tag("td", n or "", style=_shade(n / total, column == number), title=f"{label} → {classes[column]}: {n}")
            for column, n in enumerate(row)
        ]
        rows.append(tag("tr", tag("th", f"{number} {label}"), *cells))
    return tag("div", tag("table", head, *rows, class_="matrix"), class_="scroll")


def _shade(share: float, hit: bool) -> str | None:
    return f"background:rgba(var(--{'hit' if hit else 'miss'}),{share:.2f})" if share > 0 else None
