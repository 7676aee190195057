"""The ranks of a run: process groups, device meshes, and one way to leave.

Ranks form a mesh replicate x shard x head x tensor (:mod:`nt_pretrain.config.mesh`). The trunk is sharded along shard
and head together, each head along shard inside its own group of ranks; docs/DISTRIBUTED.md has the picture.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from nt_pretrain.config.mesh import MeshSizes, mesh_sizes
from nt_pretrain.config.schema import Config

AXES = ("replicate", "shard", "head", "tensor")


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Attributes:
        place: this rank's coordinate on each axis.
        trunk_mesh: replicate x shard x tensor, where shard is shard and head of the mesh together.
        heads_mesh: replicate x shard x head x tensor.
        trunk_group: ranks among which one copy of the trunk is divided. One copy of everything is divided among them.
        heads_group: ranks among which one copy of this rank's heads is divided.
        head_group: ranks that own different heads and are otherwise in the same place.
        tensor_group: ranks that share this rank's matrix products.
        replica_group: ranks that hold the same shards.
        same_heads_group: ranks that hold something of the same heads.
        control: gloo group of all for CPU tensors: agreement on stopping, counts. Costs no device time.
        saving: another one, of nobody but the writer of checkpoints, which may run in a thread of its own.
    """

    rank: int
    world: int
    local_rank: int
    device: torch.device
    sizes: MeshSizes
    place: dict[str, int]
    trunk_mesh: DeviceMesh
    heads_mesh: DeviceMesh
    trunk_group: dist.ProcessGroup
    heads_group: dist.ProcessGroup
    head_group: dist.ProcessGroup
    tensor_group: dist.ProcessGroup
    replica_group: dist.ProcessGroup
    same_heads_group: dist.ProcessGroup
    control: dist.ProcessGroup
    saving: dist.ProcessGroup

    @property
    def data_rank(self) -> int:
        """Number of this rank among those that read different data; tensor ranks share theirs."""
        return self.rank // self.sizes.tensor

    @property
    def everyone(self) -> dist.ProcessGroup:
        """The group of all ranks, for tensors on their device."""
        assert dist.group.WORLD is not None
        return dist.group.WORLD

    @property
    def counts(self) -> bool:
        """Whether this rank speaks for what its tensor group holds in common, in sums over all ranks."""
        return self.place["tensor"] == 0

    def own_heads(self, heads: int) -> range:
        """Numbers of the heads that this rank's group owns."""
        each = heads // self.sizes.head
        return range(each * self.place["head"], each * (self.place["head"] + 1))


def world_size_of_launcher() -> int:
    """Number of ranks that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank_of_launcher() -> int:
    """Rank that torchrun gave this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def launcher_problems() -> list[str]:
    """What is wrong with how torchrun was started, one line each.

    torchrun by default keeps one store for all attempts: restarted ranks read the addresses of the dead ones, and a
    node that joins later is never told where the store is. Each restart would fail, perhaps after weeks, so it is told
    now.
    """
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts == 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return []
    return [
        f"torchrun --max-restarts {restarts}: no restart can work without TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the "
        "environment of torchrun; on every node: export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 and run the same command "
        "(docs/CLUSTER.md)"
    ]


def device_problems(config: Config) -> list[str]:
    """What the devices of this node are short of, one line each."""
    if not wants_cuda(config):
        return []
    if not torch.cuda.is_available():
        return ["run.device: cuda, but torch finds no CUDA device here; set run.device=auto or cpu"]
    ranks, devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if ranks > devices:
        return [
            f"torchrun --nproc-per-node {ranks}: this node has {devices} CUDA device(s), and NCCL takes one rank for "
            f"each; start --nproc-per-node {devices}, or set run.device=cpu"
        ]
    return []


def connect(config: Config) -> Ranks:
    """Join the process group (NCCL and gloo on CUDA, gloo on CPU) and lay the mesh over it.

    Without torchrun a single process makes a group of its own, so that there is one path for every world size.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device_type = "cuda" if wants_cuda(config) else "cpu"
    if device_type == "cuda":
        torch.cuda.set_device(local_rank)
    torch.set_num_threads(threads_of_rank(config))
    timeout = datetime.timedelta(seconds=config.parallel.first_timeout_seconds)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    return lay_mesh(config, device_type, local_rank, timeout)


def lay_mesh(
    config: Config, device_type: str, local_rank: int, timeout: datetime.timedelta, *, control: str = "gloo"
) -> Ranks:
    """The mesh of ``config`` over the ranks of the default process group. Collective.

    Args:
        control: backend of the groups for CPU tensors.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    sizes = mesh_sizes(config, world)
    assert sizes.world == world, f"{sizes} does not make {world} ranks"
    shape = (sizes.replicate, sizes.shard, sizes.head, sizes.tensor)
    numbers = torch.arange(world).view(shape)
    place = dict(zip(AXES, (int(at[0]) for at in torch.nonzero(numbers == rank, as_tuple=True)), strict=True))

    def group_along(*axes: str) -> dist.ProcessGroup:
        """The group of ranks that differ from this one on ``axes`` only."""
        order = [AXES.index(axis) for axis in AXES if axis not in axes] + [AXES.index(axis) for axis in axes]
        width = torch.tensor([shape[AXES.index(axis)] for axis in axes]).prod()
        lines = numbers.permute(order).reshape(-1, int(width)).tolist()
        own, _ = dist.new_subgroups_by_enumeration(lines, timeout=timeout)
        assert own is not None
        return own

    trunk_shape = (sizes.replicate, sizes.shard * sizes.head, sizes.tensor)
    return Ranks(
        rank=rank,
        world=world,
        local_rank=local_rank,
        device=torch.device(device_type, torch.cuda.current_device()) if device_type == "cuda" else torch.device("cpu"),
        sizes=sizes,
        place=place,
        trunk_mesh=init_device_mesh(device_type, trunk_shape, mesh_dim_names=("replicate", "shard", "tensor")),
        heads_mesh=init_device_mesh(device_type, shape, mesh_dim_names=AXES),
        trunk_group=group_along("shard", "head", "tensor"),
        heads_group=group_along("shard", "tensor"),
        head_group=group_along("head"),
        tensor_group=group_along("tensor"),
        replica_group=group_along("replicate"),
        same_heads_group=group_along("replicate", "shard", "tensor"),
        control=dist.new_group(backend=control, timeout=timeout),
        saving=dist.new_group(backend=control, timeout=timeout),
    )


def set_timeout(ranks: Ranks, seconds: int) -> None:
    """From now on a collective that takes longer than ``seconds`` means a lost rank."""
    timeout = datetime.timedelta(seconds=seconds)
    for group in [*groups_of(ranks), ranks.saving]:
        dist.distributed_c10d._set_pg_timeout(timeout, group)


def groups_of(ranks: Ranks) -> list[dist.ProcessGroup]:
    """All process groups of this rank that training uses; every rank has as many and uses them as often."""
    own = {ranks.trunk_group, ranks.heads_group, ranks.head_group, ranks.tensor_group, ranks.replica_group}
    of_meshes = {group for mesh in (ranks.trunk_mesh, ranks.heads_mesh) for group in mesh.get_all_groups()}
    return list(own | of_meshes | {ranks.same_heads_group, ranks.control, ranks.everyone})


def wants_cuda(config: Config) -> bool:
    return config.run.device == "cuda" or (config.run.device == "auto" and torch.cuda.is_available())


def threads_of_rank(config: Config) -> int:
    """CPU threads of this rank.

    With ``parallel.deterministic_reduce`` the default is one: the order in which a matrix product adds its terms may
    depend on the number of threads, and the number of ranks on a machine must not change it.
    """
    if config.run.threads_per_rank:
        return config.run.threads_per_rank
    if config.parallel.deterministic_reduce:
        return 1
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // local_world)


def leave(code: int, *, together: bool) -> NoReturn:
    """The one way out of a process that was in a process group.

    gloo's threads can abort a process that ends the slow way after all its work is done, so it ends at once.

    Args:
        together: wait for the others, which come here too; a rank that has failed does not.
    """
    if together and dist.is_initialized():
        with contextlib.suppress(RuntimeError):  # all is done; who has left a little early must not make it a failure
            dist.barrier()
            dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
