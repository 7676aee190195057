"""From shards to tokens and crops, against what people use today: the verb `data` of launch/bench.py."""

from __future__ import annotations

import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import numpy as np
import webdataset
from bench_corpora import (
    made_texts,
    part_of,
    pieces_of,
    read_texts,
    row,
    write_members,
    write_pictures,
    write_split,
)
from bench_images import bench_images, jpeg_sets
from bench_resume import SAMPLE, SHARDS, go_on_far, write_far_corpus
from bench_timing import Times, measure, ratio

from nt_pretrain.data.corpus import Split, order_of
from nt_pretrain.data.labelled_shards import labels_of
from nt_pretrain.data.lane import Lane, Reading
from nt_pretrain.data.order import Order
from nt_pretrain.data.shards import Shard
from nt_pretrain.data.storage.store import Folder
from nt_pretrain.data.text import Cursor, packed
from nt_pretrain.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

LANES, WINDOW, HEAT = 4, 4096, 15
MEMBERS, PICTURES = 5_000, 2_000
TRAINING_MB, MADE_MB = 30.0, 8.0
PREPARED = 10e6
"""Prepared tokens read in a round."""


@dataclass(frozen=True)
class DataOptions:
    """Where texts and JPEGs come from (None: made here), the tokenizer's kind and pieces, tokens of a sequence, and the
    megabytes of text that are timed."""

    text: Path | None
    jpegs: Path | None
    kind: Literal["unigram", "bpe"]
    vocab_size: int
    length: int
    megabytes: float


@dataclass
class Race:
    """Ways to do one thing. ``work`` is what a call of each does, in ``unit``; the first is ours.

    Ours is compared with the fastest of the others and should be ``target`` times as fast.
    ``rounds`` are run for every one that is asked for: more where a close ratio is to be told from noise.
    """

    name: str
    unit: str
    target: float
    variants: dict[str, Callable[[], None]]
    work: dict[str, float]
    times: Times = field(default_factory=dict)
    rounds: int = 1

    def run(self, repeats: int) -> None:
        self.times = measure(self.variants, {}, repeats * self.rounds)

    def rate(self, name: str) -> float:
        """Median of units per CPU-second."""
        return self.work[name] / statistics.median(cpu for cpu, _ in self.times[name])

    @property
    def ours(self) -> str:
        return next(iter(self.variants))

    @property
    def peer(self) -> str:
        return max(list(self.variants)[1:], key=self.rate)

    def ratio(self) -> dict[str, float]:
        """How many times as fast ours is as the peer: median, least and largest of the rounds, by CPU seconds."""
        same = self.work[self.ours] / self.work[self.peer]
        return {name: value * same for name, value in ratio(self.times, self.peer, self.ours).items()}

    def lines(self) -> list[str]:
        lines = [f"{self.name} ({self.unit} per CPU-second, median of {len(self.times[self.ours])} rounds)"]
        for name in self.variants:
            lines.append(f"  {name:44s} {self.rate(name):>13,.0f}  x{self.rate(name) / self.rate(self.peer):.2f}")
        return lines

    def row(self) -> list[str]:
        """Of the table: what, rates of ours and the peer, their ratio, its spread, the target and whether it is met."""
        found = self.ratio()
        rates = f"{self.rate(self.ours):,.0f}", f"{self.rate(self.peer):,.0f}"
        spread = f"{found['least']:.2f} to {found['largest']:.2f}"
        verdict = "met" if found["cpu"] >= self.target else "MISSED"
        return [self.name, *rates, f"{found['cpu']:.2f}", spread, f"{self.target:g}", verdict]


# The pipeline: all of ours that is timed. A change of the loader's parts changes these two functions.


def read_documents_in_order(order: Order, shards: list[Shard], epochs: int) -> None:
    """Every document of ``epochs`` epochs in training order, checked, and the labels of pictures."""
    labels = [labels_of(shard).tolist() if "label" in (shard.index.dtype.names or ()) else None for shard in shards]
    for epoch in range(epochs):
        for lane in range(order.lanes):
            for position in range(order.lane_documents(lane)):
                number, document = order.document(epoch, lane, position)
                content, known = shards[number].document(document), labels[number]
                _ = content, known[document] if known else None


def pack_epochs(split: Split, order: Order, length: int, epochs: int) -> int:
    """Training sequences of all lanes until each has come to the end of its epochs; returns the tokens read.

    A lane's last sequence runs on into the next epoch, so a document of that is read too, and counted.
    """
    tokens = 0
    for number in range(order.lanes):
        lane = Lane(0, "bench", split, order, number, Reading(), 0)

        def read(cursor: Cursor, lane: Lane = lane) -> np.ndarray:
            nonlocal tokens
            found = lane.document(cursor, split.tokens, split.tokens_lost)
            tokens += len(found)
            return found

        for sequence in packed(read, lane.following, Cursor(), length):
            if sequence.after.epoch == epochs:
                break
    return tokens


# The races.


def race_of_pictures(folder: Path) -> Race:
    """The same tar of JPEGs and labels, by our index and by WebDataset."""
    path = folder / "pictures-train-000000.tar"
    size = write_pictures(path, PICTURES)
    shard, order, epochs = Shard.open(path), Order([PICTURES], 0, LANES, WINDOW), 2
    ours, peer = "ours: training order, CRC-32", "wds.WebDataset"
    variants = {
        ours: lambda: read_documents_in_order(order, [shard], epochs),
        peer: lambda: _read_webdataset(path),
    }
    name = f"reading JPEGs of {size / 1e3:.0f} kB and their labels"
    return Race(name, "samples", 2.5, variants, {ours: PICTURES * epochs, peer: PICTURES})


def race_of_members(folder: Path, texts: list[str]) -> Race:
    """The same documents as rows of our shards and as members txt and json."""
    members, pieces = folder / "members.tar", pieces_of(texts, MEMBERS)
    write_members(members, pieces)
    manifest = write_split(folder / "members", "text", [row(piece) for piece in pieces], 4)
    shards = [Shard.open(folder / "members" / entry.name) for entry in manifest.shards]
    order, epochs = Order([len(shard) for shard in shards], 0, LANES, WINDOW), 10
    ours, peer = "ours: training order, CRC-32", "wds.WebDataset"
    variants = {
        ours: lambda: read_documents_in_order(order, shards, epochs),
        peer: lambda: _read_webdataset(members),
    }
    return Race("reading documents of 3 kB", "documents", 4.0, variants, {ours: MEMBERS * epochs, peer: MEMBERS})


def _read_webdataset(path: Path) -> None:
    for _ in webdataset.WebDataset(str(path), shardshuffle=False):
        pass


def races_of_tokens(folder: Path, texts: list[str], tokenizer: Tokenizer, length: int) -> list[Race]:
    """Our way from rows to packed sequences, and from prepared tokens, against SentencePiece on the same texts."""
    encode = tokenizer.processor.encode
    rows = write_split(folder / "rows", "text", [row(text) for text in texts], 4)
    dtype = np.dtype("<u2" if tokenizer.size <= 1 << 16 else "<u4")
    encoded = [tokenizer.encode(text).astype(dtype).tobytes() for text in texts]
    total = sum(map(len, encoded)) / dtype.itemsize
    # Copies, so that an epoch is as long as in a run: at the end of each a lane draws and checks its order.
    copies = max(1, round(PREPARED / total))
    prepared = write_split(
        folder / "tokens", "tokens", encoded * copies, 4, tokenizer=tokenizer.sha256, dtype=dtype.str
    )  # fmt: skip
    text = Split(Folder(folder / "rows"), rows, tokenizer)
    tokens = Split(Folder(folder / "tokens"), prepared, None)
    # A few texts may be fewer than the lanes; a run says so, here there are fewer lanes.
    lanes = min(LANES, len(texts))
    order, long_order = (order_of(each, seed=0, lanes=lanes, window=WINDOW) for each in (text, tokens))
    alone: dict[str, Callable[[], None]] = {
        "SentencePiece, a list of texts, numpy": lambda: _drop(encode(texts, out_type="numpy", num_threads=1)),
        "SentencePiece, a list of texts": lambda: _drop(encode(texts, num_threads=1)),
        "SentencePiece, text by text, numpy": lambda: _drop([encode(each, out_type="numpy") for each in texts]),
        "SentencePiece, text by text": lambda: _drop([encode(each) for each in texts]),
    }
    # Chosen in a heat of its own: the luckiest of four in the race itself would be too good.
    heat = measure(alone, {}, HEAT)
    peer = min(alone, key=lambda name: statistics.median(cpu for cpu, _ in heat[name]))
    flying, ready = "ours: lanes, read, json, tokenise, pack", "ours: lanes, read prepared tokens, pack"
    # What ours does is counted, not assumed: lanes end in the middle of a sequence.
    # A list of all texts at once is a few percent faster than text by text, which no stream of documents can be.
    single = "SentencePiece, text by text, numpy"
    ours, counted = lambda: _drop(pack_epochs(text, order, length, 1)), pack_epochs(text, order, length, 1)
    flights = [
        Race(name, "tokens", 0.95, {flying: ours, other: alone[other]}, {flying: counted, other: total}, rounds=4)
        for name, other in (
            ("tokenising, against all texts at once", peer),
            ("tokenising, against text by text", single),
        )
    ]
    second = Race(
        f"prepared tokens to sequences of {length:,}", "tokens", 100.0,
        {ready: lambda: _drop(pack_epochs(tokens, long_order, length, 1)), peer: alone[peer]},
        {ready: pack_epochs(tokens, long_order, length, 1), peer: total}, rounds=3,
    )  # fmt: skip
    return [*flights, second]


def _drop(_: object) -> None:
    pass


def race_of_crops(name: str, jpegs: list[bytes], repeats: int) -> Race:
    """The race that the verb `images` runs, as it came out."""
    found = bench_images(name, jpegs, repeats)
    times = cast(Times, found["times"])
    work = dict.fromkeys(times, float(len(jpegs)))
    variants: dict[str, Callable[[], None]] = {each: lambda: None for each in (next(iter(times)), "Pillow alone")}
    return Race(f"JPEG to a crop of 224, {name}", "images", 1.8, variants, work, times)


def table(races: list[Race]) -> list[str]:
    head = ["per CPU-second of one core", "ours", "peer", "ratio", "least to largest", "target", ""]
    rows = [head, *(race.row() for race in races)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    sides = ["<", ">", ">", ">", ">", ">", "<"]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]


def bench_data(options: DataOptions, repeats: int) -> dict[str, object]:
    """Run everything and print it; returns the timings for JSON.

    Raises:
        DataError: the texts are not there, or too few for the tokenizer.
    """
    texts = read_texts(options.text) if options.text else made_texts(max(MADE_MB, options.megabytes))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "bench.model"
        print(f"training a {options.kind} tokenizer of {options.vocab_size:,} pieces", flush=True)
        train_tokenizer(
            iter(texts), model, vocab_size=options.vocab_size, kind=options.kind, max_bytes=int(TRAINING_MB * 1e6)
        )
        tokenizer, timed = load_tokenizer(model), part_of(texts, options.megabytes)
        races = [race_of_pictures(folder), race_of_members(folder, texts)]
        races += races_of_tokens(folder, timed, tokenizer, options.length)
        for race in races:
            race.run(repeats)
            print("\n".join(race.lines()), flush=True)
        pictures, tokenising, prepared = races[0], races[2], races[4]
        crops = [race_of_crops(*jpegs, repeats) for jpegs in jpeg_sets(options.jpegs).items()]
        far = resume_far(folder / "far", tokenizer, options.length)
    average = sum(map(len, timed)) / len(timed)
    print(f"{len(timed):,} texts of {average:,.0f} characters on average were tokenised ({options.kind})\n")
    print("\n".join(table(races + crops)))
    both = [1 / (1 / pictures.rate(pictures.ours) + 1 / race.rate(race.ours)) for race in crops]
    sizes = [f"{rate:,.0f} images/s ({race.name.rpartition(', ')[2]})" for rate, race in zip(both, crops, strict=True)]
    print(
        f"\nA core feeds {tokenising.rate(tokenising.ours):,.0f} tokens/s tokenised on the way, "
        f"{prepared.rate(prepared.ours):,.0f} prepared; read, decoded and cropped {', '.join(sizes)}"
    )
    return {
        "races": {race.name: {"times": race.times, "work": race.work, **race.ratio()} for race in races + crops},
        "far": far,
        "machine": platform.processor(),
    }


def resume_far(folder: Path, tokenizer: Tokenizer, length: int) -> dict[str, float]:
    made = len(write_far_corpus(folder))
    found = go_on_far(folder, tokenizer, length)
    print(
        f"going on at document {SAMPLE:,} of {SHARDS:,} shards: {found.manifest_seconds:.2f} s for the manifest, then "
        f"{found.first_seconds * 1e3:.0f} ms to a sequence of every lane; only {made} of the shards exist here"
    )
    return {"manifest": found.manifest_seconds, "first": found.first_seconds, "shards": made}
