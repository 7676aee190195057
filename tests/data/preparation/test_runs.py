"""Sorted runs give one order, however many runs there are and wherever the key is cut."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nt_pretrain.data.preparation import runs
from nt_pretrain.data.preparation.runs import RunWriter, bounds_of, rows_between, rows_in_ranges


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.binary(max_size=40), max_size=40),
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from([1, 300, 10_000]),
)
def test_ranges_of_all_runs_end_to_end_are_the_rows_by_key(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[bytes],
    writers: int,
    ranges: int,
    held: int,
) -> None:
    monkeypatch.setattr(runs, "RUN_BYTES", held)
    folder = tmp_path_factory.mktemp("runs")
    # A row's number follows its content, so that the order of equal keys shows.
    keyed = [(hashlib.sha256(row).digest()[8:], row + b"#%d" % number) for number, row in enumerate(rows)]
    names, total = [], [0, 0]
    share = -(-len(keyed) // writers)
    for number in range(writers):
        writer = RunWriter(folder, f"g{number}", ["train", "validation"])
        for key, row in keyed[number * share : (number + 1) * share]:
            writer.add("train", key, row)
        writer.flush()
        names += [folder / name for name in writer.runs["train"]]
        total = [total[0] + writer.totals["train"][0], total[1] + writer.totals["train"][1]]
        assert writer.runs["validation"] == []
    assert total == [len(keyed), sum(len(row) for _, row in keyed)]
    bounds = bounds_of(ranges)
    parts = [rows_between(names, low, high) for low, high in pairwise(bounds)]
    assert [row for part in parts for row in part] == [row for _, row in sorted(keyed, key=lambda each: each[0])]
    counts = sum((rows_in_ranges(name, bounds) for name in names), start=np.zeros(ranges, dtype=int))
    assert list(counts) == [len(part) for part in parts]
    for place, part in enumerate(parts):
        for row in part:
            key = hashlib.sha256(row.rsplit(b"#", 1)[0]).digest()[8:16]
            assert int.from_bytes(key, "big") * ranges >> 64 == place


def test_keys_at_the_ends_of_the_line(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, "g", ["train"])
    writer.add("train", b"\xff" * 24, b"last")
    writer.add("train", bytes(24), b"first")
    writer.add("train", b"\x80" + bytes(23), b"middle")
    writer.flush()
    run = tmp_path / writer.runs["train"][0]
    bounds = bounds_of(2)
    assert bounds == [0, 1 << 63, 1 << 64]
    assert rows_between([run], *bounds[:2]) == [b"first"]
    assert rows_between([run], *bounds[1:]) == [b"middle", b"last"]
    assert rows_in_ranges(run, bounds).tolist() == [1, 2]
