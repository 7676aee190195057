"""What the heads of sharded models say of batches, and all measures of it summed over ranks.

A network runs in evaluation mode (the NeuroTrails code measured in training mode) and is put back as it was. Forward
passes have a multiple of :data:`ROWS` rows: products of one to three rows take other kernels, whose last bit differs,
so that the batch size would show in the logits of an otherwise exact measurement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from nt_pretrain.eval.features import Features, kept_features
from nt_pretrain.eval.measure import Measures
from nt_pretrain.eval.voices import Part, Voices
from nt_pretrain.models.loss import IGNORED
from nt_pretrain.models.network import context_of
from nt_pretrain.parallel.exchange import gathered
from nt_pretrain.parallel.forward import Inputs, computing, run_trunk
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.shard import own_heads, roots

ROWS = 8
"""Measured on a CPU in fp32: the rows of a product are the same bits from 4 rows for each thread on."""


@dataclass(frozen=True)
class Said:
    """What all heads say of the samples of one batch that have a label.

    ``logits`` [M, N, C] as the network gave them; ``labels`` [N]; ``samples`` [N]: to which picture or sequence of the
    whole set, over all ranks, each of them belongs.
    """

    logits: Tensor
    labels: Tensor
    samples: Tensor


def gather_measures(
    voices: Voices,
    batches: Iterable[Inputs],
    ranks: Ranks,
    *,
    classwise: int = 0,
    temperatures: Tensor | None = None,
    progress: Callable[[int], None] | None = None,
) -> Measures:
    """Measures of the samples of all ranks' ``batches``, each counted once; the same on every rank. Collective.

    Args:
        batches: as :func:`said` wants them.
        classwise: the number of classes where classwise calibration is wanted, else 0.
        temperatures: [M + 2], of the members; fitted on other samples.
        progress: told the batches that are done.
    """
    measures = Measures.zeros(voices.names, classwise=classwise, temperatures=temperatures, device=ranks.device)
    for done, words in enumerate(said(voices, batches, ranks), start=1):
        measures.add(words.logits, words.labels)
        if progress is not None:
            progress(done)
    # On the CPU: thousands of small values are read off it, each of which a GPU would be waited for.
    whole = Measures.zeros(voices.names, classwise=classwise, temperatures=temperatures)
    whole.take(summed_over_ranks(measures.table(), ranks))
    return whole


def summed_over_ranks(table: Tensor, ranks: Ranks) -> Tensor:
    """The sum over all ranks of an int64 table of sums, on the CPU. Collective."""
    total = table.cpu()
    dist.all_reduce(total, group=ranks.control)
    return total


def said(voices: Voices, batches: Iterable[Inputs], ranks: Ranks) -> Iterator[Said]:
    """What all heads that speak say of this rank's batches, one batch at a time. Collective.

    Under head parallelism each rank still gets its own batches, with the logits of all heads; of ranks that share their
    matrix products one gets the samples, the others none.

    Args:
        batches: all of one size; every rank brings as many. Batch k of data rank r is the one numbered k * ranks + r of
            the whole set, as :func:`nt_pretrain.data.validation.validation_batches` deals them out.
    """
    was = [(module, module.training) for model in voices.models for module in model.modules()]
    for model in voices.models:
        model.eval()
    try:
        for number, batch in enumerate(batches):
            filled = _filled(batch.to(ranks.device))
            with kept_features(voices) as features:
                of_parts, targets = [_forward(part, filled, features, ranks) for part in voices.parts], filled.targets
            logits = of_parts[0] if len(of_parts) == 1 else torch.cat(of_parts)
            del of_parts
            first = (number * ranks.sizes.data + ranks.data_rank) * batch.samples
            samples = torch.arange(first, first + len(targets), device=targets.device)
            samples = samples.view(-1, *[1] * (targets.ndim - 1)).expand_as(targets)
            labelled = (targets != IGNORED) & ranks.counts
            # Without padding nothing is copied: logits of a vocabulary are what memory goes to.
            some = logits.flatten(1, -2) if labelled.all() else logits[:, labelled]
            yield Said(some, targets[labelled], samples[labelled])
            del logits, some
    finally:
        for module, training in was:
            module.training = training
        for part in voices.parts:
            for root in roots(part.model):
                assert isinstance(root, FSDPModule)
                root.reshard()


@torch.no_grad()
def _forward(part: Part, batch: Inputs, features: Features, ranks: Ranks) -> Tensor:
    """Logits [M, S, ..., C] of the heads of a part that speak, for this rank's batch."""
    if ranks.sizes.head > 1 and len(part.heads) < part.config.model.heads:
        raise ValueError(f"heads {list(part.heads)} alone: ranks that share out the heads run all of them")
    group, own = ranks.head_group, slice(ranks.place["head"] * batch.samples, (ranks.place["head"] + 1) * batch.samples)
    # Each rank of the group runs its heads on the samples of all of them, then every head's logits of one's own
    # samples come together.
    logits = []
    with part.around(), computing(part.config, ranks.device):
        start, context = _start(part, batch, features, group)
        for number, head in own_heads(part.model).items():
            if part.config.model.sharing != "none":
                return torch.stack([each for at, each in enumerate(head(start, context)) if at in part.heads])
            if number not in part.heads:
                continue
            whole = head(start, context)
            logits.append(whole if ranks.sizes.head == 1 else gathered(whole[None], 0, group)[:, own])
    if ranks.sizes.head == 1:
        return torch.stack(logits)
    # [heads of a rank][ranks of the group, S, ...]: the first rank's heads come first.
    return torch.stack(logits, dim=1).flatten(0, 1)


def _start(part: Part, batch: Inputs, features: Features, group: dist.ProcessGroup | None) -> tuple[Tensor, Any]:
    """What the heads of a part start from: features that other parts have left, or those of its own trunk."""
    found = features.read_by(part)
    if found is None:
        _, start, context, _ = run_trunk(part.model, part.config, batch, group)
        return start, context
    documents = None if batch.documents is None else gathered(batch.documents, 0, group)
    return gathered(found, 0, group), context_of(part.config.model, documents)


def _filled(batch: Inputs) -> Inputs:
    """The batch with samples without labels behind it, so that its rows are a multiple of ROWS."""
    each = math.prod(batch.targets.shape[1:])
    missing = -batch.samples % (ROWS // math.gcd(ROWS, each))

    def filled(x: Tensor, value: int) -> Tensor:
        return torch.cat([x, x.new_full((missing, *x.shape[1:]), value)]) if missing else x

    inputs, targets, documents = batch
    return Inputs(filled(inputs, 0), filled(targets, IGNORED), None if documents is None else filled(documents, 0))
