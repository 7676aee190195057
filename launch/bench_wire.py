"""Bytes on the wire per step by density: dense matrices with masks against layers of which only active blocks exist.

torchrun --standalone --nproc-per-node 4 launch/bench_wire.py configs/llama20m.yaml --densities 1 0.5 0.2 0.1

All variants run in the same processes, one after the other; tokens are random. Prints, per rank, the bytes of one step
and what a topology update adds to its step (dense gradients of the layers that grow included): *asked* is what our
collectives send by ring algorithms, *crossed* what passed the network interface, headers included. What else crosses
it meanwhile is counted too: on a machine that is not quiet run it in a network of its own,
unshare --net sh -c 'ip link set lo up && torchrun ...'.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from bench_mesh import Running, counted, growth_counted

from nt_pretrain.config.checks import problems
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.load import load_config
from nt_pretrain.config.schema import Config
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.parallel.mesh import leave, world_size_of_launcher
from nt_pretrain.train.plan import readable_bytes
from nt_pretrain.train.state import budgets_at


@dataclass(frozen=True)
class Wire:
    """Bytes per rank, asked and crossed.

    Attributes:
        density: of the sparse layers, as it became.
        share: of all parameters, what is active.
    """

    backend: str
    density: float
    share: float
    step: tuple[int, int]
    update: tuple[int, int]


def variants(options: argparse.Namespace) -> list[Config]:
    """The dense model where density 1 is asked for, and both backends at every other density."""
    found = []
    for density in options.densities:
        for backend in ("masked", "block") if density < 1 else ("masked",):
            lines = [f"sparsity.unit={options.unit}", "sparsity.balance=line", f"sparsity.backend={backend}"]
            sparse = lines if density < 1 else ["sparsity.unit=1", "sparsity.balance=layer", "sparsity.backend=masked"]
            found.append(load_config(options.config, [*options.set, f"sparsity.density={density}", *sparse]))
    return found


def measured(config: Config) -> Wire:
    running = Running(config)
    step = counted(running.gradients, running.ranks)
    update = growth_counted(running, step) if running.state.budgets else (0, 0)
    shapes, budgets = shapes_of(config.model), budgets_at(config, shapes_of(config.model), 0)
    active = sum(each.active * each.unit**2 for each in budgets.values())
    sparse, total = (sum(torch.Size(shapes[name]).numel() for name in names) for names in (budgets, shapes))
    return Wire(
        config.sparsity.backend if budgets else "dense", active / sparse if budgets else 1.0,
        (total - sparse + active) / total, step, update,
    )  # fmt: skip


def line(found: Wire, dense: Wire | None, every: int) -> str:
    ratio = f"{found.step[0] / dense.step[0]:.3f}" if dense is not None else ""
    whole = readable_bytes(found.step[0] + found.update[0] // every)
    cells = [found.backend, f"{found.density:.4f}", f"{found.share:.4f}", readable_bytes(found.step[0]), ratio]
    cells += [readable_bytes(found.step[1]), *map(readable_bytes, found.update), whole]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--densities", nargs="+", type=float, default=[1.0, 0.5, 0.2, 0.1])
    parser.add_argument("--unit", type=int, choices=[16, 32, 64, 128], default=16, help="side of a block (%(default)s)")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="section.key=value", help="options of the configuration"
    )
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    options = parser.parse_args()
    configs, world = variants(options), world_size_of_launcher()
    if world == 1:
        raise ConfigErrors(["one rank sends nothing; start several: torchrun --standalone --nproc-per-node 4 ..."])
    if wrong := [each for config in configs for each in problems(config, world_size=world)]:
        raise ConfigErrors(sorted(set(wrong)))
    found = []
    for config in configs:
        found.append(measured(config))
        gc.collect()
    if dist.get_rank() == 0:
        every = configs[0].sparsity.update_every
        dense = next((each for each in found if each.backend == "dense"), None)
        print(f"{world} ranks, torch {torch.__version__}, blocks of {options.unit}, an update every {every} steps")
        print(
            "| backend | density | active | step, asked | of dense | crossed | update, asked | crossed | on average |"
        )
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for each in found:
            print(line(each, dense, every))
        if options.json:
            options.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
        leave(0, together=True)
    except ConfigErrors as error:
        print(error, file=sys.stderr)
        sys.exit(2)
