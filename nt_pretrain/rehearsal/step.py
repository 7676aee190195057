"""One training step of one rank of a mesh, run on tensors that have shapes but no values.

The process group is torch's fake one: it has any number of ranks and sends nothing. Everything else is the code that
trains: the model is placed, cut and sharded by :mod:`nt_pretrain.parallel.shard`, and the step is
:mod:`nt_pretrain.train.step`. What it allocates and sends is therefore counted, not estimated. What depends on values
(topology update, ensemble of a validation) cannot run without them and comes from :mod:`nt_pretrain.train.memory`.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from nt_pretrain.config.schema import Config
from nt_pretrain.models.accounting import shapes_of
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.parallel.forward import Inputs, computing, run_trunk
from nt_pretrain.parallel.growth import GrowthScores
from nt_pretrain.parallel.mesh import Ranks, lay_mesh, wants_cuda
from nt_pretrain.parallel.shard import held_part, own_heads, placed_model, set_last_micro_batch
from nt_pretrain.rehearsal.blocks import draw, give_shapes, scratch_bytes
from nt_pretrain.rehearsal.traffic import by_axis, of_block_update, of_update
from nt_pretrain.rehearsal.watch import Sent, Traffic, Watch
from nt_pretrain.sparsity.stripping import strippable_budgets
from nt_pretrain.sparsity.topology import SparseLayer, empty_layer
from nt_pretrain.train.ema import Average
from nt_pretrain.train.optim import Optimizer
from nt_pretrain.train.plan import Plan, make_plan
from nt_pretrain.train.state import budgets_at
from nt_pretrain.train.step import micro_batch_backward


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank.

    Attributes:
        weights, moments, average, topology: this rank's shards; an average of the weights where one is kept.
        gradients: its shards after the backward pass.
        kept: whole gradients that wait for the last micro-batch; 0 without accumulation.
        working: beyond all these at the fullest moment of a step: gathered weights, activations, logits.
        growing: the same in a step after which blocks grow, which computes dense gradients; 0 where none does.
        update: beyond these shards and the gradients during a topology update (estimate).
        validation: beyond these shards during a validation (estimate).
        snapshot: the copy that a checkpoint is written from.
    """

    weights: int
    moments: int
    topology: int
    gradients: int
    kept: int
    working: int
    update: int
    validation: int
    snapshot: int
    average: int = 0
    growing: int = 0

    @property
    def stored(self) -> int:
        return self.weights + self.moments + self.average + self.topology + self.snapshot

    @property
    def step(self) -> int:
        """At the fullest moment of an ordinary step."""
        return self.stored + self.kept + self.working

    @property
    def growing_step(self) -> int:
        """At that of a step after which blocks grow; without meaning where none does."""
        return self.stored + self.kept + self.growing

    @property
    def peak(self) -> int:
        steps = max(self.step, self.growing_step)
        return max(steps, self.stored + self.gradients + self.update, self.stored + self.validation)


@dataclass(frozen=True)
class Rehearsal:
    """What a rank holds and sends.

    Attributes:
        traffic: of one step, by axis: ``shard`` (weights and gradients; the trunk along shard and head), ``replicate``,
            ``head``, ``tensor``. Axes of one rank are absent.
        update: of one topology update at most.
    """

    plan: Plan
    memory: RankMemory
    traffic: Traffic
    update: Sent


def rehearse(config: Config, world: int, rank: int = 0) -> Rehearsal:
    """Rank ``rank`` of ``world`` ranks of ``config``, which must have passed :mod:`nt_pretrain.config.checks`.

    The first rank holds the most where shards are uneven. No process group may exist; none does afterwards.
    """
    plan = make_plan(config, world)
    with _fake_ranks(config, world, rank) as ranks, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a machine that is not there
        model = placed_model(config, ranks)
        give_shapes()
        drawn = draw(model, config, ranks)
        scratch = None if wants_cuda(config) else scratch_bytes
        with FakeTensorMode(allow_non_fake_inputs=True), Watch(scratch) as watch:
            counted = _run(config, ranks, model, plan, watch)
        if config.sparsity.backend == "block":
            update = of_block_update(model, ranks, config) + counted.growth
        else:
            update = of_update(counted.layers if plan.topology_updates else [], ranks, config)
        memory = replace(counted.memory, topology=counted.memory.topology + drawn)
        return Rehearsal(plan, memory, by_axis(counted.traffic, ranks), update)


@contextmanager
def _fake_ranks(config: Config, world: int, rank: int) -> Iterator[Ranks]:
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield lay_mesh(config, "cpu", 0, datetime.timedelta(seconds=60), control="fake")
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class _Counted:
    """``growth``: what a step sends more after which blocks grow. ``layers``: of the masked backend."""

    memory: RankMemory
    traffic: Traffic
    growth: Sent
    layers: list[SparseLayer]


def _run(config: Config, ranks: Ranks, model: MultiHead, plan: Plan, watch: Watch) -> _Counted:
    model.to_empty(device=torch.device("cpu"))
    parameters, weights = dict(model.named_parameters()), watch.live
    optimizer = Optimizer(parameters, config.optim)
    moments = watch.live - weights
    averaged = Average.of(dict(optimizer.shards), config.train.ema_decay) if config.train.ema_decay > 0.0 else None
    average = watch.live - weights - moments
    budgets = budgets_at(config, shapes_of(config.model), 0) if config.sparsity.backend == "masked" else {}
    strippable = strippable_budgets(config, shapes_of(config.model))
    layers = [
        empty_layer(name, budget, held_part(parameters[name]), is_strippable=name in strippable)
        for name, budget in budgets.items()
        if name in parameters
    ]
    stored = watch.live
    kept, before = 0, {}
    if plan.accumulation > 1:
        _micro_batch(config, ranks, model, last=False)
        kept, before = watch.live - stored, watch.traffic
    watch.forget_peak()
    _micro_batch(config, ranks, model, last=True)
    gradients = watch.live - stored
    traffic = {name: sent + before.get(name, Sent()) * (plan.accumulation - 2) for name, sent in watch.traffic.items()}
    working = watch.peak - stored - kept
    last = _sum(watch.traffic) + _sum(before) * -1
    optimizer.step(optimizer.gradients(), config.optim.lr)
    if averaged is not None:
        averaged.update()
    growing, growth = 0, Sent()
    if _computes_dense_gradients(config, plan):
        growing, sent = _grow(config, ranks, model, plan, watch)
        growing, growth = growing - stored - kept, sent + last * -1
        optimizer.step(optimizer.gradients(), config.optim.lr)
    watch.forget_peak()
    _forward(config, ranks, model)
    memory = RankMemory(
        weights=weights,
        moments=moments,
        average=average,
        topology=stored - weights - moments - average,
        gradients=gradients,
        kept=kept,
        working=working,
        update=plan.memory.update,
        validation=watch.peak - stored + plan.memory.read_off + plan.memory.swapped,
        snapshot=plan.memory.snapshot,
        growing=growing,
    )
    return _Counted(memory, traffic, growth, layers)


def _computes_dense_gradients(config: Config, plan: Plan) -> bool:
    sparsity = config.sparsity
    return sparsity.backend == "block" and sparsity.grow != "random" and plan.topology_updates > 0


def _grow(config: Config, ranks: Ranks, model: MultiHead, plan: Plan, watch: Watch) -> tuple[int, Sent]:
    """Peak of live bytes in a step after which blocks grow, and what its last micro-batch sends."""
    scores = GrowthScores(config, ranks)
    scores.listen(model, on=True)
    watch.forget_peak()
    if plan.accumulation > 1:
        _micro_batch(config, ranks, model, last=False)
    before, scores.last = _sum(watch.traffic), True
    _micro_batch(config, ranks, model, last=True)
    scores.listen(model, on=False)
    return watch.peak, _sum(watch.traffic) + before * -1


def _sum(traffic: Traffic) -> Sent:
    return sum(traffic.values(), Sent())


def _micro_batch(config: Config, ranks: Ranks, model: MultiHead, *, last: bool) -> None:
    set_last_micro_batch(model, last)
    micro_batch_backward(model, config, _empty(config, config.train.micro_batch), 1.0, ranks.head_group)


def _empty(config: Config, samples: int) -> Inputs:
    """A batch of the right shapes."""
    if config.model.sees_pictures:
        size = config.data.picture_size
        return Inputs(
            torch.zeros(samples, 3, size, size, dtype=torch.uint8), torch.zeros(samples, dtype=torch.int64), None
        )
    if config.model.data == "rows":
        return Inputs(torch.zeros(samples, config.model.features), torch.zeros(samples, dtype=torch.int64), None)
    tokens = torch.zeros(samples, config.data.sequence_length, dtype=torch.int64)
    return Inputs(tokens, tokens, torch.zeros_like(tokens))


@torch.no_grad()
def _forward(config: Config, ranks: Ranks, model: MultiHead) -> None:
    """The forward pass of a validation, up to the logits of the last head beside their sum over heads."""
    with computing(config, ranks.device):
        _, start, context, _ = run_trunk(model, config, _empty(config, config.eval.micro_batch), ranks.head_group)
        total: torch.Tensor | None = None
        for head in own_heads(model).values():
            logits = head(start, context)
            total = logits.to(torch.float32, copy=True) if total is None else total
            del logits
