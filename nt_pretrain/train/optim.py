"""AdamW on this rank's shards.

The optimizer sees plain local tensors that share storage with the sharded parameters: every operation of AdamW is
elementwise, so nothing is gained by sending it through DTensor, and the fused kernel runs once for all shards. Its
state exists from the start, so that the first topology update and a resume find it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nt_pretrain.config.schema import OptimSection
from nt_pretrain.parallel.shard import local


class Optimizer:
    """AdamW (Loshchilov and Hutter 2019) with two groups: matrices decay, norms do not."""

    def __init__(self, parameters: dict[str, nn.Parameter], optim: OptimSection) -> None:
        self.parameters = parameters
        self.shards = {name: nn.Parameter(local(p.detach()), requires_grad=True) for name, p in parameters.items()}
        decayed = [shard for name, shard in self.shards.items() if parameters[name].ndim >= 2]
        plain = [shard for name, shard in self.shards.items() if parameters[name].ndim < 2]
        groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
        for shard in self.shards.values():
            self.adamw.state[shard] = {
                "step": torch.zeros((), dtype=torch.float32, device=shard.device),
                "exp_avg": torch.zeros_like(shard, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(shard, requires_grad=False),
            }

    def first_moment(self, name: str) -> Tensor:
        return self.adamw.state[self.shards[name]]["exp_avg"]

    def second_moment(self, name: str) -> Tensor:
        return self.adamw.state[self.shards[name]]["exp_avg_sq"]

    def gradients(self) -> dict[str, Tensor]:
        """This rank's shard of each parameter's reduced gradient."""
        return {name: local(p.grad) for name, p in self.parameters.items() if p.grad is not None}

    def step(self, gradients: dict[str, Tensor], lr: float) -> None:
        """One step with ``gradients`` at learning rate ``lr``; the parameters' own gradients are freed."""
        for name, shard in self.shards.items():
            shard.grad = gradients.get(name)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        for name, shard in self.shards.items():
            shard.grad = None
            self.parameters[name].grad = None

    def steps_taken(self) -> int:
        return int(next(iter(self.adamw.state.values()))["step"])

    def set_steps_taken(self, steps: int) -> None:
        """After a resume: AdamW's bias correction counts from here."""
        for state in self.adamw.state.values():
            state["step"].fill_(float(steps))
