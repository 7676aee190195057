"""A trained model from a checkpoint, whatever number of ranks has saved it: weights and topology, no moments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nt_pretrain.checkpoint.errors import CheckpointError
from nt_pretrain.checkpoint.load import Found, load_tensors, newest_valid, open_checkpoint
from nt_pretrain.config.schema import Config
from nt_pretrain.data.tokenizer import load_tokenizer
from nt_pretrain.evaluation.target import Target
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.parallel.batch_norm import statistics_of
from nt_pretrain.parallel.blocks import publish, topologies
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.shard import held_part, like_lines, like_parameter, local, own_ids, sharded_model
from nt_pretrain.parallel.single import publish_single, single_topologies
from nt_pretrain.sparsity.topology import SparseLayer, empty_layer, mask_
from nt_pretrain.train.resume import refuse_other_model
from nt_pretrain.train.state import budgets_at, identity
from nt_pretrain.train.together import on_all
from nt_pretrain.train.topology import topology_digest


@dataclass(frozen=True)
class Loaded:
    """A model as it was saved, on these ranks.

    Attributes:
        layers: the topology of sparse layers; empty for a dense run. Where only the active blocks exist, a block is
            one of its units.
        digest: of the topology.
        average: whether its weights are moving averages.
        norms: training pictures on which its running statistics were measured again; 0: they are those of the run.
        skipped: newer checkpoints that cannot be used, in words.
    """

    model: MultiHead
    layers: list[SparseLayer]
    step: int
    digest: str
    name: str
    average: bool
    skipped: list[str]
    norms: int = 0


def find(target: Target, config: Config, ranks: Ranks) -> Found:
    """The checkpoint of ``target``, its files checked; nothing is loaded. Collective.

    Raises:
        CheckpointError: there is none, it is damaged, or of another model than ``config``.
        DataError: the tokenizer cannot be read.
    """
    found = _found(target, ranks)
    tokenizer = "" if config.model.classifies else on_all(ranks, lambda: load_tokenizer(config.data.tokenizer)).sha256
    # The optimizer need not be the same: nothing of it is read.
    wanted = {key: value for key, value in identity(config, tokenizer).items() if key != "optimizer"}
    refuse_other_model(found, wanted)
    return found


def load(found: Found, config: Config, ranks: Ranks, *, average: bool = False) -> Loaded:
    """The model of a checkpoint that :func:`find` has found. Collective.

    Args:
        average: with the moving average of its weights (``train.ema_decay``) in their place.

    Raises:
        CheckpointError: it cannot be read, or is without an average.
    """
    model = sharded_model(config, ranks)
    parameters = dict(model.named_parameters())
    try:
        active = found.state["active_units"]
        budgets = {
            name: replace(budget, active=active[name])
            for name, budget in budgets_at(config, shapes_of(config.model), 0).items()
        }
        saved_digest = found.state["topology_digest"]
    except KeyError as error:
        raise CheckpointError(
            f"{found.path} was written by another version of this program: its state lacks {error}; evaluate it with "
            "that version"
        ) from None
    blocks, singles = topologies(model), single_topologies(model)
    sparse = blocks | singles
    masked = {name: budget for name, budget in budgets.items() if name in parameters and name not in sparse}
    layers = [empty_layer(name, budget, held_part(parameters[name])) for name, budget in masked.items()]
    if average and not found.state.get("averaged", False):
        raise CheckpointError(
            f"{found.path} has no moving average of the weights; a run keeps one with train.ema_decay"
        )
    _read(found.path, model, layers, "ema" if average else "model", ranks)
    with torch.no_grad():
        # Amid an annealing there are weights outside of the topology; no member will have them. Else all are 0.
        for layer in layers:
            mask_(local(parameters[layer.name]), layer.elements(layer.active))
    for block in blocks.values():
        block.refresh()
    publish(model, ranks)
    publish_single(model, ranks)
    layers += [block.grid() for block in blocks.values()] + [single.grid(single.ids) for single in singles.values()]
    digest = topology_digest(layers, ranks, budgets)
    if digest != saved_digest:
        raise CheckpointError(f"{found.path}: topology {digest} was read, {saved_digest} was saved")
    return Loaded(model, layers, found.step, digest, found.path.name, average, found.skipped)


def _found(target: Target, ranks: Ranks) -> Found:
    if target.checkpoint is not None:
        return open_checkpoint(target.checkpoint, group=ranks.control)
    found = newest_valid(target.rundir.checkpoints, group=ranks.control)
    if found is None:
        raise CheckpointError(f"{target.rundir.path} has no checkpoint yet; it is written while the run trains")
    return found


def _read(path: Path, model: MultiHead, layers: list[SparseLayer], kind: str, ranks: Ranks) -> None:
    """Read weights, running statistics and topology in place; ``kind`` is what stands before a weight's name."""
    parameters = dict(model.named_parameters())
    live = {name: parameter.detach() for name, parameter in parameters.items()} | statistics_of(model)
    # Averages are kept in fp32 at least; of tensors that are so too these are the live ones themselves.
    read = {n: x.to(torch.promote_types(x.dtype, torch.float32)) if kind == "ema" else x for n, x in live.items()}
    topology: dict[str, Tensor] = {}
    for layer in layers:
        flags = layer.active.view(torch.uint8)
        placed = flags if layer.is_replicated else like_parameter(flags, parameters[layer.name])
        topology[f"active.{layer.name}"] = placed
    for name, block in topologies(model).items():
        topology[f"columns.{name}"] = like_lines(block.columns, parameters[name])
    for name, single in single_topologies(model).items():
        topology[f"ids.{name}"] = own_ids(single, parameters[name])
    load_tensors(path, {f"{kind}.{name}": x for name, x in read.items()} | topology, group=ranks.control)
    for name, x in live.items():
        if read[name] is not x:
            x.copy_(read[name])
