"""A training step on pictures, of our models and of a plain torch loop: the verb `pictures` of launch/bench.py."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from bench_timing import measure, ratio

from nt_pretrain.config.schema import Config
from nt_pretrain.data.augment import normalised
from nt_pretrain.models.network import vision_of
from nt_pretrain.models.vision import build_vision
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks, connect
from nt_pretrain.train.state import fresh_state
from nt_pretrain.train.step import accumulate_gradients, apply_gradients

SHAPES = {  # pixels of a side, classes, blocks in head, pictures of a step on a CPU
    "resnet20": (32, 10, 6, 64),
    "resnet50": (224, 1000, 10, 8),
}


def our_config(family: str, precision: str, batch: int, *, heads: int, density: float) -> Config:
    size, classes, blocks, _ = SHAPES[family]
    return Config.model_validate(
        {
            "run": {"threads_per_rank": torch.get_num_threads()},
            "model": {
                "family": family,
                "classes": classes,
                "heads": heads,
                "blocks_in_head": blocks if heads > 1 else 0,
            },
            "sparsity": {"density": density},
            "train": {"global_batch": batch, "micro_batch": batch, "precision": precision},
            "optim": {"algorithm": "sgd", "lr": 0.01, "weight_decay": 1e-4, "clip": 0.0},
            "data": {"picture_size": size, "picture_shorter": size},
        }
    )


def our_step(config: Config, ranks: Ranks, batch: Inputs) -> Callable[[], None]:
    state = fresh_state(config, ranks)

    def step() -> None:
        accumulate_gradients(state.model, config, batch, ranks)
        apply_gradients(state.optimizer, state.layers, config, ranks, config.optim.lr)
        _wait(ranks.device)

    return step


def plain_step(config: Config, device: torch.device, batch: Inputs) -> Callable[[], None]:
    """The same network and recipe as anyone would write them: no sharding, one optimizer over whole tensors."""
    network = build_vision(vision_of(config.model)).to(device)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=device.type == "cuda"
    )
    bf16 = config.train.precision == "bf16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = network.heads["0"](network.trunk(normalised(batch.inputs)))
        F.cross_entropy(logits.float(), batch.targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait(device)

    return step


def bench_pictures(family: str, precision: str, repeats: int, batch: int = 0) -> dict[str, object]:
    """Run all variants and print the table; returns it for JSON."""
    size, classes, _, on_cpu = SHAPES[family]
    batch = batch or (on_cpu if not torch.cuda.is_available() else 128)
    dense = our_config(family, precision, batch, heads=1, density=1.0)
    ranks = connect(dense)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, size, size), generator=generator).to(torch.uint8)
    labels = torch.randint(0, classes, (batch,), generator=generator)
    inputs = Inputs.of_labelled(pixels.contiguous(memory_format=torch.channels_last), labels).to(ranks.device)
    variants = {
        "plain torch": plain_step(dense, ranks.device, inputs),
        "dense M=1": our_step(dense, ranks, inputs),
        "TreeNet M=3": our_step(our_config(family, precision, batch, heads=3, density=1.0), ranks, inputs),
        "sparse M=3": our_step(our_config(family, precision, batch, heads=3, density=0.3), ranks, inputs),
    }
    times = measure(variants, {}, repeats)
    where = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "CPU"
    print(f"{family} {precision}, {batch} x {size} px, {where}, {torch.get_num_threads()} thread(s), {repeats} repeats")
    for name, taken in times.items():
        cpu, wall = (statistics.median(each) for each in zip(*taken, strict=True))
        print(f"  {name:12s} {cpu:8.3f} CPU s  {wall:8.3f} wall s  {batch / wall:9,.1f} images/s (medians)")
    pairs = [("dense M=1", "plain torch"), ("TreeNet M=3", "dense M=1"), ("sparse M=3", "TreeNet M=3")]
    ratios = {f"{top} / {bottom}": ratio(times, top, bottom) for top, bottom in pairs}
    for name, found in ratios.items():
        spread = f"{found['least']:.3f} to {found['largest']:.3f}"
        print(f"  {name:26s} {found['cpu']:.3f} in CPU seconds ({spread}), {found['wall']:.3f} in wall seconds")
    return {"family": family, "precision": precision, "batch": batch, "times": times, "ratios": ratios,
            "machine": platform.processor(), "device": where}  # fmt: skip


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
