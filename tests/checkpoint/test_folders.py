"""Names of checkpoint folders, and what is cleared up after an interrupted save."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from nt_pretrain.checkpoint.folders import candidates, folder_name, put_in_place, remove_leftovers, step_of


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir()
        (root / name / "from").write_text(name)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


@pytest.mark.parametrize("step", [0, 1200, 99_999_999, 123_456_789_012])
def test_name_and_step(step: int) -> None:
    assert step_of(Path("checkpoints") / folder_name(step)) == step


@pytest.mark.parametrize("name", ["step_12", "step_00000012.bak", "latest", "step_00000012.tmp.tmp", "xstep_00000012"])
def test_other_names_are_none(name: str) -> None:
    assert step_of(Path(name)) is None


def test_candidates_are_newest_first_by_number(tmp_path: Path) -> None:
    make(tmp_path, "step_00000900", "step_100000000", "step_99999999", "step_00000950.tmp", "mine")
    (tmp_path / "step_00000990").touch()
    assert [path.name for path in candidates(tmp_path)] == ["step_100000000", "step_99999999", "step_00000900"]
    assert candidates(tmp_path / "absent") == []


def test_an_old_one_counts_while_its_successor_is_missing(tmp_path: Path) -> None:
    make(tmp_path, "step_00000001.old", "step_00000002.old", "step_00000002")
    assert [path.name for path in candidates(tmp_path)] == ["step_00000002", "step_00000001.old"]


def test_leftovers_are_named_and_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "step_00000001.old", "step_00000002.old", "step_00000002", "step_00000003.tmp", "other.tmp")
    with caplog.at_level(logging.WARNING):
        done = remove_leftovers(tmp_path)
    assert names(tmp_path) == ["other.tmp", "step_00000001", "step_00000002"]
    assert (tmp_path / "step_00000002" / "from").read_text() == "step_00000002"
    assert [line.split(": ")[1].split(",")[0] for line in done] == ["removed", "renamed to step_00000001", "removed"]
    assert [record.message for record in caplog.records] == done
    assert remove_leftovers(tmp_path) == []


def test_put_in_place_replaces(tmp_path: Path) -> None:
    make(tmp_path, "step_00000001.tmp", "step_00000001")
    put_in_place(tmp_path / "step_00000001.tmp", tmp_path / "step_00000001")
    assert names(tmp_path) == ["step_00000001"]
    assert (tmp_path / "step_00000001" / "from").read_text() == "step_00000001.tmp"
