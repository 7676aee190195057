"""Reads a page as a browser would, and says what is wrong with it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "br"}
KNOWN = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "nav", "a", "section", "div", "table",
    "thead", "tbody", "tr", "th", "td", "span", "b", "small", "figure", "figcaption", "img",
}  # fmt: skip


class Page(HTMLParser):
    """Attributes:
    wrong: what a page must not have.
    words: its text.
    titles: all title attributes.
    images: how many.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.titles: list[str] = []
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.words = ""
        self.images = 0
        self.feed(self.source)
        self.close()
        self.wrong += [f"never closed: {tag}" for tag in self.open]
        self.wrong += [f"a link to nothing: {link}" for link in self.links - self.anchors]
        style = re.findall(r"<style>(.*?)</style>", self.source, re.DOTALL)
        self.wrong += [f"the style fetches: {found}" for each in style for found in re.findall(r"url\(|@import", each)]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in KNOWN:
            self.wrong.append(f"<{tag}>")
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            self._attribute(tag, name, value or "")

    def _attribute(self, tag: str, name: str, value: str) -> None:
        if name.startswith("on"):
            self.wrong.append(f"a script in {name}")
        if name in ("src", "href") and not value.startswith(("data:image/png;base64,", "#")):
            self.wrong.append(f"fetched: {value[:80]}")
        if name == "href":
            self.links.add(value.removeprefix("#"))
        if name == "id":
            self.anchors.add(value)
        if name == "title":
            self.titles.append(value)
        self.images += tag == "img" and name == "src"

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.wrong.append(f"</{tag}> inside of {self.open[-3:]}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data
