"""Shows a page in a real browser without JavaScript, and says what there is to see."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH, HEIGHT = 1200, 6000


def found_browser() -> str | None:
    """The command of a Chromium, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass(frozen=True)
class Shown:
    """What a browser made of a page.

    Attributes:
        picture: [HEIGHT, WIDTH, 3], uint8.
        asked: paths that it fetched, in order.
    """

    picture: np.ndarray
    asked: list[str]

    @property
    def rows(self) -> np.ndarray:
        """Numbers of the rows that are not of one colour, ascending."""
        return np.flatnonzero((self.picture != self.picture[:, :1]).any((1, 2)))

    @property
    def length(self) -> int:
        """Rows down to the last one with something on it."""
        return int(self.rows[-1]) + 1 if len(self.rows) else 0

    @property
    def largest_gap(self) -> int:
        """Most rows in a row with nothing on them, above the last one that has something."""
        return int(np.diff(self.rows, prepend=0).max(initial=0))

    @property
    def colours(self) -> int:
        return len(np.unique(self.picture.reshape(-1, 3), axis=0))


class _Recorded(http.server.SimpleHTTPRequestHandler):
    asked: list[str]

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", "script-src 'none'")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        self.asked.append(self.path)


def show(browser: str, page: Path, folder: Path) -> Shown:
    """``page`` from a server that allows no script: a browser that may run none at all could not be told what to do.

    Args:
        folder: where files may be written.
    """
    site = folder / "site"
    site.mkdir(parents=True)
    shutil.copy(page, site / "page.html")
    asked: list[str] = []
    handler = type("Handler", (_Recorded,), {"asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            subprocess.run(
                [
                    browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                    "--hide-scrollbars", "--disable-background-networking", f"--user-data-dir={folder / 'profile'}",
                    f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={folder / 'shown.png'}",
                    f"http://127.0.0.1:{server.server_port}/page.html",
                ],
                check=True, capture_output=True, timeout=100,
            )  # fmt: skip
        finally:
            server.shutdown()
    with Image.open(folder / "shown.png") as image:
        picture = np.asarray(image.convert("RGB"))
    return Shown(picture, asked)
