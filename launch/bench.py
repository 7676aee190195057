"""Side-by-side timings: python launch/bench.py step [--model 9m] [--precision fp32] [--repeats 7]
                                        launch/bench.py images [--jpegs FOLDER] [--repeats 7]

`step` times one optimizer step of 4 x 256 tokens on one core, all variants interleaved in one process (each repeat runs
every variant, every second repeat in reverse order), and prints CPU seconds, wall seconds, and the median of the ratios
within a repeat with their spread:

  sparse M=3   our masked step at density .9          against   our TreeNet, the same model at density 1
  dense M=1    our plain model                        against   transformers' LlamaForCausalLM, if it is installed
  update       one topology update of the M=3 model   against   the sparse step

The peer gets the same shape, tokens, precision (bf16 by autocast over fp32 weights, as ours), fused AdamW and clipping.

`images` times, in the same way, a JPEG to a random crop of 224 x 224, ours with each decoder against Pillow's decoding,
crop and resize of the same boxes (what torchvision does). Without --jpegs the pictures are made here, 500 x 375 as
ImageNet's are on average and 1600 x 1200.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from nt_pretrain.config.schema import (
    Config,
    ModelSection,
    OptimSection,
    RunSection,
    SparsitySection,
    TrainSection,
)
from nt_pretrain.counter_random import key_of
from nt_pretrain.data import images
from nt_pretrain.data.augment import random_box, training_picture
from nt_pretrain.parallel.mesh import Ranks, connect, leave
from nt_pretrain.train.state import TrainState, fresh_state
from nt_pretrain.train.step import accumulate_gradients, apply_gradients
from nt_pretrain.train.topology import update_topology

SHAPES = {  # hidden, intermediate, layers, attention heads, blocks in head (NeuroTrails, arXiv 2505.17909, code)
    "9m": (128, 352, 4, 4, 2),
    "20m": (256, 688, 4, 4, 2),
    "60m": (512, 1376, 8, 8, 5),
}
SEQUENCES, LENGTH, VOCABULARY = 4, 256, 32_000


def our_config(model: str, precision: str, *, heads: int, density: float) -> Config:
    hidden, intermediate, layers, attention_heads, blocks = SHAPES[model]
    return Config(
        run=RunSection(device="cpu", threads_per_rank=torch.get_num_threads()),
        model=ModelSection(
            vocab_size=VOCABULARY, hidden=hidden, intermediate=intermediate, layers=layers,
            attention_heads=attention_heads, heads=heads, blocks_in_head=blocks if heads > 1 else 0,
        ),
        sparsity=SparsitySection(density=density),
        train=TrainSection(global_batch=SEQUENCES, micro_batch=SEQUENCES, precision=precision),
        optim=OptimSection(clip=1.0),
    )  # fmt: skip


class Ours:
    """One of our models with everything a step needs."""

    def __init__(self, config: Config, ranks: Ranks, tokens: torch.Tensor) -> None:
        self.config, self.ranks, self.tokens = config, ranks, tokens
        self.documents = torch.zeros_like(tokens)
        self.state: TrainState = fresh_state(config, ranks)

    def step(self) -> None:
        self.gradients()
        apply_gradients(self.state.optimizer, self.state.layers, self.config, self.ranks, 1e-3)

    def gradients(self) -> None:
        accumulate_gradients(self.state.model, self.config, self.tokens, self.documents, self.ranks)

    def update(self) -> None:
        """The topology update alone; gradients must be there."""
        update_topology(
            self.state.layers, self.state.layer_tensors(), self.config, self.ranks, targets=self.state.budgets,
            prune_rate=0.5, step=50,
        )  # fmt: skip


def peer_step(model: str, precision: str, tokens: torch.Tensor) -> Callable[[], None] | None:
    """A training step of transformers' LlamaForCausalLM of the same shape; None if transformers is not installed."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return None
    hidden, intermediate, layers, attention_heads, _ = SHAPES[model]
    peer: nn.Module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
            num_attention_heads=attention_heads, tie_word_embeddings=False, use_cache=False,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3, fused=True)
    inputs = tokens[:, :LENGTH].long()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = peer(input_ids=inputs, labels=inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(function: Callable[[], None]) -> tuple[float, float]:
    """(CPU seconds of this process, wall seconds) of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(
    variants: dict[str, Callable[[], None]], before: dict[str, Callable[[], None]], repeats: int
) -> dict[str, list[tuple[float, float]]]:
    """``repeats`` timings of each variant, interleaved in alternating order; ``before`` runs untimed ahead of one."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        names = list(variants) if repeat % 2 else list(reversed(variants))
        for name in names:
            before.get(name, lambda: None)()
            taken = timed(variants[name])
            if repeat:  # the first round warms up
                times[name].append(taken)
        print(f"\rround {repeat} of {repeats}", end="", flush=True)
    print("\r" + " " * 30 + "\r", end="")
    return times


def ratio(times: dict[str, list[tuple[float, float]]], top: str, bottom: str) -> dict[str, float]:
    """Median, least and largest of the CPU-second ratios within a repeat, and the median wall ratio."""
    cpu = [a[0] / b[0] for a, b in zip(times[top], times[bottom], strict=True)]
    wall = [a[1] / b[1] for a, b in zip(times[top], times[bottom], strict=True)]
    return {"cpu": statistics.median(cpu), "least": min(cpu), "largest": max(cpu), "wall": statistics.median(wall)}


def bench_step(model: str, precision: str, repeats: int) -> dict[str, object]:
    """Run all variants and print the table; returns it for JSON."""
    ranks = connect(our_config(model, precision, heads=1, density=1.0))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH + 1), generator=generator)
    sparse = Ours(our_config(model, precision, heads=3, density=0.9), ranks, tokens)
    tree = Ours(our_config(model, precision, heads=3, density=1.0), ranks, tokens)
    dense = Ours(our_config(model, precision, heads=1, density=1.0), ranks, tokens)
    variants = {"sparse M=3": sparse.step, "TreeNet M=3": tree.step, "update": sparse.update, "dense M=1": dense.step}
    peer = peer_step(model, precision, tokens)
    if peer is not None:
        variants["transformers"] = peer
    times = measure(variants, {"update": sparse.gradients}, repeats)
    pairs = [("sparse M=3", "TreeNet M=3"), ("update", "sparse M=3"), ("sparse M=3", "dense M=1")]
    pairs += [("dense M=1", "transformers")] if peer is not None else []
    print(f"{model} {precision}, {SEQUENCES} x {LENGTH} tokens, {torch.get_num_threads()} thread(s), {repeats} repeats")
    for name, taken in times.items():
        cpu, wall = (statistics.median(each) for each in zip(*taken, strict=True))
        print(f"  {name:14s} {cpu:7.3f} CPU s  {wall:7.3f} wall s (medians)")
    ratios = {f"{top} / {bottom}": ratio(times, top, bottom) for top, bottom in pairs}
    for name, found in ratios.items():
        spread = f"{found['least']:.3f} to {found['largest']:.3f}"
        print(f"  {name:26s} {found['cpu']:.3f} in CPU seconds ({spread}), {found['wall']:.3f} in wall seconds")
    if peer is None:
        print("  transformers is not installed (extra `hf`): no peer timed")
    return {"model": model, "precision": precision, "times": times, "ratios": ratios, "machine": platform.processor()}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "images"])
    parser.add_argument("--model", choices=list(SHAPES), default="9m")
    parser.add_argument("--precision", choices=["fp32", "bf16"], action="append")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jpegs", type=Path, help="folder of JPEG files for `images`")
    parser.add_argument("--json", type=Path, help="also write all timings to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "images":
        results = [bench_images(name, jpegs, options.repeats) for name, jpegs in jpeg_sets(options.jpegs).items()]
    else:
        results = [bench_step(options.model, p, options.repeats) for p in options.precision or ["fp32", "bf16"]]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print("figures of the reference machine: docs/PERFORMANCE.md")


if __name__ == "__main__":
    main()
    leave(0, together=True)
