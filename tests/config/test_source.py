"""YAML means what people think it means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nt_pretrain.config.source import read, write


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.5E+3", 1500.0),
        ("3e4", 30000.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("0", 0),
        ("+7", 7),
        ("1_000_000", 1_000_000),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("2024-01-01", "2024-01-01"),
        (".inf", ".inf"),
        ("e5", "e5"),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
        ("[1, 2e0]", [1, 2.0]),
    ],
)
def test_plain_scalars(text: str, value: object) -> None:
    found = read(f"key: {text}")
    assert not found.problems
    assert isinstance(found.value, dict)
    assert found.value["key"] == value and type(found.value["key"]) is type(value)


def test_keys_are_text_and_know_their_lines() -> None:
    found = read("# comment\na:\n  on: 1\n  2: {x: 3}\n\nb: 4\n")
    assert found.value == {"a": {"on": 1, "2": {"x": 3}}, "b": 4}
    assert found.lines == {("a",): 2, ("a", "on"): 3, ("a", "2"): 4, ("a", "2", "x"): 4, ("b",): 6}


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: 2\na: 3", 3, "a: given twice, first on line 1; delete one of them"),
        ("s:\n  x: 1\n  x: 1", 3, "s.x: given twice, first on line 2; delete one of them"),
        ("a: b: c", 1, "not valid YAML: mapping values are not allowed here (column 5)"),
        ("a: 1\n\tb: 2", 2, "not valid YAML: found character '\\t' that cannot start any token (column 1); "),
        ("a: [1,\nb: 2", 2, "not valid YAML: expected ',' or ']', but got '<stream end>' (column 5)"),
        ("a: &x 3\nb: *x", 1, "not valid YAML: anchors (&) and aliases (*) are not supported (column 4)"),
        ("a: &x [*x]", 1, "not valid YAML: anchors (&) and aliases (*) are not supported (column 4)"),
        ("a: !!python/name:os.system x", 1, "not valid YAML: tags (!) are not supported (column 4)"),
        ("a: 1\n---\nb: 2", 2, "not valid YAML: but found another document (column 1)"),
        ("a: 1\nb: \x07", 2, "not valid YAML: the character '\\x07' is not allowed"),
        ("? [1]\n: 2", 1, "a key must be a word, not a list or a mapping"),
        ("a: 1\nb: 1e999", 2, "b: 1e999 is not a finite number"),
    ],
)
def test_problems_name_their_line(text: str, line: int, problem: str) -> None:
    found = read(text)
    assert len(found.problems) == 1
    assert found.problems[0][0] == line
    assert found.problems[0][1].startswith(problem)


def test_all_keys_that_are_given_twice_are_told() -> None:
    assert len(read("a: 1\na: 2\ns:\n  b: 1\n  b: 2\n").problems) == 2


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp"))),
    st.from_regex(r"[-+~.:0-9a-eEnoyxTrue_]{1,6}", fullmatch=True),
)  # fmt: skip


@given(
    st.one_of(
        SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.from_regex("[a-z]{1,4}", fullmatch=True), SCALARS)
    )
)
def test_what_is_written_is_read_back(value: object) -> None:
    text = write(value)
    assert "\n" not in text
    assert read(f"key: {text}").value == {"key": value}
