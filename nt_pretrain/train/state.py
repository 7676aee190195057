"""Everything that training changes, and how it is written to and read from a checkpoint.

All randomness of this project is a function of seeds and counters (see :mod:`nt_pretrain.counter_random`), so there is
no generator state to keep: step, data position, weights, moments and topology say all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nt_pretrain.config.family import unread
from nt_pretrain.config.schema import Config
from nt_pretrain.models.accounting import Shapes, shapes_of
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.models.units import units_of
from nt_pretrain.parallel.activity import Activity
from nt_pretrain.parallel.batch_norm import statistics_of
from nt_pretrain.parallel.blocks import publish, topologies
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.shard import held_part, like_lines, like_parameter, local, own_ids, sharded_model
from nt_pretrain.parallel.single import publish_single, single_topologies
from nt_pretrain.sparsity.block_budget import layer_budgets
from nt_pretrain.sparsity.block_topology import BlockLayer
from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.csr_topology import CsrLayer
from nt_pretrain.sparsity.schedule import overall_density
from nt_pretrain.sparsity.stripping import strippable_budgets
from nt_pretrain.sparsity.topology import SparseLayer, empty_layer, mask_
from nt_pretrain.sparsity.update import LayerTensors
from nt_pretrain.train.ema import Average
from nt_pretrain.train.optim import Optimizer
from nt_pretrain.train.topology import draw_topology, topology_digest


@dataclass
class TrainState:
    """Model, optimizer, topology and average of weights of this rank, and how far the run has come.

    ``parameters`` and ``layers`` are those held here (under head parallelism not all heads'), ``budgets`` those of all
    sparse layers of the model. With ``sparsity.backend: block`` topologies are those of ``blocks`` or, of single
    weights, ``singles``; ``layers`` are then only those without inactive weights, which stay dense beside the latter.
    ``step`` counts finished optimizer steps, ``targets`` those of all ranks (tokens, pictures or rows), ``seconds`` the
    time of all attempts. ``activity`` is how often hidden units were active, where some are to be stripped.
    """

    model: MultiHead
    parameters: dict[str, nn.Parameter]
    optimizer: Optimizer
    layers: list[SparseLayer]
    budgets: dict[str, LayerBudget]
    step: int = 0
    targets: int = 0
    seconds: float = 0.0
    average: Average | None = None
    activity: Activity | None = None

    @property
    def blocks(self) -> dict[str, BlockLayer]:
        """Of layers of which only the active blocks exist, by name: the lines held here."""
        return topologies(self.model)

    @property
    def singles(self) -> dict[str, CsrLayer]:
        """Of layers of which only the active weights exist, each by itself, by name."""
        return single_topologies(self.model)

    def layer_tensors(self) -> dict[str, LayerTensors]:
        """Weight, dense gradient, moments and average of every sparse layer, as this rank's shards."""
        tensors = {}
        for layer in self.layers:
            parameter = self.parameters[layer.name]
            assert parameter.grad is not None
            tensors[layer.name] = LayerTensors(
                self.optimizer.shards[layer.name].detach(),
                local(parameter.grad),
                self.optimizer.first_moment(layer.name),
                self.optimizer.second_moment(layer.name),
                self.average.values[layer.name] if self.average is not None else None,
            )
        return tensors

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint by name, placed like the parameters; they share storage with the live ones."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"model.{name}"] = parameter.detach()
            if name not in self.optimizer.shards:
                continue  # frozen
            for kind, moment in self.optimizer.moments(name).items():
                tensors[f"{kind}.{name}"] = like_parameter(moment, parameter)
        for name, values in self.average.values.items() if self.average is not None else []:
            held = self.parameters.get(name)
            tensors[f"ema.{name}"] = values if held is None else like_parameter(values, held)
        for layer in self.layers:
            parameter = self.parameters[layer.name]
            for kind, flags in (("active", layer.active), ("explored", layer.explored), ("stripped", layer.stripped)):
                if flags is None:
                    continue
                # One byte a unit. Tables of blocks are the same on every rank and are kept whole.
                bytes_ = flags.view(torch.uint8)
                placed = bytes_ if layer.is_replicated else like_parameter(bytes_, parameter)
                tensors[f"{kind}.{layer.name}"] = placed
        for name, blocks in self.blocks.items():
            parameter = self.parameters[name]
            tensors[f"columns.{name}"] = like_lines(blocks.columns, parameter)
            tensors[f"explored.{name}"] = like_lines(blocks.explored.view(torch.uint8), parameter)
        for name, single in self.singles.items():
            parameter = self.parameters[name]
            tensors[f"ids.{name}"] = own_ids(single, parameter)
            tensors[f"explored.{name}"] = like_lines(single.explored, parameter, single.budget.shape[0])
        if self.activity is not None:
            tensors |= {"activity.active": self.activity.active, "activity.seen": self.activity.seen}
        # Running statistics of batch norms, the same on all ranks that hold them.
        return tensors | {f"model.{name}": buffer for name, buffer in statistics_of(self.model).items()}

    def facts(self, ranks: Ranks) -> dict[str, Any]:
        """What a checkpoint holds beside tensors and the data position (JSON). Collective.

        Counts of activity become those of all ranks, for :meth:`checkpoint_tensors`.
        """
        if self.activity is not None:
            self.activity.agree(ranks)
        return {
            "step": self.step,
            "tokens": self.targets,
            "seconds": self.seconds,
            "optimizer_steps": self.optimizer.steps_taken(),
            "averaged": self.average is not None,
            "active_units": {name: budget.active for name, budget in self.budgets.items()},
            "stripped_units": {name: budget.stripped for name, budget in self.budgets.items() if budget.stripped},
            "topology_digest": self.digest(ranks),
        }

    def forget_inactive_moments(self) -> None:
        """Zero the moments of inactive weights, which a run with grown_moments=warm leaves behind.

        Otherwise they would go on moving weights that have to stay zero.
        """
        for layer in self.layers:
            if layer.budget.active < layer.budget.units:
                flags = layer.elements(layer.active)
                for moment in self.optimizer.moments(layer.name).values():
                    mask_(moment, flags)

    def restore(self, facts: dict[str, Any], ranks: Ranks) -> None:
        """Counters from :meth:`facts`; tensors were read in place before. Collective."""
        self.step, self.targets, self.seconds = facts["step"], facts["tokens"], facts["seconds"]
        self.optimizer.set_steps_taken(facts["optimizer_steps"])
        stripped = facts.get("stripped_units", {})
        for name, budget in self.budgets.items():
            active = facts["active_units"][name]
            self.budgets[name] = replace(budget, active=active, stripped=stripped.get(name, 0))
        for layer in self.layers:
            layer.budget = self.budgets[layer.name]
        for blocks in self.blocks.values():
            blocks.refresh()
        publish(self.model, ranks)
        publish_single(self.model, ranks)

    def digest(self, ranks: Ranks) -> str:
        """Of the topologies of all layers of the model. Collective; errors as :func:`topology_digest`."""
        return topology_digest([*self.layers, *self.blocks.values(), *self.singles.values()], ranks, self.budgets)


def budgets_at(config: Config, shapes: Shapes, step: int) -> dict[str, LayerBudget]:
    """Budgets that hold after a topology update at ``step`` (0: the first topology), if nothing was stripped; empty for
    a dense run.
    """
    strippable = strippable_budgets(config, shapes)
    if config.sparsity.density == 1.0:
        return strippable
    return strippable | layer_budgets(shapes, config.sparsity, density=overall_density(config, step))


def fresh_state(config: Config, ranks: Ranks, *, frozen_trunk: bool = False) -> TrainState:
    """Initial weights, first topology, empty optimizer: a function of the configuration, not of the ranks.

    Args:
        frozen_trunk: only the heads are trained and have moments; the trunk's running statistics stay too.
    """
    model = sharded_model(config, ranks)
    if frozen_trunk:
        model.trunk.requires_grad_(False).eval()
    parameters = dict(model.named_parameters())
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    optimizer = Optimizer(trained, config.optim, exact=config.parallel.deterministic_reduce)
    shapes = shapes_of(config.model)
    budgets, strippable = budgets_at(config, shapes, 0), strippable_budgets(config, shapes)
    sparse = topologies(model) | single_topologies(model)
    layers = [
        empty_layer(name, budget, held_part(parameters[name]), is_strippable=name in strippable)
        for name, budget in budgets.items()
        if name in parameters and name not in sparse
    ]
    state = TrainState(model, parameters, optimizer, layers, budgets)
    draw_topology(layers, config, ranks)
    with torch.no_grad():
        for layer in state.layers:
            mask_(optimizer.shards[layer.name], layer.elements(layer.active))
    if config.train.ema_decay > 0.0:
        # Running statistics with the weights: those of the weights are not those of their average.
        shards = {name: local(parameter.detach()) for name, parameter in parameters.items()}
        state.average = Average.of(shards | statistics_of(model), config.train.ema_decay)
    if strippable:
        state.activity = Activity(units_of(config.model))
    return state


def identity(config: Config, tokenizer_sha256: str) -> dict[str, Any]:
    """What must agree between a checkpoint and the run that loads it (JSON)."""
    keys = (
        "density",
        "density_schedule",
        "density_start",
        "distribution",
        "group_density",
        "unit",
        "scope",
        "backend",
        "balance",
    )
    sparsity = config.sparsity.model_dump(mode="json")
    others = unread(config.model.data)["model"]
    if config.model.data == "text":
        others = ("family", *others)  # checkpoints of the time when there was no other have none
    return {
        "model": config.model.model_dump(mode="json", exclude={*others, "dropout"}),
        "optimizer": {"algorithm": config.optim.algorithm},
        "sparsity": {key: sparsity[key] for key in keys} | {"stripped": config.stripping.every_steps > 0},
        "tokenizer": tokenizer_sha256,
        "weights": {"pure_bf16": "bf16", "fp64": "fp64"}.get(config.train.precision, "fp32"),
    }
