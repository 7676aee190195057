"""The timings of data run to their end on little data, and count what they time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.contract import ROOT


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    import bench

    small = {
        "PICTURES": 24,
        "MEMBERS": 40,
        "MADE_MB": 0.2,
        "PREPARED": 200_000,
        "HEAT": 2,
        "SHARDS": 100,
        "SAMPLE": 100_000,
    }
    for name in ("bench_data", "bench_resume"):
        for constant, value in small.items():
            if hasattr(sys.modules[name], constant):
                monkeypatch.setattr(sys.modules[name], constant, value)
    monkeypatch.setattr(sys.modules["bench_images"], "made_jpegs", _few(sys.modules["bench_images"]))
    return bench


def _few(images: ModuleType):  # type: ignore[no-untyped-def]
    made = images.made_jpegs
    return lambda height, width: made(height, width, 2)


OPTIONS = ["data", "--repeats", "2", "--mb", "0.1", "--vocab-size", "700", "--sequence-length", "64"]


def test_every_race_has_a_row_with_its_target(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py", *OPTIONS, "--json", str(tmp_path / "found.json")])
    bench.main()
    told = capsys.readouterr().out
    for what, target in [
        ("reading JPEGs of ", "2.5"),
        ("reading documents of 3 kB", "4"),
        ("tokenising, against all texts at once", "0.95"),
        ("tokenising, against text by text", "0.95"),
        ("prepared tokens to sequences of 64", "100"),
        ("JPEG to a crop of 224, 500 x 375", "1.8"),
    ]:
        rows = [line for line in told.splitlines() if line.startswith(what) and " to " in line.split("  ", 1)[-1]]
        assert any(target in row.split() and row.split()[-1] in ("met", "MISSED") for row in rows), f"{what}: {told}"
    assert "going on at document 100,000 of 100 shards" in told
    assert "A core feeds " in told
    races = json.loads((tmp_path / "found.json").read_text())[0]["races"]
    assert {len(times) for race in races.values() for times in race["times"].values()} == {2, 6, 8}


def test_the_tokens_counted_are_those_of_the_texts(bench: ModuleType, tmp_path: Path) -> None:
    """Both sides of the race do the same work: our count is SentencePiece's and a document more for each lane."""
    data, corpora = sys.modules["bench_data"], sys.modules["bench_corpora"]
    from nt_pretrain.data.tokenizer import load_tokenizer, train_tokenizer

    texts = corpora.made_texts(0.2)
    train_tokenizer(iter(texts), tmp_path / "a.model", vocab_size=700, kind="bpe", max_bytes=10**6)
    longest = max(map(len, texts))
    tokenising, _, prepared = data.races_of_tokens(tmp_path, texts, load_tokenizer(tmp_path / "a.model"), 64)
    for race in (tokenising, prepared):
        ours, alone = list(race.work.values())[:2]
        whole = round(ours / alone)
        assert 0 < ours - whole * alone <= data.LANES * longest


def test_texts_that_are_not_there_are_an_error_in_words(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py", *OPTIONS, "--text", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as left:
        bench.main()
    assert left.value.code == 3
    assert str(tmp_path / "none") in capsys.readouterr().err
