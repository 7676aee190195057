"""Two small corpora of the same text, one as text and one as tokens, of several shards each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from nt_pretrain.config.schema import Config
from nt_pretrain.data.corpus import Split
from nt_pretrain.data.preparation.image_plan import ImageRecipe
from nt_pretrain.data.preparation.prepare_images import ImageInputs, prepare_images
from nt_pretrain.data.preparation.prepare_text import Recipe, prepare_text
from nt_pretrain.data.tokenizer import load_tokenizer, train_tokenizer
from tests.data.photos import write_classes

WORDS = [
    "and",
    "the",
    "of",
    "sea",
    "ship",
    "whale",
    "captain",
    "night",
    "water",
    "wind",
    "salt",
    "men",
    "harbour",
    "long",
    "dark",
    "sails",
    "morning",
    "against",
]


def texts(count: int, seed: int = 0) -> list[str]:
    """Different texts of very different lengths, the same on every machine."""
    draw = np.random.Generator(np.random.PCG64(seed))
    lengths = (3 + 60 * draw.random(count) ** 3).astype(int)
    picked = [" ".join(WORDS[int(i)] for i in draw.integers(0, len(WORDS), length)) for length in lengths]
    return [f"Chapter {number}\n{text}." for number, text in enumerate(picked)]


def write_rows(path: Path, rows: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Sea:
    """Folders of the corpus as text and as tokens, the tokenizer, and the texts."""

    text: Path
    tokens: Path
    tokenizer: Path
    texts: list[str]

    def config(
        self,
        *,
        data: dict[str, object] | None = None,
        global_batch: int = 8,
        seed: int = 0,
        tokens: bool = False,
        validation: dict[str, object] | None = None,
    ) -> Config:
        folder = self.tokens if tokens else self.text
        options = {"path": str(folder), "tokenizer": str(self.tokenizer), "sequence_length": 24, "window": 5}
        return Config.model_validate(
            {
                "run": {"seed": seed},
                "model": {"vocab_size": 320},
                "train": {"global_batch": global_batch, "micro_batch": 1},
                "data": {**options, "lanes": 4, "workers": 0, "prefetch_batches": 2, **(data or {})},
                "eval": {"sequences": 12, "micro_batch": 2, **(validation or {})},
            }
        )

    def split(self) -> Split:
        return Split.open(self.text / "train", load_tokenizer(self.tokenizer))


@dataclass(frozen=True)
class Gallery:
    """A folder of prepared pictures in three classes, of several shards."""

    pictures: Path

    def config(
        self,
        *,
        data: dict[str, object] | None = None,
        global_batch: int = 8,
        validation: dict[str, object] | None = None,
    ) -> Config:
        options = {"path": str(self.pictures), "picture_size": 24, "picture_shorter": 32, "window": 5, "lanes": 4}
        return Config.model_validate(
            {
                "train": {"global_batch": global_batch, "micro_batch": 1},
                "data": {**options, "workers": 0, "prefetch_batches": 2, **(data or {})},
                "eval": {"sequences": 0, "micro_batch": 4, **(validation or {})},
            }
        )


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    folder = tmp_path_factory.mktemp("gallery")
    write_classes(folder / "train", 17)
    recipe = ImageRecipe("gallery", shard_bytes=12_000, validation_share=0.3)
    prepare_images(ImageInputs(folder / "train"), folder / "pictures", recipe, 1, lambda *_: None)
    return Gallery(folder / "pictures")


@pytest.fixture(scope="session")
def sea(tmp_path_factory: pytest.TempPathFactory) -> Sea:
    folder = tmp_path_factory.mktemp("sea")
    written = texts(150)
    rows = write_rows(folder / "rows.jsonl", written)
    found = Sea(folder / "text", folder / "tokens", folder / "sea.model", written)
    prepare_text([rows], found.text, Recipe("sea", 0.1, 4_000), lambda *_: None)
    train_tokenizer(iter(written), found.tokenizer, vocab_size=320, kind="bpe", max_bytes=1_000_000)
    recipe = Recipe("sea", 0.1, 2_000, tokenizer=load_tokenizer(found.tokenizer))
    prepare_text([rows], found.tokens, recipe, lambda *_: None)
    return found
