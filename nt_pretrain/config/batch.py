"""How the global batch is divided: over ranks, into micro-batches, into lanes; and which numbers fit."""

from __future__ import annotations

from nt_pretrain.config.mesh import mesh_sizes
from nt_pretrain.config.numbers import divisors, listed, multiples_near
from nt_pretrain.config.schema import Config


def batch_problems(config: Config, world_size: int | None) -> list[str]:
    """What of global batch, micro-batch, lanes and world size does not fit together, one line each."""
    batch, micro, lanes = config.train.global_batch, config.train.micro_batch, config.lanes
    if batch % lanes:
        # A wrong number of lanes would make every statement about world sizes wrong too.
        return [
            f"data.lanes: {lanes} does not divide train.global_batch {batch}; these do: {listed(divisors(batch))}; "
            "0 chooses"
        ]
    if batch % micro:
        return [
            f"train.global_batch: {batch} is not divisible by train.micro_batch {micro}; micro-batches that fit: "
            f"{listed(divisors(batch))}; nearest global batches that fit: {multiples_near(batch, micro)}"
        ]
    return [] if world_size is None else _world_problems(config, world_size)


def fitting_world_sizes(config: Config) -> list[int]:
    """World sizes at which this configuration can run as it is, ascending."""
    tensor = config.parallel.tensor
    sizes = divisors(config.train.global_batch // config.train.micro_batch)
    fitting = (size for size in sizes if config.lanes % size == 0 and _can_be_exact(config, size))
    return [size * tensor for size in fitting if mesh_sizes(config, size * tensor).world == size * tensor]


def _world_problems(config: Config, world_size: int) -> list[str]:
    """``world_size`` ranks read ``data`` different parts of the batch: ranks along the tensor axis share theirs."""
    batch, micro, lanes = config.train.global_batch, config.train.micro_batch, config.lanes
    sizes = mesh_sizes(config, world_size)
    if sizes.world != world_size:
        return []  # told by mesh_problems; what is said about batches would be wrong
    tensor, world_size = sizes.tensor, sizes.data
    ranks = f"{world_size} ranks" if tensor == 1 else f"{world_size} groups of {tensor} ranks"
    fitting = f"world sizes that fit this configuration: {listed(fitting_world_sizes(config))}"
    found = []
    if batch % (world_size * micro):
        per_rank, rest = divmod(batch, world_size)
        change = f"nearest global batches that fit: {multiples_near(batch, world_size * micro)}"
        if not rest:
            change = f"micro-batches that fit {ranks}: {listed(divisors(per_rank))}; {change}"
        found.append(
            f"train.global_batch: {batch} is not divisible by {ranks} x train.micro_batch {micro} = "
            f"{world_size * micro}; {fitting}; {change}"
        )
    if lanes % world_size:
        lane_counts = [count for count in divisors(batch) if count % world_size == 0]
        change = (
            f"; or set data.lanes to one of {listed(lane_counts)} (another order of the data)" if lane_counts else ""
        )
        found.append(f"data.lanes: {lanes} lanes of data cannot be divided among {ranks}; {fitting}{change}")
    if not _can_be_exact(config, world_size):
        found.append(
            f"parallel.deterministic_reduce: needs a power of two of ranks, since only then is an average over ranks "
            f"exact, not {world_size}; {fitting}. Keep train.micro_batch the same at every world size"
        )
    return found


def _can_be_exact(config: Config, world_size: int) -> bool:
    return not config.parallel.deterministic_reduce or world_size & (world_size - 1) == 0
