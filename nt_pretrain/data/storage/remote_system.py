"""Opens the filesystem behind a URL, calls it from threads, and reads answers of web servers with a bound."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

import fsspec

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.storage.remote_errors import shown_url

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_WEB = ("http", "https")


class Longer(Exception):
    """A web server's answer has more bytes than may come: ``size`` if it said how many; ``whole`` if it is no range."""

    def __init__(self, size: int | None, whole: bool) -> None:
        super().__init__(f"{size} bytes")
        self.size, self.whole = size, whole


class Unwritten(Exception):
    """What came could not be written; not the network's doing."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def is_remote(path: str) -> bool:
    """Whether a path is a URL to be read through fsspec; ``file://`` is not."""
    return "://" in path and not path.startswith("file://")


def is_web(url: str) -> bool:
    return url.partition("://")[0] in _WEB


def refuse_unknown(url: str) -> None:
    """Raises DataError if a URL is of a kind that cannot be read, or its driver is not installed."""
    protocol, shown = url.partition("://")[0], shown_url(url)
    # Chained URLs ("simplecache::https://...") would bring a second cache, without a bound.
    if not is_remote(url) or not protocol.isalnum() or protocol not in fsspec.available_protocols():
        raise DataError(f"{shown}: cannot be read; known are https://, http://, s3:// and gs://")
    if protocol in _WEB:
        try:
            _ = urlsplit(url).port
        except ValueError:
            raise DataError(
                f"{shown}: is no valid URL; in a user or password, write / as %2F, : as %3A, @ as %40, ? as %3F"
            ) from None
    if protocol in _PACKAGES:
        try:
            importlib.import_module(_PACKAGES[protocol])
        except ImportError:
            raise DataError(
                f"{shown}: {protocol}:// needs the package {_PACKAGES[protocol]}; install the extra 'cloud': "
                "pip install -c constraints.txt -e '.[cloud]'"
            ) from None


def open_system(url: str, timeout_seconds: float) -> Any:
    """The filesystem of a URL, with no cache of its own and no retries of its own."""
    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    if protocol in _WEB:
        aiohttp = importlib.import_module("aiohttp")
        # identity: ranges of a compressed answer are not ranges of the file. trust_env: proxies and ~/.netrc.
        options["client_kwargs"] = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=timeout_seconds, sock_read=timeout_seconds),
            "headers": {"Accept-Encoding": "identity"},
            "trust_env": True,
        }
    elif protocol in ("s3", "s3a"):
        options["config_kwargs"] = {
            "connect_timeout": timeout_seconds,
            "read_timeout": timeout_seconds,
            "retries": {"max_attempts": 0},  # retried by the reader, where it is counted
        }
    if protocol == "memory":
        return fsspec.filesystem(protocol)
    system = fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False, **options)
    if protocol in ("s3", "s3a"):
        system.retries = 1  # attempts of s3fs: a fault is retried by the reader, where it is noted
    return system


def wait_for(work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop, deadline: float) -> Any:
    """The result of a coroutine, from another thread than its loop's.

    Raises:
        TimeoutError: it took more than ``deadline`` seconds.
    """
    future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, deadline), loop)
    try:
        # The loop cancels the work at its deadline; the longer wait is for a loop that does not answer at all.
        return future.result(deadline + 10)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"not all bytes came within {deadline:.1f} s") from None
    finally:
        future.cancel()


async def web_bytes(system: Any, path: str, span: tuple[int, int] | None, at_most: int) -> bytes:
    """The body of a web server's answer, never more of it in memory than ``at_most`` bytes and one packet.

    fsspec reads a body to its end before it looks at the answer, and a server may send one without an end.

    Args:
        span: first byte and the one after the last, asked for as a range.

    Raises:
        Longer: there is more; or the answer is no range, and one that begins later than the file was asked for.
    """
    headers = {} if span is None else {"Range": f"bytes={span[0]}-{span[1] - 1}"}
    session = await system.set_session()
    async with session.get(system.encode_url(path), headers=headers) as response:
        system._raise_not_found_for_status(response, path)
        size, whole = response.content_length, response.status != 206
        if (size is not None and size > at_most) or (whole and span is not None and span[0] > 0):
            raise Longer(size, whole)
        content = bytearray()
        async for piece in response.content.iter_any():
            content += piece
            if len(content) > at_most:
                raise Longer(None, whole)
    return bytes(content)


async def web_into(system: Any, path: str, skip: int, size: int, write: Callable[[bytes], None]) -> int:
    """Give ``write`` a whole file from byte ``skip`` on, as it comes, for servers that know no ranges.

    Returns:
        How many bytes the file had.

    Raises:
        Longer: it is not of ``size`` bytes. What was written till then may be of another file.
        Unwritten: ``write`` raised OSError.
    """
    session = await system.set_session()
    async with session.get(system.encode_url(path)) as response:
        system._raise_not_found_for_status(response, path)
        if response.content_length not in (None, size):
            raise Longer(response.content_length, True)
        came = 0
        async for piece in response.content.iter_any():
            if came + len(piece) > size:
                raise Longer(None, True)
            try:
                write(piece[max(0, skip - came) :])
            except OSError as error:
                raise Unwritten(error) from None
            came += len(piece)
    return came
