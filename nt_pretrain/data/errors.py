"""What is wrong with data, in words for people."""

from __future__ import annotations


class DataError(Exception):
    """Data cannot be read, is not what it was, or does not fit the run. The command line exits with code 3."""
