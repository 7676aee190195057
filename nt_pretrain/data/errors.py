"""What is wrong with data, in words for people."""

from __future__ import annotations

from functools import partial
from typing import Any


class DataError(Exception):
    """Data cannot be read, is not what it was, or does not fit the run. The command line exits with code 3."""


class BadInput(DataError):
    """Input that a run can do without, up to ``data.max_bad_fraction``.

    Attributes:
        kind: what it is counted under.
        of_document: only one document or picture is bad; otherwise its whole shard.
        size: its bytes, if they are known although they cannot be read.
    """

    def __init__(self, kind: str, words: str, *, of_document: bool = False, size: int = 0) -> None:
        super().__init__(words)
        self.kind, self.of_document, self.size = kind, of_document, size

    def __reduce__(self) -> tuple[Any, ...]:
        # It travels between processes, and exceptions are rebuilt from their words alone.
        return partial(BadInput, of_document=self.of_document, size=self.size), (self.kind, str(self))
