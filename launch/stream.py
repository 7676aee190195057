"""Read prepared data as a run would, without training: python launch/stream.py DIR_OR_URL [section.key=value ...]

Shows the first batch and what could not be read, and says how fast this machine reads, decodes or tokenizes. Pictures
are drawn as a model would see them. The options are those of a run; data.*, train.global_batch and run.seed matter.

    python launch/stream.py data/imagenet train.global_batch=256 data.workers=8
    python launch/stream.py s3://corpora/c4 data.tokenizer=tokenizers/c4.model data.workers=2 data.sequence_length=1024
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from nt_pretrain.config.checks import problems
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.load import load_config
from nt_pretrain.config.schema import Config
from nt_pretrain.data.errors import DataError
from nt_pretrain.data.faults import Fault
from nt_pretrain.data.files import whole_file
from nt_pretrain.data.loader import Batch, TrainLoader
from nt_pretrain.data.manifest import Manifest
from nt_pretrain.data.storage.store import store_of
from nt_pretrain.data.tokenizer import load_tokenizer
from nt_pretrain.observe.exitcodes import ExitCode

COLUMNS, SHOWN = 8, 64
SHOWN_CHARACTERS = 400
SHOWN_FAULTS = 10


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DIR_OR_URL", help="what launch/prepare.py made")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--seconds", type=float, default=20.0, help="to read on after the first batch (%(default)s)")
    parser.add_argument("--sheet", type=Path, default=Path("first-batch.png"), help="pictures: where they are drawn")
    return parser.parse_intermixed_args(arguments)


def config_of(data: str, overrides: list[str]) -> tuple[Config, Manifest]:
    """The configuration of the command line, with a model that fits the data; and the data's manifest.

    Raises:
        ConfigErrors: options are wrong.
        DataError: there is no such data.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as empty:
        empty.write("run: {name: stream}\n")
        empty.flush()
        config = load_config(empty.name, [*overrides, f"data.path={data}"])
    store = store_of(config.data, f"{data.rstrip('/')}/train", wait_seconds=config.stall_seconds / 2)
    manifest = store.manifest()
    # A model that would read this data, so that what concerns the other kind of data is told.
    model: dict[str, object]
    if manifest.kind == "rows":
        model = {"family": "mlp", "classes": len(manifest.classes), "features": manifest.features}
    elif manifest.kind == "pictures":
        model = {"family": "resnet50", "classes": len(manifest.classes)}
    else:
        model = {"vocab_size": load_tokenizer(config.data.tokenizer).size}
    config = config.model_copy(update={"model": config.model.model_copy(update=model)})
    wrong = [each for each in problems(config) if each.startswith(("data.", "train.global_batch"))]
    if wrong:
        raise ConfigErrors(wrong)
    return config, manifest


def stream(config: Config, manifest: Manifest, seconds: float, sheet: Path) -> None:
    """Read for so long, and print what is worth knowing."""
    begin = time.perf_counter()
    faults: list[Fault] = []
    with closing(iter(TrainLoader(config, rank=0, world=1, position=None))) as batches:
        batch = next(batches)
        first = time.perf_counter() - begin
        faults += batch.faults
        print("\n".join(described(batch, config, manifest, sheet)), flush=True)
        count, begin = 0, time.perf_counter()
        columns = (TextColumn("reading"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=seconds, rate="")
            while (passed := time.perf_counter() - begin) < seconds or not count:
                faults += next(batches).faults
                count += config.train.global_batch
                bar.update(task, completed=passed, rate=rate(count / max(passed, 1e-9), config, manifest))
    passed = time.perf_counter() - begin
    workers = max(1, config.data.workers)
    processes = f"{workers} reader process{'es' if workers > 1 else ''}"
    print(f"first batch after {first:.1f} s, then {rate(count / passed, config, manifest)} with {processes}")
    lost = Counter[str]()
    for fault in faults:
        lost[fault.kind] += fault.masked or 1
    for fault in faults[:SHOWN_FAULTS]:
        print(f"{fault.kind}: {fault.words}")
    print("everything could be read" if not lost else f"{sum(lost.values()):,} faults: {dict(lost)}")
    if manifest.format == "images":
        print(f"next: open {sheet}")
    elif manifest.kind == "text":
        print(
            "next: torchrun --standalone --nproc-per-node 2 launch/pretrain.py configs/demo.yaml "
            f"data.path={config.data.path} data.tokenizer={config.data.tokenizer} "
            f"model.vocab_size={config.model.vocab_size} run.name={manifest.name}"
        )


def described(batch: Batch, config: Config, manifest: Manifest, sheet: Path) -> list[str]:
    """A batch in words; pictures are drawn into ``sheet``."""
    if manifest.kind == "text":
        kept = batch.tokens[0][batch.documents[0] >= 0]
        text = load_tokenizer(config.data.tokenizer).processor.decode(kept.tolist())
        sequences, length = batch.tokens.shape
        return [f"first batch: {sequences} sequences of {length - 1} tokens; the first begins", *_lines(text)]
    labels = Counter(batch.labels.tolist())
    common = ", ".join(f"{_class(manifest, label)} {count}" for label, count in labels.most_common(5))
    if manifest.kind == "rows":
        numbers = ", ".join(f"{number:.3g}" for number in batch.arrays[0][0, :COLUMNS].tolist())
        return [f"first batch: {len(batch.labels)} rows; {len(labels)} classes ({common}, ...); the first: {numbers}"]
    draw(batch, sheet)
    size = f"{batch.pixels.shape[2]} x {batch.pixels.shape[3]}"
    return [f"first batch: {len(batch.labels)} pictures of {size} in {sheet}; {len(labels)} classes ({common}, ...)"]


def draw(batch: Batch, path: Path) -> None:
    """The first pictures of a batch as one PNG."""
    pictures = batch.pixels[:SHOWN].permute(0, 2, 3, 1).numpy()
    rows = -(-len(pictures) // COLUMNS)
    height, width = pictures.shape[1:3]
    whole = np.full((rows * (height + 4), COLUMNS * (width + 4), 3), 255, dtype=np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // COLUMNS * (height + 4), number % COLUMNS * (width + 4)
        whole[top : top + height, left : left + width] = picture
    with whole_file(path) as file:
        Image.fromarray(whole).save(file, "PNG")


def rate(samples: float, config: Config, manifest: Manifest) -> str:
    if manifest.kind != "text":
        return f"{samples:,.0f} {manifest.kind}/s"
    return f"{samples * config.data.sequence_length:,.0f} tokens/s"


def _class(manifest: Manifest, label: int) -> str:
    if label < 0:
        return "unreadable"
    return manifest.class_names[label] if manifest.class_names else manifest.classes[label]


def _lines(text: str) -> list[str]:
    # What a document holds must not steer the terminal that shows it.
    short = "".join(each if each.isprintable() else " " for each in text[:SHOWN_CHARACTERS])
    return [f"  {short[start : start + 100]}" for start in range(0, len(short), 100)]


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        stream(*config_of(options.data, options.overrides), options.seconds, options.sheet)
    except ConfigErrors as error:
        print(error, file=sys.stderr)
        return ExitCode.CONFIGURATION
    except DataError as error:
        print(f"data error: {error}", file=sys.stderr)
        return ExitCode.DATA
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
