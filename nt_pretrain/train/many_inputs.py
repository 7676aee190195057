"""The batches of a network that sees one sample for each of its members (``model.sharing: inputs``).

Every member sees every sample of a micro-batch, each member in an order of its own (Havasi et al. 2021, arXiv
2010.06610, who shuffle within the batch of a device). A micro-batch is the same samples on every number of ranks, and
the orders are functions of seed, step, member and the samples' place in the global batch: nothing has to travel, and no
number of ranks changes what is seen together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.config.schema import Config
from nt_pretrain.data.order import permutation
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks


@dataclass(frozen=True)
class Orders:
    """Of one step.

    Attributes:
        repeats: how often a member sees each sample.
        same: share of the rows in which all members see the same sample.
        first: number in the global batch of this rank's first sample; ranks' batches laid end to end are that batch.
    """

    members: int
    repeats: int
    same: float
    seed: int
    step: int
    first: int

    def of(self, first: int, samples: int) -> Tensor:
        """What each member sees in the micro-batch of ``samples`` from this rank's number ``first`` on: int64
        [M, rows], numbers within the micro-batch.
        """
        key, rows = (self.seed, "inputs", self.step, self.first + first), samples * self.repeats
        common = permutation(rows, *key) % samples
        moved = int(rows * (1.0 - self.same))
        orders = []
        for member in range(self.members):
            order = common.copy()
            order[:moved] = common[:moved][permutation(moved, *key, member)]
            orders.append(torch.from_numpy(order))
        return torch.stack(orders)

    def mixed(self, part: Inputs, first: int) -> Inputs:
        """The samples of all members side by side: inputs [rows, M * C, ...], targets [M, rows]."""
        orders = self.of(first, part.samples).to(part.inputs.device)
        inputs = torch.cat([part.inputs[order] for order in orders], dim=1)
        return Inputs(inputs, part.targets[orders], None)


def input_orders(config: Config, step: int, samples: int, ranks: Ranks) -> Orders | None:
    """Of ``step``, whose batch has ``samples`` samples on each rank; None for other networks."""
    model, train = config.model, config.train
    if model.sharing != "inputs":
        return None
    first = ranks.data_rank * samples
    return Orders(model.members, train.batch_repeats, train.same_inputs, config.run.seed, step, first)
