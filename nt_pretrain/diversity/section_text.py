"""Language models: text coloured by where heads differ, and the tokens that units answer to."""

from __future__ import annotations

import torch
from torch import Tensor

from nt_pretrain.data.spelling import BLANK
from nt_pretrain.data.tokenizer import Tokenizer
from nt_pretrain.diversity.activations import Batch, spaced
from nt_pretrain.diversity.choice import chosen_units
from nt_pretrain.diversity.inside import Inside, Progress
from nt_pretrain.diversity.markup import cell, element, hint, legend, section, shade, table, text
from nt_pretrain.diversity.probe import Probe
from nt_pretrain.diversity.token_scores import TokenScores, token_scores
from nt_pretrain.diversity.voice import Voice, unit_site
from nt_pretrain.diversity.windows import Window, top_windows, unit_values
from nt_pretrain.models.loss import IGNORED

TEXTS = 3
LENGTH = 256
"""Tokens of a text that are shown, at most."""
LINE_END = "<0x0A>"
TOP = 3
"""Windows of a unit in a voice."""


def coloured(voices: list[Voice], probe: Probe, tokenizer: Tokenizer, progress: Progress) -> str:
    """Validation texts, every token coloured by disagreement and entropy."""
    voices = [voice for voice in voices if voice.speaks]
    names = [voice.name for voice in voices]
    scored: list[tuple[Tensor, Tensor, TokenScores]] = []
    texts = min(TEXTS, len(probe.targets))
    for done, at in enumerate(spaced(len(probe.targets), texts).tolist()):  # neighbours are often of one document
        inputs, targets, batch = _text(probe, at)
        logits = torch.stack([_logits(voice, batch)[targets != IGNORED] for voice in voices])
        kept = targets[targets != IGNORED]
        scored.append((inputs, kept, token_scores(logits, kept.to(logits.device))))
        progress("texts", done + 1, texts)
    differ = torch.cat([scores.disagreement for _, _, scores in scored])
    entropy = torch.cat([scores.entropy for _, _, scores in scored])
    ends = _high(differ), _high(entropy)
    lead = hint(
        "Every token is coloured by how the heads foresaw it from the text before. Ground: disagreement, the mutual "
        "information of head and token (0: all heads say the same). Line below: entropy of the ensemble, how unsure "
        "it is. A dashed frame: not all heads have the same first guess. Line without ground: all are unsure in the "
        "same way, where an ensemble helps little. Rest the pointer on a token for the guesses of each head."
    )
    scales = legend("disagreement", "0", f"{ends[0]:.3f} nats and more", "d")
    scales += legend("entropy", "0", f"{ends[1]:.2f} nats and more", "e")
    blocks = [element("div", _spans(*each, names, tokenizer, ends), classes="text") for each in scored]
    means = (
        f"Mean over these tokens: disagreement {float(differ.mean()):.4f}, entropy {float(entropy.mean()):.3f} nats."
    )
    return section("tokens", "Where heads differ in a text", lead, scales, *blocks, hint(means))


def answers(
    voices: list[Voice], inside: Inside, probe: Probe, tokenizer: Tokenizer, units: int, progress: Progress
) -> str:
    """Windows around the tokens that feed-forward units of the last block answer most to; "" without such a block."""
    if not inside.blocks:
        return ""
    block = inside.blocks[-1]
    numbers = chosen_units(block.units, units, block.number)
    allowed = probe.targets != IGNORED
    columns = []
    for done, voice in enumerate(voices):
        values = unit_values(voice, unit_site(voice.blocks[block.number]), numbers, probe.batches)
        columns.append([top_windows(values[..., k], probe.inputs, allowed, TOP) for k in range(len(numbers))])
        progress("windows", done + 1, len(voices))
    partners = [
        dict(zip(range(each.units), zip(each.partner.tolist(), each.matched.tolist(), strict=True), strict=True))
        for each in block.matchings
    ]
    rows = []
    for k, unit in enumerate(numbers):
        line = [cell(f"unit {unit}", header=True)]
        for number, column in enumerate(columns):
            shown = "".join(_window(each, tokenizer) for each in column[k])
            if number and unit in partners[number - 1]:
                partner, r = partners[number - 1][unit]
                same = float(block.matchings[number - 1].same[unit])
                shown += element("small", f"r {same:.2f}; best partner: unit {partner}, r {r:.2f}")
            line.append(cell(shown))
        rows.append(line)
    lead = hint(
        f"Hidden units of the feed-forward layer of block {block.number}, the same numbers in every voice: the probe "
        "texts in which each answers most, around the token (underlined) where it does; darker is a stronger answer. "
        f"Below: its correlation (r) with the unit of {voices[0].name} of that number, and its best partner here."
    )
    return section("units", "What units answer to", lead, table(("", *(v.name for v in voices)), rows))


def spelled(tokenizer: Tokenizer, token: int) -> str:
    """A token for people: blanks as blanks, the end of a line as a sign, control pieces and bytes by their names."""
    piece: str = tokenizer.processor.id_to_piece(token)
    if tokenizer.processor.is_control(token):
        return piece
    return "↵" if piece == LINE_END else piece.replace(BLANK, " ")


def _text(probe: Probe, at: int) -> tuple[Tensor, Tensor, Batch]:
    """Text number ``at``: its tokens and targets [T], and the batch of it alone."""
    within = at
    for batch in probe.batches:
        if within < len(batch.inputs):
            one = slice(within, within + 1)
            documents = None if batch.documents is None else batch.documents[one, :LENGTH]
            return probe.inputs[at, :LENGTH], probe.targets[at, :LENGTH], Batch(batch.inputs[one, :LENGTH], documents)
        within -= len(batch.inputs)
    raise IndexError(at)


@torch.no_grad()
def _logits(voice: Voice, batch: Batch) -> Tensor:
    return voice.forward(batch.inputs, batch.documents)[0]


def _spans(
    inputs: Tensor, targets: Tensor, scores: TokenScores, names: list[str], tokenizer: Tokenizer,
    ends: tuple[float, float],
) -> str:  # fmt: skip
    """A text as spans: its first token plain, then every target with its colours and the guesses as a title."""
    parts = [element("span", text(spelled(tokenizer, int(inputs[0]))), title="the first token: nothing foresaw it")]
    for at, token in enumerate(targets.tolist()):
        classes = " ".join(
            each
            for each in (
                shade(float(scores.disagreement[at]), 0.0, ends[0], "d"),
                shade(float(scores.entropy[at]), 0.0, ends[1], "e"),
                "split" if bool(scores.choices[at]) else "",
            )
            if each
        )
        words = text(spelled(tokenizer, token)).replace("↵", "↵\n")
        parts.append(element("span", words, classes=classes, title=_title(at, token, scores, names, tokenizer)))
    return "".join(parts)


def _title(at: int, token: int, scores: TokenScores, names: list[str], tokenizer: Tokenizer) -> str:
    lines = [
        f"“{spelled(tokenizer, token)}”: disagreement {float(scores.disagreement[at]):.4f}, "
        f"entropy {float(scores.entropy[at]):.2f} nats"
    ]
    for row, name in enumerate([*names, "ensemble"]):
        guesses = zip(scores.guesses[row, at].tolist(), scores.chances[row, at].tolist(), strict=True)
        told = ", ".join(f"“{spelled(tokenizer, guess)}” {chance:.2f}" for guess, chance in guesses)
        lines.append(f"{name}: {told}; gave it {float(scores.target[row, at]):.3f}")
    return "\n".join(lines)


def _window(window: Window, tokenizer: Tokenizer) -> str:
    largest = max(window.values[window.peak], 1e-30)
    spans = []
    for at, (token, value) in enumerate(zip(window.tokens, window.values, strict=True)):
        colour = shade(value, 0.0, largest, "a") if value > 0 else ""
        words = text(spelled(tokenizer, token))
        spans.append(element("b" if at == window.peak else "span", words, classes=colour, title=f"{value:.2f}"))
    return element("span", "".join(spans), classes="window")


def _high(values: Tensor) -> float:
    """The top of a scale: what all but one in fifty values stay below."""
    return float(values.quantile(0.98)) if len(values) else 0.0
