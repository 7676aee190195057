"""Time of a step from what is counted and what is stated: a forecast, never a measurement.

Matrix products run at a stated share of the device's peak, memory and links at another share of their rates, and each
collective waits a stated latency: a gather or scatter passes all ranks of its ring, a sum those of a tree. Traffic of
weights and gradients (axes shard and replicate) hides behind the products as far as these last; traffic along head and
tensor, which the next product waits for, does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nt_pretrain.config.mesh import MeshSizes
from nt_pretrain.config.schema import Config
from nt_pretrain.models.accounting import Count, attention_flops_per_token
from nt_pretrain.rehearsal.machines import Machine
from nt_pretrain.rehearsal.step import Rehearsal
from nt_pretrain.rehearsal.watch import Sent
from nt_pretrain.train.plan import Plan

RATE_SHARE = 0.8
"""Share of the rated memory and link speed that is reached."""
LATENCY = 20e-6
"""Seconds that a collective waits beside its bytes, to start."""
HOP = 3e-6
"""And for each rank that it passes one after the other."""
UPDATE_PASSES = 16
"""Times that a topology update goes over weights, gradients, scores and flags of 4 bytes each: scoring, counting and
opening of two selections, settling of weights and both moments, counts."""


@dataclass(frozen=True)
class Assumptions:
    """``efficiency``: share of the peak that matrix products reach. ``host``: bytes per second from device to host."""

    efficiency: float = 0.4
    host: float = 25e9


@dataclass(frozen=True)
class Forecast:
    """Seconds of one step.

    Attributes:
        compute: matrix products, recomputation included.
        optimizer: gradient norm, clipping, AdamW or SGD, and the average of the weights, at the speed of memory.
        traffic: by axis, as if nothing hid it.
        exposed: of that, what the step waits for.
        update: of one topology update.
        update_share: what updates add to a step on average.
        save_share: what copies for checkpoints add to a step on average.
    """

    compute: float
    optimizer: float
    traffic: dict[str, float]
    exposed: float
    update: float
    update_share: float
    save_share: float
    tokens_per_step: int
    model_flops_per_device: float
    peak: float

    @property
    def step(self) -> float:
        return self.compute + self.optimizer + self.exposed + self.update_share + self.save_share

    @property
    def tokens_per_day(self) -> float:
        return self.tokens_per_step / self.step * 86_400

    @property
    def mfu(self) -> float:
        """Share of the peak that goes into operations that are executed, as the training log counts it: with all
        weights, or where only active blocks exist with these; recomputation and updates aside.
        """
        return self.model_flops_per_device / self.step / self.peak


def forecast(config: Config, rehearsal: Rehearsal, machine: Machine, assumed: Assumptions) -> Forecast:
    """The times of ``config`` on ``machine``, for the rank that was rehearsed."""
    plan, sizes, memory = rehearsal.plan, rehearsal.plan.sizes, rehearsal.memory
    flops = plan.flops_per_sample_executed * plan.samples_per_step / sizes.world
    compute = flops * (1 + _recomputed(config, plan)) / (machine.peak * assumed.efficiency)
    rate = machine.memory_rate * RATE_SHARE
    # Norm and clipping read and write gradients; the optimizer reads gradients, weights and moments and writes the last
    # two; an average reads the weights once more.
    optimizer = (4 * memory.gradients + 2 * (memory.weights + memory.moments + memory.average)) / rate
    optimizer += memory.weights * (memory.average > 0) / rate
    traffic = {axis: _seconds(sent, axis, sizes, machine) for axis, sent in rehearsal.traffic.items()}
    hidden = sum(traffic.get(axis, 0.0) for axis in ("shard", "shard of heads", "replicate"))
    exposed = max(0.0, hidden - compute) + sum(traffic.get(axis, 0.0) for axis in ("head", "tensor"))
    update = UPDATE_PASSES * memory.weights / rate + _seconds(rehearsal.update, "update", sizes, machine)
    if plan.executes_active and config.sparsity.grow != "random":
        # The dense gradients of all sparse layers: a product of two operations for each weight and sample.
        products = 2 * plan.accounts.sparse.total * plan.samples_per_step / sizes.world
        update += products / (machine.peak * assumed.efficiency)
    update *= plan.topology_updates > 0
    saved = (memory.weights + memory.moments + memory.average + memory.topology) / assumed.host
    step = compute + optimizer + exposed
    every = [steps for steps in (config.checkpoint.save_every_steps, plan.total_steps) if steps]
    if config.checkpoint.save_every_minutes:
        every.append(max(1, int(60 * config.checkpoint.save_every_minutes / step)))
    return Forecast(
        compute=compute,
        optimizer=optimizer,
        traffic=traffic,
        exposed=exposed,
        update=update,
        update_share=update / config.sparsity.update_every,
        save_share=saved / min(every),
        tokens_per_step=plan.samples_per_step,
        model_flops_per_device=flops,
        peak=machine.peak,
    )


def _recomputed(config: Config, plan: Plan) -> float:
    """Operations that recomputation adds, as a share of those of a step: a forward pass is a third of it."""

    if config.model.classifies:  # hardly anything lies outside of the blocks
        return 1 / 3 if config.parallel.activation_checkpoint == "full" else 0.0

    def weights(count: Count) -> int:
        return count.active if plan.executes_active else count.total

    groups = plan.accounts.by_group
    ffn, attention = (weights(groups.get(name, Count())) for name in ("ffn", "attention"))
    scores = attention_flops_per_token(config.model, config.data.sequence_length) / 6
    again = {"none": 0.0, "selective": ffn, "full": ffn + attention + scores}[config.parallel.activation_checkpoint]
    return 2 * again / (6 * weights(plan.accounts.per_token) + 6 * scores)


def _seconds(sent: Sent, axis: str, sizes: MeshSizes, machine: Machine) -> float:
    """Ranks are numbered along tensor, head, shard, replicate, so the first of these stay inside a node.

    A ring that leaves the node does so by the network links of all its devices in the node.
    """
    inner, copy = sizes.tensor * sizes.head, sizes.tensor * sizes.head * sizes.shard
    stride, reach = {
        "tensor": (1, sizes.tensor),
        "head": (sizes.tensor, inner),
        "shard": (sizes.tensor, copy),
        "shard of heads": (inner, copy),
        "update": (1, copy),
        "replicate": (copy, sizes.world),
    }[axis]
    rate = machine.link
    if reach > machine.devices_per_node:
        rate = min(rate, machine.network * max(1, machine.devices_per_node // stride))
    ranks = reach // stride
    hops = 2 * math.log2(ranks) if axis in ("update", "replicate") and ranks > 1 else ranks - 1
    return sent.bytes / (rate * RATE_SHARE) + sent.calls * (LATENCY + HOP * hops)
