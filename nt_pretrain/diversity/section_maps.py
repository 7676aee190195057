"""Networks of pictures: where in the same picture each voice looks."""

from __future__ import annotations

import torch
from torch import Tensor

from nt_pretrain.diversity.inside import Progress
from nt_pretrain.diversity.markup import cell, drawing, hint, section, table
from nt_pretrain.diversity.occlusion import occlusion
from nt_pretrain.diversity.overlay import overlay
from nt_pretrain.diversity.pictures import as_bytes, as_network_takes
from nt_pretrain.diversity.png import png
from nt_pretrain.diversity.probe import Probe
from nt_pretrain.diversity.saliency import LogProbability, saliency
from nt_pretrain.diversity.section_features import SEED, logits_of
from nt_pretrain.diversity.voice import Voice

SHOWN = 4
"""Validation pictures with maps."""


def maps(voices: list[Voice], probe: Probe, progress: Progress) -> str:
    """Saliency and occlusion of a few validation pictures in every voice."""
    lead = hint(
        "The same validation picture in every voice, asked about the ensemble's choice. Left: saliency, how much the "
        "log-probability hangs on a pixel (gradient, mean over noisy copies; each map to its own scale). Right: "
        "occlusion, what it loses (orange) or wins (blue) where a grey patch covers the place, on one scale for a "
        "row. Different maps: voices look at different parts. The first rows are those they differ most about."
    )
    logp = torch.stack([logits_of(voice, probe) for voice in voices]).double().log_softmax(-1)
    chosen = shown_pictures(logp[[voice.speaks for voice in voices]])
    rows = []
    for done, at in enumerate(chosen):
        rows.append(_row(voices, probe, at, logp[:, at].exp()))
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
    most = apart.argsort(descending=True, stable=True).tolist()[: (SHOWN + 1) // 2]
    rest = [at for at in range(logp.shape[1]) if at not in most]
    return most + rest[: SHOWN - len(most)]


def _row(voices: list[Voice], probe: Probe, at: int, p: Tensor) -> list[str]:
    """The picture, then both maps of every voice; ``p`` are their probabilities [V, C]."""
    together = p[[voice.speaks for voice in voices]].mean(0)
    label = int(together.argmax())
    picture = probe.inputs[at].float() / 255.0
    on = picture.to(probe.batches[0].inputs.device)
    choices = [_choice(voice, label) for voice in voices]
    gradients = [saliency(choice, on, seed=SEED) for choice in choices]
    lost = [occlusion(choice, on) for choice in choices]
    largest = max(float(each.abs().max()) for each in lost)
    words = f"{probe.class_name(label)}, p {float(together[label]):.2f}; "
    words += f"it is: {probe.class_name(int(probe.targets[at]))}"
    side = picture.shape[-1]
    cells = [drawing(png(as_bytes(picture)), f"validation picture {at}", words, pixels=side)]
    for number, voice in enumerate(voices):
        high = float(gradients[number].flatten().float().quantile(0.99))  # a few pixels would darken all others
        looks = png(overlay(picture, gradients[number], high))
        cells.append(drawing(looks, f"saliency, {voice.name}", f"p {float(p[number, label]):.2f}", pixels=side))
        covered = png(overlay(picture, lost[number], largest))
        most = f"{float(lost[number].max()):.2f} nats at most"
        cells.append(drawing(covered, f"occlusion, {voice.name}", most, pixels=side))
    return [cell(each) for each in cells]


def _choice(voice: Voice, label: int) -> LogProbability:
    def choice(pictures: Tensor) -> Tensor:
        return voice.forward(as_network_takes(pictures), None).log_softmax(-1)[:, label]

    return choice


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(-1)
