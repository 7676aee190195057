"""A run that goes on at document 100 million of 100,000 shards reads nothing of what came before."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.bench_resume import DOCUMENTS, LANES, SAMPLE, SEED, SHARDS, WINDOW, go_on_far, write_far_corpus
from nt_pretrain.data.order import Order
from nt_pretrain.data.shards import index_path
from nt_pretrain.data.tokenizer import load_tokenizer
from tests.data.conftest import Sea

LENGTH = 64
_recorded: list[list[Path]] = []
"""Where opened files are written down: an audit hook stays for ever, so it does nothing while this is empty."""


def _record(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _recorded and isinstance(arguments[0], str | bytes | Path):
        _recorded[-1].append(Path(os.fsdecode(arguments[0])))


@pytest.fixture
def opened() -> Iterator[list[Path]]:
    """Every file that this process opens."""
    if _record not in _hooked:
        sys.addaudithook(_record)
        _hooked.append(_record)
    _recorded.append([])
    yield _recorded[-1]
    _recorded.pop()


_hooked: list[object] = []


def bytes_read() -> int:
    """All bytes that this process has asked the system for so far, whether they came from a disk or its cache."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def test_going_on_at_a_hundred_million_reads_only_what_comes(
    sea: Sea, tmp_path: Path, opened: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "far"
    made = write_far_corpus(folder)
    order = Order([DOCUMENTS] * SHARDS, SEED, LANES, WINDOW)
    tokenizer = load_tokenizer(sea.tokenizer)
    opened.clear()
    before = 0

    def manifest_is_read() -> None:
        nonlocal before
        before = bytes_read()

    found = go_on_far(folder, tokenizer, LENGTH, manifest_is_read)
    read = bytes_read() - before
    files = [path for path in opened if folder in path.parents]

    needed: set[tuple[int, int]] = set()
    for lane, sequence in enumerate(found.sequences):
        position, texts = SAMPLE // LANES, []
        assert (sequence.after.epoch, sequence.after.document >= position) == (0, True)
        for each in range(position, sequence.after.document + 1):
            place = order.document(0, lane, each)
            needed.add(place)
            texts.append(tokenizer.encode("shard {} document {}".format(*place)))
        expected = [token for tokens in texts for token in tokens.tolist()][: LENGTH + 1]
        assert sequence.tokens.tolist() == expected, f"lane {lane} reads what stands in the order there"

    shards = {shard for shard, _ in needed}
    paths = [folder / f"far-train-{shard:06d}.tar" for shard in sorted(shards)]
    assert sorted(files) == sorted([folder / "manifest.json", *paths, *map(index_path, paths)]), "each once, no other"
    assert shards <= set(made)
    indices = sum(index_path(path).stat().st_size for path in paths)
    slack = 1_000 + 200 * len(paths)  # /proc/self/io itself; the head of an index is read twice
    assert read <= indices + 100 * len(needed) + slack, f"{read:,} bytes for {len(needed)} documents"
    with capsys.disabled():
        print(
            f"\ngoing on at document {SAMPLE:,}: manifest {found.manifest_seconds:.2f} s, then "
            f"{found.first_seconds * 1e3:.0f} ms, {len(files)} files, {read:,} bytes"
        )


def test_what_is_counted_would_show_more(tmp_path: Path, opened: list[Path]) -> None:
    """The two instruments see a file that is opened and read in passing."""
    (tmp_path / "other").write_bytes(b"x" * 50_000)
    opened.clear()
    before = bytes_read()
    descriptor = os.open(tmp_path / "other", os.O_RDONLY)
    os.pread(descriptor, 50_000, 0)
    os.close(descriptor)
    assert tmp_path / "other" in opened
    assert bytes_read() - before >= 50_000
