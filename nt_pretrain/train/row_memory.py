"""What of a rank's memory depends on rows of numbers, in bytes: activations, loss, validation."""

from __future__ import annotations

from dataclasses import dataclass

from nt_pretrain.config.mesh import MeshSizes
from nt_pretrain.config.schema import Config
from nt_pretrain.eval.members import CHUNK
from nt_pretrain.models.network import mlp_of
from nt_pretrain.train.picture_memory import MEASURING


@dataclass(frozen=True)
class RowMemory:
    """Parts of :class:`nt_pretrain.train.memory.Memory` of the same names."""

    activations: int
    loss: int
    validation: int
    read_off: int


def row_memory(config: Config, sizes: MeshSizes, compute: int) -> RowMemory:
    """Of one rank; a head's rows are those of all ranks of its head group. Each hidden layer saves what goes into it
    and what its ReLU makes of it, which is what goes into the next.

    Args:
        compute: bytes of an element where it is computed with.
    """
    model = mlp_of(config.model)
    voices, copies = config.model.voices, model.sharing.copies
    micro, evaluated = config.train.micro_batch * config.train.batch_repeats * copies, config.eval.micro_batch * copies
    trunk = model.features + sum(model.widths[: model.trunk_blocks])
    head = sum(model.widths[model.trunk_blocks :])
    logits = model.classes * max(4, compute)
    whole = evaluated * sizes.head
    members = min(CHUNK, voices * whole * model.classes) * (voices + 2) // voices
    return RowMemory(
        activations=micro * (trunk + sizes.head * head) * compute,
        loss=3 * micro * sizes.head * logits * voices // copies,
        validation=2 * whole * max(model.features, *model.widths) * compute + whole * voices * logits,
        read_off=MEASURING * members * 8,
    )
