"""Data that cannot be read, in whole runs: masked, counted alike on every number of ranks, named, and bounded."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nt_pretrain.data.manifest import read_manifest
from nt_pretrain.data.shards import index_path
from nt_pretrain.observe.rundir import RunDir
from tests.conftest import Corpus, command
from tests.data.damage import flip
from tests.train import launches

OPTIONS = [
    "train.steps=49", "data.packing=truncate",
    "checkpoint.save_every_steps=10", "observe.log_every_steps=1", "eval.every_steps=0",
    "parallel.deterministic_reduce=true",
]  # fmt: skip


@pytest.fixture(scope="module")
def shards(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus in small shards."""
    folder = tmp_path_factory.mktemp("shards") / "small"
    command(
        "launch/prepare.py", "text", str(corpus.text), "--out", str(folder), "--name", "small", "--shard-mb", "0.02"
    )
    return folder


def damaged(shards: Path, folder: Path, flips: int, missing: int) -> tuple[Path, list[str]]:
    """A copy with ``flips`` damaged documents and a lost shard or none, and the names of the shards that are hit."""
    data = Path(shutil.copytree(shards, folder))
    draw = random.Random(1)
    tars = sorted((data / "train").glob("*.tar"))
    assert len(tars) > 6
    lost, left = tars[:missing], tars[missing:]
    for tar in lost:
        tar.unlink()
    hit = draw.sample(left, flips)
    for tar in hit:
        flip(tar, draw.randrange(len(np.load(index_path(tar)))))
    return data, [tar.name for tar in lost + hit]


def data_events(folder: Path) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in RunDir(folder).events.read_text().splitlines())
    return [line for line in lines if line["kind"] == "data"]


@pytest.mark.timeout(280)
def test_a_run_on_damaged_data_is_the_same_on_one_and_two_ranks_and_after_a_kill(
    corpus: Corpus, shards: Path, tmp_path: Path
) -> None:
    data, names = damaged(shards, tmp_path / "data", flips=4, missing=1)
    options = [*corpus.overrides, *OPTIONS, f"data.path={data}", "data.max_bad_fraction=0.3"]
    one, two = tmp_path / "one", tmp_path / "two"
    launches.finish(launches.start(1, one, *options), one)
    process = launches.start(2, two, *options)
    launches.wait_for_step(process, two, 14)
    launches.kill_tree(process)
    launches.finish(launches.start(2, two, *options), two)
    assert launches.losses(one) == launches.losses(two)
    lost = [launches.training_lines(folder)[-1]["data/lost_documents"] for folder in (one, two)]
    documents = read_manifest(data / "train").documents
    assert 49 * 8 <= documents < 50 * 8, "the run goes through nearly one epoch, a document a sequence"
    assert lost[0] == lost[1] > 4
    assert lost[0] < documents
    # Each place is told once, but for what was told before the kill after the last checkpoint.
    told = [(line["facts"]["kind"], line["facts"]["shard"], line["facts"]["document"]) for line in data_events(one)]
    assert len(told) == len(set(told)) == 5
    assert {shard for _, shard, _ in told} == set(names)
    assert {(kind, document == "all") for kind, _, document in told} == {
        ("missing shard", True),
        ("damaged document", False),
    }
    after_kill = [line["facts"] for line in data_events(two)]
    assert {(facts["kind"], facts["shard"], facts["document"]) for facts in after_kill} == set(told)
    for folder in (one, two):
        text = (folder / "console.log").read_text()
        assert f"data: {lost[0]:.0f} documents could not be read (4 damaged document, " in text


@pytest.mark.timeout(200)
def test_more_than_may_be_lost_stops_the_run_with_the_exit_code_of_data(
    corpus: Corpus, shards: Path, tmp_path: Path
) -> None:
    """No reader meets more than the bound allows; all of them together do."""
    data, names = damaged(shards, tmp_path / "data", flips=6, missing=0)
    documents = read_manifest(data / "train").documents
    options = [*corpus.overrides, *OPTIONS, f"data.path={data}", f"data.max_bad_fraction={4.5 / documents}"]
    folder = tmp_path / "run"
    launches.finish(launches.start(2, folder, *options), folder, expect=1)
    status = RunDir(folder).read_status()
    assert status is not None
    assert (status.state, status.exit_code) == ("failed", 3)
    assert (
        f" of the {documents} documents of an epoch could not be read, more than data.max_bad_fraction"
        in status.message
    )
    assert "damaged document" in status.message
    assert {line["facts"]["shard"] for line in data_events(folder)} <= set(names)


@pytest.mark.long
@pytest.mark.timeout(200)
def test_changed_data_goes_on_only_when_it_is_allowed(corpus: Corpus, shards: Path, tmp_path: Path) -> None:
    options, folder = [*corpus.overrides, *OPTIONS, f"data.path={shards}"], tmp_path / "run"
    launches.finish(launches.start(1, folder, *options, "train.steps=20"), folder)
    changed = [*options, f"data.path={corpus.data}"]
    launches.finish(launches.start(1, folder, *changed), folder, expect=1)
    assert "data.allow_change=true" in (folder / "console.log").read_text()
    launches.finish(launches.start(1, folder, *changed, "data.allow_change=true"), folder)
    events = [json.loads(line) for line in RunDir(folder).events.read_text().splitlines()]
    warnings = [event["reason"] for event in events if event["kind"] == "warning"]
    assert any("going on although the data in data.path: " in words for words in warnings)
