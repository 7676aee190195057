"""A topology update of layers of which only the active weights exist, each in a slot of its own."""

from __future__ import annotations

from nt_pretrain.parallel.candidates import Candidates, Choice
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.shard import local
from nt_pretrain.parallel.single import by_group
from nt_pretrain.sparsity.csr_update import CsrTensors, update
from nt_pretrain.sparsity.topology import LayerChange
from nt_pretrain.train.state import TrainState
from nt_pretrain.train.topology import of_all_heads


def update_singles(
    state: TrainState, may_grow: dict[str, Candidates], choice: Choice, ranks: Ranks
) -> dict[str, LayerChange]:
    """Drop the weakest weights of every layer and grow as many in their slots; returns what changed in all layers.

    Collective.

    Args:
        may_grow: layer to what its dense gradient says may grow; empty where growth is random.
    """
    # Layers all of whose weights are active have no slots: none of them can move.
    found = {x.name: LayerChange(x.budget.units, 0, 0, x.budget.units, x.budget.units) for x in state.layers}
    singles = state.singles
    for names, group in by_group(list(singles), ranks):
        tensors = {name: _tensors(state, name) for name in names}
        found |= update([singles[name] for name in names], tensors, may_grow, choice, group)
    return of_all_heads(found, ranks, list(state.budgets))


def _tensors(state: TrainState, name: str) -> CsrTensors:
    gradient = state.parameters[name].grad
    return CsrTensors(
        state.optimizer.shards[name].detach(),
        state.optimizer.first_moment(name),
        state.optimizer.second_moment(name),
        state.average.values[name] if state.average is not None else None,
        None if gradient is None else local(gradient),
    )
