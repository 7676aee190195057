"""One optimizer step: micro-batches, head by head, then topology, masks, clipping, AdamW.

The trunk runs forward once. Then each head runs forward and backward, alone, into the detached trunk output; its
activations are gone before the next head starts. At last the trunk runs backward with the sum of what the heads left.
That is the same gradient as one joint backward, at the peak activation memory of one head instead of M.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.models.groups import group_of
from nt_pretrain.models.loss import IGNORED
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.parallel.batch_norm import average_statistics
from nt_pretrain.parallel.collectives import exact_sums, reduce_over
from nt_pretrain.parallel.exchange import scattered_sum, width
from nt_pretrain.parallel.forward import Inputs, Start, computing, run_trunk
from nt_pretrain.parallel.growth import GrowthScores
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.shard import own_heads, roots, set_last_micro_batch
from nt_pretrain.sparsity.topology import SparseLayer, mask_
from nt_pretrain.train.dropout import StepDropout
from nt_pretrain.train.many_inputs import Orders
from nt_pretrain.train.optim import Optimizer


@dataclass(frozen=True)
class Losses:
    """Of one optimizer step, over all ranks: sum of token losses of each voice [M] (fp64, nats), and number of
    targets.
    """

    sums: Tensor
    targets: int

    @property
    def per_head(self) -> list[float]:
        return (self.sums / self.targets).tolist()


Loss = Callable[[Any, Start], Tensor]
"""Of a head and what it starts from: the sum of its targets' losses in nats (fp32 scalar)."""
Objective = Callable[[Inputs, int], tuple[Inputs, Loss]]
"""Of a micro-batch, whose first sample has this number in the rank's batch: what goes into the network instead, and the
loss of its heads.
"""


def micro_batch_backward(
    model: MultiHead,
    config: Config,
    batch: Inputs,
    scale: float,
    head_group: dist.ProcessGroup | None = None,
    loss_of: Loss | None = None,
) -> Tensor:
    """Backward of ``scale`` times the sum of the voices' loss sums; returns those of the heads held here, [M] (fp64).

    Each head sees the micro-batches of all ranks of ``head_group``, whose trunks ran each its own. A frozen trunk, like
    none, has no backward.

    Args:
        loss_of: the loss; None: cross entropy with the targets.
    """
    device = batch.inputs.device
    with computing(config, device):
        begun = run_trunk(model, config, batch, head_group)
    hidden, start, context, targets = begun
    if hidden.requires_grad:
        start.requires_grad_()
    sums = torch.zeros(config.model.voices, dtype=torch.float64, device=device)
    each = config.model.voices // config.model.heads
    for number, head in own_heads(model).items():
        with computing(config, device):
            if loss_of is None:
                loss = head(start, context, targets, config.train.loss_chunk)
            else:
                loss = loss_of(head, begun)
        loss.backward(torch.full_like(loss, scale))
        sums[number * each : (number + 1) * each] = loss.detach().double()
        del loss
    if hidden.requires_grad:
        assert start.grad is not None
        gradient = scattered_sum(start.grad, 0, head_group)
        # FSDP averages the trunk's gradient over the ranks of this group too, those of the heads not.
        groups = width(head_group)
        hidden.backward(gradient if groups == 1 else gradient * groups)
    return sums


def accumulate_gradients(
    model: MultiHead,
    config: Config,
    batch: Inputs,
    ranks: Ranks,
    scores: GrowthScores | None = None,
    drop: StepDropout | None = None,
    orders: Orders | None = None,
    objective: Objective | None = None,
) -> Losses:
    """Gradients of the global mean loss over targets from this rank's samples, reduced over all ranks.

    The number of targets is added over ranks before the first backward, so that every target of the global batch weighs
    the same wherever padding fell. Gradients travel once, in the backward of the last micro-batch.

    Args:
        scores: what listens to the gradients of blocks that do not exist, in a step that grows some.
        drop: units that are dropped, if any are.
        orders: of a network that sees several samples at a time, in which order each member sees them.
        objective: what is minimised; None: cross entropy with the targets.
    """
    batch = batch.to(ranks.device)
    count = (batch.targets != IGNORED).sum().cpu().to(torch.int64) * ranks.counts
    reduce_over(count, ranks.control)
    # FSDP averages a head's gradient over its ranks; the loss is a sum over them.
    scale = ranks.sizes.replicate * ranks.sizes.shard / max(1, int(count))
    if config.train.head_loss == "mean":
        scale /= config.model.voices
    if orders is not None:
        scale /= orders.repeats
    size = config.train.micro_batch
    sums = torch.zeros(config.model.voices, dtype=torch.float64, device=ranks.device)
    for first in range(0, batch.samples, size):
        last = first + size >= batch.samples
        set_last_micro_batch(model, last)
        if scores is not None:
            scores.last = last
        part = batch.part(first, size)
        if orders is not None:
            part = orders.mixed(part, first)
        with drop.of(model, first, part.samples, ranks) if drop is not None else nullcontext():
            part, loss_of = (part, None) if objective is None else objective(part, first)
            sums += micro_batch_backward(model, config, part, scale, ranks.head_group, loss_of)
    if config.parallel.batch_norm == "rank" and config.model.sees_pictures:
        _average_statistics(model, ranks)
    sums = sums.cpu() * ranks.counts / (orders.repeats if orders is not None else 1)
    reduce_over(sums, ranks.control)
    return Losses(sums, int(count))


def _average_statistics(model: MultiHead, ranks: Ranks) -> None:
    frozen = model.trunk is not None and not model.trunk.training
    if ranks.sizes.head == 1 and not frozen:
        average_statistics(model, ranks.everyone)  # in one message
        return
    for root in roots(model)[int(frozen) :]:
        average_statistics(root, ranks.everyone if root is model.trunk else ranks.same_heads_group)


def gradient_norm(
    gradients: dict[str, Tensor], sizes: dict[str, int], config: Config, ranks: Ranks
) -> float:  # fmt: skip
    """Euclidean norm of the global gradient; exact to the bit on every sharding with deterministic_reduce."""
    if config.parallel.deterministic_reduce:
        names = list(gradients)
        squares = exact_sums([gradients[n] for n in names], [sizes[n] for n in names], ranks.trunk_group, power=2)
        return math.sqrt(math.fsum(squares))
    # What tensor ranks hold in common counts once.
    counted = [each for name, each in gradients.items() if ranks.counts or group_of(name) != "norm"]
    # In fp32 also for bf16 gradients, whose own norm would be rounded to three digits.
    norms = torch._foreach_norm(counted, dtype=torch.promote_types(counted[0].dtype, torch.float32))
    total = torch.stack(norms).double().square().sum()
    reduce_over(total, ranks.trunk_group)
    if ranks.sizes.replicate > 1:
        # The order of that sum may differ between copies; they must clip alike to remain copies.
        dist.all_reduce(total, op=dist.ReduceOp.MAX, group=ranks.replica_group)
    return float(total.sqrt())


def apply_gradients(
    optimizer: Optimizer,
    layers: list[SparseLayer],
    config: Config,
    ranks: Ranks,
    lr: float,
    drawn: dict[str, Tensor] | None = None,
) -> float:
    """Mask, clip, step; returns the norm of the active gradient before clipping.

    A norm that is not finite is returned without a step.

    Args:
        drawn: the weights that this step has computed with, by layer, where these are not those of the topology.
    """
    gradients = optimizer.gradients()
    warm = config.sparsity.grown_moments == "warm"
    # Warm zeroes weights that are not active; those not drawn only rest for a step.
    assert drawn is None or not warm, "the phases of annealed children have no grown weights to warm"
    active = drawn
    if active is None:
        sparse = [layer for layer in layers if layer.budget.active < layer.budget.units]
        active = {layer.name: layer.elements(layer.active) for layer in sparse}
    measured = dict(gradients)
    for name, flags in active.items():
        if warm:
            # The moments of inactive weights go on integrating the dense gradient; only the norm must not see it.
            measured[name] = gradients[name].clone()
        mask_(measured[name], flags)
    sizes = {name: parameter.numel() for name, parameter in optimizer.parameters.items()}
    norm = gradient_norm(measured, sizes, config, ranks)
    if not math.isfinite(norm):
        return norm
    if config.optim.clip > 0.0 and norm > config.optim.clip:
        torch._foreach_mul_(list(gradients.values()), config.optim.clip / norm)
    optimizer.step(gradients, lr)
    if warm:
        with torch.no_grad():
            for name, flags in active.items():
                mask_(optimizer.shards[name], flags)
    return norm
