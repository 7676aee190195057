"""A JPEG to a random crop, ours with each decoder and Pillow's: the verb `images` of launch/bench.py."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bench_timing import measure, ratio
from PIL import Image

from nt_pretrain.counter_random import key_of
from nt_pretrain.data import images
from nt_pretrain.data.augment import random_box, training_picture


def made_jpegs(height: int, width: int, count: int = 16) -> list[bytes]:
    """Pictures with about the bytes per pixel of photographs (0.25)."""
    draw = np.random.Generator(np.random.PCG64(0))
    found = []
    for _ in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (height // 12, width // 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int64)
        noisy = (smooth + draw.integers(-12, 13, (height, width, 1))).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=80)
        found.append(file.getvalue())
    return found


def bench_images(name: str, jpegs: list[bytes], repeats: int) -> dict[str, object]:
    """Print images per CPU-second of each way to decode and crop ``jpegs``; returns the timings for JSON."""
    decoder = images.simplejpeg

    def ours(chosen: object) -> Callable[[], None]:
        def run() -> None:
            images.simplejpeg = chosen
            for sample, content in enumerate(jpegs):
                training_picture(content, seed=0, epoch=0, sample=sample)
            images.simplejpeg = decoder

        return run

    def pillow() -> None:
        for sample, content in enumerate(jpegs):
            with Image.open(io.BytesIO(content)) as image:
                box = random_box(image.height, image.width, key_of(0, "picture", 0, sample))
                part = image.convert("RGB").crop((box.left, box.top, box.left + box.width, box.top + box.height))
            small = part.resize((224, 224), Image.Resampling.BILINEAR)
            if sample % 2:
                small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            torch.from_numpy(np.array(small))

    variants = {"ours, with Pillow": ours(None), "Pillow alone": pillow}
    if decoder is not None:
        variants = {"ours, with simplejpeg": ours(decoder), **variants}
    times = measure(variants, {}, repeats)
    size = sum(map(len, jpegs)) / len(jpegs) / 1e3
    print(f"{name}: {len(jpegs)} JPEGs of {size:.0f} kB on average to crops of 224, median of {repeats} rounds")
    for variant, taken in times.items():
        found = ratio(times, "Pillow alone", variant)
        rate = len(jpegs) / statistics.median(cpu for cpu, _ in taken)
        spread = f"{found['least']:.2f} to {found['largest']:.2f}"
        print(f"  {variant:22s} {rate:7.0f} images per CPU-second, {found['cpu']:.2f} x Pillow alone ({spread})")
    if decoder is None:
        print("  simplejpeg is not installed (extra `images`): not timed")
    return {"name": name, "times": times, "images": len(jpegs)}


def jpeg_sets(folder: Path | None) -> dict[str, list[bytes]]:
    """Name to files: those of a folder (at most 256 are read), or made ones of two sizes."""
    if folder is None:
        return {f"{width} x {height}": made_jpegs(height, width) for height, width in ((375, 500), (1200, 1600))}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:256]
    if not found:
        raise SystemExit(f"{folder}: no .jpg or .jpeg files in it")
    return {folder.name: [path.read_bytes() for path in found]}
