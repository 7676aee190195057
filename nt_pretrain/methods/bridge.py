"""Bridge networks (Yun et al., ICML 2023, arXiv 2306.11304): members that share their trunk's forward pass with others.

Two modes are joined by a curve of low loss; a bridge is a head of the last blocks that predicts, from features that a
mode's forward pass has left anyway, what the network in the middle of the curve would. Type I reads the features of the
first mode, type II those of both. Training costs more than a deep ensemble's: only inference costs less.

Differences to the authors' code: the control point starts in the middle of the straight line (theirs, by the order of
its lines, at random values); batch norms are kept and measured again on the curve, where theirs are replaced by norms
without statistics; modes are not aligned by permuting units.
"""

from __future__ import annotations

from nt_pretrain.config.schema import Config
from nt_pretrain.methods.curve import Blend, Curve, Distillation, Mode, OnTrunks, shares_at
from nt_pretrain.methods.phase import Fresh, Phase, changed, of_length, seed_of
from nt_pretrain.methods.settings import dense, members_of, single
from nt_pretrain.models.network import block_count

MIDDLE = 0.5


def phases(config: Config) -> list[Phase]:
    """Modes unless they are given, then a curve and a bridge for each mode but the first; at last the control."""
    method, model = config.method, single(dense(config))
    found, modes = [], _modes(config)
    for number, mode in enumerate(modes if not method.modes else []):
        own = of_length(model, config.total_steps, {"run.seed": seed_of(config, number)})
        found.append(Phase(mode.name, own, Fresh(), emits=mode.name, speaks=mode.speaks))
    for number, other in enumerate(modes[1:], start=1):
        seed = seed_of(config, len(modes) + number)
        curve = of_length(model, _steps(config, method.curve_share), {"run.seed": seed})
        found.append(
            Phase(
                f"curve_{number}", curve, Blend(((modes[0], 0.5), (other, 0.5))), emits=f"curve_{number}",
                speaks=False, curve=Curve(modes[0], other, seed),
            )
        )  # fmt: skip
        first, middle, last = shares_at(MIDDLE)
        teacher = Blend(((modes[0], first), (Mode(f"curve_{number}"), middle), (other, last)))
        found.append(_bridge(config, f"bridge_{number}", teacher, _read(config, modes[0], other), seed))
    if method.control:
        # From the same initial values and on the same features as the first bridge: only the teacher differs.
        trunks, seed = _read(config, *modes[:2]), seed_of(config, len(modes) + 1)
        found.append(_bridge(config, "control", Blend(((modes[0], 1.0),)), trunks, seed, speaks=False))
    return found


def mode_count(config: Config) -> int:
    """Modes of an ensemble of M: type I is one mode and a bridge to each other one; type II all modes and a bridge from
    the first to each other one.
    """
    members = members_of(config)
    return members if config.method.bridge_type == "I" else (members + 1) // 2


def _modes(config: Config) -> list[Mode]:
    given, both = config.method.modes, config.method.bridge_type == "II"
    return [
        Mode(f"mode_{number}", given[number] if given else "", speaks=both or number == 0)
        for number in range(mode_count(config))
    ]


def _read(config: Config, first: Mode, other: Mode) -> OnTrunks:
    return OnTrunks((first,) if config.method.bridge_type == "I" else (first, other))


def _bridge(
    config: Config, name: str, teacher: Blend, trunks: OnTrunks, seed: int, *, speaks: bool = True
) -> Phase:  # fmt: skip
    """The head is trained without dropout: what it reads comes from a finished network."""
    method = config.method
    model = {
        "model.blocks_in_head": method.bridge_blocks, "model.head_slim": method.slim,
        "model.trunks": len(trunks.modes), "model.dropout": 0.0, "run.seed": seed,
    }  # fmt: skip
    own = changed(of_length(single(dense(config)), _steps(config, method.bridge_share)), model)
    return Phase(name, own, trunks, emits=name, speaks=speaks, distils=Distillation(teacher, method.mixup, seed))


def _steps(config: Config, share: float) -> int:
    return max(1, round(share * config.total_steps))


def problems(config: Config) -> list[str]:
    """Options that do not fit method.name: bridge, one line each."""
    method, members, blocks = config.method, members_of(config), block_count(config.model)
    found = []
    if method.bridge_type == "II" and members % 2 == 0:
        found.append(
            f"method.members: bridges of type II make 2 k + 1 members, k + 1 modes and k bridges: 3, 5, ...; not "
            f"{members}"
        )
    if method.modes and len(method.modes) != mode_count(config):
        found.append(
            f"method.modes: {len(method.modes)} are given, {mode_count(config)} needed for method.members {members} of "
            f"bridge_type {method.bridge_type}"
        )
    if len(set(method.modes)) < len(method.modes):
        found.append(f"method.modes: {', '.join(method.modes)}: each only once; a mode and itself have nothing between")
    if method.bridge_blocks >= blocks:
        found.append(
            f"method.bridge_blocks: {method.bridge_blocks} of {blocks} blocks leave no trunk whose features a bridge "
            f"could read; give 1 to {blocks - 1}"
        )
    if method.mixup and not config.model.classifies:
        found.append("method.mixup: tokens cannot be mixed; leave it out")
    elif method.mixup and config.train.micro_batch == 1:
        found.append("method.mixup: with train.micro_batch: 1 a sample has no neighbour to be mixed with; raise it")
    alone = {
        "stripping.every_steps": config.stripping.every_steps, "train.ema_decay": config.train.ema_decay,
        "parallel.tensor": config.parallel.tensor - 1,
    }  # fmt: skip
    return found + [
        f"{option}: does not go with method.name: bridge, whose trunks are frozen and shared; leave it out"
        for option, value in alone.items()
        if value
    ]
