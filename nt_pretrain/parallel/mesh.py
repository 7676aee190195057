"""The ranks of a run: process group, device mesh, and one way to leave."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from nt_pretrain.config.schema import Config


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Attributes:
        mesh: 1-D mesh over all ranks, axis ``shard``.
        control: gloo group for CPU tensors: agreement on stopping, counts, checkpoints. Costs no device time.
    """

    rank: int
    world: int
    local_rank: int
    device: torch.device
    mesh: DeviceMesh
    control: dist.ProcessGroup

    @property
    def group(self) -> dist.ProcessGroup:
        """Group of the mesh: the ranks over which weights are sharded."""
        return self.mesh.get_group()


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


def connect(config: Config) -> Ranks:
    """Join the process group (NCCL and gloo on CUDA, gloo on CPU) and lay the mesh over it.

    Without torchrun a single process makes a group of its own, so that there is one path for every world size.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device_type = "cuda" if wants_cuda(config) else "cpu"
    if device_type == "cuda":
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    torch.set_num_threads(threads_of_rank(config))
    timeout = datetime.timedelta(seconds=config.parallel.first_timeout_seconds)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    mesh = init_device_mesh(device_type, (dist.get_world_size(),), mesh_dim_names=("shard",))
    control = dist.new_group(backend="gloo", timeout=timeout)
    device = torch.device(device_type, torch.cuda.current_device()) if device_type == "cuda" else torch.device("cpu")
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, device, mesh, control)


def tighten_timeout(ranks: Ranks, seconds: int) -> None:
    """Once the first step is done a collective that takes longer than ``seconds`` means a lost rank."""
    timeout = datetime.timedelta(seconds=seconds)
    for group in {ranks.group, ranks.control, dist.group.WORLD}:
        dist.distributed_c10d._set_pg_timeout(timeout, group)


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


def disconnect() -> None:
    """Leave the process group after everyone has arrived here."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
