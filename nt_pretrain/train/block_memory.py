"""What layers of which only the active blocks exist take of a rank's memory, in bytes or elements."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nt_pretrain.config.mesh import MeshSizes
from nt_pretrain.config.schema import Config
from nt_pretrain.counter_random import CHUNK
from nt_pretrain.models.groups import group_of
from nt_pretrain.parallel.mesh import wants_cuda
from nt_pretrain.sparsity.block_budget import BlockBudget


@dataclass(frozen=True)
class BlockLayerSize:
    """Of one layer on one rank of a mesh; whole lines are cut, so the first rank has ``held`` lines and others fewer.

    Attributes:
        multiplied: lines of this rank's part of every product.
        held: of those, what this rank stores.
        copies: ranks that divide the lines.
    """

    budget: BlockBudget
    multiplied: int
    held: int
    copies: int

    @property
    def _line(self) -> int:
        return self.budget.fan * self.budget.unit**2

    @property
    def shard(self) -> int:
        """Values stored here."""
        return self.held * self._line

    @property
    def whole(self) -> int:
        """Values that this rank multiplies with."""
        return self.multiplied * self._line

    @property
    def gathered(self) -> int:
        """The same as it travels: FSDP2 pads the last ranks' parts to the length of the first."""
        return self.copies * self.shard

    @property
    def dense(self) -> int:
        """Elements of the dense gradient of the lines that this rank multiplies."""
        return self.multiplied * self.budget.across * self.budget.unit**2

    @property
    def saved(self) -> int:
        """Bytes of the topology in a checkpoint: block columns, and a flag for every block that was ever active."""
        return self.held * (4 * self.budget.fan + self.budget.across)

    @property
    def topology(self) -> int:
        """Bytes of all that says where blocks are: of the lines held, and of all that are multiplied.

        Numbers, columns and flags of lines, and the positions by column; columns, two index lists of three entries a
        block but one, and their pointers.
        """
        fan, across = self.budget.fan, self.budget.across
        own = self.held * (8 + 4 * fan + across + 4 * fan) + 4 * (across + 1)
        return own + 24 * self.multiplied * fan + 4 * (self.multiplied + across + 2)


def size_on(budget: BlockBudget, sizes: MeshSizes, shards: int) -> BlockLayerSize:
    """Of the first rank of a mesh in which ``shards`` ranks divide the layer."""
    multiplied = budget.lines // sizes.tensor
    return BlockLayerSize(budget, multiplied, math.ceil(multiplied / shards), shards)


def saved_bytes(budgets: dict[str, BlockBudget]) -> int:
    """Topologies of all layers in a checkpoint."""
    return sum(BlockLayerSize(budget, 0, budget.lines, 1).saved for budget in budgets.values())


def scratch_bytes(layers: dict[str, BlockLayerSize], config: Config, tokens: int, compute: int) -> int:
    """What the compiled kernels take on a CPU while one runs: packed blocks, or packed inputs for a gradient."""
    if wants_cuda(config):
        return 0
    blocks = max((layer.whole for layer in layers.values()), default=0)
    # The side across the lines, which is whole on every tensor rank.
    inputs = max((layer.budget.across * layer.budget.unit for layer in layers.values()), default=0)
    return compute * max(blocks, tokens * inputs)


@dataclass(frozen=True)
class Beside:
    """Parts of an ordinary step's fullest moment, in bytes: all of the loss, of it one copy of a chunk's logits (there
    are two), and activations.
    """

    loss: int
    logits: int
    activations: int


def growth_bytes(
    layers: dict[str, BlockLayerSize], config: Config, beside: Beside, *, tokens: int, compute: int,
    accumulation: int, copies: int,
) -> int:  # fmt: skip
    """What dense gradients add to the fullest moment of a step after which blocks grow.

    They exist one at a time, where a step has one micro-batch; else their sums wait for the last one.

    Args:
        tokens: of a micro-batch, as the heads see them.
        copies: ranks that hold the same weights.
    """
    if config.sparsity.grow == "random":
        return 0
    exact = config.parallel.deterministic_reduce or config.train.precision == "fp64"
    wide, reduced, several = max(4, compute), 8 if exact else 4, tokens > config.train.loss_chunk
    sums = sum(layer.dense for layer in layers.values()) * reduced if accumulation > 1 else 0
    most = 0
    for name, layer in layers.items():
        group, dense = group_of(name), layer.dense
        product = wide if group in ("embedding", "output") else compute if exact else 2
        size = dense * product
        if layer.copies * copies > 1:
            # As it is reduced, where it is not a sum already, and this rank's part of the result.
            size += reduced * (dense * (product != reduced and accumulation == 1) + dense // layer.copies)
        if group == "output":
            # Chunks are added up while logits exist; they are gone when the sum is reduced.
            added = dense * (wide * several + compute + (wide if wide != compute else 0))
            size = max(dense * wide * several, added - beside.logits, size - 2 * beside.logits)
        elif group == "embedding":
            size -= beside.loss + beside.activations
        else:
            rounded = not exact and compute != 2
            size += 2 * tokens * (layer.multiplied + layer.budget.across) * layer.budget.unit * rounded - beside.loss
        most = max(most, size)
    return sums + most


def update_bytes(layers: dict[str, BlockLayerSize], stored: int) -> int:
    """Of a topology update, after the backward pass: scores and moves of all lines held here; of one layer at a time
    codes and tie breakers, and magnitudes of the second moment. Squares are added in fixed point, a chunk at a time.
    """
    kept = sum(layer.held * (4 * layer.budget.across + 24 * layer.budget.fan) for layer in layers.values())
    one = max((64 * layer.held * layer.budget.across + layer.shard * stored for layer in layers.values()), default=0)
    return kept + one + 32 * CHUNK * bool(layers)
