"""Tensors of a small run on a mesh, and functions that ranks run to save and to load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from nt_pretrain.checkpoint.load import Found, load_tensors, newest_valid
from nt_pretrain.checkpoint.save import save

STATE = {"step": 0, "tokens": 123456789012345, "seconds": 0.1, "position": {"lanes": [[0, 7, 11], [1, 0, 3]]}}
IDENTITY = {"model": {"hidden_size": 5, "heads": 3}, "tokenizer": "ab" * 32}
PLAIN = {"active.table", "count"}


def whole(seed: int) -> dict[str, Tensor]:
    """The tensors before they are sharded: uneven rows, fewer rows than ranks, odd floats, flags, a scalar."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(7, 5, generator=generator)
    weight[0, :4] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-42])
    return {
        "model.weight": weight,
        "model.one_row": torch.randn(1, 3, generator=generator),
        "model.norm": torch.randn(6, generator=generator, dtype=torch.float64),
        "first_moment.weight": torch.randn(7, 5, generator=generator).bfloat16(),
        "active.weight": torch.randint(0, 2, (7, 5), generator=generator, dtype=torch.uint8),
        "explored.weight": torch.randint(0, 2, (7, 5), generator=generator).bool(),
        "active.table": torch.randint(0, 2, (4, 4), generator=generator, dtype=torch.uint8),
        "count": torch.randint(0, 1 << 40, (), generator=generator),
    }


def placed(tensors: dict[str, Tensor], world: int) -> dict[str, Tensor]:
    """Shard all but the plain ones over a 1-D mesh of all ranks."""
    mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("shard",))
    return {
        name: tensor if name in PLAIN else distribute_tensor(tensor, mesh, [Shard(0)])
        for name, tensor in tensors.items()
    }


def bits(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    """Raw bytes of the whole tensors, so that NaN and the sign of zero count. Collective."""
    full = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}
    return {name: bytes(t.contiguous().reshape(-1).view(torch.uint8).tolist()) for name, t in full.items()}


def save_steps(rank: int, world: int, root: Path, steps: list[int]) -> list[Path]:
    """Save step k with the tensors of seed k, for each k."""
    return [
        save(root, step, placed(whole(step), world), STATE | {"step": step}, identity=IDENTITY, group=dist.group.WORLD)
        for step in steps
    ]


def load_newest(rank: int, world: int, root: Path) -> tuple[Found | None, dict[str, bytes] | None]:
    """What :func:`newest_valid` finds, and the bits that are then read into tensors of zeros."""
    found = newest_valid(root, group=dist.group.WORLD)
    if found is None:
        return None, None
    tensors = placed({name: torch.zeros_like(tensor) for name, tensor in whole(0).items()}, world)
    load_tensors(found.path, tensors)
    return found, bits(tensors)


def expect(answers: list[Any], step: int) -> Found:
    """All ranks found ``step`` and read its tensors bit by bit; returns what they found."""
    wanted = bits(whole(step))
    for found, read in answers:
        assert found == answers[0][0]
        assert found.step == step
        assert found.state == STATE | {"step": step}
        assert found.identity == IDENTITY
        assert read == wanted
    return answers[0][0]
