"""What growth needs of units that do not exist: norms of the blocks of the dense mean gradient, or its largest values.

In the backward pass of an update step the dense gradient of one layer at a time is computed, reduced to the ranks that
hold its lines, turned into norms or candidates and freed. Products run in bf16, or, where no bit may depend on the
ranks (``parallel.deterministic_reduce``), in the dtype of the activations, and are added up in fp64.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nt_pretrain.config.schema import Config
from nt_pretrain.parallel.blocks import block_modules, lines_group
from nt_pretrain.parallel.candidates import Candidates, Choice, candidates
from nt_pretrain.parallel.exchange import summed, width
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.sparsity.block_topology import BlockLayer
from nt_pretrain.sparsity.block_update import block_norms
from nt_pretrain.sparsity.csr_layers import single_layers
from nt_pretrain.sparsity.csr_topology import CsrLayer
from nt_pretrain.sparsity.kernels.conv import conv_dense_gradient
from nt_pretrain.sparsity.kernels.taps import Window


@dataclass
class GrowthScores:
    """Listens to the backward passes of one step; :meth:`listen` begins and ends it.

    Attributes:
        last: whether the next backward pass is that of the step's last micro-batch. Until then the dense gradients of
            all layers are kept and added up, which a step of one micro-batch does without.
        found: layer to [L, across] fp32: norms of the blocks of the lines held here. Up to a factor common to all of a
            layer.
        choice: how the update of this step chooses among single weights; None if there are no layers of such.
        candidates: layer to the single weights that may grow.
    """

    config: Config
    ranks: Ranks
    choice: Choice | None = None
    last: bool = False
    found: dict[str, Tensor] = field(default_factory=dict)
    candidates: dict[str, Candidates] = field(default_factory=dict)
    _sums: dict[str, Tensor] = field(default_factory=dict)

    def listen(self, model: nn.Module, *, on: bool) -> None:
        for name, module in [*block_modules(model).items(), *single_layers(model).items()]:
            assert module.topology is not None
            module.scoring = _OfLayer(self, name, module.topology) if on else None

    @property
    def exact(self) -> bool:
        return self.config.parallel.deterministic_reduce or self.config.train.precision == "fp64"

    def add(self, layer: BlockLayer | CsrLayer, gradient: Tensor) -> None:
        """``gradient`` [lines of this tensor rank * b, across * b] of one micro-batch, which may be changed.

        In the backward pass of the last one collective over the ranks that hold copies and parts of the layer.
        """
        name = layer.name
        before = self._sums.pop(name, None)
        if before is not None:
            gradient = before.add_(gradient)
        if not self.last:
            self._sums[name] = gradient.to(torch.float64 if self.exact else torch.float32)
            return
        rows = self._stored(self._reduced(layer, gradient))
        if isinstance(layer, CsrLayer):
            assert self.choice is not None, "single weights, but no word how to choose among them"
            self.candidates[name] = candidates(layer, rows, self.choice)
        else:
            self.found[name] = self._norms(layer, rows)

    def _reduced(self, layer: BlockLayer | CsrLayer, gradient: Tensor) -> Tensor:
        """The mean over ranks of the rows of the lines held here."""
        group, copies = lines_group(layer.name, self.ranks), self.ranks.replica_group
        count, unit = width(group), layer.budget.unit
        if count * width(copies) == 1:
            return gradient
        gradient = gradient.to(torch.float64 if self.exact else torch.float32)
        each = -(-(len(gradient) // unit) // count) * unit
        missing = each * count - len(gradient)
        padded = nn.functional.pad(gradient, (0, 0, 0, missing)) if missing else gradient
        own = padded
        if count > 1:
            own = padded.new_empty(each, padded.shape[1])
            group._reduce_scatter_base(own, padded, dist.ReduceScatterOptions()).wait()
        return summed(own, copies)[: layer.held * unit] / (count * width(copies))

    def _stored(self, gradient: Tensor) -> Tensor:
        """Exact sums in the dtype that gradients of dense matrices are kept in."""
        stored = torch.float64 if self.config.train.precision == "fp64" else torch.float32
        return gradient.to(stored) if self.exact else gradient

    def _norms(self, layer: BlockLayer, gradient: Tensor) -> Tensor:
        unit = layer.budget.unit
        blocks = gradient.view(-1, unit, layer.budget.across, unit)
        if self.exact:  # summed whatever the order
            return block_norms(blocks.transpose(1, 2))
        return torch.linalg.vector_norm(blocks, dim=(1, 3), dtype=torch.float32)


@dataclass(frozen=True)
class _OfLayer:
    """:class:`nt_pretrain.sparsity.layers.Scoring` of one layer."""

    scores: GrowthScores
    name: str
    layer: BlockLayer | CsrLayer

    def product(self, left: Tensor, right: Tensor) -> None:
        if not self.scores.exact:
            left, right = left.to(torch.bfloat16), right.to(torch.bfloat16)
        with torch.autocast(left.device.type, enabled=False):
            self.scores.add(self.layer, left.t() @ right)

    def convolution(self, dy: Tensor, x: Tensor, window: Window) -> None:
        dtype = dy.dtype if self.scores.exact else torch.bfloat16
        self.scores.add(self.layer, conv_dense_gradient(dy, x, window, dtype))

    def dense(self, gradient: Tensor) -> None:
        self.scores.add(self.layer, gradient)
