"""configs/resnet50_imagenet.yaml as it is: one real step on pictures of 224 pixels."""

from __future__ import annotations

import math

import pytest
import torch

from nt_pretrain.config.load import load_config
from nt_pretrain.parallel.batch_norm import statistics_of
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.state import fresh_state
from nt_pretrain.train.step import accumulate_gradients, apply_gradients
from tests.gloo import run_ranks


def step_rank(rank: int, world: int) -> None:
    config = load_config(
        "configs/resnet50_imagenet.yaml",
        ["train.global_batch=8", "train.micro_batch=8", "run.device=cpu", "run.threads_per_rank=2"],
    )
    ranks = connect(config)
    state = fresh_state(config, ranks)
    assert sum(parameter.numel() for parameter in state.parameters.values()) == 74_338_368
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, 224, 224), generator=generator).to(torch.uint8)
    labels = torch.randint(0, 1000, (8,), generator=generator)
    before = {name: shard.detach().clone() for name, shard in state.optimizer.shards.items()}
    batch = Inputs.of_labelled(pixels.contiguous(memory_format=torch.channels_last), labels)
    losses = accumulate_gradients(state.model, config, batch, ranks)
    # The classifiers start near zero, so nothing is more likely than anything else.
    assert losses.targets == 8
    assert all(abs(loss - math.log(1000)) < 0.7 for loss in losses.per_head)
    assert len(set(losses.per_head)) == 3, "heads start apart"
    gradients = state.optimizer.gradients()
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients.values())
    assert math.isfinite(apply_gradients(state.optimizer, state.layers, config, ranks, config.optim.lr))
    for layer in state.layers:
        shard = state.optimizer.shards[layer.name].detach().view(-1)
        assert not shard[~layer.active].any(), layer.name
        assert (shard != before[layer.name].view(-1)).any(), layer.name
    for name, each in statistics_of(state.model).items():
        assert each.dtype == torch.float32 and each.isfinite().all(), name


@pytest.mark.long
@pytest.mark.timeout(400)
def test_one_step_at_batch_8() -> None:
    run_ranks(step_rank, 1, timeout=380)
