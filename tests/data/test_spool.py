"""Sorting through buckets gives one order, however many buckets and however little memory there is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nt_pretrain.data import spool
from nt_pretrain.data.spool import Spool


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=40), max_size=40), st.integers(1, 50), st.integers(1, 2000))
def test_rows_come_sorted_by_their_key(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[bytes],
    buckets: int,
    held: int,
) -> None:
    monkeypatch.setattr(spool, "BUFFER_BYTES", held)
    keyed = [(hashlib.sha256(row).digest()[:24], row) for row in rows]
    sorter = Spool(tmp_path_factory.mktemp("spool") / "spool", buckets)
    for key, row in keyed:
        sorter.add("train", key, row)
    sorter.flush()
    assert list(sorter.in_order("train")) == [row for _, row in sorted(keyed)]
    assert sorter.counts == ({"train": len(rows)} if rows else {})


def test_splits_stay_apart_and_the_folder_goes(tmp_path: Path) -> None:
    sorter = Spool(tmp_path / "spool", 3)
    sorter.add("train", bytes(24), b"a")
    sorter.add("validation", bytes(24), b"b")
    sorter.flush()
    assert (list(sorter.in_order("train")), list(sorter.in_order("validation"))) == ([b"a"], [b"b"])
    sorter.remove()
    assert list(tmp_path.iterdir()) == []
