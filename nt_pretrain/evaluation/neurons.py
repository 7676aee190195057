"""Neurons of a trained network chosen layer by layer, by how well the others reproduce the layer's own output.

This is pruning by reconstruction: of a feed-forward layer's H V the neurons are kept whose part of the sum gives the
layer's output back with the least squared error on training samples. What the network is trained for is not asked. It
is offline, on one process; later layers see the activations that the layers chosen before leave them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nt_pretrain.config.errors import ConfigErrors
from nt_pretrain.config.schema import Config
from nt_pretrain.eval.gather import gather_measures, said
from nt_pretrain.eval.measure import values_of
from nt_pretrain.eval.voices import Voices
from nt_pretrain.models.llama import FeedForward, ReluFeedForward
from nt_pretrain.models.loss import IGNORED
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import Ranks
from nt_pretrain.selection.descent import Selected, descend, groups_of, price_for
from nt_pretrain.selection.qubo import Qubo, own_output_qubo
from nt_pretrain.selection.solvers import Row, Solver, compare, seed_of

WIDEST = 16_384
"""Neurons of a layer: the problem has a square of them, 2 GiB here."""
Masks = dict[str, np.ndarray]
"""By layer: which neurons are kept, bool [n]."""


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        layers: names, in the order in which they are chosen from.
        keep: share of the neurons of each.
        solver: whose choice counts.
        compared: groups on which all of ``others`` are compared.
        rounds: of block coordinate descent, at most.
    """

    layers: tuple[str, ...]
    keep: float
    solver: Solver
    others: tuple[Solver, ...]
    group: int
    rounds: int
    compared: int
    seed: int


@dataclass(frozen=True)
class Chosen:
    """What was chosen from one layer.

    Attributes:
        lost: share of the layer's output (squared) that is missing, on the samples chosen on.
        lost_at_random: the same of a random choice of as many neurons; ``lost_by_size``: of those with the largest
            part of their own in the output.
        price: of a neuron, in units of that squared output.
        rows: solvers compared on the same groups.
    """

    layer: str
    selected: Selected
    lost: float
    lost_at_random: float
    lost_by_size: float
    price: float
    rows: list[Row]


@dataclass(frozen=True)
class Selection:
    """All layers, and the ensemble on held-out samples by who chose: (label, NLL in nats, accuracy)."""

    chosen: list[Chosen]
    held_out: list[tuple[str, float, float]]


def selectable(model: MultiHead) -> dict[str, nn.Module]:
    """By the name of the layer: the matrix behind the neurons that can be chosen from. Feed-forward layers and what
    feeds a classifier.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, FeedForward | ReluFeedForward):
            found[name] = module.down
        elif name.endswith(".output"):
            found[name] = module
    return found


def check(model: MultiHead, wanted: Wanted, *, world: int) -> None:
    """Raises:
    ConfigErrors: a layer is not there or too wide, or there are several ranks.
    """
    there = selectable(model)
    wrong = [f"{world} ranks were started; neurons are chosen by one process, without torchrun"] if world > 1 else []
    wrong += [f"--layer {each}: there is none; there are: {', '.join(there)}" for each in wanted.layers
              if each not in there]  # fmt: skip
    if wrong or not wanted.layers:
        raise ConfigErrors(wrong or [f"--layer: name one or more; there are: {', '.join(there)}"])


@torch.no_grad()
def choose(
    model: MultiHead,
    config: Config,
    wanted: Wanted,
    ranks: Ranks,
    training: Sequence[Inputs],
    held_out: Callable[[], Iterator[Inputs]],
    progress: Callable[[str, int, int], None],
) -> Selection:
    """Choose from every layer, then measure the ensemble with and without what was left out.

    Args:
        training: samples on which is chosen.
        held_out: opens those on which the choice is measured.

    Raises:
        ConfigErrors: as :func:`check`; or a layer that no sample goes through, or whose output is zero.
    """
    check(model, wanted, world=ranks.world)
    kept: Masks = {}
    chosen, random, by_size = [], Masks(), Masks()
    for layer in wanted.layers:
        progress(f"activations of {layer}", 0, 0)
        gram, outgoing = _sums(model, config, layer, kept, training, ranks)
        found = _choose_from(layer, own_output_qubo(gram, outgoing), wanted, progress)
        count = int(found.selected.mask.sum())
        kept[layer] = found.selected.mask
        random[layer] = _random_mask(len(gram), count, wanted.seed)
        by_size[layer] = _largest(np.diag(gram) * (outgoing * outgoing).sum(axis=1), count)
        chosen.append(found)
    cases = {"all neurons": Masks(), f"chosen ({wanted.solver.label})": kept, "as many of the largest": by_size,
             "as many at random": random}  # fmt: skip
    table = []
    for label, masks in cases.items():
        progress(f"measuring: {label}", 0, 0)
        with only(model, masks):
            values = values_of(gather_measures(Voices.of(model, config), held_out(), ranks))["ensemble"]
        table.append((label, values["nll"], values["accuracy"]))
    return Selection(chosen, table)


@contextmanager
def only(model: MultiHead, masks: Masks) -> Iterator[None]:
    """Inside, neurons that ``masks`` leave out give 0."""
    matrices, hooks = selectable(model), []
    try:
        for layer, mask in masks.items():
            keep = torch.from_numpy(mask)
            hooks.append(matrices[layer].register_forward_pre_hook(_masking(keep)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _masking(keep: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda module, inputs: (inputs[0] * keep.to(inputs[0].device, inputs[0].dtype), *inputs[1:])


def _sums(
    model: MultiHead, config: Config, layer: str, kept: Masks, batches: Sequence[Inputs], ranks: Ranks
) -> tuple[np.ndarray, np.ndarray]:
    """H^T H [n, n] of a layer over the samples, and its outgoing weights V [n, C]; the layers before as ``kept``."""
    matrix = selectable(model)[layer]
    gram: Tensor | None = None
    outgoing: Tensor | None = None
    labelled = torch.empty(0, dtype=torch.bool)

    def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal gram, outgoing
        # Neither padding nor the rows that fill up a batch.
        h = inputs[0].flatten(0, -2)[: len(labelled)][labelled].double()
        if h.shape[-1] > WIDEST:
            raise ConfigErrors([f"--layer {layer}: {h.shape[-1]:,} neurons; at most {WIDEST:,} fit in memory here"])
        if outgoing is None:
            # Whatever holds the weights, dense or sparse: what comes out for one neuron at a time.
            one = torch.eye(h.shape[-1], dtype=inputs[0].dtype, device=h.device)
            outgoing = (module.forward(one) - module.forward(torch.zeros_like(one[:1]))).double()
        gram = h.T @ h if gram is None else gram.add_(h.T @ h)

    with only(model, kept):
        hook = matrix.register_forward_pre_hook(see)
        try:
            for batch in batches:
                labelled = (batch.targets != IGNORED).flatten().to(ranks.device)
                for _ in said(Voices.of(model, config), [batch], ranks):
                    pass
        finally:
            hook.remove()
    if gram is None or outgoing is None:
        raise ConfigErrors([f"--layer {layer}: no sample went through it"])
    return gram.cpu().numpy(), outgoing.cpu().numpy()


def _choose_from(layer: str, qubo: Qubo, wanted: Wanted, progress: Callable[[str, int, int], None]) -> Chosen:
    whole = qubo.constant
    if not whole > 0.0 or not np.isfinite(whole):
        raise ConfigErrors(
            [f"--layer {layer}: the squared sum of its output is {whole}; there is nothing to choose by"]
        )
    qubo = Qubo(qubo.quadratic / whole, qubo.linear / whole, 1.0)  # energies: shares of the output
    everything = np.ones(qubo.size, dtype=bool)
    price = price_for(qubo, max(1, round(wanted.keep * qubo.size)))
    priced = qubo.with_price(price)
    groups = groups_of(qubo.size, wanted.group, seed=seed_of(wanted.seed, "round", 0))[: wanted.compared]
    rows = compare([priced.group(members, everything) for members in groups], list(wanted.others), seed=wanted.seed)
    selected = descend(
        priced, wanted.solver, group=wanted.group, rounds=wanted.rounds, seed=wanted.seed, start=everything,
        progress=lambda done, total: progress(f"choosing from {layer}", done, total),
    )  # fmt: skip
    count = int(selected.mask.sum())
    return Chosen(
        layer, selected, float(qubo.energy(selected.mask)),
        float(qubo.energy(_random_mask(qubo.size, count, wanted.seed))),
        float(qubo.energy(_largest(np.diag(qubo.quadratic), count))), price, rows,
    )  # fmt: skip


def _random_mask(size: int, count: int, seed: int) -> np.ndarray:
    return _largest(np.random.default_rng(seed_of(seed, "random mask")).random(size), count)


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Mask [n] of the ``count`` largest scores."""
    mask = np.zeros(len(scores), dtype=bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask
