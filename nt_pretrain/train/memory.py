"""Estimate of the memory of one rank, in bytes, part by part.

What is stored (weights, gradients, moments, topology) is exact up to uneven shards. Activations are counted from what a
block saves for its backward (measured on a CPU in fp32: within 1 %; fused kernels on a GPU save less). Left out: the
libraries' own memory, data, and fragmentation; plan for a fifth more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nt_pretrain.config.schema import Config, ModelSection
from nt_pretrain.eval.metrics import CHUNK
from nt_pretrain.models.accounting import Shapes
from nt_pretrain.models.groups import part_of
from nt_pretrain.parallel.mesh import wants_cuda
from nt_pretrain.sparsity.budget import LayerBudget


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    Attributes:
        weights: this rank's shard.
        gathered: whole layers in the compute dtype while they are used.
        gradients: the shard; and, with gradient accumulation, a whole unsharded gradient, since gradients travel once.
        moments: the shard of Adam's two moments.
        topology: active and explored flags.
        activations: what trunk and one head save for their backward, for one micro-batch.
        loss: logits of one chunk of tokens, and the gradient of one output layer.
        update: scores and flags during a topology update, when activations and logits are gone.
        validation: logits of one head and the sum of all, when gradients and activations are gone.
        snapshot: the copy that a checkpoint is written from; none on a GPU, where it is in the host's memory.
    """

    weights: int
    gathered: int
    gradients: int
    moments: int
    topology: int
    activations: int
    loss: int
    update: int
    validation: int
    snapshot: int = 0

    @property
    def peak(self) -> int:
        stored = self.weights + self.moments + self.topology + self.snapshot
        step = self.gradients + max(self.gathered + self.activations + self.loss, self.update)
        return stored + max(step, self.gathered + self.validation)


def estimate(
    config: Config, shapes: Shapes, budgets: dict[str, LayerBudget], *, world_size: int, accumulation: int
) -> Memory:
    """Memory of one of ``world_size`` ranks that runs ``accumulation`` micro-batches per step."""
    compute, stored, reduced = element_bytes(config)
    parameters = sum(map(math.prod, shapes.values()))
    shard = math.ceil(parameters / world_size)
    groups = _gathered_groups(config, shapes)
    gradients = shard * stored
    if accumulation > 1:
        gradients += parameters * reduced
    else:
        gradients += max(*groups.values(), 0) * (compute + reduced)
    flags = sum(b.units if b.unit > 1 else math.ceil(b.units / world_size) for b in budgets.values())
    tokens = config.train.micro_batch * config.data.sequence_length
    return Memory(
        weights=shard * stored,
        gathered=_gathered_elements(config, groups) * compute,
        gradients=gradients,
        moments=2 * shard * stored,
        topology=2 * flags,
        activations=tokens * _saved_elements_per_token(config.model) * compute,
        loss=_loss_bytes(config, tokens, compute),
        # Per unit: a score of 4 bytes and three flags (active before, kept, grown).
        update=7 * flags,
        validation=_validation_bytes(config, compute),
        snapshot=3 * shard * stored + 2 * flags if config.checkpoint.asynchronous and not wants_cuda(config) else 0,
    )


def checkpoint_bytes(config: Config, shapes: Shapes, budgets: dict[str, LayerBudget]) -> int:
    """Bytes of one checkpoint over all ranks: weights, two moments, two flags per unit."""
    _, stored, _ = element_bytes(config)
    return 3 * stored * sum(map(math.prod, shapes.values())) + 2 * sum(budget.units for budget in budgets.values())


def element_bytes(config: Config) -> tuple[int, int, int]:
    """Bytes of an element where it is computed with, stored (weights and moments), and reduced over ranks."""
    precision = config.train.precision
    compute = 4 if precision == "fp32" else 2
    stored = 2 if precision == "pure_bf16" else 4
    return compute, stored, 8 if config.parallel.deterministic_reduce else stored


def saved_per_token_of_block(model: ModelSection) -> int:
    """Elements that one block saves for its backward per token.

    Input, normalised and scaled input of both norms (6 hidden), query and attention output (2 hidden), key and value,
    and gate, its activation, up and their product (4 intermediate).
    """
    kv_width = model.hidden // model.attention_heads * (model.kv_heads or model.attention_heads)
    return 8 * model.hidden + 2 * kv_width + 4 * model.intermediate


def _saved_elements_per_token(model: ModelSection) -> int:
    """Of the path through trunk and one head: the heads run one after the other."""
    return model.layers * saved_per_token_of_block(model) + 3 * model.hidden


def _loss_bytes(config: Config, tokens: int, compute: int) -> int:
    """Of the loss of one head.

    Logits and logarithmic probabilities of a chunk in fp32; the gradients of the last hidden states and of the output
    layer, which is summed in fp32 and then turned into the compute dtype.
    """
    model = config.model
    weight = model.vocab_size * model.hidden * (4 if compute == 4 else 4 + compute)
    return min(config.train.loss_chunk, tokens) * model.vocab_size * 8 + weight + tokens * model.hidden * compute


def _validation_bytes(config: Config, compute: int) -> int:
    """Of one forward pass: logits of one head, the fp32 sum over heads, and a chunk's logits twice in fp32."""
    tokens = config.eval.micro_batch * config.data.sequence_length
    return config.model.vocab_size * (tokens * (compute + 4) + min(CHUNK, tokens) * 8)


def _gathered_groups(config: Config, shapes: Shapes) -> dict[str, int]:
    """Elements of each group of layers that is gathered together: a block, or the rest of the trunk or of a head."""
    groups: dict[str, int] = {}
    for name, shape in shapes.items():
        part = part_of(name)
        if part in ("trunk", "heads.0"):
            words = name.removeprefix(part + ".").split(".")
            group = f"{part}.block.{words[1]}" if words[0] == "blocks" else part
            groups[group] = groups.get(group, 0) + math.prod(shape)
    return groups


def _gathered_elements(config: Config, groups: dict[str, int]) -> int:
    """Most elements gathered at once: the rest of trunk and head, and two blocks (one comes early) or all."""
    blocks = [size for group, size in groups.items() if ".block." in group]
    rest = sum(groups.values()) - sum(blocks)
    return rest + (sum(sorted(blocks)[-2:]) if config.parallel.reshard_after_forward else sum(blocks))
