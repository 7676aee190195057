"""AdamW or SGD on this rank's shards.

The optimizer sees plain local tensors that share storage with the sharded parameters: every operation of both is
elementwise, so nothing is gained by sending it through DTensor, and a fused kernel runs once for all shards. Their
state exists from the start, so that the first topology update and a resume find it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nt_pretrain.config.schema import OptimSection
from nt_pretrain.models.groups import is_factor
from nt_pretrain.parallel.shard import local


class Optimizer:
    """AdamW (Loshchilov and Hutter 2019) or SGD with momentum, in groups: matrices and kernels decay, norms and biases
    do not, nor what makes members out of shared weights; rank-one factors have a learning rate of their own. Frozen
    parameters have no place in it.

    AdamW keeps two moments of every weight, SGD one: torch's momentum buffer, b = momentum b + gradient + weight_decay
    w, of which w - lr b is the step, or w - lr (gradient + weight_decay w + momentum b) with Nesterov's look ahead.

    Args:
        exact: no bit may depend on where shards are cut (``parallel.deterministic_reduce``).

    Attributes:
        parameters: those that are trained.
        shards: the local tensors by name; they share storage with ``parameters``.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], optim: OptimSection, *, exact: bool = False) -> None:
        self.parameters = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        self.shards = {name: nn.Parameter(local(p.detach()), requires_grad=True) for name, p in self.parameters.items()}
        self._steps = 0
        by_kind: dict[str, list[Tensor]] = {"decayed": [], "plain": [], "rank_one": []}
        for name, shard in self.shards.items():
            by_kind[_kind(name, self.parameters[name])].append(shard)
        groups = [
            {"params": by_kind["decayed"], "weight_decay": optim.weight_decay, "share": 1.0},
            {"params": by_kind["plain"], "weight_decay": 0.0, "share": 1.0},
        ]
        if by_kind["rank_one"]:
            groups.append({"params": by_kind["rank_one"], "weight_decay": 0.0, "share": optim.factor_lr})
        self._torch = _adamw(groups, optim, exact) if optim.algorithm == "adamw" else _sgd(groups, optim)

    def first_moment(self, name: str) -> Tensor:
        """AdamW's first moment, or the momentum of SGD."""
        state = self._torch.state[self.shards[name]]
        moment: Tensor = state["exp_avg"] if "exp_avg" in state else state["momentum_buffer"]
        return moment

    def second_moment(self, name: str) -> Tensor | None:
        """AdamW's second moment; SGD has none."""
        return self._torch.state[self.shards[name]].get("exp_avg_sq")

    def moments(self, name: str) -> dict[str, Tensor]:
        """``first_moment`` and, where there is one, ``second_moment``: names as in checkpoints."""
        second = self.second_moment(name)
        return {"first_moment": self.first_moment(name)} | ({} if second is None else {"second_moment": second})

    def gradients(self) -> dict[str, Tensor]:
        """This rank's shard of each parameter's reduced gradient."""
        return {name: local(p.grad) for name, p in self.parameters.items() if p.grad is not None}

    def step(self, gradients: dict[str, Tensor], lr: float) -> None:
        """One step with ``gradients`` at learning rate ``lr``; the parameters' own gradients are freed."""
        for name, shard in self.shards.items():
            shard.grad = gradients.get(name)
        for group in self._torch.param_groups:
            group["lr"] = lr * group["share"]
        self._torch.step()
        self._steps += 1
        for name, shard in self.shards.items():
            shard.grad = None
            self.parameters[name].grad = None

    def steps_taken(self) -> int:
        return self._steps

    def set_steps_taken(self, steps: int) -> None:
        """After a resume: AdamW's bias correction counts from here."""
        self._steps = steps
        for state in self._torch.state.values():
            if "step" in state:
                state["step"].fill_(float(steps))


def _kind(name: str, parameter: Tensor) -> str:
    if is_factor(name):
        return "rank_one" if parameter.ndim == 1 else "plain"
    return "decayed" if parameter.ndim >= 2 else "plain"


def _adamw(groups: list[dict], optim: OptimSection, exact: bool) -> torch.optim.AdamW:
    """On a CPU torch's fused kernel rounds the last few elements of a tensor in another way than the others."""
    fused = _on_gpu(groups) or not exact
    adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=fused)
    for shard in _shards(groups):
        adamw.state[shard] = {
            "step": torch.zeros((), dtype=torch.float32, device=shard.device),
            "exp_avg": torch.zeros_like(shard, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(shard, requires_grad=False),
        }
    return adamw


def _sgd(groups: list[dict], optim: OptimSection) -> torch.optim.SGD:
    """A momentum of zero is the same start as torch's own, which takes the first gradient for it.

    On a CPU torch's fused kernel is as AdamW's about the last few elements, and wrong in bf16 (torch 2.13); the plain
    one costs 3.7 instead of 0.8 ns a weight.
    """
    fused = _on_gpu(groups)
    sgd = torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=fused)
    for shard in _shards(groups):
        sgd.state[shard] = {"momentum_buffer": torch.zeros_like(shard, requires_grad=False)}
    return sgd


def _on_gpu(groups: list[dict]) -> bool:
    return all(shard.is_cuda for shard in _shards(groups))


def _shards(groups: list[dict]) -> list[Tensor]:
    return [shard for group in groups for shard in group["params"]]
