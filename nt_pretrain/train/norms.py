"""Running statistics of batch norms, measured again with the weights as they are, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.data.picture_sample import picture_sample
from nt_pretrain.models.batch_norm import Moments, measured_moments, store_moments
from nt_pretrain.models.loss import IGNORED
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.parallel.batch_norm import norms_of
from nt_pretrain.parallel.forward import Inputs, computing, run_trunk
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.shard import own_heads, reshard
from nt_pretrain.train.together import on_all


def measure_norms_again(
    model: MultiHead, config: Config, ranks: Ranks, pictures: int, progress: Callable[[int, int], None]
) -> int:
    """Replace the running statistics by those of ``pictures`` training pictures, or all there are, in whole batches of
    ``train.micro_batch``.

    For weights that changed after the network saw its last batch: a topology updated at the last step, weights dropped,
    an average, a point on a curve. Modules are left in the mode they were in. The same bits on any number of ranks,
    since batches are merged in their order. Collective.

    Args:
        progress: told batches done, and of how many, of this rank.

    Returns:
        The number of pictures that were measured.

    Raises:
        DataError: on all ranks, if a training picture cannot be read, or there are fewer than two.
    """
    sample = on_all(ranks, lambda: picture_sample(config, pictures, size=config.train.micro_batch))
    batches = sample.read(rank=ranks.data_rank, world=ranks.sizes.data)
    found: dict[int, list[Moments]] = {}
    # Ranks gather weights together: one without pictures in the last round runs along with black ones.
    black = torch.zeros(sample.size, 3, config.data.picture_size, config.data.picture_size, dtype=torch.uint8)
    rounds = -(-sample.batches // ranks.sizes.data)
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    for done in range(1, rounds + 1):
        batch = on_all(ranks, lambda: next(batches, None))
        pixels = black if batch is None else batch[1]
        moments = measured_moments([model], partial(_forward, model, config, ranks), [pixels.to(ranks.device)])
        if batch is not None:
            found[batch[0]] = [moments[norm] for norm in norms_of(model)]
        progress(done, rounds)
    whole = _merged(found, ranks)
    store_moments(dict(zip(norms_of(model), whole, strict=True)))
    reshard(model)
    for module, training in was:
        module.training = training
    return sample.pictures


def _forward(model: MultiHead, config: Config, ranks: Ranks, pixels: Tensor) -> None:
    nobody = torch.full((len(pixels),), IGNORED, device=pixels.device)
    with computing(config, ranks.device):
        _, start, context, _ = run_trunk(model, config, Inputs.of_labelled(pixels, nobody), ranks.head_group)
        for head in own_heads(model).values():
            head(start, context)


def _merged(found: dict[int, list[Moments]], ranks: Ranks) -> list[Moments]:
    """The moments of every norm over the batches of all ranks, in the order of their numbers. Collective."""
    own = {number: [(each.count, each.mean.cpu(), each.squares.cpu()) for each in moments]
           for number, moments in found.items()}  # fmt: skip
    everywhere: list[Any] = [None] * ranks.world
    dist.all_gather_object(everywhere, own, group=ranks.control)
    batches = {number: moments for rank in everywhere for number, moments in rank.items()}
    norms: list[list[Moments]] = [[Moments(*each) for each in batches[number]] for number in sorted(batches)]
    return [reduce(Moments.merged, of_norm) for of_norm in zip(*norms, strict=True)]
