"""Remote reads give the right bytes or say what is wrong, whatever the server does."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from nt_pretrain.data.errors import BadInput, DataError
from nt_pretrain.data.storage.cache import Cache
from nt_pretrain.data.storage.remote import CHUNK, Patience, Remote, is_remote
from nt_pretrain.data.storage.remote_errors import in_words, shown_url, without_secrets
from tests.data.storage.flaky import ENDLESS, Flaky, flaky_server

QUICK = Patience(retries=2, timeout_seconds=2, slowest_bytes_per_second=1e6, backoff_seconds=0.01)
HASTY = Patience(retries=1, timeout_seconds=0.3, slowest_bytes_per_second=1e6, backoff_seconds=0.01)
SLOW = Patience(retries=2, timeout_seconds=1, slowest_bytes_per_second=1000, backoff_seconds=0.01)
"""Silence ends a request seconds before its deadline does."""
CONTENT = bytes(range(256)) * 400
"""102,400 bytes."""


class Notes(list[tuple[str, str]]):
    def __call__(self, kind: str, words: str) -> None:
        self.append((kind, words))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Flaky]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.tar").write_bytes(CONTENT)
    with flaky_server(folder) as found:
        yield found


def test_bytes_sizes_and_whole_files(server: Flaky) -> None:
    remote = Remote(server.url + "/", QUICK)
    assert remote.read("a.tar", 1000, 5000) == CONTENT[1000:5000]
    assert remote.read("a.tar", 7, 7) == b""
    assert remote.size("a.tar") == len(CONTENT)
    assert remote.small("a.tar") == CONTENT
    assert ("a.tar", "bytes=1000-4999") in server.ranges


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("503", "503 Service Unavailable"),
        ("429", "429 Too Many Requests"),
        ("drop", "2000 of 4000 bytes"),
        ("trickle", "not all bytes came within 2.0 s"),
        ("no range", "102,400 bytes came instead of 4,000; the server may not support range requests"),
        ("stall", "Timeout on reading data"),
        ("short", "2,000 bytes came instead of 4,000"),
        ("long", "4,004 bytes came instead of 4,000"),
    ],
)
def test_what_may_pass_is_tried_again_and_noted(server: Flaky, fault: str, words: str) -> None:
    notes = Notes()
    remote = Remote(server.url, SLOW if fault == "stall" else QUICK, notes)
    server.first(fault)
    assert remote.read("a.tar", 1000, 5000) == CONTENT[1000:5000]
    ((kind, noted),) = notes
    assert kind == "retried read"
    assert noted.startswith(f"{server.url}/a.tar: bytes 1,000 to 5,000: ")
    assert words in noted and noted.endswith("(attempt 1)")


@pytest.mark.parametrize("fault", ["503", "drop", "trickle", "no range", "stall", "short", "long", "reset"])
def test_a_fault_that_stays_is_named_after_the_last_attempt(server: Flaky, fault: str) -> None:
    server.always(fault)
    with pytest.raises(BadInput, match="bytes 0 to 3,000 could not be read in 2 attempts; the last: ") as raised:
        Remote(server.url, HASTY).read("a.tar", 0, 3000)
    assert raised.value.kind == "unreachable shard"
    assert f"{server.url}/a.tar" in str(raised.value)


@pytest.mark.parametrize(
    ("fault", "words"),
    [("404", "there is no such file"), ("403", "access is denied"), ("401", "denied"), ("410", "no such")],
)
def test_what_stays_is_not_asked_for_twice(server: Flaky, fault: str, words: str) -> None:
    notes = Notes()
    server.always(fault)
    with pytest.raises(BadInput, match=words) as raised:
        Remote(server.url, QUICK, notes).read("a.tar", 0, 10)
    assert raised.value.kind == "missing shard"
    assert server.requests["a.tar"] == 1 and not notes


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(BadInput, match="could not be read in 3 attempts") as raised:
        Remote("http://127.0.0.1:9", QUICK).read("a.tar", 0, 10)
    assert raised.value.kind == "unreachable shard"


@pytest.mark.parametrize(("start", "stop"), [(102_000, 103_000), (200_000, 200_010)])
def test_a_file_that_became_shorter_is_changed(server: Flaky, start: int, stop: int) -> None:
    with pytest.raises(BadInput, match="is not the file that the manifest lists") as raised:
        Remote(server.url, QUICK).read("a.tar", start, stop)
    assert raised.value.kind == "changed shard"
    assert server.requests["a.tar"] == 1


def test_size_of_a_missing_file_and_of_a_server_in_trouble(server: Flaky) -> None:
    with pytest.raises(BadInput, match="no such file"):
        Remote(server.url, QUICK).size("b.tar")
    with pytest.raises(BadInput, match="its size or content could not be read in 3 attempts"):
        Remote("http://127.0.0.1:9", QUICK).size("b.tar")


def test_a_whole_file_has_a_bound(server: Flaky) -> None:
    with pytest.raises(DataError, match="has 102,400 bytes, and more than 1,000 are not read at once"):
        Remote(server.url, QUICK).small("a.tar", at_most=1000)


def test_a_download_goes_on_from_what_is_there(server: Flaky, tmp_path: Path) -> None:
    told: list[int] = []
    to = tmp_path / "copy"
    to.write_bytes(CONTENT[:70_000])
    Remote(server.url, QUICK).fetch("a.tar", to, len(CONTENT), told.append)
    assert to.read_bytes() == CONTENT
    assert told == [70_000, len(CONTENT)]
    assert server.sent["a.tar"] == len(CONTENT) - 70_000


def test_a_download_in_pieces_repeats_only_the_broken_one(server: Flaky, tmp_path: Path) -> None:
    content = os.urandom(2 * CHUNK + 5)
    (server.folder / "large.tar").write_bytes(content)
    server.choose = lambda name, number: "drop" if number == 1 else None
    to, notes = tmp_path / "copy", Notes()
    Remote(server.url, Patience(backoff_seconds=0.01), notes).fetch("large.tar", to, None)
    assert to.read_bytes() == content
    assert [asked for _, asked in server.ranges] == [
        f"bytes=0-{CHUNK - 1}",
        f"bytes={CHUNK}-{2 * CHUNK - 1}",
        f"bytes={CHUNK}-{2 * CHUNK - 1}",
        f"bytes={2 * CHUNK}-{2 * CHUNK + 4}",
    ]
    assert len(notes) == 1


def test_a_server_without_ranges_serves_for_downloads(server: Flaky, tmp_path: Path) -> None:
    server.always("no range")
    to = tmp_path / "copy"
    to.write_bytes(CONTENT[:10])
    Remote(server.url, QUICK).fetch("a.tar", to, len(CONTENT))
    assert to.read_bytes() == CONTENT


def test_what_is_longer_than_the_file_is_downloaded_anew(server: Flaky, tmp_path: Path) -> None:
    to = tmp_path / "copy"
    to.write_bytes(b"x" * (len(CONTENT) + 1))
    Remote(server.url, QUICK).fetch("a.tar", to, len(CONTENT))
    assert to.read_bytes() == CONTENT


def test_one_remote_serves_several_threads(server: Flaky) -> None:
    remote, wrong = Remote(server.url, QUICK), []

    def work(at: int) -> None:
        for start in range(at, at + 10):
            if remote.read("a.tar", start, start + 100) != CONTENT[start : start + 100]:
                wrong.append(start)

    threads = [threading.Thread(target=work, args=(at,)) for at in (0, 1000, 2000)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert not wrong and server.requests["a.tar"] == 30


def test_copies_in_other_processes_read_for_themselves(server: Flaky) -> None:
    remote = Remote(server.url, QUICK)
    assert remote.read("a.tar", 0, 4) == CONTENT[:4]
    assert pickle.loads(pickle.dumps(Remote(server.url, QUICK))).read("a.tar", 4, 8) == CONTENT[4:8]
    code = (
        "import os, pickle, sys\n"
        "remote = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "remote.read('a.tar', 0, 4)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if remote.read('a.tar', 8, 12) == bytes(range(8, 12)) else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    picklable = pickle.dumps(Remote(server.url, QUICK, print)).hex()
    done = subprocess.run(
        [sys.executable, "-c", code, picklable], timeout=60, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("pipe:cat /etc/passwd", "known are"),
        ("pipe://cat", "known are"),
        ("simplecache::http://127.0.0.1/x", "known are"),
        ("file:///etc", "known are"),
        ("/data/c4", "known are"),
    ],
)
def test_other_urls_are_refused(url: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Remote(url)


@pytest.mark.parametrize("name", ["../a.tar", "/etc/passwd", "", "x/../../a.tar"])
def test_names_that_lead_elsewhere_are_refused(server: Flaky, name: str) -> None:
    with pytest.raises(DataError, match="is no name of a file below a URL"):
        Remote(server.url, QUICK).read(name, 0, 1)
    assert not server.ranges


def test_passwords_are_not_shown() -> None:
    with pytest.raises(BadInput) as raised:
        Remote("http://me:secret@127.0.0.1:9", QUICK).read("a.tar", 0, 1)
    assert "secret" not in str(raised.value) and "http://127.0.0.1:9/a.tar" in str(raised.value)


@pytest.mark.parametrize("fault", ["404", "403", "400", "503", "drop", "short", "long", "no range", "reset", "endless"])
def test_no_word_holds_a_password_or_a_signature(server: Flaky, tmp_path: Path, fault: str) -> None:
    server.always(fault)
    remote = Remote(server.url.replace("//", "//me:hunter2@"), HASTY, notes := Notes())
    said, name = [], "a.tar?X-Sig=c0ffee"
    for call in (
        lambda: remote.read(name, 10, 3000),
        lambda: remote.fetch(name, tmp_path / "copy", 3000),
        lambda: Cache(tmp_path / "cache", 10**6).get(remote, name, 3000, "0" * 64),
    ):
        with pytest.raises(BadInput) as raised:
            call()
        said.append("".join(traceback.format_exception(raised.value)))
        assert f"{server.url}/a.tar: " in str(raised.value)
    said += [words for _, words in notes]
    said += [path.name for path in (tmp_path / "cache").iterdir()]
    assert remote.shown_url == server.url
    assert not [words for words in said for secret in ("hunter2", "X-Sig", "c0ffee") if secret in words]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pa@host:80/a@b/c?X-Sig=1#f", "https://host:80/a@b/c"),
        ("https://host:80/x@y", "https://host:80/x@y"),
        ("https://me:p@s@host/x", "https://host/x"),
        ("https://me:s/e?c@host/x", "https://host/x"),
        ("simplecache::https://me:pa@host/x", "simplecache::https://host/x"),
        ("s3://bucket/a b.jsonl", "s3://bucket/a b.jsonl"),
        ("/data/what?.jsonl", "/data/what?.jsonl"),
    ],
)
def test_urls_as_they_may_be_shown(url: str, shown: str) -> None:
    assert shown_url(url) == shown


def test_texts_of_drivers_are_shown_without_secrets() -> None:
    text = "Cannot GET 'https://me:pa@host/a?X-Sig=1&b=2', nor /a?X-Sig=1; why?"
    assert without_secrets(text) == "Cannot GET 'https://host/a', nor /a?... why?"
    assert in_words(OSError(text)) == without_secrets(text)


@pytest.mark.parametrize(
    "url", ["https://me:hunter2/x@host/c4", "ftpx://me:hunter2@host/x", "simplecache::http://me:hunter2@host/x"]
)
def test_urls_that_are_refused_are_shown_without_secrets(url: str) -> None:
    with pytest.raises(DataError) as raised:
        Remote(url)
    assert "hunter2" not in str(raised.value) and "host" in str(raised.value)


def test_versions_follow_the_file(server: Flaky) -> None:
    remote = Remote(server.url, QUICK)
    first = remote.version("a.tar")
    assert "102400 bytes" in first and remote.version("a.tar") == first
    os.utime(server.folder / "a.tar", (1, 1))
    assert remote.version("a.tar") not in ("", first)
    server.tells_version = False
    assert remote.version("a.tar") == "102400 bytes"
    server.tells_size = False
    assert remote.version("a.tar") == ""


def test_a_body_without_an_end_is_not_held(server: Flaky, tmp_path: Path) -> None:
    server.always("endless")
    remote = Remote(server.url, Patience(retries=1, timeout_seconds=20, backoff_seconds=0.01))
    with pytest.raises(BadInput, match="bytes 0 to 3,000 could not be read in 2 attempts; the last: more than 3,000"):
        remote.read("a.tar", 0, 3000)
    to = tmp_path / "copy"
    with pytest.raises(BadInput, match="more bytes came instead of 102,400"):
        remote.fetch("a.tar", to, len(CONTENT))
    assert to.stat().st_size == 0
    server.tells_size = False
    with pytest.raises(DataError, match="has more than 1,000,000 bytes, and more are not read at once"):
        remote.small("a.tar", at_most=1_000_000)
    assert server.sent["a.tar"] < ENDLESS, "the client hung up"


def test_a_file_whose_size_is_not_told(server: Flaky, tmp_path: Path) -> None:
    server.tells_size = False
    remote = Remote(server.url, QUICK)
    assert remote.size("a.tar") is None
    assert remote.small("a.tar", at_most=len(CONTENT)) == CONTENT
    with pytest.raises(DataError, match="has more than 102,399 bytes"):
        remote.small("a.tar", at_most=len(CONTENT) - 1)
    remote.fetch("a.tar", tmp_path / "copy", None)
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_a_server_without_ranges_is_read_as_it_comes_and_goes_on_after_a_break(server: Flaky, tmp_path: Path) -> None:
    content = os.urandom(2 * CHUNK + 5)
    (server.folder / "large.tar").write_bytes(content)
    faults = ["no range", "drop", "no range"]
    server.choose = lambda name, number: faults[number]
    to, notes = tmp_path / "copy", Notes()
    Remote(server.url, Patience(backoff_seconds=0.01), notes).fetch("large.tar", to, len(content))
    assert to.read_bytes() == content
    assert [asked for _, asked in server.ranges] == [f"bytes=0-{CHUNK - 1}", None, None] and len(notes) == 1


def test_a_disk_that_cannot_be_written_is_no_fault_of_the_server(server: Flaky, tmp_path: Path) -> None:
    server.always("no range")
    notes = Notes()
    (server.folder / "large.tar").write_bytes(bytes(CHUNK + 1))
    with pytest.raises(OSError) as raised:
        Remote(server.url, QUICK, notes).fetch("large.tar", Path("/dev/full"), CHUNK + 1)
    assert raised.value.errno == errno.ENOSPC and not notes


def test_what_is_remote() -> None:
    assert all(map(is_remote, ("http://x/y", "https://x", "s3://bucket/x", "gs://bucket", "memory://x")))
    assert not any(map(is_remote, ("/data/c4", "c4", "file:///data/c4", "C:\\data")))


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(DataError, match=r"gs:// needs the package gcsfs; install the extra 'cloud'"):
        Remote("gs://bucket/c4")


def test_a_filesystem_that_is_not_asynchronous() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/sea/a.tar", CONTENT)
    remote = Remote("memory://sea", QUICK)
    assert remote.read("a.tar", 10, 20) == CONTENT[10:20]
    assert remote.small("a.tar") == CONTENT
    for call, kind in ((lambda: remote.read("b.tar", 0, 1), "missing shard"), (_past_the_end(remote), "changed shard")):
        with pytest.raises(BadInput) as raised:
            call()
        assert raised.value.kind == kind


def _past_the_end(remote: Remote) -> Callable[[], Any]:
    return lambda: remote.read("a.tar", 0, len(CONTENT) + 1)
