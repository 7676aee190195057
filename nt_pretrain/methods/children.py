"""Children of a trained parent: subnetworks that keep some of its weights and are tuned for a short while.

Prune and Tune (Whitaker and Whitley, AAAI 2022, arXiv 2202.11782): pairs of random masks and their complements. The
subnetwork ensembles of the dissertation (Whitaker 2023, arXiv 2311.14101), as neural partitioning, independent draws,
or sparse noise on the whole parent (that of :mod:`nt_pretrain.methods.mutation`; the abstract gives no formula).

A child is a function of its parent's checkpoint, a key and this recipe: all stand in the ensemble's manifest, so that a
child can be made again instead of stored. Differences to the authors' code: masks have exact counts; the one-cycle
learning rate warms up along a line; predictions are means of probabilities in every measure.
"""

from __future__ import annotations

from collections.abc import Sequence

from nt_pretrain.config.schema import Config
from nt_pretrain.counter_random import key_of
from nt_pretrain.methods.annealing import Annealing
from nt_pretrain.methods.mutation import Mutation
from nt_pretrain.methods.phase import Clone, Fresh, Phase, Slice, changed, of_length, seed_of
from nt_pretrain.methods.settings import dense, members_of, parent_steps, shaped, single

WARMUP = 0.1
"""Share of the tuning that warms up, to fall along a cosine to FLOOR afterwards."""
FLOOR = 1e-6


def prune_and_tune(config: Config) -> list[Phase]:
    """A parent, then M children of half its weights (unless ``child_density`` says otherwise)."""
    density = config.method.child_density or 0.5
    slices = []
    for child in range(members_of(config)):
        if config.method.masks == "magnitude":
            slices.append(Slice("magnitude", 0.0, density))
        elif config.method.masks == "random":
            slices.append(Slice("random", 0.0, density, _key(config, child)))
        else:
            half = (0.0, 0.5) if child % 2 == 0 else (0.5, 1.0)
            slices.append(Slice("random", *half, key=_key(config, child // 2)))
    return _family(config, slices)


def subnetworks(config: Config) -> list[Phase]:
    """A parent, then M children: its disjoint parts, independent random subnetworks, or all of it with sparse noise."""
    children, method = members_of(config), config.method
    if method.sample == "noise":
        return _family(
            config, [Mutation(_key(config, child), method.noise, method.noise_density) for child in range(children)]
        )
    if method.sample == "partition":
        key = _key(config, 0)
        return _family(
            config, [Slice("random", part / children, (part + 1) / children, key) for part in range(children)]
        )
    density = method.child_density or 0.5
    return _family(config, [Slice("random", 0.0, density, _key(config, child)) for child in range(children)])


def _family(config: Config, kinds: Sequence[Slice | Mutation]) -> list[Phase]:
    method, model = config.method, single(dense(config))
    found = []
    if not method.parent:
        steps = parent_steps(config)
        found.append(Phase("parent", of_length(model, steps), Fresh(), emits="parent", speaks=False))
    steps = max(1, round(method.tune_share * config.total_steps))
    for child, kind in enumerate(kinds):
        tuning = shaped("cosine", min_lr_ratio=FLOOR, lr=config.optim.lr * method.tune_lr)
        tuning |= {"optim.warmup_steps": round(WARMUP * steps), "run.seed": seed_of(config, child + 1)}
        keeps, noise = (kind, None) if isinstance(kind, Slice) else (None, kind)
        start = Clone(method.parent or "parent", given=bool(method.parent), keeps=keeps, noise=noise)
        own = changed(of_length(model, steps, tuning), _topology(keeps))
        annealing = _annealing(config, steps, seed_of(config, child + 1))
        found.append(Phase(f"child_{child}", own, start, emits=f"child_{child}", annealing=annealing))
    return found


def _topology(keeps: Slice | None) -> dict[str, object]:
    """Options of a child that has only some of its parent's units."""
    if keeps is None:
        return {}
    # The last layer stays whole, as the authors' does; of text the embedding with it.
    return {
        "sparsity.density": keeps.last - keeps.first, "sparsity.distribution": "uniform",
        "sparsity.scope": "no_vocab", "sparsity.stop_fraction": 0.0,
    }  # fmt: skip


def _annealing(config: Config, steps: int, seed: int) -> Annealing | None:
    method = config.method
    if method.annealing == "none":
        return None
    return Annealing(method.annealing, method.annealing_decay, max(1, round(method.annealing_share * steps)), seed)


def _key(config: Config, number: int) -> int:
    return key_of(config.run.seed, "child", number)
