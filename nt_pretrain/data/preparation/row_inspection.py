"""What a prepared split of rows holds, for people: counts of labels, and the range of every feature."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nt_pretrain.data.corpus import Split
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.manifest import read_manifest
from nt_pretrain.data.storage.store import Folder

MOST = 10_000
"""Rows read, from the first on: they are shuffled."""
SHOWN = 20
"""Features and classes that are listed."""


def inspect_rows(folder: Path) -> list[str]:
    """Lines for people.

    Raises:
        DataError: it is not there, is damaged, or holds no rows.
    """
    manifest = read_manifest(folder)
    if manifest.kind != "rows":
        raise DataError(f"{folder} holds {manifest.kind}, not rows")
    split = Split(Folder(folder), manifest, None)
    places = ((n, row) for n, shard in enumerate(manifest.shards) for row in range(shard.documents))
    read = [split.row(*place) for place, _ in zip(places, range(MOST), strict=False)]
    features, labels = np.stack([row for row, _ in read]).astype(np.float64), [label for _, label in read]
    counts = np.bincount(labels, minlength=len(manifest.classes))
    some = f", of the first {len(read):,} rows" if len(read) < manifest.documents else ""
    found = [f"{len(manifest.classes):,} classes{some}:"]
    found += [f"  {name}: {count:,}" for name, count in zip(manifest.classes[:SHOWN], counts, strict=False)]
    found += _more(len(manifest.classes))
    found.append(f"{manifest.features:,} features{some}:")
    for place, column in enumerate(features.T[:SHOWN]):
        found.append(
            f"  {place}: mean {column.mean():.3g}, deviation {column.std():.3g}, {column.min():.3g} to "
            f"{column.max():.3g}"
        )
    return found + _more(manifest.features)


def _more(count: int) -> list[str]:
    return [f"  and {count - SHOWN:,} more"] if count > SHOWN else []
