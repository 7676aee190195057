"""A small set of labelled rows, prepared, and the configuration of a network that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nt_pretrain.config.schema import Config
from nt_pretrain.data.preparation.prepare_rows import RowRecipe, prepare_rows
from nt_pretrain.data.preparation.row_files import read_table

FEATURES, CLASSES = 6, 3


def numbers(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three clouds, in the order of their classes: features [count, 6] (fp64) and labels [count]."""
    draw = np.random.Generator(np.random.PCG64(seed))
    labels = np.sort(draw.integers(0, CLASSES, count))
    centres = np.random.Generator(np.random.PCG64(99)).normal(0, 2, (CLASSES, FEATURES))
    return centres[labels] + draw.normal(0, 1, (count, FEATURES)), labels


def write_npz(path: Path, count: int, seed: int = 0) -> Path:
    features, labels = numbers(count, seed)
    np.savez(path, features=features, labels=labels)
    return path


def prepared(folder: Path, train: int = 96, validation: int = 40, shard_bytes: int = 64_000_000) -> Path:
    """Shards of ``train`` and ``validation`` rows."""
    files = [write_npz(folder / f"{seed}.npz", count, seed) for seed, count in enumerate((train, validation))]
    tables = [read_table(file) for file in files]
    recipe = RowRecipe("clouds", shard_bytes=shard_bytes, standardise=True)
    prepare_rows(tables[0], tables[1], folder / "clouds", recipe)
    return folder / "clouds"


def config_of(path: Path, **sections: dict[str, Any]) -> Config:
    base: dict[str, dict[str, Any]] = {
        "model": {"family": "mlp", "features": FEATURES, "classes": CLASSES, "widths": [8, 8], "heads": 2},
        "data": {"path": str(path), "lanes": 8, "window": 5, "workers": 0},
        "train": {"steps": 4, "global_batch": 16, "micro_batch": 4},
        "eval": {"sequences": 0, "micro_batch": 8},
    }
    return Config.model_validate({name: base.get(name, {}) | sections.get(name, {}) for name in base | sections})
