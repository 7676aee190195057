"""What of a rank's memory depends on pictures, in bytes: activations, loss, validation."""

from __future__ import annotations

from dataclasses import dataclass

from nt_pretrain.config.mesh import MeshSizes
from nt_pretrain.config.schema import Config
from nt_pretrain.eval.members import CHUNK
from nt_pretrain.models.network import vision_of
from nt_pretrain.models.vision_accounting import recomputed_elements, saved_elements

MEASURING = 12
"""Tensors of fp64, of the size of a chunk's logits of all members, that exist while they are measured; about."""


@dataclass(frozen=True)
class PictureMemory:
    """Parts of :class:`nt_pretrain.train.memory.Memory` of the same names."""

    activations: int
    loss: int
    validation: int
    read_off: int


def picture_memory(config: Config, sizes: MeshSizes, compute: int) -> PictureMemory:
    """Of one rank; a head's samples are those of all ranks of its head group.

    Args:
        compute: bytes of an element where it is computed with.
    """
    model = vision_of(config.model)
    count = recomputed_elements if config.parallel.activation_checkpoint == "full" else saved_elements
    saved = count(model, config.data.picture_size)
    micro, voices = config.train.micro_batch * config.train.batch_repeats, config.model.voices
    whole = micro * sizes.head
    logits = model.classes * max(4, compute)
    evaluated = config.eval.micro_batch * sizes.head
    members = min(CHUNK, voices * evaluated * model.classes) * (voices + 2) // voices
    return PictureMemory(
        activations=(micro * saved.trunk + whole * saved.head) * compute,
        loss=3 * whole * logits,
        validation=3 * evaluated * saved.largest_map * compute + evaluated * voices * logits,
        read_off=MEASURING * members * 8,
    )
