"""Copies of remote files without a checksum: every byte of one version, whenever the file changes at its server.

Beside an unfinished copy stands the version it is of, as the server tells it; a copy of another one is begun anew. That
is as sharp as what the server tells: one that gives neither ETag nor Last-Modified is believed as long as the size is
the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nt_pretrain.data.errors import BadInput, DataError
from nt_pretrain.data.files import whole_file
from nt_pretrain.data.storage.remote import Remote
from nt_pretrain.data.storage.remote_errors import CHANGED

TIMES = 5
"""That a file may change while it is downloaded."""


def download(remote: Remote, name: str, to: Path, at: Callable[[int], None]) -> str:
    """Copy a file to ``to``, going on from what is there of the same version; ``at`` is told how many bytes there are.

    Returns:
        The version of the copy.

    Raises:
        BadInput: as :meth:`Remote.read` does.
        DataError: the file changed ``TIMES`` times.
    """
    beside = _beside(to)
    for _ in range(TIMES):
        facts = remote.facts(name)
        if not beside.exists() or beside.read_text(encoding="utf-8") != facts.version:
            to.unlink(missing_ok=True)  # first: bytes beside the wrong version would be gone on from
            with whole_file(beside) as file:
                file.write(facts.version.encode())
        try:
            remote.fetch(name, to, facts.size, at)
        except BadInput as error:
            if error.kind != CHANGED or remote.version(name) == facts.version:
                raise
        else:
            if remote.version(name) == facts.version:
                return facts.version
        remote.note("retried read", f"{remote.shown(name)}: changed at the server while it was downloaded")
    raise DataError(
        f"{remote.shown(name)}: changed at the server during each of {TIMES} downloads ({facts.version}, and then "
        "another); wait until it is complete there"
    )


def discard(to: Path) -> None:
    """Delete a copy, and what says of which version it is."""
    to.unlink(missing_ok=True)
    _beside(to).unlink(missing_ok=True)


def _beside(to: Path) -> Path:
    return to.with_name(to.name + ".version")
