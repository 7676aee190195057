"""The phases of a run, whichever method it is; and what is wrong with the options of a method."""

from __future__ import annotations

from collections.abc import Callable

from nt_pretrain.config.method_section import MethodName, MethodSection
from nt_pretrain.config.schema import Config
from nt_pretrain.methods import bridge, children, cyclic, edst, ex_uno_plures, independent, one_phase, shared
from nt_pretrain.methods.phase import Calendar, Phase
from nt_pretrain.methods.settings import members_of
from nt_pretrain.models.network import block_count

ENSEMBLES = (
    "treenet", "neurotrails", "deep_ensemble", "dst_ensemble", "edst", "snapshot", "fge", "prune_and_tune",
    "subnetworks", "ex_uno_plures", "batch_ensemble", "mimo", "lora_ensemble", "bridge",
)  # fmt: skip
CHILDREN = ("prune_and_tune", "subnetworks")
TUNED = (*CHILDREN, "lora_ensemble")
READ_BY: dict[str, tuple[str, ...]] = {
    "joint": ("deep_ensemble",),
    "explore": ("edst",),
    "escape_rate": ("edst",),
    "refine_lr": ("edst",),
    "refine_schedule": ("edst",),
    "lowest_lr": ("fge",),
    "start": ("fge",),
    "parent": (*TUNED, "ex_uno_plures"),
    "parent_share": (*TUNED, "ex_uno_plures"),
    "dealing": ("ex_uno_plures",),
    "residual": ("ex_uno_plures",),
    "tune_share": TUNED,
    "tune_lr": TUNED,
    "masks": ("prune_and_tune",),
    "sample": ("subnetworks",),
    "noise": ("subnetworks",),
    "noise_density": ("subnetworks",),
    "annealing": CHILDREN,
    "annealing_decay": CHILDREN,
    "annealing_share": CHILDREN,
    "child_density": CHILDREN,
    "modes": ("bridge",),
    "bridge_type": ("bridge",),
    "bridge_blocks": ("bridge",),
    "slim": ("bridge",),
    "mixup": ("bridge",),
    "curve_share": ("bridge",),
    "bridge_share": ("bridge",),
    "control": ("bridge",),
}
"""Which methods read an option of the section method; all may be told the number of members, so that one configuration
serves an ensemble and the single model it is compared with. tests/methods checks that no option is missing."""
SPARSE = ("neurotrails", "set", "rigl", "static", "dst_ensemble", "edst")


RECIPE = (
    "name", "members", "masks", "sample", "noise", "noise_density", "child_density", "dealing", "residual",
    "bridge_type",
)  # fmt: skip
"""Options that all members of a run must share: half of a pair of complements is no use beside another mask. Parents
and modes are not among them: these may be moved, and are known by their hashes."""


def recipe_of(config: Config) -> dict[str, object]:
    """What makes the members of a run belong together (JSON); it may not change while they are made."""
    method = config.method.model_dump(mode="json", include=set(RECIPE))
    return {f"method.{name}": value for name, value in method.items()} | {"run.seed": config.run.seed}


def calendar_of(config: Config) -> Calendar:
    """The phases of a configuration without :func:`method_problems`."""
    return Calendar.of(phases_of(config.method)(config))


def phases_of(method: MethodSection) -> Callable[[Config], list[Phase]]:
    """What makes the phases of a method."""
    match method.name:
        case "none":
            return one_phase.as_configured
        case "dense":
            return one_phase.one_dense
        case "treenet":
            return one_phase.treenet
        case "neurotrails":
            return one_phase.neurotrails
        case "set":
            return one_phase.set_
        case "rigl":
            return one_phase.rigl
        case "static":
            return one_phase.static
        case "deep_ensemble":
            return one_phase.joint_ensemble if method.joint else independent.deep_ensemble
        case "dst_ensemble":
            return independent.dst_ensemble
        case "edst":
            return edst.phases
        case "snapshot":
            return cyclic.snapshot
        case "fge":
            return cyclic.fge
        case "prune_and_tune":
            return children.prune_and_tune
        case "subnetworks":
            return children.subnetworks
        case "ex_uno_plures":
            return ex_uno_plures.phases
        case "batch_ensemble":
            return shared.batch_ensemble
        case "mimo":
            return shared.mimo
        case "lora_ensemble":
            return shared.lora_ensemble
        case "bridge":
            return bridge.phases


def method_problems(config: Config) -> list[str]:
    """Everything that is wrong with the section method, one line each; then the phases can be made."""
    method = config.method
    name: MethodName = method.name
    default = MethodSection()
    found = [
        f"method.{option}: has no effect with method.name: {name}; it is read by {', '.join(readers)}"
        for option, readers in READ_BY.items()
        if name not in readers and getattr(method, option) != getattr(default, option)
    ]
    if name in SPARSE and config.sparsity.density == 1.0:
        found.append(f"sparsity.density: 1 leaves method.name: {name} nothing to make sparse; lower it, e.g. to 0.2")
    if name in ENSEMBLES and members_of(config) < 2:
        found.append(f"method.members: {name} is an ensemble, of at least 2 members, not {members_of(config)}")
    if name != "none" and config.model.sharing != "none":
        found.append(
            f"model.sharing: {config.model.sharing}, but method.name: {name} decides how members are made; leave it out"
        )
    if name in ("neurotrails", "treenet") and config.model.blocks_in_head == block_count(config.model):
        found.append(
            f"model.blocks_in_head: {config.model.blocks_in_head}, all blocks, leave {name} no trunk; give heads "
            "fewer, or choose method.name: deep_ensemble"
        )
    if name == "ex_uno_plures":
        found += ex_uno_plures.unfitting(config)
    found += bridge.problems(config) if name == "bridge" else []
    return found + _lengths(config) + _children(config)


def _lengths(config: Config) -> list[str]:
    """Phases of no steps at all."""
    method, steps, members = config.method, config.total_steps, members_of(config)
    least = {
        "edst": round(method.explore * steps) + members,
        "snapshot": members,
        "fge": round(method.start * steps) + 2 * members,
    }.get(method.name, 1)
    if steps < least:
        return [f"train.steps: {steps:,} are too few for method.name: {method.name} with {members} members"]
    if method.name in TUNED and round(method.tune_share * steps) < 1:
        return [
            f"method.tune_share: {method.tune_share} of {steps:,} train.steps is no step; one would be {1 / steps:.3g}"
        ]
    return []


def _children(config: Config) -> list[str]:
    method = config.method
    if method.name not in TUNED:
        return []
    found = []
    if method.parent and method.parent_share != MethodSection().parent_share:
        found.append("method.parent_share: no parent is trained, since method.parent is given; leave one of them out")
    if method.parent_share == 0.0:
        found.append(f"method.parent_share: 0 leaves {method.name} no trained parent; give a larger share")
    if method.name not in CHILDREN:
        return found
    if method.annealing == "none":
        default = MethodSection()
        found += [
            f"method.{option}: has no effect without method.annealing; choose temperature or random"
            for option in ("annealing_decay", "annealing_share")
            if getattr(method, option) != getattr(default, option)
        ]
    fixed = method.masks == "antirandom" if method.name == "prune_and_tune" else method.sample != "random"
    if fixed and method.child_density is not None:
        how = "masks: antirandom" if method.name == "prune_and_tune" else f"sample: {method.sample}"
        found.append(f"method.child_density: method.{how} decides it; leave it out, or choose another")
    return found + (_noise(method) if method.name == "subnetworks" else [])


def _noise(method: MethodSection) -> list[str]:
    """Options that noise reads alone, and those that it does not."""
    if method.sample == "noise" and method.annealing != "none":
        return [
            "method.annealing: with method.sample: noise a child has all weights, none to anneal away; leave it out"
        ]
    default = MethodSection()
    return [
        f"method.{option}: has no effect with method.sample: {method.sample}; it is read by noise"
        for option in ("noise", "noise_density")
        if method.sample != "noise" and getattr(method, option) != getattr(default, option)
    ]
