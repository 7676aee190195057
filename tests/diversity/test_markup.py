"""Pieces of pages: what documents hold stays words."""

from __future__ import annotations

import math
from pathlib import Path

from nt_pretrain.diversity.markup import cell, element, hint, image, legend, number, section, shade, table, text
from nt_pretrain.diversity.page import page
from tests.diversity.pages import Page

NASTY = "<script>alert('x')</script> & \"quotes\" </td></table> <img src=http://x>"


def test_a_page_of_nasty_words_is_whole(tmp_path: Path) -> None:
    rows = [[cell(text(NASTY), title=NASTY + "\nsecond line"), cell("1", number=True, shade="a3")]]
    parts = section("one", NASTY, hint(NASTY), table((NASTY, "n"), rows), legend(NASTY, "0", NASTY, "d"))
    parts += image(b"\x89PNG", NASTY, title=NASTY) + element("div", text(NASTY), classes="text")
    path = tmp_path / "index.html"
    path.write_text(page(NASTY, hint(NASTY), [("one", NASTY, parts)]), encoding="utf-8")
    found = Page(path)
    assert found.wrong == []
    assert found.words.count(NASTY) == 11
    assert f"{NASTY}\nsecond line" in found.titles
    assert "<script" not in found.source and "http://x>" not in found.source
    assert found.images == 1


def test_the_reader_sees_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        '<html><style>@import "x"; a{background:url(y)}</style><body onload="x()"><p><div></p>'
        '<a href="#none"></a><a href="https://x"></a><script src="x.js"></script></body>'
    )
    wrong = " ".join(Page(path).wrong)
    for each in (
        "@import",
        "url(",
        "onload",
        "</p> inside",
        "to nothing: none",
        "fetched: https",
        "<script>",
        "closed",
    ):
        assert each in wrong, each


def test_numbers_and_shades() -> None:
    assert (number(1234.5678, 2), number(None), number(math.nan)) == ("1,234.57", "–", "–")
    assert [shade(each, 0.0, 1.0, "a") for each in (-1.0, 0.0, 0.34, 1.0, 7.0)] == ["a0", "a0", "a3", "a10", "a10"]
    assert shade(math.nan, 0.0, 1.0, "a") == "" == shade(0.5, 1.0, 1.0, "a")
