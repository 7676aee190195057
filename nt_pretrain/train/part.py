"""The state a part starts from: its units of a wider model, trained or at initial values, as smaller matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.checkpoint.load import Found, load_tensors
from nt_pretrain.methods.phase import Part, Phase
from nt_pretrain.models.accounting import Shapes, shapes_of
from nt_pretrain.models.network import values_of
from nt_pretrain.models.partition import (
    Axis,
    Owners,
    Site,
    deal,
    incoming,
    kernel_of,
    narrower,
    places,
    sites_of,
    sizes_of,
)
from nt_pretrain.parallel.batch_norm import statistics_of
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.shard import held_part, local
from nt_pretrain.train.resume import refuse_other_model
from nt_pretrain.train.state import TrainState, fresh_state, identity

TOGETHER = 1 << 20
"""Values of a matrix that are looked at together while its units are scored."""

Values = Callable[[Tensor], Tensor]
"""Flat element numbers (int64) of one tensor of the wider model to its values there."""


@dataclass(frozen=True)
class Wider:
    """The wider model: its values come from the checkpoint ``found`` or, without one, are initial ones."""

    start: Part
    shapes: Shapes
    sites: dict[str, Site]
    found: Found | None
    ranks: Ranks

    def values(self, name: str, like: Tensor) -> Values:
        """Those of tensor ``name``, of the dtype and on the device of ``like``. Collective; ranks may differ in names.

        Of a checkpoint the whole tensor is read, so one of them has to fit beside the state; "" reads nothing.
        """
        config, shape = self.start.wide, self._shape(name)
        if self.found is None:
            return lambda index: values_of(name, shape, index, seed=config.run.seed, model=config.model)
        whole = torch.empty(shape, dtype=like.dtype, device=like.device)
        load_tensors(self.found.path, {f"model.{name}": whole} if name else {}, group=self.ranks.control)
        return lambda index: whole.view(-1)[index]

    def owners(self, likes: dict[str, Tensor]) -> Owners:
        """The part that each unit belongs to. Collective: each rank scores some of the matrices.

        ``likes`` are tensors of the dtypes and on the devices in which those of the same names are to be read.
        """
        parts = [narrower(self.start.wide.model, k, self.start.of, self.start.residual) for k in range(self.start.of)]
        sizes = sizes_of(self.sites, [shapes_of(part) for part in parts])
        scores = {space: torch.zeros(sum(each), dtype=torch.int64) for space, each in sizes.items()}
        leading = [(name, axis) for name in self.shapes if (axis := self.sites[name].leads_to) is not None]
        for first in range(0, len(leading), self.ranks.world):
            at = first + self.ranks.rank
            if at >= len(leading):
                self.values("", likes[leading[first][0]])  # the others read, which is collective
                continue
            name, axis = leading[at]
            scores[axis.space] += self._score(name, axis, self.values(name, likes[name]), likes[name].device)
        total = torch.cat(list(scores.values()))
        dist.all_reduce(total, group=self.ranks.control)
        lengths = [len(each) for each in scores.values()]
        return deal(dict(zip(scores, total.split(lengths), strict=True)), sizes, self.start.dealing)

    def _score(self, name: str, axis: Axis, values: Values, device: torch.device) -> Tensor:
        shape, site = self.shapes[name], self.sites[name]
        row = shape[1] * kernel_of(shape)
        # Whole units at once where the rows are units.
        step = axis.width if axis is site.rows else 1
        step *= max(1, TOGETHER // (row * step))
        found = []
        for first in range(0, shape[0], step):
            rows = torch.arange(first, min(shape[0], first + step), device=device)
            index = rows[:, None] * row + torch.arange(row, device=device)
            found.append(incoming(values(index), site, kernel_of(shape)).cpu())
        return torch.cat(found) if axis is site.rows else torch.stack(found).sum(0)

    def _shape(self, name: str) -> tuple[int, ...]:
        """Of a parameter, or of running statistics, which have that of their norm's gain; () for none."""
        path = name.rpartition(".")[0]
        return self.shapes.get(name) or self.shapes.get(f"{path}.weight", ())


def part_state(phase: Phase, found: Found | None, tokenizer_sha256: str, ranks: Ranks) -> TrainState:
    """The state at the beginning of ``phase``, whose start is a :class:`Part`. Collective.

    Values are those of the wider model to the bit, whatever the mesh: scores are sums of integers, and each rank takes
    what its shards hold.

    Args:
        found: checkpoint of the wider model; None: its initial values.

    Raises:
        CheckpointError: ``found`` is of another model or tokenizer, has blocks of weights only, or cannot be read.
    """
    start = phase.start
    assert isinstance(start, Part)
    if found is not None:
        own = identity(start.wide, tokenizer_sha256)
        refuse_other_model(found, {key: own[key] for key in ("model", "tokenizer", "weights")})
    state = fresh_state(phase.config, ranks)
    shapes = shapes_of(start.wide.model)
    wider = Wider(start, shapes, sites_of(start.wide.model, shapes, start.residual), found, ranks)
    shards = {name: local(parameter.detach()) for name, parameter in state.parameters.items()}
    owners = wider.owners(shards)
    with torch.no_grad():
        for name, parameter in state.parameters.items():
            values = wider.values(name, shards[name])
            held = held_part(parameter)
            index = _index(wider, name, owners, held.rows, held.columns)
            shards[name].copy_(values(index).view(shards[name].shape))
        for name, buffer in statistics_of(state.model).items() if found is not None else []:
            values = wider.values(name, buffer)
            buffer.copy_(values(places(wider.sites[name].rows, len(buffer), owners, start.number, buffer.device)))
    if state.average is not None:
        state.average.restart()
    return state


def _index(wider: Wider, name: str, owners: Owners, rows: Tensor, columns: Tensor) -> Tensor:
    """Where the elements at ``rows`` and ``columns`` of the part's matrix stand in the wider model's, flat."""
    shape, site, part = wider.shapes[name], wider.sites[name], wider.start.number
    kernel = kernel_of(shape)
    from_rows = places(site.rows, shape[0], owners, part, rows.device)[rows]
    width = shape[1] if len(shape) > 1 else 1
    from_columns = places(site.columns, width, owners, part, columns.device)
    from_columns = from_columns[columns // kernel] * kernel + columns % kernel
    return from_rows[:, None] * (width * kernel) + from_columns
