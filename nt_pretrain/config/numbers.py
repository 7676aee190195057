"""Whole numbers that fit, for messages that say what to change."""

from __future__ import annotations


def divisors(number: int) -> list[int]:
    """Divisors of ``number``, ascending.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [each for each in range(1, int(number**0.5) + 1) if number % each == 0]
    return sorted({*small, *(number // each for each in small)})


def multiples_near(number: int, factor: int) -> str:
    """The positive multiples of ``factor`` next to ``number``, as text.

    >>> multiples_near(100, 12)
    '96 and 108'
    """
    below = number // factor * factor
    return " and ".join(str(each) for each in (below, below + factor) if each > 0)


def listed(numbers: list[int]) -> str:
    """Numbers as text; of many, the first twelve.

    >>> listed([1, 2, 4])
    '1, 2, 4'
    >>> listed([])
    'none'
    """
    if not numbers:
        return "none"
    return ", ".join(map(str, numbers[:12])) + (", ..." if len(numbers) > 12 else "")
