"""Shards in an S3 store: a real S3 API on loopback, found as users let it be found, by environment variables."""

from __future__ import annotations

import hashlib
import logging
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("s3fs", reason="the extra 'cloud' is not installed")
pytest.importorskip("moto", reason="moto[server] is not installed")

import boto3
from fsspec.config import conf, set_conf_env
from moto.server import ThreadedMotoServer

from nt_pretrain.data.errors import BadInput
from nt_pretrain.data.storage.cache import Cache
from nt_pretrain.data.storage.remote import CHUNK, Patience, Remote
from tests.data.storage.flaky import flaky_server

QUICK = Patience(retries=2, timeout_seconds=5, backoff_seconds=0.01)
CONTENT = os.urandom(CHUNK + 1000)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="reader", aws_secret_access_key="secret", region_name="us-east-1"
    )
    client.create_bucket(Bucket="sea")
    client.put_object(Bucket="sea", Key="c4/train/a.tar", Body=CONTENT, ACL="public-read")
    yield url
    server.stop()


@pytest.fixture(autouse=True)
def environment(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    values = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "secret"}
    nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    for name, value in {**values, **nowhere, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)


def test_reads_and_sizes() -> None:
    remote = Remote("s3://sea/c4", QUICK)
    assert remote.read("train/a.tar", 100, 300) == CONTENT[100:300]
    assert remote.size("train/a.tar") == len(CONTENT)
    assert remote.small("train/a.tar") == CONTENT


def test_versions_follow_the_file(endpoint: str) -> None:
    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id="reader", aws_secret_access_key="secret", region_name="us-east-1"
    )
    remote = Remote("s3://sea/c4", QUICK)
    found = []
    for content in (b"old", b"new", b"new"):
        client.put_object(Bucket="sea", Key="c4/changing.txt", Body=content)
        found.append(remote.version("changing.txt"))
    assert found[0] != found[1] == found[2] == f"{hashlib.md5(b'new').hexdigest()}, 3 bytes"


def test_the_cache_holds_a_verified_copy(tmp_path: Path) -> None:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    path = Cache(tmp_path, 10_000_000).get(Remote("s3://sea/c4/train", QUICK), "a.tar", len(CONTENT), sha256)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("url", "words"),
    [("s3://sea/c4/validation", "there is no such file"), ("s3://lake/c4", "there is no such (bucket|file)")],
)
def test_what_is_not_there_is_asked_for_once(url: str, words: str) -> None:
    notes: list[str] = []
    with pytest.raises(BadInput, match=f"{url}/a.tar: {words}") as raised:
        Remote(url, QUICK, lambda kind, text: notes.append(text)).read("a.tar", 0, 10)
    assert raised.value.kind == "missing shard" and not notes


@pytest.mark.parametrize("start", [len(CONTENT) - 5, len(CONTENT) + 5])
def test_an_object_that_became_shorter_is_changed(start: int) -> None:
    with pytest.raises(BadInput, match="is not the file that the manifest lists") as raised:
        Remote("s3://sea/c4", QUICK).read("train/a.tar", start, start + 100)
    assert raised.value.kind == "changed shard"


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(BadInput, match="credentials") as raised:
        Remote("s3://sea/c4", QUICK).read("train/a.tar", 0, 10)
    assert raised.value.kind == "missing shard"


def test_a_public_bucket_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setitem(conf, "s3", {})
    set_conf_env(conf, {"FSSPEC_S3_ANON": "true"})  # what fsspec does with the environment when it is imported
    assert Remote("s3://sea/c4", QUICK).read("train/a.tar", 0, 10) == CONTENT[:10]


def test_refused_credentials(endpoint: str) -> None:
    def check_from(count: bytes) -> None:
        request = urllib.request.Request(
            f"{endpoint}/moto-api/reset-auth", data=count, headers={"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request, timeout=10).close()

    check_from(b"0")
    try:
        with pytest.raises(BadInput, match=r"credentials|access is denied") as raised:
            Remote("s3://sea/c4", QUICK).read("train/a.tar", 0, 10)
    finally:
        check_from(b"inf")
    assert raised.value.kind == "missing shard"


@pytest.mark.parametrize("fault", ["503", "drop", "trickle", "stall", "short", "no range"])
def test_faults_of_a_store_are_retried_and_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    (tmp_path / "sea").mkdir()
    (tmp_path / "sea" / "a.tar").write_bytes(CONTENT[:100_000])
    notes: list[str] = []
    with flaky_server(tmp_path) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        remote = Remote("s3://sea", Patience(2, 2.0, 1e6, 0.01), lambda kind, text: notes.append(text))
        remote.read("a.tar", 0, 10)  # loading the driver takes a while, and counts
        notes.clear()
        server.first(fault)
        assert remote.read("a.tar", 1000, 5000) == CONTENT[1000:5000]
        assert server.requests["sea/a.tar"] == 3
    assert len(notes) == 1 and notes[0].startswith("s3://sea/a.tar: bytes 1,000 to 5,000: ")


def test_an_endpoint_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match="could not be read in 3 attempts") as raised:
        Remote("s3://sea/c4", QUICK).read("train/a.tar", 0, 10)
    assert raised.value.kind == "unreachable shard"
