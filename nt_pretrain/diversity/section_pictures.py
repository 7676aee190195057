"""Networks of pictures: what their units want to see, and where in a picture they look."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nt_pretrain.diversity.activations import Batch, reading, table_of
from nt_pretrain.diversity.choice import chosen_units
from nt_pretrain.diversity.inside import BlockCompared, Inside, Progress
from nt_pretrain.diversity.markup import cell, element, hint, image, section, table, text
from nt_pretrain.diversity.matching import correlations
from nt_pretrain.diversity.maximise import Maximised, Score, maximise
from nt_pretrain.diversity.occlusion import occlusion
from nt_pretrain.diversity.overlay import overlay
from nt_pretrain.diversity.pictures import as_bytes, as_network_takes
from nt_pretrain.diversity.png import png
from nt_pretrain.diversity.probe import Probe
from nt_pretrain.diversity.saliency import LogProbability, saliency
from nt_pretrain.diversity.voice import Site, Voice, unit_site

SEED = 0
SHOWN = 4
"""Validation pictures with maps."""


def features(voices: list[Voice], inside: Inside, probe: Probe, units: int, progress: Progress) -> str:
    """Feature visualisation of the same units in every voice: of the first and the last block that is not shared, and
    of the classes.
    """
    lead = hint(
        "The picture each unit answers most to, climbed from the same noise for every voice; a row is the unit of one "
        "number. Rows that look alike: voices have learnt the same there. Below each: how far its answer rose above "
        "the mean of real pictures, in standard deviations among them (σ), and the correlation (r) with the first "
        "voice's unit over the probe pictures, which for units of heads that were never one network says little."
    )
    ends = {block.number: block for block in (inside.blocks[:1] + inside.blocks[-1:])}
    total, done = len(voices) * (len(ends) + 1), 0
    parts = []
    for block in ends.values():
        numbers = chosen_units(block.units, units, block.number)
        columns = []
        for voice, own in zip(voices, block.units, strict=True):
            columns.append(_climbed(_unit_score(voice, block.number, own, numbers), numbers, probe))
            done += 1
            progress("pictures", done, total)
        parts.append(element("h3", f"block {block.number}") + _grid(voices, "unit", numbers, columns, block))
    columns = []
    classes = list(range(units))
    for voice in voices:
        said = _logits(voice, probe)
        some = classes[: said.shape[-1]]
        columns.append(_climbed(_class_score(voice, said[:, some], some), some, probe))
        done += 1
        progress("pictures", done, total)
    parts.append(element("h3", "classes") + _grid(voices, "class", classes[: said.shape[-1]], columns, None))
    return section("features", "What units want to see", lead, *parts)


def maps(voices: list[Voice], probe: Probe, progress: Progress) -> str:
    """Saliency and occlusion of a few validation pictures in every voice."""
    lead = hint(
        "The same validation picture in every voice, asked about the ensemble's choice. Left: saliency, how much the "
        "log-probability hangs on a pixel (gradient, mean over noisy copies; each map to its own scale). Right: "
        "occlusion, what it loses (orange) or wins (blue) where a grey patch covers the place, on one scale for a "
        "row. Different maps: voices look at different parts. The first rows are those they differ most about."
    )
    logp = torch.stack([_logits(voice, probe) for voice in voices]).double().log_softmax(-1)
    chosen = shown_pictures(logp)
    rows = []
    for done, at in enumerate(chosen):
        mean = logp[:, at].exp().mean(0)
        label = int(mean.argmax())
        picture = probe.inputs[at].float() / 255.0
        device = probe.batches[0].inputs.device
        drawn = [_looks(voice, picture.to(device), label) for voice in voices]
        largest = max(float(each.lost.abs().max()) for each in drawn)
        words = f"class {label}, p {float(mean[label]):.2f}; label {int(probe.targets[at])}"
        line = [cell(_small(picture, f"validation picture {at}") + element("small", text(words)))]
        for voice, looks in zip(voices, drawn, strict=True):
            own = float(logp[voices.index(voice), at, label].exp())
            both = _small_bytes(overlay(picture, looks.gradient, _high(looks.gradient)), f"saliency, {voice.name}")
            line.append(cell(both + element("small", f"p {own:.2f}")))
            most = f"{float(looks.lost.max()):.2f} nats at most"
            covered = _small_bytes(overlay(picture, looks.lost, largest), f"occlusion, {voice.name}")
            line.append(cell(covered + element("small", most)))
        rows.append(line)
        progress("maps", done + 1, len(chosen))
    head = ["picture"]
    for voice in voices:
        head += [voice.name, ""]
    return section("maps", "Where voices look", lead, table(head, rows, classes="grid"))


def shown_pictures(logp: Tensor) -> list[int]:
    """Numbers of the pictures shown, from log-probabilities [V, N, C]: those with the most mutual information of voice
    and class, then the first of the rest.
    """
    p = logp.exp()
    apart = _entropy(p.mean(0)) - _entropy(p).mean(0)
    order = apart.argsort(descending=True, stable=True).tolist()
    most = order[: (SHOWN + 1) // 2]
    rest = [at for at in range(logp.shape[1]) if at not in most]
    return most + rest[: SHOWN - len(most)]


@dataclass(frozen=True)
class _Looks:
    gradient: Tensor
    lost: Tensor


def _looks(voice: Voice, picture: Tensor, label: int) -> _Looks:
    choice: LogProbability = lambda x: voice.forward(as_network_takes(x), None).log_softmax(-1)[:, label]  # noqa: E731
    return _Looks(saliency(choice, picture, seed=SEED), occlusion(choice, picture))


def _unit_score(voice: Voice, block: int, table: Tensor, units: list[int]) -> Score:
    """The mean answer of each unit in standard deviations above that to probe pictures."""
    site = unit_site(voice.blocks[block])
    means = table.mean(1)[:, units]
    return _standard(lambda x: _mean_answer(voice, site, x), units, means)


def _class_score(voice: Voice, logits: Tensor, classes: list[int]) -> Score:
    return _standard(lambda x: voice.forward(as_network_takes(x), None), classes, logits)


def _standard(answers: Score, numbers: list[int], known: Tensor) -> Score:
    """Of picture k the answer of unit ``numbers[k]``, less its mean and by its deviation among ``known`` [N, K]."""
    mean, deviation = known.mean(0), known.std(0).clamp_min(1e-6)

    def score(pictures: Tensor) -> Tensor:
        table = answers(pictures)
        own = table[torch.arange(len(numbers)), torch.tensor(numbers)]
        return (own - mean.to(own)) / deviation.to(own)

    return score


def _mean_answer(voice: Voice, site: Site, pictures: Tensor) -> Tensor:
    """Mean over the map of every unit, [K, units]."""
    read: list[Tensor] = []
    with reading(site, read.append):
        voice.forward(as_network_takes(pictures), None)
    return read[0].flatten(2).mean(2) if read[0].ndim > 2 else read[0]


def _climbed(score: Score, numbers: list[int], probe: Probe) -> Maximised:
    device = probe.batches[0].inputs.device
    return maximise(score, len(numbers), probe.inputs.shape[-1], seed=SEED, device=device)


@torch.no_grad()
def _logits(voice: Voice, probe: Probe) -> Tensor:
    """Of all probe pictures, [N, C] on the CPU."""
    return torch.cat([_said(voice, batch) for batch in probe.batches])


def _said(voice: Voice, batch: Batch) -> Tensor:
    return table_of(voice.forward(batch.inputs, batch.documents))[:, 0]


def _grid(
    voices: list[Voice], kind: str, numbers: list[int], columns: list[Maximised], block: BlockCompared | None
) -> str:
    rows = []
    for k, at in enumerate(numbers):
        line = [cell(f"{kind} {at}", header=True)]
        for number, (voice, climbed) in enumerate(zip(voices, columns, strict=True)):
            words = f"{float(climbed.after[k]):+.1f} σ"
            if block is not None and number:
                first, own = block.units[0][..., at : at + 1], block.units[number][..., at : at + 1]
                words += f", r {float(correlations(first, own)):.2f}"
            drawn = _small(climbed.pictures[k], f"{kind} {at}, {voice.name}")
            line.append(cell(drawn + element("small", text(words))))
        rows.append(line)
    return table(("", *(voice.name for voice in voices)), rows, classes="grid")


def _small(picture: Tensor, words: str) -> str:
    return _small_bytes(as_bytes(picture), words)


def _small_bytes(picture: Tensor, words: str) -> str:
    return image(png(picture), words, classes="small" if picture.shape[-1] <= 96 else "large")


def _high(heat: Tensor) -> float:
    """The value that all but one in a hundred pixels stay below."""
    return float(heat.flatten().float().quantile(0.99))


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(-1)
