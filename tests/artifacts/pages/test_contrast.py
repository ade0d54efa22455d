"""Text of the pages can be read: every colour of it stands out from what it is written on, 4.5 to 1 (WCAG AA)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import m2dprep
from m2dprep.artifacts.pages.document import STYLE

ENOUGH = 4.5
SERVED = (Path(m2dprep.__file__).parent / "evaluation/serving/page.html").read_text(encoding="utf-8")
# Text and what it is written on, in the page of `serve`.
WRITTEN = [
    *[("--ink", under) for under in ("--paper", "--card", "--wash", "--tint")],
    *[("--soft", under) for under in ("--paper", "--card", "--wash", "--tint")],
    *[("--accent", under) for under in ("--paper", "--card", "--wash", "--tint")],
    *[("--warn", under) for under in ("--paper", "--card")],
    ("--on-accent", "--accent"), ("--paper", "--ink"),
]  # fmt: skip
Colour = tuple[float, float, float]
# What browsers write on in their light and dark schemes, and with.
CANVAS: dict[str, tuple[Colour, Colour]] = {
    "light": ((255, 255, 255), (0, 0, 0)), "dark": ((18, 18, 18), (255, 255, 255)),
}  # fmt: skip


def luminance(colour: Colour) -> float:
    """Relative luminance as WCAG 2 defines it."""
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in (part / 255 for part in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Colour, other: Colour) -> float:
    darker, lighter = sorted(map(luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


def over(above: Colour, share: float, below: Colour) -> Colour:
    """A colour that covers another with an opacity."""
    red, green, blue = (share * a + (1 - share) * b for a, b in zip(above, below, strict=True))
    return red, green, blue


def hexadecimal(text: str) -> Colour:
    red, green, blue = (int(text[at : at + 2], 16) for at in (1, 3, 5))
    return red, green, blue


def palettes() -> dict[str, dict[str, Colour]]:
    """The colours of the page of `serve`, by scheme; those of the dark one stand in its media query."""
    light, dark = (dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", part)) for part in
                   re.findall(r":root \{(.*?)\}", SERVED, re.DOTALL)[:2])  # fmt: skip
    named = {"light": light, "dark": {**light, **dark}}
    return {scheme: {name: hexadecimal(text) for name, text in own.items()} for scheme, own in named.items()}


def test_the_ratio_is_that_of_wcag() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("text", "under"), WRITTEN)
def test_the_page_of_serve(scheme: str, text: str, under: str) -> None:
    colours = palettes()[scheme]
    assert contrast(colours[text], colours[under]) >= ENOUGH


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_reports(scheme: str) -> None:
    """Text is the browser's own, at times paler, also on cards; in tables it is written on colours of any strength."""
    canvas, ink = CANVAS[scheme]
    card = over((136, 136, 136), 0x11 / 255, canvas)
    assert "--card: #8881" in STYLE
    opacities = [float(one) for one in re.findall(r"(?:\.quiet|\.dim|\.figures span) \{[^}]*opacity: ([\d.]+)", STYLE)]
    assert len(opacities) == 3
    for opacity in opacities:
        for under in (canvas, card):
            assert contrast(over(ink, opacity, under), under) >= ENOUGH
    cells = re.findall(r"--(?:hit|miss): (\d+), (\d+), (\d+)", STYLE)
    assert len(cells) == 2
    for red, green, blue in cells:
        for share in range(1, 11):
            assert contrast(ink, over((int(red), int(green), int(blue)), share / 10, canvas)) >= ENOUGH
