"""Reads shards that lie behind http(s), s3 or gs, and does not take a broken read for an answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from nt_pretrain.data.errors import BadInput, DataError
from nt_pretrain.data.storage.remote_errors import CHANGED, UNREACHABLE, in_words, lasting, may_pass, shown_url
from nt_pretrain.data.storage.remote_system import (
    Longer,
    Unwritten,
    is_remote,
    is_web,
    open_system,
    refuse_unknown,
    wait_for,
    web_bytes,
    web_into,
)

__all__ = ["CHUNK", "Facts", "Patience", "Remote", "is_remote"]

CHUNK = 8_000_000
"""Bytes of one request of a download: what a broken connection costs at most."""
_MARKS = ("ETag", "etag", "Last-Modified", "LastModified", "updated")
"""What servers and drivers call the mark of a version, the sharpest first."""


@dataclass(frozen=True)
class Patience:
    """How long a remote read is tried."""

    retries: int = 5
    """Attempts after the first one."""
    timeout_seconds: float = 20.0
    """For one request to give all its bytes, beside what the slowest rate allows, and for its longest silence."""
    slowest_bytes_per_second: float = 100_000.0
    backoff_seconds: float = 0.5
    """Longest wait before the second attempt; it doubles with every attempt, up to 30 s. The wait is drawn evenly."""


@dataclass(frozen=True)
class Facts:
    """What a server tells of a file without sending it.

    Attributes:
        size: bytes; None if it does not tell.
        version: differs when the file does, as far as the server tells: its ETag, or else the time it was changed, and
            its size. Empty if the server tells nothing.
    """

    size: int | None
    version: str


class _Wrong(Exception):
    """The server answered, with other bytes than were asked for."""


class _NoRanges(_Wrong):
    """The server offers the whole file instead of a part; ``size`` if it says how much that is."""

    def __init__(self, words: str, size: int | None) -> None:
        super().__init__(words)
        self.size = size


def _nobody(kind: str, words: str) -> None:
    """Is told and does nothing; a named function, so that copies can be pickled."""


class Remote:
    """Files below a URL, read through fsspec (http, https, s3, gs, memory). Safe to use in several threads.

    Nothing is opened before the first read, and a forked or unpickled copy opens anew.

    Args:
        note: told of each thing that was retried: ``("retried read", "https://...: 503 ...")``.

    Raises:
        DataError: the URL is of a kind that cannot be read, or its driver is not installed.
    """

    def __init__(self, url: str, patience: Patience = Patience(), note: Callable[[str, str], None] = _nobody) -> None:
        self.url = url.rstrip("/")
        self.patience = patience
        self.note = note
        self._opened: tuple[int, Any] | None = None
        refuse_unknown(url)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Exactly ``stop - start`` bytes from byte ``start`` on.

        Raises:
            BadInput: "missing shard" if the file is not there or not for us, "changed shard" if it is shorter,
                "unreachable shard" if no attempt succeeded.
        """
        return self._retried(name, start, stop, lambda: self._range(name, start, stop))

    def small(self, name: str, at_most: int = 256_000_000) -> bytes:
        """A whole file whose size is not known.

        Raises:
            BadInput: as :meth:`read` does.
            DataError: the file has more than ``at_most`` bytes.
        """
        size = self.size(name)
        if size is not None and size > at_most:
            raise DataError(f"{self.shown(name)}: has {size:,} bytes, and more than {at_most:,} are not read at once")
        if size is not None:
            return b"".join(self.read(name, at, min(at + CHUNK, size)) for at in range(0, size, CHUNK))
        content: bytes | None = self._retried(name, 0, None, lambda: self._unmeasured(name, at_most))
        if content is None:
            raise DataError(f"{self.shown(name)}: has more than {at_most:,} bytes, and more are not read at once")
        return content

    def size(self, name: str) -> int | None:
        """Bytes of a file, if the server tells.

        Raises:
            BadInput: as :meth:`read` does.
        """
        return self.facts(name).size

    def version(self, name: str) -> str:
        """Differs when the file does, as far as the server tells; see :class:`Facts`.

        Raises:
            BadInput: as :meth:`read` does.
        """
        return self.facts(name).version

    def facts(self, name: str) -> Facts:
        """Size and version, from one request.

        Raises:
            BadInput: as :meth:`read` does.
        """
        found: Facts = self._retried(name, 0, None, lambda: _facts(self._call("info", name, 0)))
        return found

    def fetch(self, name: str, to: Path, size: int | None, at: Callable[[int], None] = lambda _: None) -> None:
        """Download a file into ``to``, going on from the bytes already there; ``at`` is told how many there are.

        What is in ``to`` when this ends early is sound as far as it goes. Nothing is verified but the size.

        Raises:
            BadInput: as :meth:`read` does.
            OSError: ``to`` cannot be written.
        """
        if size is None:
            size = self.size(name)
        if size is None:
            to.write_bytes(self.small(name))
            at(to.stat().st_size)
            return
        with to.open("ab", buffering=0) as file:
            if file.tell() > size:
                file.truncate(0)
                file.seek(0)
            while (start := file.tell()) < size:
                at(start)
                stop = min(start + CHUNK, size)
                content = self._retried(name, start, stop, partial(self._piece, name, start, stop, size))
                if content is None:
                    self._whole_into(name, file, size)
                else:
                    _write(file, content)
            at(size)

    def _piece(self, name: str, start: int, stop: int, size: int) -> bytes | None:
        """One attempt; None if the server knows no ranges and offers the whole file."""
        try:
            return self._range(name, start, stop)
        except _NoRanges as error:
            if error.size not in (None, size):
                raise
            return None

    def _whole_into(self, name: str, file: FileIO, size: int) -> None:
        """From a server without ranges: the whole file as it comes; what is in ``file`` already is passed over."""
        begun = file.tell()

        def attempt() -> OSError | None:
            try:
                work = partial(web_into, skip=file.tell(), size=size, write=partial(_write, file))
                came = self._await(work, name, size)
            except Unwritten as error:
                return error.error  # returned, since it is not the network's, and no further attempt mends it
            except Longer as error:
                file.truncate(begun)
                file.seek(begun)
                told = "more" if error.size is None else f"{error.size:,}"
                raise _Wrong(f"{told} bytes came instead of {size:,}") from None
            if came != size:
                raise _Wrong(f"{came:,} bytes came instead of {size:,}")
            return None

        unwritten = self._retried(name, begun, size, attempt)
        if unwritten is not None:
            raise unwritten

    def _range(self, name: str, start: int, stop: int) -> bytes:
        """One attempt."""
        if start == stop:
            return b""
        wanted = stop - start
        try:
            content = self._span(name, start, stop)
        except Longer as error:
            came = f"more than {wanted:,}" if error.size is None else f"{error.size:,}"
            words = f"{came} bytes came instead of {wanted:,}; the server may not support range requests"
            raise (_NoRanges(words, error.size) if error.whole else _Wrong(words)) from None
        if len(content) == wanted:
            return content
        if len(content) < wanted:
            try:
                size = _facts(self._call("info", name, 0)).size
            except Exception:  # whatever it is: the answer that was too short is the error, and is tried again
                size = None
            if size is not None and size < stop:
                raise BadInput(
                    CHANGED,
                    f"{self.shown(name)}: ends at byte {size:,}, and bytes {start:,} to {stop:,} are needed; "
                    "it is not the file that the manifest lists",
                )
        raise _Wrong(f"{len(content):,} bytes came instead of {wanted:,}")

    def _span(self, name: str, start: int, stop: int) -> bytes:
        """What a server sends for a span of bytes, which may be fewer."""
        content: bytes
        if is_web(self.url):
            work = partial(web_bytes, span=(start, stop), at_most=stop - start)
            content = self._await(work, name, stop - start)
        else:
            content = self._call("cat_file", name, stop - start, start=start, end=stop)
            if len(content) > stop - start:
                raise Longer(len(content), False)
        return content

    def _unmeasured(self, name: str, at_most: int) -> bytes | None:
        """A whole file, in one attempt; None if there are more bytes."""
        try:
            if is_web(self.url):
                content: bytes = self._await(partial(web_bytes, span=None, at_most=at_most), name, at_most)
            else:
                content = self._span(name, 0, at_most + 1)
        except Longer:
            return None
        return content if len(content) <= at_most else None

    def _call(self, what: str, name: str, count: int, **options: int) -> Any:
        """Call a method of the filesystem; with a deadline, where the filesystem can be interrupted."""
        system = self._system()
        path = system._strip_protocol(f"{self.url}/{name}")
        if not system.async_impl:
            return getattr(system, what)(path, **options)
        return wait_for(getattr(system, f"_{what}")(path, **options), system.loop, self._deadline(count))

    def _await(self, work: Callable[[Any, str], Coroutine[Any, Any, Any]], name: str, count: int) -> Any:
        """Do work with the filesystem of the web and a path in it."""
        system = self._system()
        path = system._strip_protocol(f"{self.url}/{name}")
        return wait_for(work(system, path), system.loop, self._deadline(count))

    def _deadline(self, count: int) -> float:
        return self.patience.timeout_seconds + count / self.patience.slowest_bytes_per_second

    def _retried(self, name: str, start: int, stop: int | None, attempt: Callable[[], Any]) -> Any:
        _refuse_outside(name)
        span = f"bytes {start:,} to {stop:,}" if stop is not None else "its size or content"

        def tell(state: RetryCallState) -> None:
            assert state.outcome is not None
            error = state.outcome.exception()
            assert error is not None
            self.note("retried read", f"{self.shown(name)}: {span}: {in_words(error)} (attempt {state.attempt_number})")

        retrying = Retrying(
            stop=stop_after_attempt(self.patience.retries + 1),
            wait=wait_random_exponential(multiplier=self.patience.backoff_seconds, max=30),
            retry=retry_if_exception(may_pass),
            before_sleep=tell,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except Exception as error:
            final = lasting(error)
            if final is not None:
                kind, words = final
                raise BadInput(kind, f"{self.shown(name)}: {words}") from None
            if not may_pass(error):
                raise
            attempts = self.patience.retries + 1
            raise BadInput(
                UNREACHABLE,
                f"{self.shown(name)}: {span} could not be read in {attempts} attempts; the last: {in_words(error)}",
            ) from None

    @property
    def shown_url(self) -> str:
        """The URL as it may be shown: without user, password and query, which may be a signature."""
        return shown_url(self.url)

    def shown(self, name: str) -> str:
        """A file's URL as it may be shown."""
        return shown_url(f"{self.shown_url}/{name}")

    def _system(self) -> Any:
        # An instance knows the event loop and the sockets of the process that made it: never one of the parent's.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), open_system(self.url, self.patience.timeout_seconds))
        return self._opened[1]


def _facts(info: Mapping[str, Any]) -> Facts:
    size = None if info.get("size") is None else int(info["size"])
    mark = next((str(info[key]) for key in _MARKS if info.get(key)), "")
    # A server that compresses on the way calls the same tag a weak one.
    parts = [mark.removeprefix("W/").strip('"'), "" if size is None else f"{size} bytes"]
    return Facts(size, ", ".join(filter(None, parts)))


def _write(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _refuse_outside(name: str) -> None:
    path = name.partition("?")[0]
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise DataError(f"{path!r} is no name of a file below a URL")
