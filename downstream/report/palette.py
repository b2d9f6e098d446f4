"""Colours of the page in light and in dark; one place, so that a test can measure their contrast."""

from __future__ import annotations

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "page": "#ffffff",
    "panel": "#f6f7f9",
    "text": "#1b1f26",
    "muted": "#565e6b",
    "line": "#d9dde3",
    "accent": "#1a56b0",
    "good": "#0f6b3a",
    "bad": "#a8261c",
    "note": "#fff6e0",
    "note-line": "#a66a00",
    "shade": "#b9bfc9",
}
"""Role -> colour on a light page."""

DARK: Mapping[str, str] = {
    "page": "#13161b",
    "panel": "#1b2027",
    "text": "#e6e9ee",
    "muted": "#a3acb9",
    "line": "#343b46",
    "accent": "#84b4ff",
    "good": "#6fd39a",
    "bad": "#ff9a8f",
    "note": "#2a2415",
    "note-line": "#d9a441",
    "shade": "#4a5362",
}
"""Role -> colour on a dark page."""

SERIES_LIGHT = ("#1a56b0", "#b4500b", "#0f7a55", "#8a3fa8", "#b3261e", "#0b7285", "#a8326f", "#5b5f1d")
"""Colours of curves on a light page; runs beyond the last begin anew with another dash pattern."""

SERIES_DARK = ("#84b4ff", "#f6a35f", "#5fd0a0", "#d09bf0", "#ff8f86", "#5cc8dc", "#f590c2", "#cfd06a")
"""Colours of curves on a dark page."""

DASHES = ("none", "7 3", "2 3", "9 3 2 3", "12 4")
"""Dash patterns of curves: neighbours in a legend differ in colour and pattern."""


def css_variables() -> str:
    """Custom properties for both schemes; print is always light."""
    light = _declarations(LIGHT, SERIES_LIGHT)
    dark = _declarations(DARK, SERIES_DARK)
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    )


def series_style(number: int) -> str:
    """CSS of curve ``number``: colour and dash pattern; 40 curves have a style of their own."""
    colour = number % len(SERIES_LIGHT)
    return f"stroke: var(--series-{colour}); stroke-dasharray: {DASHES[number % len(DASHES)]}"


def series_colour(number: int) -> str:
    """CSS colour of curve ``number``."""
    return f"var(--series-{number % len(SERIES_LIGHT)})"


def _declarations(roles: Mapping[str, str], series: tuple[str, ...]) -> str:
    pairs = [*roles.items(), *((f"series-{i}", colour) for i, colour in enumerate(series))]
    return " ".join(f"--{name}: {colour};" for name, colour in pairs)
