"""What a configuration amounts to: every number that follows from it, before anything is started."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from nt_pretrain.config.load import difference
from nt_pretrain.config.mesh import MeshSizes, mesh_sizes
from nt_pretrain.config.schema import Config
from nt_pretrain.data.sources import mixture_of
from nt_pretrain.models.accounting import (
    Accounts,
    Count,
    account,
    attention_flops_per_token,
    flops_per_token,
    shapes_of,
)
from nt_pretrain.models.groups import group_of
from nt_pretrain.models.network import block_count, vision_of
from nt_pretrain.models.sharing import is_frozen, sharing_of
from nt_pretrain.models.vision_accounting import flops_per_picture, picture_cost
from nt_pretrain.sparsity.block_budget import layer_budgets, line_budgets, overall
from nt_pretrain.sparsity.budget import LayerBudget, names_without_blocks
from nt_pretrain.sparsity.schedule import overall_density, update_count
from nt_pretrain.sparsity.stripping import strippable_budgets
from nt_pretrain.train.memory import Memory, checkpoint_bytes, estimate


@dataclass(frozen=True)
class Plan:
    """The derived numbers of a run.

    Attributes:
        accounts: parameters, active ones at the end of the density schedule.
        single: parameters of one dense model of the same shape, to compare with.
        start_density: of all sparse layers in the first topology.
        by_line: with ``sparsity.balance: line``, the density of all sparse layers that was asked for, and what as many
            whole blocks in every line of a layer make of it.
        accumulation: micro-batches per rank and step.
        samples: what is counted, "tokens", "pictures" or "rows".
        sequences_per_rank: sequences, pictures or rows of one rank and step.
        flops_per_sample_dense: operations per trained sample with all weights, which the masked backend executes:
            inactive weights are multiplied as zeros.
        flops_per_sample_active: operations per trained sample with active weights only, which the block backend
            executes, dense gradients of the steps after which blocks grow aside.
        flops_per_sample_forward: operations of a forward pass of one sample, with all weights and with active ones.
        executes_active: whether only active weights' are executed.
        checkpoint_bytes: one checkpoint, all ranks together.
    """

    sizes: MeshSizes
    accounts: Accounts
    single: int
    start_density: float
    by_line: tuple[float, float] | None
    total_steps: int
    warmup_steps: int
    sequences_per_rank: int
    accumulation: int
    lanes: int
    samples: str
    samples_per_step: int
    total_samples: int
    topology_updates: int
    flops_per_sample_dense: int
    flops_per_sample_active: int
    flops_per_sample_forward: Count
    executes_active: bool
    memory: Memory
    checkpoint_bytes: int

    @property
    def flops_per_sample_executed(self) -> int:
        return self.flops_per_sample_active if self.executes_active else self.flops_per_sample_dense

    @property
    def total_flops_dense(self) -> int:
        return self.flops_per_sample_dense * self.total_samples

    @property
    def total_flops_active(self) -> int:
        return self.flops_per_sample_active * self.total_samples


def make_plan(config: Config, world_size: int) -> Plan:
    """The numbers of ``config``, which must have passed :mod:`nt_pretrain.config.checks`, on ``world_size`` ranks."""
    shapes = shapes_of(config.model)
    budgets = layer_budgets(shapes, config.sparsity) if config.sparsity.density < 1.0 else {}
    accounts = account(shapes, budgets, sharing_of(config.model))
    flops, forward = _flops_per_sample(config, accounts, budgets)
    lines = line_budgets(shapes, config.sparsity) if budgets and config.sparsity.balance == "line" else {}
    sizes = mesh_sizes(config, world_size)
    sequences = config.train.global_batch // sizes.data
    accumulation = max(1, sequences // config.train.micro_batch)
    samples = config.train.global_batch * (1 if config.model.classifies else config.data.sequence_length)
    single = config.model.model_copy(update={"heads": 1, "sharing": "none", "members": 1})
    return Plan(
        sizes=sizes,
        accounts=accounts,
        single=account(shapes_of(single), {}).all.total,
        start_density=overall_density(config, 0),
        by_line=overall(lines) if lines else None,
        total_steps=config.total_steps,
        warmup_steps=config.warmup_steps,
        sequences_per_rank=sequences,
        accumulation=accumulation,
        lanes=config.lanes,
        samples=config.model.samples,
        samples_per_step=samples,
        total_samples=samples * config.total_steps,
        topology_updates=update_count(config),
        flops_per_sample_dense=flops.total,
        flops_per_sample_active=flops.active,
        flops_per_sample_forward=forward,
        executes_active=bool(budgets) and config.sparsity.backend == "block",
        memory=estimate(config, shapes, strippable_budgets(config, shapes) | budgets, sizes, accumulation=accumulation),
        checkpoint_bytes=checkpoint_bytes(config, shapes, strippable_budgets(config, shapes) | budgets),
    )


def _flops_per_sample(
    config: Config, accounts: Accounts, budgets: dict[str, LayerBudget]
) -> tuple[Count, Count]:  # fmt: skip
    """Operations of training on one token, picture or row, and of a forward pass: of all weights, and of the active
    ones. Members that see a picture several times train on it as often.
    """
    if config.model.data == "pictures":
        cost = picture_cost(vision_of(config.model), config.data.picture_size, budgets).all
        once = flops_per_picture(cost)
        repeats = config.train.batch_repeats
        return Count(once.total * repeats, once.active * repeats), Count(2 * cost.total, 2 * cost.active)
    used, frozen = accounts.per_token, accounts.frozen
    attention, repeats = 0, config.train.batch_repeats
    if config.model.data == "text":
        attention = attention_flops_per_token(config.model, config.data.sequence_length)
    training = (
        flops_per_token(each, attention, still) * repeats
        for each, still in ((used.total, frozen.total), (used.active, frozen.active))
    )
    return Count(*training), Count(*(2 * each + attention // 3 for each in (used.total, used.active)))


def render(plan: Plan, config: Config) -> str:
    """The plan as aligned plain text, with what the configuration changes of the defaults."""
    out = Console(file=io.StringIO(), width=200, color_system=None, highlight=False, markup=False, emoji=False)
    out.print(f"run {config.run.name}: {_model_in_words(config)}")
    out.print()
    out.print("options that differ from the defaults")
    for line in difference(config) or ["none"]:
        out.print(f"  {line}")
    for table in (_parameters(plan, config), _mesh(plan), _work(plan, config), _memory(plan)):
        out.print()
        out.print(table)
    assert isinstance(out.file, io.StringIO)
    return "\n".join(line.rstrip() for line in out.file.getvalue().splitlines())


def _model_in_words(config: Config) -> str:
    model, sparsity = config.model, config.sparsity
    blocks = block_count(model)
    trunk = blocks - model.blocks_in_head
    if model.sharing != "none":
        shape = f"{model.members} members that share the weights of {blocks} blocks ({model.sharing})"
    elif model.heads == 1:
        shape = f"one model of {blocks} blocks"
    elif trunk == 0:
        shape = f"a deep ensemble of {model.heads} models of {blocks} blocks"
    else:
        shape = f"{model.heads} heads of {model.blocks_in_head} blocks on a trunk of {trunk}"
    if model.classifies:
        shape = f"{model.family}, {shape}"
    if sparsity.density == 1.0:
        return f"{shape}, dense"
    unit = "single weights" if sparsity.unit == 1 else f"blocks of {sparsity.unit} x {sparsity.unit}"
    lines = ", as many in every line" if sparsity.balance == "line" else ""
    alone = ", only active ones exist" if sparsity.backend == "block" else ""
    how = f"{sparsity.distribution}, {unit}{lines}{alone}, scope {sparsity.scope}"
    return f"{shape}, density {sparsity.density:g} ({how})"


def _parameters(plan: Plan, config: Config) -> Table:
    # Of layers of blocks the total is that of the dense matrices they stand for.
    table = aligned_table("parameters", "dense" if plan.executes_active else "total", "active", "density")
    everything, heads, sharing = plan.accounts.all, config.model.voices, sharing_of(config.model)
    for counts in (dict(plan.accounts.by_group.items()), _parts(plan), {"all": everything}):
        for name, count in counts.items():
            table.add_row(f"  {name}", f"{count.total:,}", f"{count.active:,}", f"{count.density:.4f}")
        table.add_section()
    if still := sum(math.prod(shape) for name, shape in shapes_of(config.model).items() if is_frozen(name, sharing)):
        table.add_row("  of all frozen", f"{still:,}", f"{still:,}", "")
    for groups, total in _without_blocks(config).items():
        table.add_row(f"  no blocks of {config.sparsity.unit} fit: {groups}", f"{total:,}", f"{total:,}", "1.0000")
    references = [("one dense model", 1)] + ([(f"{heads} dense models", heads)] if heads > 1 else [])
    for name, models in references:
        reference = plan.single * models
        ratios = (everything.total / reference, everything.active / reference)
        table.add_row(f"  times {name} ({reference:,})", *(f"{ratio:.3f}" for ratio in ratios), "")
    return table


def _without_blocks(config: Config) -> dict[str, int]:
    """Groups of layers, in words, that stay dense for want of blocks, and their weights; empty if there are none."""
    shapes, sparsity = shapes_of(config.model), config.sparsity
    names = [] if sparsity.density == 1.0 else names_without_blocks(shapes, sparsity.scope, sparsity.unit)
    if not names:
        return {}
    groups = ", ".join(dict.fromkeys(group_of(name) for name in names))
    return {groups: sum(math.prod(shapes[name]) for name in names)}


def _parts(plan: Plan) -> dict:
    """Trunk and heads; heads are alike and share a row."""
    parts = plan.accounts.by_part
    heads = [part for part in parts if part != "trunk"]
    trunk = {"trunk": parts["trunk"]} if "trunk" in parts else {}
    same = all(parts[head] == parts[heads[0]] for head in heads)
    return trunk | ({"each head": parts[heads[0]]} if same else {head: parts[head] for head in heads})


def _mesh(plan: Plan) -> Table:
    """The axes of the mesh, and what each divides."""
    sizes = plan.sizes
    table = aligned_table(f"mesh of {sizes.world:,} ranks" if sizes.world > 1 else "one rank", "")
    rows = {
        "replicate": (sizes.replicate, "copies of everything below"),
        "shard": (sizes.shard, "weights, gradients, moments and topologies"),
        "head": (sizes.head, "the heads; the trunk like shard"),
        "tensor": (sizes.tensor, "every matrix product"),
    }
    for name, (size, what) in rows.items():
        table.add_row(f"  {name}", f"{size:,}   {what}")
    table.columns[1].justify = "left"
    return table


def _work(plan: Plan, config: Config) -> Table:
    table = aligned_table("work", "")
    batch, micro = config.train.global_batch, config.train.micro_batch
    who = "ranks" if plan.sizes.tensor == 1 else f"groups of {plan.sizes.tensor} ranks"
    parts = f"{plan.sizes.data:,} {who} x {plan.accumulation:,} micro-batches of {micro:,}"
    text = config.model.data == "text"
    what, one = ("sequences" if text else plan.samples), plan.samples.removesuffix("s")
    rows = {
        f"{what} per step": f"{batch:,} = {parts}",
        f"{what} per rank and step": f"{plan.sequences_per_rank:,}",
        "lanes of data": f"{plan.lanes:,}, {plan.lanes // plan.sizes.data:,} per rank",
    }
    if text:
        length = config.data.sequence_length
        rows["tokens per step"] = f"{plan.samples_per_step:,} (sequences of {length:,})"
    rows |= {
        "steps": f"{plan.total_steps:,}, the first {plan.warmup_steps:,} of them warm-up",
        f"{plan.samples} in all": f"{plan.total_samples:,}",
    }
    for first, shares in _mixture(config).items():
        rows["sources" if first == 1 else f"sources from step {first:,}"] = shares
    if config.sparsity.density < 1.0:
        every = f", one every {config.sparsity.update_every:,} steps" if plan.topology_updates else ""
        rows["topology updates"] = f"{plan.topology_updates:,}{every}"
    if plan.start_density != config.sparsity.density:
        rows["density"] = f"{plan.start_density:g} to {config.sparsity.density:g}"
    if plan.by_line is not None:
        asked, became = plan.by_line
        rows["density by line"] = f"{became:.4f} of the sparse layers, {asked:.4f} asked"
    dense, active = ("", " (executed)") if plan.executes_active else (" (executed)", "")
    rows |= {
        f"FLOPs per {one}, dense": f"{power(plan.flops_per_sample_dense)}{dense}",
        f"FLOPs per {one}, active": f"{power(plan.flops_per_sample_active)}{active}",
        "FLOPs in all, dense": f"{power(plan.total_flops_dense)}{dense}",
        "FLOPs in all, active": f"{power(plan.total_flops_active)}{active}",
        "one checkpoint": readable_bytes(plan.checkpoint_bytes),
    }
    for name, value in rows.items():
        table.add_row(f"  {name}", value)
    table.columns[1].justify = "left"
    return table


def _mixture(config: Config) -> dict[int, str]:
    """First step to the shares of the sources from there on, in words; empty for one source."""
    if not config.data.sources:
        return {}
    mixture = mixture_of(config)
    return {
        first: ", ".join(f"{name} {count / 10:g} %" for name, count in zip(mixture.names, counts, strict=True) if count)
        for first, counts in mixture.phases
    }


def _memory(plan: Plan) -> Table:
    table = aligned_table("memory per rank (estimate)", "")
    memory = plan.memory
    unsharded = " (a whole one, as micro-batches accumulate)" if plan.accumulation > 1 else ""
    rows = {
        "weights": memory.weights,
        "weights gathered for use": memory.gathered,
        f"gradients{unsharded}": memory.gradients,
        "moments": memory.moments,
        "moving average of the weights": memory.average,
        "topology": memory.topology,
        "frozen weights beside these": memory.beside,
        "activations": memory.activations,
        "logits and loss": memory.loss,
        "scratch of sparse kernels": memory.kernels,
        "dense gradients while blocks grow, beside all these": memory.growth,
        "teacher at work, and the divergence from it": memory.teaching,
        "topology update (when gathered, activations, loss are gone)": memory.update,
        "validation (when gradients, activations, loss are gone)": memory.validation,
        "copy that a checkpoint is written from": memory.snapshot,
        "weights that wait while their average is validated": memory.swapped,
        "of all these in the host's memory": memory.host,
        "peak": memory.peak,
    }
    only_if_any = {
        "frozen weights beside these",
        "teacher at work, and the divergence from it",
        "moving average of the weights",
        "scratch of sparse kernels",
        "dense gradients while blocks grow, beside all these",
        "weights that wait while their average is validated",
        "of all these in the host's memory",
    }
    for name, size in rows.items():
        if size or name not in only_if_any:
            table.add_row(f"  {name}", readable_bytes(size))
    return table


def power(number: int) -> str:
    mantissa, exponent = f"{number:.3e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def aligned_table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, safe_box=True)
    table.add_column(headings[0])
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    return table


def readable_bytes(size: int) -> str:
    """Bytes with three digits and a decimal unit, as the console line has.

    >>> readable_bytes(8_032_803_226)
    '8.03 GB'
    """
    if size < 1000:
        return f"{size} B"
    value = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if value < 999.5 or unit == "PB":
            break
        value /= 1000
    return f"{value:.3g} {unit}"
