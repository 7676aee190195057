"""The verbs text, verify and inspect as a person uses them, on C4's layout: kills, Ctrl-C, a server, hostile files."""

from __future__ import annotations

import gzip
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.prepare import main
from nt_pretrain.data.manifest import read_manifest
from nt_pretrain.data.tokenizer import train_tokenizer
from tests.data.conftest import texts
from tests.data.storage.flaky import flaky_server

ROOT = Path(__file__).parents[2]
FILES = 4


def write_c4(folder: Path, documents: int = 300) -> Path:
    """``en/c4-train.0000N-of-00004.json.gz``, as C4 has it."""
    (folder / "en").mkdir(parents=True)
    for number in range(FILES):
        rows = [
            {"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": f"https://example.org/{number}/{n}"}
            for n, text in enumerate(texts(documents, number))
        ]
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / "en" / f"c4-train.{number:05d}-of-{FILES:05d}.json.gz").write_bytes(gzip.compress(content, mtime=0))
    return folder / "en"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "sea.model"
    train_tokenizer(iter(texts(150)), path, vocab_size=320, kind="bpe", max_bytes=1_000_000)
    return path


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "launch" / "prepare.py"), *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_notes(process: subprocess.Popen[str], partial: Path, count: int) -> None:
    while process.poll() is None and len(list((partial / "notes").glob("*.json"))) < count:
        time.sleep(0.002)


@pytest.mark.timeout(240)
def test_killed_again_and_again_it_gives_the_same_bytes(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(4):
        # Padded, so that each is a group of its own, and with many shards, so that a kill meets unfinished work.
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts(1500, number))
        (raw / f"{number}.jsonl").write_text(rows + " " * 4_000_000 + "\n")
    options = [str(raw), "--name", "k", "--shard-mb", "0.004", "--workers", "2"]
    whole = started("text", *options, "--out", str(tmp_path / "whole"))
    assert whole.wait() == 0
    kills = 0
    for notes in (1, 3, 9, 40):
        process = started("text", *options, "--out", str(tmp_path / "out"))
        wait_for_notes(process, tmp_path / "out.partial", notes)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2, "the test killed nothing"
    last = started("text", *options, "--out", str(tmp_path / "out"))
    _, errors = last.communicate()
    assert last.returncode == 0, errors
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.timeout(120)
def test_ctrl_c_keeps_what_is_finished_and_says_so(tmp_path: Path) -> None:
    en = write_c4(tmp_path, 4000)
    process = started("text", str(en), "--out", str(tmp_path / "out"), "--workers", "2", "--shard-mb", "0.003")
    wait_for_notes(process, tmp_path / "out.partial", 3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert f"what is finished is kept in {tmp_path}/out.partial, and the same command goes on" in errors
    assert "Traceback" not in errors
    assert list((tmp_path / "out.partial" / "notes").iterdir())


def test_from_c4_to_what_runs_next(tmp_path: Path, capsys: pytest.CaptureFixture[str], model: Path) -> None:
    en, out = write_c4(tmp_path), str(tmp_path / "c4")
    command = ["text", str(en), "--out", out, "--shard-mb", "0.02", "--workers", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"{out}/train: " in printed
    assert printed.splitlines()[-1] == (
        f"next: python launch/prepare.py tokenizer {out} --out tokenizers/c4.model --vocab-size 4096"
    )
    assert main(command) == 0
    assert "is prepared already; delete it to prepare it anew" in capsys.readouterr().out
    assert main(["verify", out]) == 0 and main(["inspect", out]) == 0
    printed = capsys.readouterr().out
    documents = read_manifest(tmp_path / "c4" / "train").documents
    assert f"{documents:,} documents, " in printed and "characters of a document:" in printed
    assert "  - Chapter " in printed and "c4-train-000000.tar" in printed
    assert printed.splitlines()[-1].startswith("next: python launch/prepare.py tokenizer ")
    assert main(["inspect", out, "--tokenizer", str(model), "--split", "validation"]) == 0
    printed = capsys.readouterr().out
    assert " tokens" in printed and printed.splitlines()[-1].startswith("next: torchrun ")
    shard = tmp_path / "c4" / "train" / "c4-train-000001.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    assert main(["verify", out]) == 3
    assert f"{shard}: is not what the manifest lists (sha256)" in capsys.readouterr().err


def test_tokens_are_written_and_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str], model: Path) -> None:
    en, out = write_c4(tmp_path), str(tmp_path / "tokens")
    assert main(["text", str(en), "--out", out, "--tokenizer", str(model), "--workers", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("next: torchrun ")
    assert main(["inspect", out]) == 0
    printed = capsys.readouterr().out
    assert " tokens\n" in printed and "tokens of a document:" in printed and "Chapter" not in printed
    assert main(["inspect", out, "--tokenizer", str(model)]) == 0
    assert "  - Chapter " in capsys.readouterr().out
    assert main(["verify", out]) == 0


@pytest.mark.timeout(120)
def test_files_of_a_server_that_breaks_give_the_same_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    en = write_c4(tmp_path)
    assert main(["text", str(en), "--out", str(tmp_path / "local"), "--name", "c4", "--workers", "1"]) == 0
    with flaky_server(tmp_path) as server:
        url = f"{server.url}/en/c4-train.{{00000..00003}}-of-00004.json.gz"
        server.first("503", "drop")
        assert main(["text", url, "--out", str(tmp_path / "remote"), "--name", "c4", "--workers", "2"]) == 0
        assert main(["text", url, "--out", str(tmp_path / "remote"), "--name", "c4", "--workers", "2"]) == 0
    assert "is prepared already" in capsys.readouterr().out
    local, remote = [read_manifest(tmp_path / name / "train") for name in ("local", "remote")]
    assert local.fingerprint == remote.fingerprint
    assert remote.sources[0].name == url and remote.sources[0].files == FILES
    assert (local.sources[0].sha256, local.sources[0].bytes) == (remote.sources[0].sha256, remote.sources[0].bytes)
    assert {path.name for path in (tmp_path / "remote").iterdir()} == {"train", "validation"}


@pytest.mark.timeout(120)
def test_a_file_the_server_does_not_have_is_named_and_the_rest_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_c4(tmp_path)
    last = tmp_path / "en" / "c4-train.00003-of-00004.json.gz"
    content = last.read_bytes()
    last.unlink()
    with flaky_server(tmp_path) as server:
        url = f"{server.url}/en/c4-train.{{00000..00003}}-of-00004.json.gz"
        command = ["text", url, "--out", str(tmp_path / "out"), "--workers", "1"]
        assert main(command) == 3
        errors = capsys.readouterr().err
        assert "c4-train.00003-of-00004.json.gz" in errors and "the same command goes on" in errors
        last.write_bytes(content[:-9])
        assert main(command) == 3
        assert "its copy is deleted; the same command fetches it again" in capsys.readouterr().err
        last.write_bytes(content)
        asked = dict(server.requests)
        assert main(command) == 0
        again = {name for name, count in server.requests.items() if count != asked.get(name, 0)}
    assert again == {"en/c4-train.00003-of-00004.json.gz"}
    manifest = read_manifest(tmp_path / "out" / "train")
    assert manifest.sources[0].files == FILES


def test_hostile_files_are_counted_and_take_little_memory(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    good = "".join(json.dumps({"text": text}) + "\n" for text in texts(200)).encode()
    with gzip.open(raw / "huge.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(good + b'{"text": "')
        for _ in range(300):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + b"[" * 500_000 + b"\n" + b'{"text": "caf\xe9"}\n{"text": ""}\n{"text": 5}\n')
        file.write(b'{"text": "\\ud800 url", "url": "\\udfff", "timestamp": {"a": 1}}\n')
    (raw / "late.txt").write_bytes(b"a long line " * 2_000_000)
    command = [sys.executable, str(ROOT / "launch" / "prepare.py"), "text", str(raw), "--out", str(tmp_path / "out")]
    limit = 1_500_000_000
    found = subprocess.run(
        [*command, "--workers", "1", "--document-characters", "100000"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    assert found.returncode == 0, found.stderr
    huge = raw / "huge.jsonl.gz"
    for line in (
        f"1 rows left out, since they are longer than 67,108,864 bytes (first: {huge}:201)",
        f'2 rows left out, since they are no JSON object with a "text" (first: {huge}:202)',
        f"1 documents with bytes that are not UTF-8, which were replaced (first: {huge}:203)",
        f"1 empty documents left out (first: {huge}:204)",
        f"1 documents cut into pieces of at most 100,000 characters (first: {raw / 'late.txt'})",
    ):
        assert line in found.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "--workers 0 must be above 0"),
        (["--validation-share", "1"], "--validation-share 1.0 must lie between 0 and 1"),
    ],
)
def test_wrong_arguments_end_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["text", "raw", "--out", "out", *arguments])
    assert caught.value.code == 2 and message in capsys.readouterr().err
