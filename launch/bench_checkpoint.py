"""Checkpoints of masked and of sparse layers beside a plain write of as many bytes: the verb `checkpoint`."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from bench_step import SHAPES, Ours, models_of, our_config
from bench_timing import measure, ratio

from nt_pretrain.checkpoint.load import load_tensors, open_checkpoint
from nt_pretrain.checkpoint.save import save
from nt_pretrain.config.schema import SparsitySection
from nt_pretrain.parallel.mesh import connect


def bench_checkpoint(name: str, repeats: int) -> dict[str, object]:
    """Save and load the state of every model; prints a table, returns it for JSON."""
    shape = SHAPES[name]
    ranks = connect(our_config(shape, "fp32", heads=1, sparsity=SparsitySection()))
    tokens = torch.zeros(shape.batch[0], shape.batch[1] + 1, dtype=torch.int64)
    models = models_of(shape, "fp32", ranks, tokens)
    with tempfile.TemporaryDirectory(prefix="bench_checkpoint_") as folder:
        variants: dict[str, Callable[[], None]] = {}
        for at, (key, model) in enumerate(models.items()):
            root = Path(folder) / str(at)
            root.mkdir()
            variants |= {f"{key}: save": partial(_save, root, model), f"{key}: load": partial(_load, root, model)}
            variants[f"{key}: plain write"] = partial(_write, Path(folder) / "plain", _bytes(model))
            _save(root, model)
        times = measure(variants, {}, repeats)
    print(f"{name}, fp32, {repeats} repeats; saves hash and sync every file, loads verify every hash")
    ratios = {}
    for key, model in models.items():
        wall = {part: statistics.median(taken for _, taken in times[f"{key}: {part}"]) for part in ("save", "load")}
        ratios[key] = {part: ratio(times, f"{key}: {part}", f"{key}: plain write") for part in ("save", "load")}
        print(
            f"  {key:14s} {_bytes(model) / 2**20:7.0f} MiB  save {wall['save']:6.2f} s, "
            f"{ratios[key]['save']['wall']:.2f} of a plain write; load {wall['load']:6.2f} s, "
            f"{ratios[key]['load']['wall']:.2f} of it"
        )
    return {"model": name, "bytes": {key: _bytes(model) for key, model in models.items()}, "times": times,
            "ratios": ratios}  # fmt: skip


def _bytes(model: Ours) -> int:
    tensors = model.state.checkpoint_tensors().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _save(root: Path, model: Ours) -> None:
    state = model.state
    save(root, 1, state.checkpoint_tensors(), state.facts(model.ranks), identity={}, group=model.ranks.saving)


def _load(root: Path, model: Ours) -> None:
    found = open_checkpoint(root / "step_00000001", group=model.ranks.control)
    load_tensors(found.path, model.state.checkpoint_tensors(), group=model.ranks.control)


def _write(path: Path, size: int) -> None:
    """One file of ``size`` bytes, on the disk when this returns."""
    block = bytes(2**24)
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])
        file.flush()
        os.fsync(file.fileno())
