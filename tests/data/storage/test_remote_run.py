"""Batches from shards behind a URL: the same as from a folder, each shard fetched once, nothing waits for ever."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from nt_pretrain.config.schema import Config
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.loader import Batch, TrainLoader
from nt_pretrain.data.validation import validation_batches
from tests.data.conftest import Gallery, Sea
from tests.data.storage.flaky import Flaky, flaky_server
from tests.data.storage.test_cache_disk import disk

__all__ = ["disk"]


@pytest.fixture
def server(sea: Sea) -> Iterator[Flaky]:
    with flaky_server(sea.text) as found:
        yield found


def remote(sea: Sea, url: str, cache: Path, **data: object) -> Config:
    options = {"path": url, "cache_dir": str(cache), "cache_gb": 1, "retries": 3, "read_timeout_seconds": 2, **data}
    return sea.config(data=options)


def batches(config: Config, count: int, world: int = 1) -> list[list[Batch]]:
    with contextlib.ExitStack() as stack:
        ranks = [iter(TrainLoader(config, rank=rank, world=world, position=None)) for rank in range(world)]
        for rank in ranks:
            stack.enter_context(contextlib.closing(rank))
        return [[next(rank) for rank in ranks] for _ in range(count)]


def assert_same(found: list[list[Batch]], expected: list[list[Batch]]) -> None:
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(torch.cat([batch.tokens for batch in one]), torch.cat([batch.tokens for batch in two]))


@pytest.mark.timeout(120)
def test_two_ranks_with_readers_fetch_each_shard_once(sea: Sea, server: Flaky, tmp_path: Path) -> None:
    expected = batches(sea.config(), 40)
    found = batches(remote(sea, server.url, tmp_path / "cache", workers=2), 40, world=2)
    assert_same(found, expected)
    assert not any(batch.faults for ranks in found for batch in ranks)
    files = sorted(path.name for path in (sea.text / "train").glob("*.tar"))
    fetched = {Path(name).name: count for name, count in server.requests.items() if name.endswith(".tar")}
    assert fetched == dict.fromkeys(files, 1)
    # A second run on this machine asks for manifests alone.
    server.requests.clear()
    assert_same(batches(remote(sea, server.url, tmp_path / "cache"), 40), expected)
    assert set(server.requests) == {"train/manifest.json"}
    one, two = (
        list(validation_batches(each, rank=0, world=1))
        for each in (sea.config(), remote(sea, server.url, tmp_path / "cache"))
    )
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, two, strict=True))


def test_a_copy_that_was_damaged_on_disk_is_fetched_again(sea: Sea, server: Flaky, tmp_path: Path) -> None:
    config = remote(sea, server.url, tmp_path / "cache")
    expected = batches(sea.config(), 40)
    assert_same(batches(config, 40), expected)
    for copy in (tmp_path / "cache").glob("*.tar"):
        content = bytearray(copy.read_bytes())
        content[len(content) // 2] ^= 1
        copy.write_bytes(content)
    found = batches(config, 40)
    assert_same(found, expected)
    assert sum(fault.masked for ranks in found for batch in ranks for fault in batch.faults) == 0


def test_a_cache_smaller_than_what_is_in_use_is_refused(sea: Sea, server: Flaky, tmp_path: Path) -> None:
    config = remote(sea, server.url, tmp_path / "cache", cache_gb=0.00001)
    with pytest.raises(
        DataError, match=r"data\.cache_gb: 1e-05 GB are too few for the 4 lanes .* Set data\.cache_gb=0\.1"
    ):
        TrainLoader(config, rank=0, world=1, position=None)
    assert set(server.requests) == {"train/manifest.json"}


def test_a_full_disk_costs_speed_and_nothing_else(sea: Sea, server: Flaky, disk: Path) -> None:
    """Indices fit, shards do not: documents come one by one."""
    config = remote(sea, server.url, disk / "cache")
    batches(config, 1)  # makes the folder
    shutil.rmtree(disk / "cache")
    (disk / "other").write_bytes(
        b"x" * (sum(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize for _ in "1") - 30_000)
    )
    found = batches(config, 12)
    assert_same(found, batches(sea.config(), 12))
    kinds = {fault.kind for ranks in found for batch in ranks for fault in batch.faults}
    assert kinds <= {"cache full"}
    assert sum(fault.masked for ranks in found for batch in ranks for fault in batch.faults) == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", ["trickle", "stall", "503"])
def test_a_shard_that_does_not_come_is_left_out_for_now(sea: Sea, server: Flaky, tmp_path: Path, fault: str) -> None:
    """Its documents are masked and counted while it is fetched, and no batch waits longer than it may."""
    slow = sorted((sea.text / "train").glob("*.tar"))[1].name
    server.choose = lambda name, number: fault if name.endswith(slow) else None
    config = remote(
        sea, server.url, tmp_path / "cache", packing="truncate", max_bad_fraction=0.5, stall_seconds=3, workers=1,
        retries=100, read_timeout_seconds=60, slowest_kb_per_second=0.001,
    )  # fmt: skip
    count = 12  # its lane goes on to the next shard, and another lane comes to it
    expected = batches(sea.config(data={"packing": "truncate"}), count)
    found = batches(config, count)
    faults = [each for ranks in found for batch in ranks for each in batch.faults if each.masked]
    assert {(each.kind, each.shard) for each in faults} == {("unreachable shard", slow)}
    assert not any(each.kind.startswith("reader") for ranks in found for batch in ranks for each in batch.faults)
    masked = 0
    for one, two in zip(found, expected, strict=True):
        gone = (one[0].documents == -1).all(dim=1)
        masked += int(gone.sum())
        assert torch.equal(one[0].tokens[~gone], two[0].tokens[~gone])
    assert masked == sum(each.masked for each in faults) > 0


def test_what_is_not_there_is_said_before_training(sea: Sea, server: Flaky, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/nowhere/train/manifest\.json: .*404"):
        TrainLoader(remote(sea, f"{server.url}/nowhere", tmp_path / "cache"), rank=0, world=1, position=None)


@pytest.mark.timeout(120)
def test_pictures_from_an_s3_store(gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3")
    server_of = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = server_of.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    store.start()
    try:
        url = "http://{}:{}".format(*store.get_host_and_port())
        for name, value in {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
        client.create_bucket(Bucket="pictures")
        for path in gallery.pictures.rglob("*"):
            if path.is_file():
                client.put_object(
                    Bucket="pictures", Key=f"mini/{path.relative_to(gallery.pictures)}", Body=path.read_bytes()
                )
        data = {"path": "s3://pictures/mini", "cache_dir": str(tmp_path / "cache"), "cache_gb": 1}
        config, local = gallery.config(data=data), gallery.config()
        with contextlib.closing(iter(TrainLoader(config, rank=0, world=1, position=None))) as found:
            for one, two in zip(islice(found, 6), TrainLoader(local, rank=0, world=1, position=None), strict=False):
                assert torch.equal(one.pixels, two.pixels) and torch.equal(one.labels, two.labels)
                assert not one.faults
    finally:
        store.stop()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [0, 1])
def test_shards_that_are_stuck_cost_the_others_nothing(sea: Sea, server: Flaky, tmp_path: Path, workers: int) -> None:
    stuck = {path.name for path in sorted((sea.text / "train").glob("*.tar"))[:2]}
    server.choose = lambda name, number: "stall" if Path(name).name in stuck else None
    config = remote(
        sea, server.url, tmp_path / "cache", packing="truncate", max_bad_fraction=0.9, stall_seconds=3,
        read_timeout_seconds=60, workers=workers,
    )  # fmt: skip
    found = batches(config, 6)  # two lanes at stuck shards, two at others
    faults = [each for ranks in found for batch in ranks for each in batch.faults if each.masked]
    assert {each.shard for each in faults} == stuck


@pytest.mark.timeout(120)
def test_a_slow_server_is_waited_for(sea: Sea, server: Flaky, tmp_path: Path) -> None:
    """Every shard takes longer than may pass without a byte, and its bytes come all the time: nothing is lost."""
    stores = (sea.text / "train").glob("*.tar")
    slow = sorted(path.name for path in stores)[0]
    server.choose = lambda name, number: "trickle" if name.endswith(slow) and number < 12 else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nt_pretrain.data.storage.remote.CHUNK", 100)  # 0.3 s each
        config = remote(
            sea, server.url, tmp_path / "cache", stall_seconds=3, read_timeout_seconds=60, slowest_kb_per_second=0.1,
            packing="truncate",
        )  # fmt: skip
        found = batches(config, 6)
    assert not [each for ranks in found for batch in ranks for each in batch.faults]
    assert_same(found, batches(sea.config(data={"packing": "truncate"}), 6))


@pytest.mark.timeout(60)
def test_a_process_ends_while_a_shard_hangs(sea: Sea, server: Flaky, tmp_path: Path) -> None:
    server.choose = lambda name, number: "stall" if name.endswith(".tar") else None
    config = remote(sea, server.url, tmp_path / "cache", stall_seconds=0.5, read_timeout_seconds=600, workers=0)
    script = (
        "import sys\nfrom nt_pretrain.config.schema import Config\nfrom nt_pretrain.data.errors import DataError\n"
        "from nt_pretrain.data.loader import TrainLoader\n"
        "try: next(iter(TrainLoader(Config.model_validate_json(sys.argv[1]), rank=0, world=1, position=None)))\n"
        "except DataError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, config.model_dump_json()], capture_output=True, text=True, timeout=40, check=True
    )
    assert "nothing has come for" in done.stdout
