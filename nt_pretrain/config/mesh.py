"""Sizes of the mesh of ranks: which follow from the configuration and the number of ranks, and which do not fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nt_pretrain.config.numbers import divisors, listed
from nt_pretrain.config.schema import Config


@dataclass(frozen=True)
class MeshSizes:
    """Ranks along each axis.

    Replicate: copies of the shards. Shard: weights are cut. Head: groups that own different heads. Tensor: matrix
    products are cut. The trunk, which has no heads to share out, is cut along shard and head together.
    """

    replicate: int
    shard: int
    head: int
    tensor: int

    @property
    def world(self) -> int:
        return self.replicate * self.shard * self.head * self.tensor

    @property
    def data(self) -> int:
        """Ranks that read different data: all but those that share matrix products."""
        return self.replicate * self.shard * self.head


def mesh_sizes(config: Config, world_size: int) -> MeshSizes:
    """The mesh of ``world_size`` ranks; the product of the axes is another number where it does not fit."""
    parallel = config.parallel
    others = parallel.replicate * parallel.head * parallel.tensor
    shard = parallel.shard or max(1, world_size // others)
    return MeshSizes(parallel.replicate, shard, parallel.head, parallel.tensor)


def mesh_problems(config: Config, world_size: int | None) -> list[str]:
    """What of the mesh fits neither the model nor the number of ranks, one line each."""
    found = _head_problems(config) + _tensor_problems(config)
    parallel = config.parallel
    if parallel.deterministic_reduce and (parallel.head > 1 or parallel.tensor > 1):
        found.append(
            "parallel.deterministic_reduce: holds for the axes replicate and shard; the sums of parallel.head "
            f"{parallel.head} and parallel.tensor {parallel.tensor} have another order. Set both to 1"
        )
    if parallel.cpu_offload and parallel.tensor > 1:
        found.append("parallel.cpu_offload: does not go with parallel.tensor above 1; set one of them back")
    if parallel.compile and parallel.tensor > 1:
        found.append("parallel.compile: does not go with parallel.tensor above 1; set one of them back")
    if world_size is not None:
        sizes = mesh_sizes(config, world_size)
        if sizes.world != world_size:
            shard = parallel.shard or "any"
            axes = f"replicate {sizes.replicate} x shard {shard} x head {sizes.head} x tensor {sizes.tensor}"
            fixed = sizes.replicate * sizes.head * sizes.tensor * max(1, parallel.shard)
            start = f"start {fixed} ranks" if parallel.shard else f"start a multiple of {fixed} ranks"
            found.append(
                f"parallel: {axes} do not make {world_size} ranks; {start}, or change an axis "
                "(parallel.shard=0 takes what the others leave)"
            )
    return found


def _head_problems(config: Config) -> list[str]:
    heads, degree = config.model.heads, config.parallel.head
    if heads % degree:
        return [f"parallel.head: {degree} does not divide model.heads {heads}; these do: {listed(divisors(heads))}"]
    return []


def _tensor_problems(config: Config) -> list[str]:
    model, degree = config.model, config.parallel.tensor
    if model.classifies:
        alone = f"parallel.tensor: {degree} divides the matrix products of a llama, not of {model.family}; set it to 1"
        return [alone] if degree > 1 else []
    widths = {
        "model.attention_heads": model.attention_heads,
        "model.kv_heads": model.kv_heads or model.attention_heads,
        "model.intermediate": model.intermediate,
        "model.vocab_size": model.vocab_size,
        "data.sequence_length": config.data.sequence_length,
    }
    wrong = [f"{key} {width}" for key, width in widths.items() if width % degree]
    if not wrong:
        return []
    fitting = divisors(math.gcd(*widths.values()))
    return [f"parallel.tensor: {degree} does not divide {', '.join(wrong)}; these fit: {listed(fitting)}"]
