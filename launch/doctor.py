"""Rehearse a run on a machine that is not here: python launch/doctor.py CONFIG.yaml --world 32 --gpu h100-80g
Which backend and unit is fastest on this one:  python launch/doctor.py CONFIG.yaml --here

--world places the model on a pretended mesh and runs one step without values: memory and traffic of a rank are counted,
the time is forecast from stated rates. Several worlds print a Markdown table. Exit code 0: fits; 2: an error of the
configuration, or too little memory.

--here says which kernels run on this machine and why others do not, times the sparse matrices of the configuration for
about 30 seconds (dense, masked, blocks, single weights) and ends with the options that make the fastest of them run.
"""

from __future__ import annotations

import argparse
import shlex
import sys

import torch

from nt_pretrain.config.checks import problems
from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.load import load_config
from nt_pretrain.config.schema import Config
from nt_pretrain.observe.exitcodes import ExitCode
from nt_pretrain.parallel.mesh import threads_of_rank
from nt_pretrain.rehearsal import advice
from nt_pretrain.rehearsal.calibrate import calibrate
from nt_pretrain.rehearsal.forecast import HOP, LATENCY, RATE_SHARE, Assumptions, forecast
from nt_pretrain.rehearsal.machines import MACHINES, Machine
from nt_pretrain.rehearsal.matrices import NothingToTime, matrices_of
from nt_pretrain.rehearsal.report import fits, growth, in_full
from nt_pretrain.rehearsal.step import rehearse
from nt_pretrain.sparsity.capabilities import capabilities, report
from nt_pretrain.train.phase_plan import heaviest


def worlds(text: str) -> list[int]:
    """Numbers of ranks from a comma-separated list."""
    found = [int(word) for word in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def positive(text: str) -> int:
    """A whole number from 1."""
    return worlds(text)[0]


def share(text: str) -> float:
    """A number above 0, at most 1."""
    number = float(text)
    if not 0 < number <= 1:
        raise ValueError(text)
    return number


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of the run, e.g. configs/llama350m.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="options that replace those of the file"
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--world", type=worlds, metavar="N[,N...]", help="rehearse with N ranks; several make a table")
    where.add_argument("--here", action="store_true", help="time the sparse matrices on this machine")
    parser.add_argument("--seconds", type=positive, default=30, help="for --here, about (default %(default)s)")
    parser.add_argument("--gpu", choices=MACHINES, default="h100-80g", help="device and links (default %(default)s)")
    parser.add_argument("--gpus-per-node", type=positive, help="devices that share fast links (default 8)")
    parser.add_argument("--network-gbit", type=positive, help="network of one device, Gbit/s (default: 400 or 200)")
    parser.add_argument("--efficiency", type=share, default=0.4, help="share of the peak that products reach (0.4)")
    parser.add_argument("--grow-batch", action="store_true", help="give each rank one micro-batch where there is less")
    return parser.parse_intermixed_args(arguments)


def machine_of(options: argparse.Namespace) -> Machine:
    """The chosen device with the links that were given."""
    chosen = MACHINES[options.gpu]
    return Machine(
        chosen.name, chosen.memory, chosen.memory_rate, chosen.link,
        network=options.network_gbit * 1e9 / 8 if options.network_gbit else chosen.network,
        devices_per_node=options.gpus_per_node or chosen.devices_per_node,
    )  # fmt: skip


def configuration(options: argparse.Namespace, world: int) -> Config:
    """The configuration for ``world`` ranks, of a method that of its heaviest phase.

    Raises:
        ConfigErrors: something is wrong.
    """
    config = load_config(options.config, options.overrides)
    config = config.model_copy(update={"run": config.run.model_copy(update={"device": "cuda"})})
    parallel, train = config.parallel, config.train
    readers = world // parallel.tensor
    if options.grow_batch and train.global_batch < readers * train.micro_batch:
        grown = {"global_batch": readers * train.micro_batch}
        data = config.data.model_copy(update={"lanes": readers})
        config = config.model_copy(update={"train": train.model_copy(update=grown), "data": data})
    wrong = problems(config, world_size=world)
    if parallel.cpu_offload:
        wrong.append("parallel.cpu_offload: what lies in the host's memory is not rehearsed; leave it out")
    if wrong:
        raise ConfigErrors([f"{world} ranks: {each}" for each in wrong])
    # A method may train several models, one after the other: what does not fit is told of the largest.
    return heaviest(config, world).config


def _assumptions(options: argparse.Namespace, machine: Machine, config: Config) -> str:
    blocks = (
        "sparsity.backend: block: products of blocks are forecast at the efficiency of dense ones, of which they reach "
        "less: the step is a lower bound; give a lower --efficiency, or time them on such a device (--here).\n"
    )
    phase = f"rehearsed: the phase of method {config.method.name} that takes the most memory.\n"
    if config.method.name == "bridge":
        phase += (
            "left out: the ends of a curve and a teacher, beside the state; --dry-run of launch/pretrain.py has them.\n"
        )
    return (
        (phase if config.method.name != "none" else "")
        + (blocks if config.sparsity.backend == "block" else "")
        + (
            f"assumed: products at {options.efficiency:.0%} of the peak, memory and links at {RATE_SHARE:.0%} of their "
            f"rates, {LATENCY * 1e6:.0f} us a collective and {HOP * 1e6:.0f} us a rank it passes, nodes of "
            f"{machine.devices_per_node}, network {machine.network * 8e-9:g} Gbit/s a device. Measure before you buy."
        )
    )


def here(options: argparse.Namespace) -> int:
    """Say what runs on this machine and which way to multiply is the fastest here; returns the exit code."""
    try:
        config = load_config(options.config, options.overrides)
        if wrong := problems(config):
            raise ConfigErrors(wrong)
        config = heaviest(config, 1).config
        torch.set_num_threads(threads_of_rank(config))
        matrices_of(config)  # what is wrong with it is told before anything takes time
        found = capabilities()
        print(f"{report(found)}\n", flush=True)
        timed = calibrate(config, found, options.seconds, lambda text: print(text, file=sys.stderr, flush=True))
    except (ConfigErrors, NothingToTime) as error:
        print(error, file=sys.stderr)
        return ExitCode.CONFIGURATION
    print(advice.in_full(config, timed))
    return ExitCode.FINISHED


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    options = parse(arguments)
    if options.here:
        return here(options)
    machine = machine_of(options)
    try:
        configs = [(world, configuration(options, world)) for world in options.world]
    except ConfigErrors as error:
        print(error, file=sys.stderr)
        return ExitCode.CONFIGURATION
    found = []
    for world, config in configs:
        if len(configs) > 1:
            print(f"rehearsing {world:,} ranks", file=sys.stderr)
        rehearsal = rehearse(config, world)
        found.append((rehearsal, forecast(config, rehearsal, machine, Assumptions(options.efficiency))))
    print(in_full(*found[0], machine) if len(found) == 1 else growth(found, machine))
    print(f"\n{_assumptions(options, machine, configs[0][1])}")
    nodes = -(-options.world[0] // machine.devices_per_node)
    launcher = f"torchrun --nnodes {nodes} --nproc-per-node {min(options.world[0], machine.devices_per_node)}"
    print(f"to train: {shlex.join([*launcher.split(), 'launch/pretrain.py', options.config, *options.overrides])}")
    return ExitCode.FINISHED if all(fits(each, machine) for each, _ in found) else ExitCode.CONFIGURATION


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
