"""Networks of pictures: what their units want to see, drawn by activation maximisation."""

from __future__ import annotations

import torch
from torch import Tensor

from nt_pretrain.diversity.activations import reading, table_of
from nt_pretrain.diversity.choice import chosen_units
from nt_pretrain.diversity.inside import BlockCompared, Inside, Progress
from nt_pretrain.diversity.markup import cell, drawing, element, hint, section, table, text
from nt_pretrain.diversity.matching import correlations
from nt_pretrain.diversity.maximise import Maximised, Score, maximise
from nt_pretrain.diversity.pictures import as_bytes, as_network_takes
from nt_pretrain.diversity.png import png
from nt_pretrain.diversity.probe import Probe
from nt_pretrain.diversity.voice import Site, Voice, unit_site

SEED = 0


def features(voices: list[Voice], inside: Inside, probe: Probe, units: int, progress: Progress) -> str:
    """Feature visualisation of the same units in every voice: of the first and the last block that is not shared, and
    of the classes.
    """
    lead = hint(
        "The picture each unit answers most to, climbed from the same noise for every voice; a column is the unit of "
        "one number. Columns that look alike: voices have learnt the same there. Below each: how far its answer is "
        "above the mean of real pictures, in standard deviations among them (σ), and the correlation (r) with the "
        "first voice's unit over the probe pictures, which for heads that were never one network says little."
    )
    ends = list({block.number: block for block in inside.blocks[:1] + inside.blocks[-1:]}.values())
    total, done, parts = len(voices) * (len(ends) + 1), 0, []
    for block in [*ends, None]:
        numbers = _classes(voices[0], probe, units) if block is None else chosen_units(block.units, units, block.number)
        columns = []
        for at, voice in enumerate(voices):
            score = _class_score(voice, probe, numbers) if block is None else _unit_score(voice, block, at, numbers)
            columns.append(_climbed(score, len(numbers), probe))
            done += 1
            progress("pictures", done, total)
        names = [probe.class_name(at) if block is None else f"unit {at}" for at in numbers]
        title = "classes" if block is None else f"block {block.number}"
        parts.append(element("h3", title) + _grid(voices, names, numbers, columns, block))
    return section("features", "What units want to see", lead, *parts)


@torch.no_grad()
def logits_of(voice: Voice, probe: Probe) -> Tensor:
    """Of all probe pictures, [N, C] on the CPU."""
    return torch.cat([table_of(voice.forward(each.inputs, each.documents))[:, 0] for each in probe.batches])


def _classes(voice: Voice, probe: Probe, units: int) -> list[int]:
    """The first classes."""
    return list(range(min(units, logits_of(voice, probe).shape[-1])))


def _climbed(score: Score, count: int, probe: Probe) -> Maximised:
    # A network that has only seen grey pictures has no use for colours.
    device, grey = probe.batches[0].inputs.device, bool((probe.inputs == probe.inputs[:, :1]).all())
    return maximise(score, count, probe.inputs.shape[-1], seed=SEED, grey=grey, device=device)


def _unit_score(voice: Voice, block: BlockCompared, at: int, units: list[int]) -> Score:
    """The mean answer of each unit over its map."""
    site = unit_site(voice.blocks[block.number])
    return _standard(lambda x: _mean_answer(voice, site, x), units, block.units[at].mean(1)[:, units])


def _class_score(voice: Voice, probe: Probe, classes: list[int]) -> Score:
    return _standard(lambda x: voice.forward(as_network_takes(x), None), classes, logits_of(voice, probe)[:, classes])


def _standard(answers: Score, numbers: list[int], known: Tensor) -> Score:
    """Of picture k the answer of unit ``numbers[k]``, less its mean and by its deviation among ``known`` [N, K]."""
    mean, deviation = known.mean(0), known.std(0).clamp_min(1e-6)

    def score(pictures: Tensor) -> Tensor:
        own = answers(pictures)[torch.arange(len(numbers)), torch.tensor(numbers)]
        return (own - mean.to(own)) / deviation.to(own)

    return score


def _mean_answer(voice: Voice, site: Site, pictures: Tensor) -> Tensor:
    """Mean over the map of every unit, [K, units]."""
    read: list[Tensor] = []
    with reading(site, read.append):
        voice.forward(as_network_takes(pictures), None)
    return read[0].flatten(2).mean(2) if read[0].ndim > 2 else read[0]


def _grid(
    voices: list[Voice], names: list[str], numbers: list[int], climbed: list[Maximised], block: BlockCompared | None
) -> str:
    """A row for each voice, a column for each unit."""
    rows = []
    for number, voice in enumerate(voices):
        line = [cell(text(voice.name), header=True)]
        for k, at in enumerate(numbers):
            words = f"{float(climbed[number].after[k]):+.1f} σ"
            if block is not None and number:
                first, own = block.units[0][..., at : at + 1], block.units[number][..., at : at + 1]
                words += f", r {float(correlations(first, own)):.2f}"
            picture = as_bytes(climbed[number].pictures[k])
            line.append(cell(drawing(png(picture), f"{names[k]}, {voice.name}", words, pixels=picture.shape[-1])))
        rows.append(line)
    return table(("", *names), rows, classes="grid")
