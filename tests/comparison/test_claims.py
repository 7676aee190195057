import math

import pytest

from nt_pretrain.comparison.claims import claim_problems, judge, unknown_rows
from nt_pretrain.comparison.document import put
from nt_pretrain.comparison.results import Result, Value
from nt_pretrain.comparison.table import claims_table, written
from nt_pretrain.config.compare_section import CompareSection


def result(*nll: float) -> Result:
    return Result({}, {}, {"nll": Value(nll)}, 3)


CLAIM = ("a", "nll", "lower", "b")


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        ((1.0, 1.1, 1.2), (1.5, 1.6, 1.8), "held"),
        ((1.5, 1.6, 1.8), (1.0, 1.1, 1.2), "not held"),
        ((1.0, 1.5, 1.2), (1.1, 1.3, 1.4), "undecided"),
        ((1.0,), (2.0,), "undecided"),  # one seed says nothing of chance
        ((1.0, 1.0), (1.0, 1.0), "undecided"),
    ],
)
def test_a_difference_counts_beyond_two_standard_errors(a: tuple[float, ...], b: tuple[float, ...], word: str) -> None:
    verdict = judge("a is better", CLAIM, {"a": result(*a), "b": result(*b)})
    assert verdict.word == word
    assert f"| {word} |" in claims_table([verdict])


def test_differences_are_taken_seed_by_seed() -> None:
    # Seeds differ by far more than the rows do, in each seed by the same.
    verdict = judge("a is better", CLAIM, {"a": result(1.0, 2.0, 3.0), "b": result(1.1, 2.1, 3.1001)})
    assert verdict.word == "held" and verdict.difference.mean == pytest.approx(-0.1, abs=1e-3)


def test_rows_that_are_not_there_are_named() -> None:
    assert unknown_rows(CLAIM, ["a"]) == ["b"]


def test_claims_that_nothing_could_decide_are_told_before_anything_runs() -> None:
    rows = {"a": ("method.name=dense",)}
    wrong = claim_problems(CompareSection(rows=rows, claims={"x": CLAIM, "y": ("a", "corrupted_nll", "lower", "a")}))
    assert len(wrong) == 2 and "x: there is no row b" in wrong[0] and "y: corrupted_nll is measured only" in wrong[1]
    assert claim_problems(CompareSection(rows=rows)) == []


def test_standard_errors_are_of_the_mean() -> None:
    value = Value((0.80, 0.82, 0.84))
    assert value.error == pytest.approx(0.02 / math.sqrt(3))
    assert written(value, "accuracy") == "82.00 ± 1.15" and written(Value((1.5,)), "nll") == "1.500"


def test_a_part_of_a_page_is_replaced_and_nothing_else(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Results\n\nWords.\n")
    put(page, "one", "first")
    put(page, "two", "other")
    put(page, "one", "second")
    text = page.read_text()
    assert text.startswith("# Results\n\nWords.\n") and "first" not in text
    assert text.index("second") < text.index("one: end") < text.index("two: begin") < text.index("other")
