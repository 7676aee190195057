"""One topology update of a run, whichever backend its layers have."""

from __future__ import annotations

from nt_pretrain.config.schema import Config
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.parallel.candidates import Choice
from nt_pretrain.parallel.growth import GrowthScores
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.sparsity.schedule import is_update_step, prune_rate
from nt_pretrain.sparsity.stripping import lowered
from nt_pretrain.sparsity.update import LayerChange
from nt_pretrain.train.block_update import update_blocks
from nt_pretrain.train.single_update import update_singles
from nt_pretrain.train.state import TrainState, budgets_at
from nt_pretrain.train.topology import update_topology


def growth_scores(state: TrainState, config: Config, ranks: Ranks, step: int) -> GrowthScores | None:
    """What listens to the gradients of ``step`` for units that do not exist and may grow; None where nothing has to.

    Until :func:`change_topology`, which is called after the gradients of the step.
    """
    complete = not (state.blocks or state.singles)
    if complete or config.sparsity.grow == "random" or not is_update_step(config, step):
        return None
    scores = GrowthScores(config, ranks, _choice(config, step))
    scores.listen(state.model, on=True)
    return scores


def change_topology(
    state: TrainState, config: Config, ranks: Ranks, step: int, scores: GrowthScores | None
) -> dict[str, LayerChange]:
    """Update the topologies after the gradients of ``step``; returns what changed in all layers. Collective."""
    rate = prune_rate(config, step)
    if scores is not None:
        scores.listen(state.model, on=False)
    if state.blocks:
        found = scores.found if scores is not None else {}
        return update_blocks(state, found, config, ranks, prune_rate=rate, step=step)
    if state.singles:
        return update_singles(state, scores.candidates if scores is not None else {}, _choice(config, step), ranks)
    state.budgets = lowered(budgets_at(config, shapes_of(config.model), step), state.budgets)
    return update_topology(
        state.layers, state.layer_tensors(), config, ranks, targets=state.budgets, prune_rate=rate, step=step
    )


def _choice(config: Config, step: int) -> Choice:
    return Choice(config.sparsity, prune_rate(config, step), config.run.seed, step)
