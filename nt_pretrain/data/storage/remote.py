"""Reads shards that lie behind http(s), s3 or gs, and does not take a broken read for an answer."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from nt_pretrain.data.errors import BadInput, DataError
from nt_pretrain.data.storage.remote_errors import CHANGED, UNREACHABLE, in_words, lasting, may_pass

CHUNK = 8_000_000
"""Bytes of one request of a download: what a broken connection costs at most."""
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}


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


class _Wrong(Exception):
    """The server answered, with other bytes than were asked for."""


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
        _refuse_unknown(url)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Exactly ``stop - start`` bytes from byte ``start`` on.

        Raises:
            BadInput: "missing shard" if the file is not there or not for us, "changed shard" if it is shorter,
                "unreachable shard" if no attempt succeeded.
        """
        return self._retried(name, start, stop, lambda: self._range(name, start, stop, None))

    def small(self, name: str, at_most: int = 256_000_000) -> bytes:
        """A whole file whose size is not known.

        Raises:
            BadInput: as :meth:`read` does.
            DataError: the file has more than ``at_most`` bytes.
        """
        size = self.size(name)
        if size is None:
            content = self._retried(name, 0, None, lambda: self._call("cat_file", name, at_most))
            size = len(content)
        elif size <= at_most:
            content = b"".join(self.read(name, at, min(at + CHUNK, size)) for at in range(0, size, CHUNK))
        if size > at_most:
            raise DataError(f"{self.shown(name)}: has {size:,} bytes, and more than {at_most:,} are not read at once")
        return content

    def size(self, name: str) -> int | None:
        """Bytes of a file, if the server tells.

        Raises:
            BadInput: as :meth:`read` does.
        """
        return self._retried(name, 0, None, lambda: self._told_size(name))

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
                piece = partial(self._range, name, start, stop, size)
                content = memoryview(self._retried(name, start, stop, piece))
                if len(content) == size:
                    content = content[start:]  # a server that knows no ranges sent the whole file: it serves as well
                while content:
                    content = content[file.write(content) :]
            at(size)

    def _range(self, name: str, start: int, stop: int, whole: int | None) -> bytes:
        """One attempt; ``whole`` is the size of the file where an answer of the whole file is welcome."""
        if start == stop:
            return b""
        content = self._call("cat_file", name, stop - start, start=start, end=stop)
        if len(content) in (stop - start, whole):
            return content
        if len(content) < stop - start:
            try:
                size = self._told_size(name)
            except Exception:
                size = None
            if size is not None and size < stop:
                raise BadInput(
                    CHANGED,
                    f"{self.shown(name)}: ends at byte {size:,}, and bytes {start:,} to {stop:,} are needed; "
                    "it is not the file that the manifest lists",
                )
        hint = "; the server may not support range requests" if len(content) > stop - start else ""
        raise _Wrong(f"{len(content):,} bytes came instead of {stop - start:,}{hint}")

    def _told_size(self, name: str) -> int | None:
        size = self._call("info", name, 0).get("size")
        return None if size is None else int(size)

    def _call(self, what: str, name: str, count: int, **options: int) -> Any:
        """Call a method of the filesystem; with a deadline, where the filesystem can be interrupted."""
        system = self._system()
        path = system._strip_protocol(f"{self.url}/{name}")
        if not system.async_impl:
            return getattr(system, what)(path, **options)
        deadline = self.patience.timeout_seconds + count / self.patience.slowest_bytes_per_second
        return _wait(getattr(system, f"_{what}")(path, **options), system.loop, deadline)

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

    def shown(self, name: str) -> str:
        """The file's URL as it may be shown: without user and password."""
        return re.sub(r"//[^/@]*@", "//", f"{self.url}/{name}")

    def _system(self) -> Any:
        # An instance knows the event loop and the sockets of the process that made it: never one of the parent's.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), _open(self.url, self.patience))
        return self._opened[1]


def is_remote(path: str) -> bool:
    """Whether a path is a URL to be read through fsspec; ``file://`` is not."""
    return "://" in path and not path.startswith("file://")


def _refuse_unknown(url: str) -> None:
    protocol = url.partition("://")[0]
    # Chained URLs ("simplecache::https://...") would bring a second cache, without a bound.
    if not is_remote(url) or not protocol.isalnum() or protocol not in fsspec.available_protocols():
        raise DataError(f"{url}: cannot be read; known are https://, http://, s3:// and gs://")
    if protocol in _PACKAGES:
        try:
            importlib.import_module(_PACKAGES[protocol])
        except ImportError:
            raise DataError(
                f"{url}: {protocol}:// needs the package {_PACKAGES[protocol]}; install the extra 'cloud': "
                "pip install -c constraints.txt -e '.[cloud]'"
            ) from None


def _refuse_outside(name: str) -> None:
    if not name or name.startswith("/") or ".." in name.split("/"):
        raise DataError(f"{name!r} is no name of a file below a URL")


def _open(url: str, patience: Patience) -> Any:
    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        aiohttp = importlib.import_module("aiohttp")
        silence = patience.timeout_seconds
        # identity: ranges of a compressed answer are not ranges of the file. trust_env: proxies and ~/.netrc.
        options["client_kwargs"] = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=silence, sock_read=silence),
            "headers": {"Accept-Encoding": "identity"},
            "trust_env": True,
        }
    elif protocol in ("s3", "s3a"):
        options["config_kwargs"] = {
            "connect_timeout": patience.timeout_seconds,
            "read_timeout": patience.timeout_seconds,
            "retries": {"max_attempts": 0},  # retried here, where it is counted
        }
    if protocol == "memory":
        return fsspec.filesystem(protocol)
    system = fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False, **options)
    if protocol in ("s3", "s3a"):
        system.retries = 1  # attempts of s3fs: a fault is retried by the reader, where it is noted
    return system


def _wait(work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop, deadline: float) -> Any:
    future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, deadline), loop)
    try:
        # The loop cancels the work at its deadline; the longer wait is for a loop that does not answer at all.
        return future.result(deadline + 10)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"not all bytes came within {deadline:.1f} s") from None
    finally:
        future.cancel()
