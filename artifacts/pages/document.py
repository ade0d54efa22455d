"""The frame and the look that all pages share: a title, sections, figures in large type, bars.

There is no script and nothing is loaded from elsewhere. Colours follow the reader's light or dark theme.
"""

from __future__ import annotations

from collections.abc import Sequence

from m2dprep.artifacts.pages.markup import Markup, escaped, tag

STYLE = """
:root { color-scheme: light dark; --line: #8883; --bar: #4a7fb5; --hit: 71, 121, 174; --miss: 199, 79, 60;
  --card: #8881; --c0: #4a7fb5; --c1: #d98b3a; --c2: #5b9e6b; --c3: #b5607d; --c4: #7f6bb3; --c5: #4fa3a5;
  --c6: #a58a3c; --c7: #8c6d5f; --c8: #6d8fd0; --c9: #9a9a9a }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; margin-bottom: .2em } h3 { font-size: 1em; margin: 1.4em 0 .4em }
h2 { font-size: 1.15em; margin-top: 2.4em; padding-bottom: .2em; border-bottom: 1px solid var(--line) }
table { border-collapse: collapse } th, td { padding: .15em .6em; text-align: left; vertical-align: top }
th { font-weight: 600 } td { overflow-wrap: anywhere }
@media (min-width: 50em) { td:first-child { overflow-wrap: break-word } }
.score { font-size: 2.4em; font-weight: 600; margin: 0 }
.bar { display: inline-block; height: .8em; background: var(--bar); vertical-align: middle; margin-right: .5em;
  border-radius: 2px }
.matrix { font-size: 11px } .matrix td { text-align: right; padding: .1em .3em; border: 1px solid var(--line) }
.matrix th { padding: .1em .3em; font-weight: 400; white-space: nowrap }
.scroll { overflow-x: auto } .quiet { opacity: .7 } audio { height: 2em; vertical-align: middle }
.figures { display: flex; flex-wrap: wrap; gap: .8em; margin: 1.2em 0; padding: 0 }
.figures div { background: var(--card); border-radius: 8px; padding: .6em 1em; min-width: 7em }
.figures b { display: block; font-size: 1.5em; font-weight: 600; line-height: 1.3; white-space: nowrap }
.figures span { font-size: .85em; opacity: .75 }
.side { display: flex; flex-wrap: wrap; gap: 0 2.4em } .side > div { flex: 1 1 26em; min-width: 0 }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(15em, 1fr)); gap: 1em; margin: 1em 0 }
.clips figure { margin: 0; background: var(--card); border-radius: 8px; overflow: hidden; display: flex;
  flex-direction: column }
.clips img { width: 100%; height: 7em; display: block; background: #000 }
.clips figcaption { padding: .5em .8em .7em; font-size: .85em; overflow-wrap: anywhere }
.clips audio { width: 100% } .clips figcaption p { margin: .2em 0 }
svg { width: 100%; height: auto; max-width: 44em; font: 13px system-ui, sans-serif } svg text { fill: currentColor }
svg .axis { stroke: var(--line); fill: none } svg .bars { fill: var(--bar) }
svg .soft { fill: var(--bar); opacity: .18 } svg .line { fill: none; stroke-width: 1.6 }
svg .dim { opacity: .65 }
.legend { font-size: .85em; margin: .2em 0 } .legend i { display: inline-block; width: .8em; height: .8em;
  border-radius: 50%; margin: 0 .35em 0 1em } .legend i:first-child { margin-left: 0 }
"""
BAR_EMS = 20


def document(title: str, body: Sequence[Markup]) -> str:
    """A whole page."""
    head = tag(
        "head", tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title), tag("style", Markup(STYLE)),
    )  # fmt: skip
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', *body), lang='en')}\n"


def section(title: str, *content: object) -> Markup:
    """A part of a page below its title; nothing if there is no content."""
    shown = [one for one in content if one]
    return tag("section", tag("h2", title), *shown) if shown else Markup("")


def bar(share: float | None, text: object, width: float = BAR_EMS) -> Markup:
    """A bar of a share from 0 to 1, with a text behind it."""
    ems = 0 if share is None else round(width * max(0.0, min(1.0, share)), 2)
    return Markup(tag("span", class_="bar", style=f"width:{ems}em") + escaped(text))


def figures(values: Sequence[tuple[object, str]]) -> Markup:
    """Figures in large type, each with what it is of below it."""
    return tag("div", *(tag("div", tag("b", value), tag("span", name)) for value, name in values), class_="figures")


def side_by_side(*parts: Markup) -> Markup:
    """Parts beside one another where the screen is wide enough."""
    shown = [part for part in parts if part]
    return tag("div", *(tag("div", part) for part in shown), class_="side") if shown else Markup("")


def with_title(title: str, content: Markup) -> Markup:
    """A part of a section; nothing if there is no content."""
    return Markup(tag("h3", title) + content) if content else Markup("")
