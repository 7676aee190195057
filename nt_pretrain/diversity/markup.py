"""HTML from plain parts. All text goes through :func:`text`; whatever a document holds stays words on the page."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence

STEPS = 10
"""Shades of a scale."""


def text(words: object) -> str:
    """``words`` as text of a page or of an attribute in double quotes."""
    return html.escape(str(words), quote=True)


def element(tag: str, inside: str = "", *, classes: str = "", title: str = "") -> str:
    """An element around HTML; ``title`` is what a pointer that rests on it is shown, line by line."""
    words = f' class="{text(classes)}"' if classes else ""
    words += f' title="{text(title)}"'.replace("\n", "&#10;") if title else ""
    return f"<{tag}{words}>{inside}</{tag}>"


def paragraph(words: str) -> str:
    return element("p", text(words))


def hint(words: str) -> str:
    """The sentence that says how to read what stands below it."""
    return element("p", text(words), classes="hint")


def image(content: bytes, words: str, *, classes: str = "", title: str = "") -> str:
    """A PNG as part of the page; ``words`` say what it shows to who cannot see it."""
    data = base64.b64encode(content).decode()
    title = f' title="{text(title)}"' if title else ""
    return f'<img src="data:image/png;base64,{data}" alt="{text(words)}" class="{text(classes)}"{title}>'


def drawing(content: bytes, words: str, below: str, *, pixels: int) -> str:
    """A small picture, a PNG of ``pixels`` a side, with a line below it."""
    classes = "small" if pixels <= 96 else "large"
    return image(content, words, classes=classes, title=words) + element("small", text(below))


def cell(inside: str, *, shade: str = "", header: bool = False, number: bool = False, title: str = "") -> str:
    """A cell of a table around HTML."""
    classes = " ".join(each for each in ("n" if number else "", shade) if each)
    return element("th" if header else "td", inside, classes=classes, title=title)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, classes: str = "") -> str:
    """A table of a head (words) and rows of cells (HTML); it scrolls by itself where it is too wide."""
    top = element("tr", "".join(cell(text(each), header=True) for each in head))
    body = "".join(element("tr", "".join(row)) for row in rows)
    whole = element("table", element("thead", top) + element("tbody", body), classes=classes)
    return element("div", whole, classes="wide")


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash for one that is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.{digits}f}"


def shade(value: float, low: float, high: float, scale: str) -> str:
    """Class of a shade of ``scale`` (a letter of the style sheet) for a value between two ends; none for nan."""
    if math.isnan(value) or high <= low:
        return ""
    step = round((value - low) / (high - low) * STEPS)
    return f"{scale}{min(max(step, 0), STEPS)}"


def legend(words: str, low: str, high: str, scale: str) -> str:
    """The shades of a scale between the words of its ends."""
    boxes = "".join(element("span", "&nbsp;", classes=f"box {scale}{step}") for step in range(STEPS + 1))
    return element("p", f"{text(words)} {text(low)} {boxes} {text(high)}", classes="legend")


def section(anchor: str, title: str, *parts: str) -> str:
    return f'<section id="{text(anchor)}">{element("h2", text(title))}{"".join(parts)}</section>'
