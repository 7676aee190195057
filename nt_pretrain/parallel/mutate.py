"""A sharded model as one of its sparse mutations for a while: every rank moves the weights it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nt_pretrain.counter_random import CHUNK
from nt_pretrain.methods.mutation import Child, Mutation, moved
from nt_pretrain.parallel.collectives import exact_sums, sum_integers
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.select import Pool, select_largest
from nt_pretrain.parallel.shard import held_part, local, reshard
from nt_pretrain.sparsity.topology import Held

AT_ONCE = 1 << 26
"""Weights of a rank whose codes exist together: 256 MiB."""


@dataclass(frozen=True)
class Matrix:
    """The part of one matrix that this rank holds.

    Attributes:
        weight: flat, shares storage with the parameter.
        candidates: flat bool, the active weights.
        count: active weights over all ranks.
        scale: root mean square of these.
    """

    name: str
    weight: Tensor
    held: Held
    candidates: Tensor
    count: int
    scale: float


class Mutable:
    """A model on one copy of all ranks, whose matrices and embeddings can be moved; norms and biases stay.

    Args:
        active: flat bool of the weights held here, for matrices of which only some are active; of the others all are.
        ranks: on which every matrix is divided among all.
    """

    def __init__(self, model: nn.Module, active: dict[str, Tensor], mutation: Mutation, ranks: Ranks) -> None:
        self.mutation, self._model, self._group = mutation, model, ranks.trunk_group
        held = [(name, parameter) for name, parameter in model.named_parameters() if parameter.ndim >= 2]
        flat = [local(parameter).detach().view(-1) for _, parameter in held]
        candidates = [
            active[name] if name in active else torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
            for (name, _), weight in zip(held, flat, strict=True)
        ]
        device = flat[0].device
        counts = sum_integers([int(each.sum()) for each in candidates], self._group, device)
        # Inactive weights are zeros.
        squares = exact_sums(flat, [parameter.numel() for _, parameter in held], self._group, power=2)
        self.matrices = [
            Matrix(name, weight, held_part(parameter), some, count, (square / count) ** 0.5 if count else 0.0)
            for (name, parameter), weight, some, count, square in zip(
                held, flat, candidates, counts, squares, strict=True
            )
        ]

    @contextmanager
    def child(self, child: Child) -> Iterator[None]:
        """Inside, the model is this child of what it is outside; afterwards every weight is back, bit for bit."""
        reshard(self._model)
        kept: list[tuple[Matrix, Tensor, Tensor]] = []
        try:
            for matrix, positions in self.chosen(child):
                before = matrix.weight[positions]
                kept.append((matrix, positions, before))
                matrix.weight[positions] = moved(before, self._noise(child, matrix, positions), self._scale(matrix))
            yield
        finally:
            # What a forward pass gathered was made of the child's weights.
            reshard(self._model)
            for matrix, positions, before in kept:
                matrix.weight[positions] = before

    def become_mean(self, children: Sequence[Child]) -> None:
        """Become the mean of some children, for good: the parent of the next generation. Collective."""
        reshard(self._model)
        totals = {matrix.name: torch.zeros_like(matrix.weight, dtype=torch.float64) for matrix in self.matrices}
        for child in children:
            for matrix, positions in self.chosen(child):
                totals[matrix.name][positions] += self._noise(child, matrix, positions)
        for matrix in self.matrices:
            matrix.weight.copy_(moved(matrix.weight, totals[matrix.name], self._scale(matrix) / len(children)))

    def chosen(self, child: Child) -> Iterator[tuple[Matrix, Tensor]]:
        """Every matrix with the positions (int64) of the weights held here that ``child`` moves. Collective."""
        for some in self._portions():
            places = [self.mutation.places(child, matrix.count) for matrix in some]
            codes = [self._codes(child, matrix) for matrix in some]
            before, until = (
                select_largest(
                    [self._pool(child, matrix, own, place[end]) for matrix, own, place
                     in zip(some, codes, places, strict=True)],
                    self._group,
                )
                for end in (0, 1)
            )  # fmt: skip
            for matrix, not_these, these in zip(some, before, until, strict=True):
                yield matrix, (these & ~not_these).nonzero().view(-1)

    def _portions(self) -> list[list[Matrix]]:
        """Matrices that are chosen from together: the same on every rank, since their whole sizes are."""
        portions: list[list[Matrix]] = [[]]
        size = 0
        for matrix in self.matrices:
            size += matrix.count
            if portions[-1] and size > AT_ONCE:
                portions.append([])
                size = matrix.count
            portions[-1].append(matrix)
        return portions

    def _codes(self, child: Child, matrix: Matrix) -> Tensor:
        codes = torch.empty(matrix.weight.numel(), dtype=torch.int32, device=matrix.weight.device)
        for start in range(0, codes.numel(), CHUNK):
            part = slice(start, min(start + CHUNK, codes.numel()))
            index = matrix.held.flat_index(torch.arange(part.start, part.stop, device=codes.device))
            codes[part] = self.mutation.codes(child, matrix.name, index, matrix.candidates[part])
        return codes

    def _pool(self, child: Child, matrix: Matrix, codes: Tensor, wanted: int) -> Pool:
        def ties(positions: Tensor) -> Tensor:
            return self.mutation.tie_breaker(child, matrix.name, matrix.held.flat_index(positions))

        return Pool(matrix.name, codes, ties, wanted)

    def _noise(self, child: Child, matrix: Matrix, positions: Tensor) -> Tensor:
        return self.mutation.noise(child, matrix.name, matrix.held.flat_index(positions))

    def _scale(self, matrix: Matrix) -> float:
        return self.mutation.sigma * matrix.scale
