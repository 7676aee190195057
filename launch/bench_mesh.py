"""Bytes and seconds of meshes, side by side.

torchrun --standalone --nproc-per-node 4 launch/bench_mesh.py configs/demo.yaml shard=4 replicate=2,shard=2

All meshes (axes replicate, shard, head, tensor) run in the same processes, in turn, every second round backwards;
tokens are random. Prints, per rank: seconds of a step and of a topology update (medians), the bytes that our
collectives ask for (ring algorithms) and those that crossed the network interface, headers included. An update is what
it adds to its step: where only active blocks exist, the dense gradients of the layers that grow too.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from nt_pretrain.config.checks import problems
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.load import load_config
from nt_pretrain.config.schema import Config
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.growth import GrowthScores
from nt_pretrain.parallel.mesh import Ranks, connect, leave, world_size_of_launcher
from nt_pretrain.rehearsal.watch import Watch
from nt_pretrain.train.change import change_topology, growth_scores
from nt_pretrain.train.plan import readable_bytes
from nt_pretrain.train.state import TrainState, fresh_state
from nt_pretrain.train.step import accumulate_gradients, apply_gradients


@dataclass
class Found:
    """Of one mesh: seconds of steps and updates; bytes per rank of one step and one update, asked and crossed."""

    steps: list[float] = field(default_factory=list)
    updates: list[float] = field(default_factory=list)
    step_bytes: tuple[int, int] = (0, 0)
    update_bytes: tuple[int, int] = (0, 0)


class Running:
    """A mesh with its state and a batch of random tokens."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.ranks: Ranks = connect(config)
        self.state: TrainState = fresh_state(config, self.ranks)
        shape = (config.train.global_batch // self.ranks.sizes.data, config.data.sequence_length + 1)
        generator = torch.Generator().manual_seed(self.ranks.data_rank)
        self.tokens = torch.randint(0, config.model.vocab_size, shape, generator=generator)
        self.scores: GrowthScores | None = None

    def gradients(self) -> None:
        batch = Inputs.of_text(self.tokens, torch.zeros_like(self.tokens))
        accumulate_gradients(self.state.model, self.config, batch, self.ranks, self.scores)

    def grow_next(self) -> None:
        """Let the next gradients be those of a step after which blocks grow."""
        self.scores = growth_scores(self.state, self.config, self.ranks, self.config.sparsity.update_every)

    def update(self) -> None:
        every = self.config.sparsity.update_every
        change_topology(self.state, self.config, self.ranks, every, self.scores)
        self.scores = None

    def apply(self) -> None:
        apply_gradients(self.state.optimizer, self.state.layers, self.config, self.ranks, self.config.optim.lr)


def sent_by_interfaces() -> int:
    """Bytes that this machine's network interfaces have sent; ranks of one machine talk over one of them."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    return sum(int(line.split(":")[1].split()[8]) for line in lines)


def counted(work: Callable[[], None], ranks: Ranks) -> tuple[int, int]:
    """Bytes that ``work`` asks for on this rank, and bytes that crossed the network, divided by ranks."""
    dist.barrier(group=ranks.control)
    before = sent_by_interfaces()
    dist.barrier(group=ranks.control)
    with Watch() as watch:
        work()
    dist.barrier(group=ranks.control)
    crossed = (sent_by_interfaces() - before) // ranks.world
    return sum(each.bytes for each in watch.traffic.values()), crossed


def growth_counted(running: Running, step: tuple[int, int]) -> tuple[int, int]:
    """What a topology update adds to ``step``, the bytes of an ordinary one."""

    def work() -> None:
        running.gradients()
        running.update()

    running.apply()
    running.grow_next()
    asked, crossed = counted(work, running.ranks)
    return asked - step[0], crossed - step[1]


def timed(work: Callable[[], None], ranks: Ranks) -> float:
    dist.barrier(group=ranks.control)
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def one_round(config: Config, found: Found) -> None:
    """A mesh from its beginning: one step in which bytes are counted, three that are timed."""
    running = Running(config)
    ranks, updates = running.ranks, bool(running.state.budgets)
    found.step_bytes = counted(running.gradients, ranks)
    if updates:
        found.update_bytes = growth_counted(running, found.step_bytes)
    running.apply()
    for _ in range(3):
        gradients = timed(running.gradients, ranks)
        found.steps.append(gradients + timed(running.apply, ranks))
        running.grow_next()
        more = timed(running.gradients, ranks) - gradients if running.scores is not None else 0.0
        if updates and running.scores is None:
            running.gradients()
        found.updates.append(timed(running.update, ranks) + more if updates else 0.0)
        running.apply()


def mesh_of(text: str) -> list[str]:
    return [f"parallel.{part}" for part in text.split(",")]


def line(name: str, found: Found, every: int) -> str:
    step, update = statistics.median(found.steps), statistics.median(found.updates)
    sizes = [readable_bytes(size) for size in (*found.step_bytes, *found.update_bytes)]
    cells = [name, f"{step:.3f}", *sizes[:2], f"{update:.3f}", *sizes[2:], f"{update / every / step:.2%}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("meshes", nargs="+", metavar="MESH", help="such as shard=4 or replicate=2,shard=2")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="section.key=value", help="options of the configuration"
    )
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    configs = {name: load_config(options.config, [*options.set, *mesh_of(name)]) for name in options.meshes}
    world = world_size_of_launcher()
    if wrong := [f"{name}: {each}" for name, config in configs.items() for each in problems(config, world_size=world)]:
        raise ConfigErrors(wrong)
    found = {name: Found() for name in configs}
    for turn in range(options.rounds):
        for name in configs if turn % 2 == 0 else reversed(configs):
            one_round(configs[name], found[name])
            gc.collect()
    every = next(iter(configs.values())).sparsity.update_every
    if dist.get_rank() == 0:
        print(f"{world} ranks, {torch.get_num_threads()} threads each, torch {torch.__version__}")
        print("| mesh | step, s | asked | crossed | update, s | asked | crossed | share |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for name in configs:
            print(line(name, found[name], every))


if __name__ == "__main__":
    try:
        main()
        leave(0, together=True)
    except ConfigErrors as error:
        print(error, file=sys.stderr)
        sys.exit(2)
