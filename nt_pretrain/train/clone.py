"""The state a child starts from: weights and running statistics of a finished parent, some of its units, no moments."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from nt_pretrain.checkpoint.errors import CheckpointError, on_first
from nt_pretrain.checkpoint.folders import candidates, step_of
from nt_pretrain.checkpoint.load import Found, load_tensors, newest_valid, open_checkpoint
from nt_pretrain.config.schema import ModelSection
from nt_pretrain.methods.mutation import Child
from nt_pretrain.methods.phase import Clone, Phase, changed
from nt_pretrain.models.accounting import Shapes, shapes_of
from nt_pretrain.models.groups import group_of, without_member
from nt_pretrain.observe.rundir import RunDir
from nt_pretrain.parallel.batch_norm import statistics_of
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.mutate import Mutable
from nt_pretrain.parallel.shard import like_parameter, local
from nt_pretrain.sparsity.slices import keep_slice
from nt_pretrain.sparsity.topology import mask_
from nt_pretrain.train.resume import refuse_other_model
from nt_pretrain.train.state import TrainState, fresh_state, identity
from nt_pretrain.train.topology import parts


def find_parent(path: Path, ranks: Ranks) -> Found:
    """The checkpoint of a parent, its files checked: a checkpoint's folder, or the newest of a run that has ended.
    Collective.

    Raises:
        CheckpointError: there is none, it is damaged, or its run goes on.
    """
    if step_of(path) is not None:
        return open_checkpoint(path, group=ranks.control)
    on_first(ranks.control, "cannot clone", lambda: _refuse_running(RunDir(path)))
    found = newest_valid(RunDir(path).checkpoints, group=ranks.control)
    if found is None:
        raise CheckpointError(f"{path} is no run with a checkpoint, which children need as their parent")
    return found


def _refuse_running(rundir: RunDir) -> bool:
    """All children need the same checkpoint, which a run that goes on removes (``checkpoint.keep``)."""
    status, there = rundir.read_status(), candidates(rundir.checkpoints)
    if status is not None and status.state == "running" and there:
        raise CheckpointError(
            f"{rundir.path} is still running, at step {status.step:,} of {status.total_steps:,}, and would remove the "
            "checkpoint that all children have to start from. Wait for its end. If it was killed, or its "
            f"checkpoint.keep is large enough, name a checkpoint instead: {there[0]}"
        )
    return True


def cloned_state(phase: Phase, found: Found, tokenizer_sha256: str, ranks: Ranks) -> TrainState:
    """The state at the beginning of ``phase``, whose start is a :class:`Clone` of the parent ``found``. Collective.

    Raises:
        CheckpointError: the parent is of another model or tokenizer, or cannot be read.
    """
    assert isinstance(phase.start, Clone)
    # Its topology may be any; its weights must fit.
    as_parent = phase.config
    if phase.config.model.sharing == "low_rank":
        options = ("sharing", "members", "rank", "factor_gain")
        defaults = {f"model.{each}": ModelSection.model_fields[each].default for each in options}
        as_parent = changed(phase.config, defaults)
    wanted = {k: v for k, v in identity(as_parent, tokenizer_sha256).items() if k in ("model", "tokenizer", "weights")}
    refuse_other_model(found, wanted)
    state = fresh_state(phase.config, ranks)
    if phase.start.noise is not None:
        _refuse_sparse(found, shapes_of(phase.config.model))
    if phase.start.keeps is not None:
        _refuse_uncuttable(found, set(state.budgets), shapes_of(phase.config.model))
    tensors = {f"model.{source}": own[0].detach() for source, own in _by_source(state).items()}
    tensors |= {f"model.{name}": buffer for name, buffer in statistics_of(state.model).items()}
    active: dict[str, int] = found.state["active_units"]
    for layer in state.layers:
        layer.active.fill_(True)
        if active.get(layer.name, layer.budget.units) < layer.budget.units:
            flags = layer.active.view(torch.uint8)
            tensors[f"active.{layer.name}"] = like_parameter(flags, state.parameters[layer.name])
    load_tensors(found.path, tensors, group=ranks.control)
    with torch.no_grad():
        for first, *others in _by_source(state).values():
            for each in others:
                local(each).copy_(local(first))
    if phase.start.noise is not None:
        # Norms and biases stay; all matrices are there whole, and divided among the ranks of one copy.
        Mutable(state.model, {}, phase.start.noise, ranks).become_mean([Child(0, 0)])
    if phase.start.keeps is not None:
        parents = {layer.name: layer.active.clone() for layer in state.layers}
        _mask(state)
        _keep(state, active, phase.start, ranks)
        if phase.annealing is None:
            _mask(state)
        else:
            # What the annealing draws from: of a sparse parent not all weights.
            for layer in state.layers:
                layer.explored.copy_(parents[layer.name])
    else:
        state.budgets = {
            name: replace(each, active=active.get(name, each.units)) for name, each in state.budgets.items()
        }
        for layer in state.layers:
            layer.budget = state.budgets[layer.name]
    if state.average is not None:
        state.average.restart()
    return state


def _refuse_sparse(found: Found, shapes: Shapes) -> None:
    """Raises CheckpointError where weights of the parent are inactive: noise and tuning would bring them back."""
    for name, active in found.state["active_units"].items():
        if active < math.prod(shapes[name]):
            raise CheckpointError(
                f"method.parent: {found.path} is sparse ({name} has {active:,} active units), and method.sample: noise "
                "moves and tunes all weights; give a dense parent, or choose partition or random"
            )


def _refuse_uncuttable(found: Found, cut: set[str], shapes: Shapes) -> None:
    """Raises CheckpointError where a parent is sparse in blocks, or in matrices that children have whole, which are not
    ``cut``: tuning would bring back what it has not.
    """
    sparsity = found.identity.get("sparsity", {})
    unit, backend = sparsity.get("unit", 1), sparsity.get("backend", "masked")
    if sparsity.get("density", 1.0) < 1.0 and (unit > 1 or backend == "block"):
        raise CheckpointError(
            f"method.parent: {found.path} has sparsity.unit {unit} and sparsity.backend {backend}; children are cut of "
            "dense parents, or of single weights (unit 1, masked)"
        )
    for name, active in found.state["active_units"].items():
        if name not in cut and active < math.prod(shapes[name]):
            raise CheckpointError(
                f"method.parent: {found.path} is sparse in {name} ({active:,} active units), which children have "
                "whole: tuning would fill it. Give a dense parent, or one trained with sparsity.scope: no_vocab"
            )


def _by_source(state: TrainState) -> dict[str, list[nn.Parameter]]:
    """Parameters by the name they have in the parent: of members that share weights each begins with a copy of what
    is its own; what low-rank members add stays as it is.
    """
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in state.parameters.items():
        if group_of(name) != "factor":
            found.setdefault(without_member(name), []).append(parameter)
    return found


def _keep(state: TrainState, active: dict[str, int], start: Clone, ranks: Ranks) -> None:
    """Cut the layers down to the child's units; all ranks know the budgets of all layers."""
    assert start.keeps is not None and not state.blocks and not state.singles
    counts = {name: active.get(name, budget.units) for name, budget in state.budgets.items()}
    weights = {layer.name: state.optimizer.shards[layer.name].detach() for layer in state.layers}
    for layers, group in parts(state.layers, ranks):
        keep_slice(layers, weights, counts, start.keeps, group=group)
    for name, budget in state.budgets.items():
        begin, end = start.keeps.units(counts[name])
        state.budgets[name] = replace(budget, active=end - begin)


def _mask(state: TrainState) -> None:
    with torch.no_grad():
        for layer in state.layers:
            mask_(state.optimizer.shards[layer.name], layer.elements(layer.active))
