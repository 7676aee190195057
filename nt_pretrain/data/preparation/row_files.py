"""Labelled rows of numbers from the files people have them in: csv with a column of labels, npz with two arrays."""

from __future__ import annotations

import csv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.manifest import Source, file_sha256


@dataclass(frozen=True)
class Table:
    """``features`` [rows, features] (fp32 or fp64), ``labels`` [rows] (names of classes), and where they are from."""

    features: np.ndarray
    labels: np.ndarray
    source: Source


def source_of(path: Path) -> Source:
    """Raises:
    DataError: the file cannot be read.
    """
    try:
        return Source(path.name, 1, path.stat().st_size, file_sha256(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def read_table(path: Path, label: str | None = None) -> Table:
    """The rows of a csv or npz file.

    Args:
        label: csv: name of the column of labels; None: ``label`` where there is one, else the last. npz: name of the
            array of labels; None: ``labels``.

    Raises:
        DataError: it cannot be read, or is not laid out like this; with the line.
    """
    source = source_of(path)
    readers = {".csv": _read_csv, ".npz": _read_npz}
    if path.suffix not in readers:
        raise DataError(f"{path}: unknown kind of file; rows are read from {' and '.join(readers)}")
    features, labels = readers[path.suffix](path, label)
    if not features.size:
        raise DataError(f"{path}: no rows of numbers")
    return Table(features, labels, source)


def _read_csv(path: Path, label: str | None) -> tuple[np.ndarray, np.ndarray]:
    """With a header line, unless every field of the first line but that of the label is a number."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not lines:
        raise DataError(f"{path}: is empty")
    names = [name.strip() for name in lines[0][1]]
    headed = not all(_is_number(name) for name in names[:-1])
    if label is not None and (not headed or label not in names):
        raise DataError(
            f"{path}: no column is called {label!r}" + (f"; there are {', '.join(names)}" if headed else "")
        )
    wanted = label or "label"
    column = names.index(wanted) if headed and wanted in names else len(names) - 1
    features, labels = [], []
    for number, row in lines[1:] if headed else lines:
        if len(row) != len(names):
            raise DataError(f"{path}:{number}: {len(row)} fields, {len(names)} before")
        try:
            features.append([float(field) for place, field in enumerate(row) if place != column])
        except ValueError as error:
            raise DataError(f"{path}:{number}: a field that is no number: {error}") from None
        labels.append(row[column].strip())
    return np.array(features, dtype=np.float64), np.array(labels, dtype=object)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_npz(path: Path, label: str | None) -> tuple[np.ndarray, np.ndarray]:
    wanted = label or "labels"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in ("features", wanted) if name not in arrays]
            if missing:
                raise DataError(f"{path}: no array is called {missing[0]!r}; there are {', '.join(arrays) or 'none'}")
            features, labels = arrays["features"], arrays[wanted]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if features.ndim != 2 or features.dtype.kind not in "fiub":
        raise DataError(f"{path}: features must be numbers [rows, features], not {features.dtype} {features.shape}")
    if labels.shape != features.shape[:1] or labels.dtype.kind not in "iubU":
        raise DataError(
            f"{path}: {wanted} must be {len(features):,} integers or names, not {labels.dtype} {labels.shape}"
        )
    return features, labels.astype(str).astype(object)
