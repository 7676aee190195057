"""Sparse-mutation evolution of a trained network: forward passes only, the best children kept.

Children are judged by their loss on training samples that the run would read next, never on the validation split, which
measures what was kept. A child is known by its generation and number, so what a killed evolution has finished is a list
of losses: the same command goes on behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from nt_pretrain.checkpoint.load import Found
from nt_pretrain.config.schema import Config
from nt_pretrain.data.errors import DataError
from nt_pretrain.evaluation.batches import ValidationSet
from nt_pretrain.evaluation.finished_children import PARENT, Losses
from nt_pretrain.evaluation.likelihood import label_scores, mean_loss, together
from nt_pretrain.evaluation.load import Loaded
from nt_pretrain.evaluation.next_samples import NextSamples
from nt_pretrain.evaluation.write_member import manifest_hash
from nt_pretrain.methods.mutation import Child, Mutation, mutation_problems
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.parallel.mutate import Mutable

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        top: children kept: of the last generation as members, of those before as what the next parent is the mean of.
        samples: training samples that children are judged on.
    """

    mutation: Mutation
    children: int
    top: int
    generations: int
    samples: int


def wanted_problems(wanted: Wanted) -> list[str]:
    """What of it cannot be meant, a line each."""
    wrong = mutation_problems(wanted.mutation)
    for name in ("children", "top", "generations", "samples"):
        if getattr(wanted, name) < 1:
            wrong.append(f"--{name} {getattr(wanted, name)}: at least 1")
    if wanted.top > wanted.children:
        wrong.append(f"--top {wanted.top}: there are only {wanted.children} children; lower it, or raise --children")
    return wrong


@dataclass(frozen=True)
class Evolved:
    """What was found.

    Attributes:
        losses: of every child on the training samples, and of each generation's parent (number PARENT).
        best: the kept children of each generation, best first.
        validation: (who, loss) on the validation split.
    """

    losses: dict[Child, float]
    best: list[list[Child]]
    validation: list[tuple[str, float]]


def asked_of(wanted: Wanted, found: Found, training: NextSamples) -> dict[str, Any]:
    """What decides the children and their losses, as JSON; more generations may follow those there are."""
    return asdict(wanted.mutation) | {
        "children": wanted.children,
        "top": wanted.top,
        "samples": training.samples,
        "parent_sha256": manifest_hash(found.path),
    }


def evolve(
    config: Config,
    wanted: Wanted,
    mutable: Mutable,
    loaded: Loaded,
    training: NextSamples,
    data: ValidationSet,
    losses: Losses,
    ranks: Ranks,
    progress: Progress,
    keep: Callable[[Child, list[list[Child]]], None],
) -> Evolved:
    """Judge all children, and measure the best of the last generation on ``data``. Collective.

    Args:
        losses: those known already are not measured again.
        keep: called for each of these best ones while ``loaded`` is that child, and which were best before.

    Raises:
        DataError: on all ranks; the losses of all children are no numbers.
    """

    def scores(batches: Any) -> Tensor:
        return label_scores(loaded.model, config, batches, ranks)

    on_validation = [("parent", mean_loss(scores(data.read()), ranks))]
    best: list[list[Child]] = []
    for generation in range(wanted.generations):
        if generation:
            mutable.become_mean(best[-1])
        parent = Child(generation, PARENT)
        if parent not in losses.known:
            losses.add(parent, mean_loss(scores(training.batches), ranks))
        for number in range(wanted.children):
            child = Child(generation, number)
            if child not in losses.known:
                with mutable.child(child):
                    losses.add(child, mean_loss(scores(training.batches), ranks))
            progress(f"generation {generation + 1} of {wanted.generations}", number + 1, wanted.children)
        best.append(_best(losses.known, generation, wanted))
    if wanted.generations > 1:
        on_validation.append(("mean of the best, last parent", mean_loss(scores(data.read()), ranks)))
    heard = []
    for number, child in enumerate(best[-1], start=1):
        progress("keeping the best", number, wanted.top)
        with mutable.child(child):
            heard.append(scores(data.read()))
            keep(child, best[:-1])
    alone = [mean_loss(each, ranks) for each in heard]
    on_validation += [
        ("best child on the training samples", alone[0]),
        (f"mean of the {wanted.top} kept", sum(alone) / len(alone)),
        (f"ensemble of the {wanted.top} kept", mean_loss(together(heard), ranks)),
    ]
    return Evolved(dict(losses.known), best, on_validation)


def _best(losses: dict[Child, float], generation: int, wanted: Wanted) -> list[Child]:
    children = [Child(generation, number) for number in range(wanted.children)]
    sane = [child for child in children if math.isfinite(losses[child])]
    if len(sane) < wanted.top:
        raise DataError(
            f"only {len(sane)} of the {wanted.children} children of generation {generation + 1} have a finite loss, "
            f"and the best {wanted.top} are wanted; lower --sigma (now {wanted.mutation.sigma:g})"
        )
    return sorted(sane, key=lambda child: (losses[child], child.number))[: wanted.top]
