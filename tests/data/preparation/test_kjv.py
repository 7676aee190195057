"""The Bible's package is read as data; the larger set's sources are read from the folders of their packages."""

from __future__ import annotations

import pytest

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.preparation.kjv import chapters

CODE = """from pythonbible import Bible
text = Bible(None, "In the  beginning [was] light. And evening. Now these.", {1001001: 0, 1001002: 31, 2001001: 44},
             {1001001: 30, 1001002: 43, 2001001: 54})
"""


def test_chapters_come_in_order_with_a_verse_a_line() -> None:
    assert list(chapters(CODE)) == ["In the beginning was light.\nAnd evening.", "Now these."]


@pytest.mark.parametrize("code", ["", "a = 1", "a = f(1, 2, 3, 4", "a = f(1, open('x'), {}, {})"])
def test_another_layout_is_an_error(code: str) -> None:
    with pytest.raises(DataError, match="is not laid out as expected"):
        list(chapters(code))
