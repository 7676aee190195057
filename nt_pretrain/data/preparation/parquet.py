"""Rows of parquet files, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

from nt_pretrain.data.errors import DataError

ENDING = ".parquet"
_BATCH = 256


def parquet_rows(
    path: Path, called: str, columns: tuple[str, ...], needed: str, at: Callable[[int], None]
) -> Iterator[dict[str, Any]]:
    """Rows of a file with those of ``columns`` that it has; times as ISO text.

    Args:
        called: what messages call the file.
        needed: the column without which nothing can be done.
        at: told the share of the file's bytes that the rows read so far make up.

    Raises:
        DataError: pyarrow is not installed, the column is not there, or the file is damaged.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{called}: parquet needs the package pyarrow; install the extra 'parquet': "
            "pip install -c constraints.txt -e '.[parquet]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if needed not in names:
                raise DataError(
                    f"{called}: there is no column {needed!r} (columns: {', '.join(names)}); name the one that holds "
                    "the text with --text-field"
                )
            size, total, done = path.stat().st_size, max(1, file.metadata.num_rows), 0
            wanted = [name for name in columns if name in names]
            for batch in file.iter_batches(batch_size=_BATCH, columns=wanted, use_threads=False):
                for row in batch.to_pylist():
                    yield {key: value.isoformat() if isinstance(value, date) else value for key, value in row.items()}
                done += batch.num_rows
                at(size * done // total)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{called}: cannot be read: {error}") from None
