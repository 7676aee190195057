"""launch/prepare.py rows and synth: from files to shards, and words for what cannot become any."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.manifest import read_manifest
from nt_pretrain.data.preparation.prepare_rows import RowRecipe, prepare_rows
from nt_pretrain.data.preparation.row_files import read_table
from nt_pretrain.data.preparation.synth import synth_tables
from tests.conftest import command
from tests.data.rowsets import numbers, write_npz


def write_csv(path: Path, *, header: bool = True, extra: str = "") -> Path:
    features, labels = numbers(60)
    lines = [
        ",".join([*(f"{number:.6g}" for number in row), f"kind {label}"])
        for row, label in zip(features, labels, strict=True)
    ]
    head = ["a,b,c,d,e,f,what"] if header else []
    path.write_text("\n".join([*head, *lines]) + "\n" + extra)
    return path


def test_csv_and_npz_of_the_same_rows_hold_the_same(tmp_path: Path) -> None:
    plain = read_table(write_csv(tmp_path / "a.csv"))
    assert plain.features == pytest.approx(read_table(write_npz(tmp_path / "a.npz", 60)).features, rel=1e-5)
    assert set(plain.labels) == {"kind 0", "kind 1", "kind 2"}
    bare = read_table(write_csv(tmp_path / "b.csv", header=False))
    assert np.array_equal(bare.features, plain.features) and np.array_equal(bare.labels, plain.labels)
    numbered = read_table(tmp_path / "a.csv", "what")
    assert np.array_equal(numbered.labels, plain.labels)


def test_what_cannot_be_read_is_told_with_the_line(tmp_path: Path) -> None:
    wrong = {
        "62: a field that is no number": write_csv(tmp_path / "a.csv", extra="1,2,x,4,5,6,kind 1\n"),
        "62: 3 fields, 7 before": write_csv(tmp_path / "b.csv", extra="1,2,3\n"),
        "no column is called 'label'": write_csv(tmp_path / "c.csv"),
        "no array is called 'label'; there are features, labels": write_npz(tmp_path / "d.npz", 9),
        "unknown kind of file; rows are read from .csv and .npz": tmp_path / "e.txt",
    }
    (tmp_path / "e.txt").touch()
    for words, path in wrong.items():
        with pytest.raises(DataError) as caught:
            read_table(path, "label" if "called" in words else None)
        assert words in str(caught.value)


def test_rows_are_held_out_by_their_numbers_and_shuffled(tmp_path: Path) -> None:
    features, labels = numbers(400)
    order = np.random.Generator(np.random.PCG64(3)).permutation(400)
    for name, rows in (("first", slice(None)), ("again", order)):
        np.savez(tmp_path / f"{name}.npz", features=features[rows], labels=labels[rows])
        table = read_table(tmp_path / f"{name}.npz")
        prepare_rows(table, None, tmp_path / name, RowRecipe("rows", validation_share=0.2))
    for split in ("train", "validation"):
        first, again = (read_manifest(tmp_path / name / split) for name in ("first", "again"))
        assert first.fingerprint == again.fingerprint, "the order of the source shows"
    assert 50 < first.documents < 110
    index = np.load(next((tmp_path / "first" / "train").glob("*.idx.npy")))
    assert len(set(index["label"][:20].tolist())) == 3, "the source is sorted by class"


def test_rows_without_a_number_are_left_out_and_counted(tmp_path: Path) -> None:
    features, labels = numbers(60)
    features[4, 2], features[9, 0], features[10, 1] = np.nan, np.inf, 1e300
    np.savez(tmp_path / "a.npz", features=features, labels=labels)
    problems = prepare_rows(
        read_table(tmp_path / "a.npz"), None, tmp_path / "out", RowRecipe("rows", validation_share=0.2)
    )
    assert list(problems.counts.values()) == [3] and "a.npz, row 5" in problems.lines()[0]
    counted = [read_manifest(tmp_path / "out" / split).documents for split in ("train", "validation")]
    assert sum(counted) == 57


def test_the_command_line_prepares_verifies_and_inspects(tmp_path: Path) -> None:
    out = str(tmp_path / "rows")
    prepare = ["launch/prepare.py", "rows", str(write_csv(tmp_path / "a.csv")), "--out", out, "--standardise"]
    made = command(*prepare)
    assert "rows in 1 shard" in made.stdout and "model.features=6 model.classes=3" in made.stdout
    assert "is prepared already" in command(*prepare).stdout
    assert "every shard is what its manifest lists" in command("launch/prepare.py", "verify", out).stdout
    seen = command("launch/prepare.py", "inspect", out).stdout
    assert "kind 2: " in seen and "6 features:" in seen and "deviation 1," in seen


def test_synth_is_the_task_of_its_seed() -> None:
    train, test = synth_tables(1)
    assert train.features.shape == (2000, 32) and test.features.shape == (4000, 32)
    assert set(train.labels) == {str(label) for label in range(10)}
    assert np.array_equal(synth_tables(1)[0].features, train.features)
    assert not np.array_equal(synth_tables(2)[0].features, train.features)


def test_synth_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'nt-pretrain\[synth\]'"):
        synth_tables(0)
