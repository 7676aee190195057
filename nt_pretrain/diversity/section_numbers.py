"""Tables of what differs inside: similarity of blocks, matched units, overlap of topologies."""

from __future__ import annotations

from torch import Tensor

from nt_pretrain.diversity.activations import spaced
from nt_pretrain.diversity.inside import BlockCompared, Inside
from nt_pretrain.diversity.markup import cell, element, hint, number, paragraph, section, shade, table, text
from nt_pretrain.diversity.topology import LayerOverlap, layer_overlaps, pair_mean
from nt_pretrain.diversity.voice import Voice

GRIDS = 6
"""Blocks whose pairs are shown one by one, evenly spaced over all."""
LAYERS = 40
"""Sparse layers that the table lists one by one; the rest is counted."""


def likeness(voices: list[Voice], inside: Inside) -> str:
    """Similarity of representations and matched units, block by block."""
    names = [voice.name for voice in voices]
    if not inside.blocks:
        return section("inside", "Representations", paragraph("All blocks are shared: there is nothing to compare."))
    shared = f"The first {inside.shared} of {inside.depth} blocks are the shared trunk. " if inside.shared else ""
    lead = hint(
        f"{shared}Linear CKA of {inside.samples:,} probe samples: 1 means that two voices represent them alike up to "
        "rotation and scale, 0 that nothing is shared. Falling values say that voices part ways with depth."
    )
    if len(voices) == 1:
        return section("inside", "Representations", paragraph("One voice alone has nothing to be compared with."))
    hidden = any(block.unit_cka is not None for block in inside.blocks)
    summary = []
    for block in inside.blocks:
        line = [cell(f"block {block.number}", header=True), _shaded(pair_mean(block.cka))]
        line += [_shaded(pair_mean(block.unit_cka))] if block.unit_cka is not None else []
        summary.append(line)
    head = ("mean over pairs", "what leaves the block", *(["hidden units"] if hidden else []))
    parts = [table(head, summary)]
    if hidden:
        parts.append(
            hint(
                "What leaves a transformer's block carries everything from below it on; what voices share there keeps "
                "its CKA near 1. The hidden units of the feed-forward layer show what is a voice's own."
            )
        )
    shown = [inside.blocks[at] for at in spaced(len(inside.blocks), GRIDS).tolist()]
    grids = "".join(_figure(block, names) for block in shown)
    return section("inside", "Representations", lead, *parts, element("div", grids), _matched(names, inside))


def overlaps(voices: list[Voice]) -> str:
    """Overlap of topologies layer by layer; "" where voices have no sparse layers of their own."""
    layers = layer_overlaps(voices)
    if not layers:
        return ""
    lead = hint(
        "Share of the units active in either of two voices that are active in both (Jaccard index): mean over pairs, "
        "the pairs with the least and the most, and what random topologies of the same density have. Equal numbers: "
        "training has moved topologies without regard to one another; above: they have found the same places."
    )
    rows = [_overlap_row(layer) for layer in layers[:LAYERS]]
    more = [paragraph(f"and {len(layers) - LAYERS} layers more")] if len(layers) > LAYERS else []
    head = ("layer", "units", "density", "Jaccard", "of pairs", "of random ones", "ratio")
    return section("topology", "Topologies", lead, table(head, rows), *more)


def _figure(block: BlockCompared, names: list[str]) -> str:
    matrix, what = (block.cka, "") if block.unit_cka is None else (block.unit_cka, ", hidden units")
    return element("figure", _pairs(matrix, names) + element("figcaption", text(f"block {block.number}{what}")))


def _pairs(matrix: Tensor, names: list[str]) -> str:
    rows = [
        [cell(text(name), header=True), *(_shaded(float(value)) for value in line)]
        for name, line in zip(names, matrix, strict=True)
    ]
    return table(("", *names), rows)


def _shaded(value: float) -> str:
    return cell(number(value), number=True, shade=shade(value, 0.0, 1.0, "a"))


def _matched(names: list[str], inside: Inside) -> str:
    lead = hint(
        f"Correlation of units of {names[0]} with units of another voice over the probe samples: with the unit of the "
        "same number, and with its partner in the best one-to-one matching. Far apart: voices have similar units in "
        "other places, so the same number means nothing. Both low: their units differ in kind."
    )
    rows = []
    for block in inside.blocks:
        for name, matching in zip(names[1:], block.matchings, strict=True):
            alike = float((matching.matched > 0.5).double().mean())
            rows.append(
                [
                    cell(f"block {block.number}", header=True),
                    cell(text(name)),
                    cell(f"{matching.units:,}", number=True),
                    _shaded(float(matching.same.mean())),
                    _shaded(float(matching.matched.mean())),
                    cell(f"{alike:.0%}", number=True),
                ]
            )
    head = ("", f"{names[0]} and", "units", "same number", "matched", "matched above .5")
    return element("h3", "Matched units") + lead + table(head, rows)


def _overlap_row(layer: LayerOverlap) -> list[str]:
    mean, least, most = layer.jaccard
    ratio = mean / layer.expected if layer.expected else float("nan")
    return [
        cell(text(layer.name), header=True),
        cell(f"{layer.units:,}", number=True),
        cell(f"{layer.density:.1%}", number=True),
        _shaded(mean),
        cell(f"{number(least)} – {number(most)}", number=True),
        _shaded(layer.expected),
        cell(number(ratio, 2), number=True),
    ]
