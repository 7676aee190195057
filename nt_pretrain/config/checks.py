"""What is wrong with a configuration although every single option is allowed: options that do not fit together.

It stands one level above the schema, since it asks the model for its shapes and the budget for its densities instead of
knowing them a second time.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

from nt_pretrain.config.batch import batch_problems
from nt_pretrain.config.blocks import backend_problems, tensor_problems
from nt_pretrain.config.data import data_problems
from nt_pretrain.config.family import family_problems
from nt_pretrain.config.mesh import mesh_problems
from nt_pretrain.config.model_section import Kind
from nt_pretrain.config.numbers import divisors, listed, multiples_near
from nt_pretrain.config.schema import Config, OptimSection
from nt_pretrain.config.sharing import sharing_problems
from nt_pretrain.config.stripping import stripping_problems
from nt_pretrain.methods.calendar import calendar_of, method_problems
from nt_pretrain.methods.phase import Part
from nt_pretrain.models.accounting import Shapes, account, shapes_of
from nt_pretrain.models.groups import group_of
from nt_pretrain.models.network import block_count
from nt_pretrain.sparsity.block_budget import layer_budgets
from nt_pretrain.sparsity.budget import names_without_blocks, plan_budgets, sparse_names

PREPARED_BY: dict[Kind, str] = {"text": "text YOUR_TEXTS", "pictures": "images YOUR_PICTURES", "rows": "rows YOUR_ROWS"}
"""Verbs of launch/prepare.py and what they take."""


def problems(config: Config, *, world_size: int | None = None) -> list[str]:
    """Everything that does not fit, one line each, naming the keys and what to change. Empty: the run can start.

    All phases of the method are looked at; what several of them have in common is told once.

    Args:
        world_size: number of ranks; None leaves out what depends on it.
    """
    if found := method_problems(config):
        return found
    calendar = calendar_of(config)
    told: dict[str, str] = {}
    for phase in calendar:
        wider = [phase.start.wide] if isinstance(phase.start, Part) else []
        for each in [*wider, phase.config]:
            for problem in _problems(each, world_size):
                told.setdefault(problem, phase.name)
    several = len(calendar.phases) > 1
    if several and config.data.curriculum:
        told[f"data.curriculum: is of one phase; method.name: {config.method.name} has several, leave it out"] = ""
    # The first phase is the run as people think of it; of others it is told which.
    first, method = calendar.phases[0].name, config.method.name
    return [
        text if name in ("", first) else f"{text} (phase {name} of method.name: {method})"
        for text, name in told.items()
    ]


def _problems(config: Config, world_size: int | None) -> list[str]:
    """What does not fit in one phase."""
    found = _heads(config) + family_problems(config) + sharing_problems(config)
    found += [] if config.model.classifies else _model(config)
    # Shapes of an impossible model would only repeat the message.
    found += _sparsity(config) + stripping_problems(config) if not found else []
    found += (
        _dropout(config) + _schedules(config) + mesh_problems(config, world_size) + batch_problems(config, world_size)
    )
    return found + data_problems(config) + _optimizer(config) + _paths(config)


def missing_files(config: Config) -> list[str]:
    """What the run reads and is not there, one line each, with the command that makes it."""
    found = [
        f"{key}: there is no run or checkpoint {path}"
        for key, given in (("method.parent", [config.method.parent]), ("method.modes", config.method.modes))
        for path in given
        if path and not Path(path).is_dir()
    ]
    tokenizer = config.data.tokenizer
    named = {f"data.sources.{name}": path for name, path in config.data.sources.items()}
    paths = {key: path.rstrip("/") for key, path in (named or {"data.path": config.data.path}).items()}
    for key, data in paths.items():
        if "://" in data:
            continue  # asked when the run starts: a look would take as long
        for part in ("train", "validation"):
            manifest = f"{data}/{part}/manifest.json"
            if not Path(manifest).is_file():
                verb = PREPARED_BY[config.model.data]
                found.append(
                    f"{key}: {data} is no prepared corpus, {manifest} is missing; "
                    f"make it: python launch/prepare.py {verb} --out {data} --name {Path(data).name}"
                )
                break
    if not config.model.classifies and not Path(tokenizer).is_file():
        found.append(
            f"data.tokenizer: there is no file {tokenizer}; make it: python launch/prepare.py tokenizer "
            f"{next(iter(paths.values()))} --out {tokenizer} --vocab-size {config.model.vocab_size}"
        )
    return found


def _paths(config: Config) -> list[str]:
    paths = {
        "data.tokenizer": config.data.tokenizer,
        "run.dir": config.run.dir,
        "data.cache_dir": config.data.cache_dir,
    }
    return [
        f"{key}: {path} lies in an object store, which is not read or written directly; give a path of a file system"
        for key, path in paths.items()
        if "://" in path
    ]


def _heads(config: Config) -> list[str]:
    """Shapes of heads that nothing would have."""
    model, parallel = config.model, config.parallel
    found = []
    if model.head_slim > 1 and not model.blocks_in_head:
        found.append("model.head_slim: heads have no blocks that could be narrower; set model.blocks_in_head")
    if model.trunks > 1 and model.blocks_in_head >= block_count(model):
        found.append("model.trunks: 2 with all blocks in the heads is none; lower model.blocks_in_head")
    if (model.head_slim > 1 or model.trunks > 1) and parallel.tensor > 1:
        found.append(f"parallel.tensor: {parallel.tensor} cuts neither narrower heads nor two trunks; set it to 1")
    if model.trunks > 1 and model.sees_pictures and parallel.activation_checkpoint == "full":
        found.append("parallel.activation_checkpoint: full does not go with model.trunks 2; set none")
    return found


def _model(config: Config) -> list[str]:
    model = config.model
    found = []
    head_dim, rest = divmod(model.hidden, model.attention_heads)
    if model.head_width is not None:
        if model.head_width % 2:
            found.append(
                f"model.head_width: {model.head_width} must be even, as rotary positions need; nearest that are: "
                f"{multiples_near(model.head_width, 2)}"
            )
    elif rest:
        near = multiples_near(model.hidden, model.attention_heads)
        found.append(
            f"model.hidden: {model.hidden} is not divisible by model.attention_heads {model.attention_heads}; "
            f"nearest widths that are: {near}"
        )
    elif head_dim % 2:
        found.append(
            f"model.hidden: {model.hidden} / model.attention_heads {model.attention_heads} = {head_dim} dimensions per "
            f"attention head, which rotary positions need to be even; nearest widths that fit: "
            f"{multiples_near(model.hidden, 2 * model.attention_heads)}"
        )
    if model.kv_heads is not None and model.attention_heads % model.kv_heads:
        found.append(
            f"model.kv_heads: {model.kv_heads} does not divide model.attention_heads {model.attention_heads}; "
            f"these do: {listed(divisors(model.attention_heads))}"
        )
    inside = {
        "attention_heads": model.attention_heads, "kv_heads": model.kv_heads or model.attention_heads,
        "intermediate": model.intermediate,
    }  # fmt: skip
    if wide := [f"model.{key} {width}" for key, width in inside.items() if width % model.head_slim]:
        found.append(f"model.head_slim: {model.head_slim} does not divide {', '.join(wide)}")
    if model.blocks_in_head > model.layers:
        found.append(
            f"model.blocks_in_head: {model.blocks_in_head} exceeds model.layers {model.layers}; a head owns 0 (only "
            f"its norm and output layer) to {model.layers} blocks (a deep ensemble)"
        )
    return found


def _sparsity(config: Config) -> list[str]:
    sparsity = config.sparsity
    shapes = shapes_of(config.model)
    if wrong := backend_problems(config):
        return wrong
    if sparsity.density == 1.0:
        if sparsity.group_density:
            return [
                "sparsity.group_density: has no effect while sparsity.density is 1 (a dense run); lower the density"
            ]
        return []
    if not sparse_names(shapes, sparsity.scope):
        return [
            f"sparsity.scope: {sparsity.scope} leaves no layer that could be sparse (model.blocks_in_head "
            f"{config.model.blocks_in_head}); choose another scope, or set sparsity.density to 1 for a dense run"
        ]
    found = ([] if config.model.classifies else _blocks(config, shapes)) + _groups(config, shapes)
    if found:
        return found
    starts = (
        [sparsity.density] if sparsity.density_schedule == "constant" else [sparsity.density, sparsity.density_start]
    )
    for density in starts:
        try:
            budgets = layer_budgets(shapes, sparsity, density=density)
        except ValueError as error:
            return [str(error)]
    if all(budget.active == budget.units for budget in budgets.values()):
        return [
            f"sparsity.density: {sparsity.density} makes every unit of every layer active (sparsity.unit "
            f"{sparsity.unit}, sparsity.balance {sparsity.balance}), so none could move; lower it, or set 1 for a "
            "dense run"
        ]
    if wrong := tensor_problems(config, shapes):
        return wrong
    # What groups ask for; whole blocks in every line, which no density could name exactly, are no contradiction.
    single = plan_budgets(shapes, sparsity.model_copy(update={"unit": 1}), density=sparsity.density)
    realised = account(shapes, single).sparse.density
    fixed = {group_of(name) for name in budgets} <= set(sparsity.group_density)
    if fixed and abs(realised - sparsity.density) > 0.005:
        return [
            f"sparsity.group_density: fixes every group, which gives density {realised:.4f}, but sparsity.density is "
            f"{sparsity.density}; set it to {realised:.4f} or leave one group out"
        ]
    return []


def _blocks(config: Config, shapes: Shapes) -> list[str]:
    """Widths of the model that a block of ``sparsity.unit`` does not divide."""
    model, unit = config.model, config.sparsity.unit
    kv_width = model.head_dim * (model.kv_heads or model.attention_heads)
    sparse = {extent for name in sparse_names(shapes, config.sparsity.scope) for extent in shapes[name]}
    widths = {
        "model.vocab_size": model.vocab_size,
        "model.hidden": model.hidden,
        "model.intermediate": model.intermediate,
        "model.kv_heads * head width": kv_width,
    }
    if model.head_width is not None:
        widths["model.attention_heads * model.head_width"] = model.attention_heads * model.head_width
    found = []
    for key, width in widths.items():
        if width in sparse and width % unit:
            # A vocabulary is what its tokenizer made it; it can be left out of the topology instead.
            other = ", or sparsity.scope: no_vocab" if key == "model.vocab_size" else ""
            found.append(
                f"sparsity.unit: {key} {width} is not divisible into blocks of {unit}; nearest that are: "
                f"{multiples_near(width, unit)}{other}"
            )
    return found


def _groups(config: Config, shapes: Shapes) -> list[str]:
    scope, unit = config.sparsity.scope, config.sparsity.unit
    sparse = {group_of(name) for name in sparse_names(shapes, scope, unit)}
    without = {group_of(name) for name in names_without_blocks(shapes, scope, unit)}
    return [
        f"sparsity.group_density.{group}: has no effect, since sparsity."
        + (f"unit: {unit} fits no" if group in without else f"scope: {scope} leaves no")
        + f" {group} layer{'' if group in without else ' sparse'}; sparse groups are {', '.join(sorted(sparse))}"
        for group in config.sparsity.group_density
        if group not in sparse
    ]


def _dropout(config: Config) -> list[str]:
    if config.model.dropout and config.parallel.compile:
        return [
            f"model.dropout: {config.model.dropout} does not go with parallel.compile, which fixes what a block "
            "computes; leave one out"
        ]
    return []


def _schedules(config: Config) -> list[str]:
    optim, sparsity = config.optim, config.sparsity
    total, warmup = config.total_steps, config.warmup_steps
    found = []
    if warmup >= total:
        found.append(
            f"optim.warmup_steps: {warmup:,} of {total:,} training steps (train.steps) leave none at the full learning "
            f"rate; a tenth would be {total // 10:,}"
        )
    elif optim.schedule == "wsd" and warmup + round(optim.decay_fraction * total) > total:
        found.append(
            f"optim.decay_fraction: {optim.decay_fraction} of {total:,} steps and {warmup:,} steps of warm-up are more "
            f"than the whole run; at most {math.floor(100 * (1 - warmup / total)) / 100} fits"
        )
    elif optim.schedule == "step":
        found += _milestones(config)
    if sparsity.density == 1.0:
        return found
    if sparsity.prune_rate_schedule != "constant" and sparsity.prune_rate_end > sparsity.prune_rate:
        found.append(
            f"sparsity.prune_rate_end: {sparsity.prune_rate_end} exceeds sparsity.prune_rate {sparsity.prune_rate}, "
            "but the rate falls over the run; lower it, or set sparsity.prune_rate_schedule: constant"
        )
    if sparsity.density_schedule != "constant" and sparsity.stop_fraction < 1.0:
        found.append(
            f"sparsity.stop_fraction: {sparsity.stop_fraction} ends topology updates before sparsity.density_schedule "
            f"reaches sparsity.density {sparsity.density} at the last step; set stop_fraction: 1"
        )
    return found


def _milestones(config: Config) -> list[str]:
    shares, total, warmup = config.optim.milestones, config.total_steps, config.warmup_steps
    if any(later <= earlier for earlier, later in itertools.pairwise(shares)):
        return [f"optim.milestones: {list(shares)} must ascend; in order: {sorted(set(shares))}"]
    if shares and round(shares[0] * total) < warmup:
        return [
            f"optim.milestones: {shares[0]} of {total:,} steps is step {round(shares[0] * total):,}, amid the "
            f"{warmup:,} steps of optim.warmup_steps; at least {math.ceil(10000 * warmup / total) / 10000} fits"
        ]
    return []


def _optimizer(config: Config) -> list[str]:
    optim = config.optim
    found = _without_effect(optim)
    if optim.algorithm == "adamw":
        found += [
            f"optim.betas: {beta} must be below 1, or the moments never move" for beta in optim.betas if beta == 1
        ]
    by_line = config.sparsity.balance == "line"  # with which neither is possible, as is told elsewhere
    if config.sparsity.grow == "momentum" and config.sparsity.grown_moments != "warm" and not by_line:
        found.append(
            "sparsity.grow: momentum needs sparsity.grown_moments: warm; otherwise inactive weights have no momentum"
        )
    if set(config.run.name) == {"."}:
        found.append(f"run.name: {config.run.name!r} names no folder of its own below run.dir")
    return found


def _without_effect(optim: OptimSection) -> list[str]:
    """Options of the other algorithm, or of another schedule, that were set."""
    of_algorithm = {"adamw": ["momentum", "nesterov"], "sgd": ["betas", "eps"]}[optim.algorithm]
    of_schedule = ["min_lr_ratio"] if optim.schedule == "step" else ["milestones", "decay_factor"]
    default = OptimSection()
    return [
        f"optim.{key}: has no effect with optim.{why}"
        for why, keys in ((f"algorithm: {optim.algorithm}", of_algorithm), (f"schedule: {optim.schedule}", of_schedule))
        for key in keys
        if getattr(optim, key) != getattr(default, key)
    ]
