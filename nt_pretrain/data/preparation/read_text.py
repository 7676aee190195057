"""The first half of preparing text: files become sorted runs of rows, each group of files on its own.

A group that is finished has a note with its runs, what its files were, and what was left out. Its name follows from the
files, so after an interruption, or when a damaged file was replaced, only groups without a note are read. A note of a
remote file holds the file's version too; when the server holds another one now, or does not answer, it is not taken up.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nt_pretrain.data.errors import BadInput, DataError
from nt_pretrain.data.manifest import file_sha256
from nt_pretrain.data.preparation.documents import LONGEST, Document, Problems, read_documents
from nt_pretrain.data.preparation.inputs import InputFile, file_name
from nt_pretrain.data.preparation.notes import FOLDER as NOTES
from nt_pretrain.data.preparation.notes import read_note, write_note
from nt_pretrain.data.preparation.processes import Advance, work_through
from nt_pretrain.data.preparation.runs import RunWriter
from nt_pretrain.data.storage.download import discard, download
from nt_pretrain.data.storage.remote import Remote
from nt_pretrain.data.tokenizer import Tokenizer, token_dtype

SPLITS = ("train", "validation")
RUNS, FETCHED = "runs", "fetched"
"""Folders inside the unfinished one: sorted rows, and copies of remote files."""
SMALLEST_GROUP, GROUP_BYTES = 4_000_000, 64_000_000
"""Input read by a process at a time: between these; a larger file is a group of its own."""
GROUPS = 64
"""Wanted at least, so that many processes have work with a small input too."""

ASKED_AT_ONCE = 16
"""Servers' answers about finished files that are waited for together."""

_ESCAPED = ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n"), (b"\r", b"\\r"), (b"\t", b"\\t"))
_CONTROL = bytes(set(range(32)) - set(b"\n\r\t"))


@dataclass(frozen=True)
class Recipe:
    """How text becomes shards.

    Attributes:
        name: first part of the shards' names.
        validation_share: share of documents held out, by hash.
        shard_bytes: mean size of a shard, at most.
        longest: characters after which a document is cut.
        tokenizer: if given, token numbers are written instead of text.
        text_field: of a row, holds its text.
    """

    name: str
    validation_share: float
    shard_bytes: int
    longest: int = LONGEST
    tokenizer: Tokenizer | None = None
    text_field: str = "text"

    @property
    def split_rule(self) -> str:
        return f"validation: first 8 bytes of the text's sha256, little-endian, below {self.validation_share} x 2**64"

    @property
    def digest(self) -> str:
        """Of all that decides what a document becomes."""
        tokenizer = "" if self.tokenizer is None else self.tokenizer.sha256
        parts = self.name, self.validation_share, self.shard_bytes, self.longest, tokenizer, self.text_field
        return hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Group:
    """Files that one process reads, one after the other. ``key`` is the name of its note and of its runs."""

    key: str
    files: list[InputFile]

    @property
    def bytes(self) -> int:
        return sum(file.size or 0 for file in self.files)


@dataclass(frozen=True)
class GroupRead:
    """What reading a group gave.

    Attributes:
        files: (bytes, sha256) of each file.
        runs: names of the runs of each split.
        totals: (documents, bytes) of each split.
        version: of a remote file, as its server told it.
    """

    files: list[tuple[int, str]]
    runs: dict[str, list[str]]
    totals: dict[str, list[int]]
    problems: Problems
    version: str


def grouped(files: list[InputFile]) -> list[Group]:
    """Consecutive files in groups of about equal bytes; remote ones each alone, since their sizes are not known."""
    groups: list[list[InputFile]] = []
    share = sum(file.size or 0 for file in files) // GROUPS
    # A power of two: an input that changes a little is grouped as before, and what was read of it is of use.
    limit = min(GROUP_BYTES, max(SMALLEST_GROUP, 1 << share.bit_length()))
    size = 0
    for file in files:
        if not groups or file.size is None or groups[-1][-1].size is None or size + file.size > limit:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.size or 0
    seen: Counter[str] = Counter()
    found = []
    for group in groups:
        digest = hashlib.sha256("".join(f"{file.size} {file.called}\n" for file in group).encode()).hexdigest()[:24]
        seen[digest] += 1
        found.append(Group(f"{digest}-{seen[digest]}", group))  # an input may be given twice
    return found


def read_groups(groups: list[Group], folder: Path, recipe: Recipe, workers: int, advance: Advance) -> list[GroupRead]:
    """Read every group that was not yet. ``advance`` is told bytes read, or files where they are remote.

    Raises:
        DataError: a file cannot be read; or a server does not tell whether it still holds what was read of it.
    """
    _drop_changed(groups, folder)
    missing = [group for group in groups if group_read(folder, group) is None]
    advance(sum(map(units_of, groups)) - sum(map(units_of, missing)))
    work_through([partial(_read_group, folder, group, recipe) for group in missing], workers, advance)
    found = [group_read(folder, group) for group in groups]
    return [each for each in found if each is not None]


def _drop_changed(groups: list[Group], folder: Path) -> None:
    """Delete the notes and runs of remote files that are other ones at their server now.

    Servers are asked about finished files only; measured, 1,024 of a server on the same machine take 2 s.
    """
    finished = [
        (group, found)
        for group in groups
        if group.files[0].size is None and (found := group_read(folder, group)) is not None
    ]
    remotes: dict[str, Remote] = {}
    with ThreadPoolExecutor(ASKED_AT_ONCE, thread_name_prefix="versions") as threads:
        asked = []
        for group, found in finished:
            base, name = _base_and_name(group.files[0].place)
            remote = remotes.setdefault(base, Remote(base))
            asked.append((group, found, threads.submit(remote.version, name)))
        try:
            for group, found, answer in asked:
                if answer.result() != found.version:
                    _note_path(folder, group).unlink()
                    for run in (run for runs in found.runs.values() for run in runs):
                        (folder / RUNS / run).unlink()
        except BadInput as error:
            raise DataError(
                f"{error}; what was read of it is kept, but nobody can tell whether the file is still the same; the "
                "same command goes on when the server answers"
            ) from None
        finally:
            threads.shutdown(cancel_futures=True)


def units_of(group: Group) -> int:
    """Of progress: bytes, or 1 for a remote file, whose size is not known."""
    return 1 if group.files[0].size is None else group.bytes


def group_read(folder: Path, group: Group) -> GroupRead | None:
    """What a finished group gave; None if it is still to be read, or its runs are gone."""
    note = read_note(_note_path(folder, group))
    if note is None or not all((folder / RUNS / name).exists() for names in note["runs"].values() for name in names):
        return None
    files = [(int(size), str(sha256)) for size, sha256 in note["files"]]
    return GroupRead(
        files, note["runs"], note["totals"], Problems(note["counts"], note["first"]), note.get("version", "")
    )


def _note_path(folder: Path, group: Group) -> Path:
    return folder / NOTES / f"{group.key}.json"


def _read_group(folder: Path, group: Group, recipe: Recipe, advance: Advance) -> None:
    problems = Problems()
    if group.files[0].size is None:
        copy, version = _fetched(folder, group.key, group.files[0], advance)
        # What is planned and written follows from the names of runs: those of another version have others.
        paths, stem = [copy], f"{group.key}-{hashlib.sha256(version.encode()).hexdigest()[:12]}"
    else:
        paths, version, stem = [Path(file.place) for file in group.files], "", group.key
    writer = RunWriter(folder / RUNS, stem, SPLITS)
    limit = int(recipe.validation_share * 2**64)
    tokens = None if recipe.tokenizer is None else partial(token_bytes, recipe.tokenizer)
    files = []
    for path, file in zip(paths, group.files, strict=True):
        files.append((path.stat().st_size, file_sha256(path)))
        for document in _documents(path, file, recipe, problems, advance):
            content = document.text.encode()
            digest = hashlib.sha256(content).digest()
            split = "validation" if int.from_bytes(digest[:8], "little") < limit else "train"
            # What decides the split must not decide the order too: the first bytes are spent.
            writer.add(split, digest[8:], tokens(document.text) if tokens else row_of(content, document.meta))
    writer.flush()
    found = {"files": files, "runs": writer.runs, "totals": writer.totals, "version": version}
    write_note(_note_path(folder, group), {**found, "counts": problems.counts, "first": problems.first})
    if group.files[0].size is None:
        discard(paths[0])
        advance(1)


def _documents(path: Path, file: InputFile, recipe: Recipe, problems: Problems, advance: Advance) -> Iterator[Document]:
    told = 0

    def at(read: int) -> None:
        nonlocal told
        advance(read - told if file.size is not None else 0)
        told = read

    try:
        yield from read_documents(
            path, problems, longest=recipe.longest, field=recipe.text_field, called=file.called, at=at
        )
    except DataError as error:
        if file.size is not None:
            raise
        discard(path)
        raise DataError(f"{error} (its copy is deleted; the same command fetches it again)") from None
    at(file.size or told)


def _fetched(folder: Path, stem: str, file: InputFile, advance: Advance) -> tuple[Path, str]:
    """A copy of a remote file, from what an earlier attempt has of it, and its version."""
    (folder / FETCHED).mkdir(exist_ok=True)
    path = folder / FETCHED / f"{stem}-{file_name(file.place)}"
    base, name = _base_and_name(file.place)
    try:
        return path, download(Remote(base), name, path, lambda _: advance(0))
    except BadInput as error:
        # Nothing can stand in for a missing file here, and this error cannot travel between processes.
        raise DataError(f"{error}; what is finished is kept, and the same command goes on") from None


def _base_and_name(url: str) -> tuple[str, str]:
    """The URL of a file's folder, and the file's name with its query."""
    path, mark, query = url.partition("?")
    base, _, name = path.rpartition("/")
    return base, name + mark + query


def row_of(text: bytes, meta: dict[str, str]) -> bytes:
    """A line of JSON in C4's order of fields, byte for byte as :func:`json.dumps` writes it, at three times its speed.

    Args:
        text: UTF-8.
    """
    if len(text.translate(None, _CONTROL)) != len(text):
        return json.dumps({"text": text.decode(), **meta}, ensure_ascii=False).encode() + b"\n"
    for letter, escaped in _ESCAPED:
        text = text.replace(letter, escaped)
    rest = b", " + json.dumps(meta, ensure_ascii=False).encode()[1:] if meta else b"}"
    return b'{"text": "' + text + b'"' + rest + b"\n"


def token_bytes(tokenizer: Tokenizer, text: str) -> bytes:
    """Numbers of a document's tokens, as they stand in shards."""
    return tokenizer.encode(text).astype(token_dtype(tokenizer)).tobytes()
