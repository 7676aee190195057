"""A real HTTP server on loopback that serves a folder and breaks in the ways of real servers, when told to."""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

FAULTS = (
    "503",
    "429",
    "404",
    "403",
    "drop",
    "flip",
    "trickle",
    "no range",
    "stall",
    "short",
    "long",
    "reset",
    "endless",
)
"""503, 429, 404, 403: the answer. drop: the connection ends after half the bytes. flip: one bit is wrong, another one
every time. trickle: 320 bytes a second. no range: the whole file, whatever was asked for. stall: nothing at all. short,
long: fewer or more bytes than asked for, in an answer that is whole. reset: the connection ends before the answer.
endless: bytes without a number of them, whatever was asked for, until the client hangs up or ``ENDLESS`` were sent."""
ENDLESS = 100_000_000

Choose = Callable[[str, int], str | None]
"""From the name of a file and the number of GET requests for it before: the fault of this request, or none."""


def mixture(shares: dict[str, float], seed: int = 0) -> Choose:
    """Faults with the given shares of requests, the same for the same order of requests."""
    draw, lock = random.Random(seed), threading.Lock()

    def choose(name: str, number: int) -> str | None:
        with lock:
            drawn = draw.random()
        for fault, share in shares.items():
            if drawn < share:
                return fault
            drawn -= share
        return None

    return choose


@dataclass
class Flaky:
    """The server: its URL, the fault of each request, and what was asked of it."""

    folder: Path
    url: str = ""
    choose: Choose = lambda name, number: None
    requests: Counter[str] = field(default_factory=Counter)
    """GET requests by name of the file."""
    heads: Counter[str] = field(default_factory=Counter)
    """HEAD requests by name of the file."""
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes of bodies sent, by name of the file."""
    ranges: list[tuple[str, str | None]] = field(default_factory=list)
    """Name and Range header of each GET request."""
    tells_size: bool = True
    """Whether answers say how many bytes the file has."""
    tells_version: bool = True
    """Whether answers have an ETag and a time, which follow from the file's size and time."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def always(self, fault: str | None) -> None:
        self.choose = lambda name, number: fault

    def first(self, *faults: str) -> None:
        """Faults of the first requests for each file, counted from now; later ones are served."""
        before = Counter(self.requests)

        def choose(name: str, number: int) -> str | None:
            number -= before[name]
            return faults[number] if number < len(faults) else None

        self.choose = choose


@contextmanager
def flaky_server(folder: Path) -> Iterator[Flaky]:
    """Serve ``folder``, without faults until ``choose`` is set."""
    state = Flaky(folder)

    class Handler(_Handler):
        flaky = state

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 64

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that hang up are part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    flaky: Flaky
    fault: str | None = None
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer takes 40 ms

    def do_HEAD(self) -> None:
        path = self._file()
        if path is None:
            self.send_error(404)
            return
        self.send_response(200)
        with self.flaky.lock:
            self.flaky.heads[self._name()] += 1
        self._tell(path, path.stat().st_size)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self) -> None:
        name, asked = self._name(), self.headers.get("Range")
        with self.flaky.lock:
            fault = self.fault = self.flaky.choose(name, self.flaky.requests[name])
            self.flaky.requests[name] += 1
            self.flaky.ranges.append((name, asked))
        path = self._file()
        if fault is not None and fault.isdigit():
            self.send_error(int(fault))
        elif fault == "reset":
            self.close_connection = True
        elif fault == "stall":
            self.flaky.closing.wait()
            self.close_connection = True
        elif path is None:
            self.send_error(404)
        else:
            self._answer(name, path, asked if fault not in ("no range", "endless") else None, fault)

    def _answer(self, name: str, path: Path, asked: str | None, fault: str | None) -> None:
        total = path.stat().st_size
        span = re.fullmatch(r"bytes=(\d+)-(\d+)?", asked or "")
        start = int(span[1]) if span else 0
        stop = min(int(span[2]) + 1 if span and span[2] else total, total)
        if span and start >= total:
            self.send_error(416)
            return
        with path.open("rb") as file:
            file.seek(start)
            body = bytearray(file.read(stop - start))
        if fault == "flip" and body:
            body[self.flaky.requests[name] * 7919 % len(body)] ^= 4  # never twice the same, as on the way
        if fault == "short":
            body = body[: len(body) // 2]
        if fault == "long":
            body += b"more"
        self.send_response(206 if span else 200)
        self._tell(path, len(body))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
        self.end_headers()
        if fault == "trickle":
            for at in range(0, len(body), 16):
                self._send(name, body[at : at + 16])
                if self.flaky.closing.wait(0.05):
                    break
            self.close_connection = True
        elif fault == "endless":
            while self.flaky.sent[name] < ENDLESS and not self.flaky.closing.is_set():
                self._send(name, bytearray(100_000))
            self.close_connection = True
        elif fault == "drop":
            self._send(name, body[: len(body) // 2])
            self.close_connection = True
        else:
            self._send(name, body)

    def _tell(self, path: Path, size: int) -> None:
        if self.flaky.tells_size and self.fault != "endless":
            self.send_header("Content-Length", str(size))
        else:
            self.send_header("Connection", "close")
        if self.flaky.tells_version:
            stat = path.stat()
            self.send_header("ETag", f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"')
            self.send_header("Last-Modified", self.date_time_string(int(stat.st_mtime)))

    def _send(self, name: str, part: bytearray) -> None:
        with self.flaky.lock:  # before: the client may look at once when it has them
            self.flaky.sent[name] += len(part)
        self.wfile.write(part)

    def _name(self) -> str:
        return unquote(self.path.partition("?")[0]).lstrip("/")

    def _file(self) -> Path | None:
        path = (self.flaky.folder / self._name()).resolve()
        return path if path.is_file() and path.is_relative_to(self.flaky.folder.resolve()) else None

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""
