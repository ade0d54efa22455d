"""HTML from nested calls; every text is escaped unless it is markup already."""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


EMPTY_TAGS = ("meta", "br", "hr", "img")


def escaped(value: object) -> Markup:
    """A value as HTML."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value), quote=True))


def tag(element: str, /, *children: object, **attributes: object) -> Markup:
    """``tag("td", "a < b", class_="n")`` → ``<td class="n">a &lt; b</td>``; attributes that are None are left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if element in EMPTY_TAGS:
        return Markup(f"<{element}{given}>")
    return Markup(f"<{element}{given}>{''.join(map(escaped, children))}</{element}>")


def rows_of(values: Mapping[str, object], before: str = "", without: Collection[str] = ()) -> list[list[object]]:
    """Settings as rows of name and value; those within others have these' names before them."""
    rows: list[list[object]] = []
    for key, value in values.items():
        if key in without:
            continue
        if isinstance(value, Mapping) and value:
            rows += rows_of(value, f"{before}{key}.", without)
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            rows.append([f"{before}{key}", "–" if value is None else text])
    return rows


def table(header: list[object], rows: list[list[object]], **attributes: object) -> Markup:
    """A table with a header line."""
    head = tag("thead", tag("tr", *(tag("th", cell) for cell in header)))
    body = tag("tbody", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows))
    return tag("table", head, body, **attributes)
