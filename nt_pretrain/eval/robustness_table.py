"""Robustness as tables for a terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

from nt_pretrain.eval.harms import Kind
from nt_pretrain.eval.members import label_of
from nt_pretrain.eval.robustness import MEANS, Robustness, means, severities

TITLES: dict[Kind, str] = {
    "corruption": "corrupted inputs",
    "typing": "typing errors",
    "weights": "weights dropped at inference",
}
HEADINGS = {"accuracy": "accuracy ↑", "nll": "NLL ↓", "ece": "ECE ↓", "bits_per_character": "bits/character ↓"}
ARROWS = {"cA": "↑", "cNLL": "↓", "cECE": "↓", "cBPC": "↓"}


def tables(robustness: Robustness) -> list[Table]:
    """For each kind of harm: means of every member beside the unharmed values, and the ensemble under each harm. Then
    lost heads and other corpora, where there are any.
    """
    found = []
    for kind in robustness.kinds:
        found += [_members(robustness, kind), _harms(robustness, kind)]
    if robustness.lost_heads:
        found.append(_lost(robustness))
    if robustness.domains:
        found.append(_domains(robustness))
    return found


def _members(robustness: Robustness, kind: Kind) -> Table:
    names, count = len(robustness.of(kind)), len(severities(robustness, kind))
    table = _table(f"{TITLES[kind]}: means over {names} harms × {count} severities", "member")
    shown = {label: value for label, value in MEANS.items() if value in robustness.clean["ensemble"]}
    for label, value in shown.items():
        table.add_column(HEADINGS[value], justify="right")
        table.add_column(f"{label} {ARROWS[label]}", justify="right", style="bold")
    for member in robustness.members:
        found = means(robustness, kind, member)
        pairs = ((robustness.clean[member][value], found[label]) for label, value in shown.items())
        table.add_row(label_of(member), *(f"{number:.4f}" for pair in pairs for number in pair))
    return table


def _harms(robustness: Robustness, kind: Kind) -> Table:
    table = _table(f"{TITLES[kind]}: accuracy of the ensemble by severity", "harm")
    levels = severities(robustness, kind)
    for heading in ["0", *map(str, levels), "mean", "NLL, mean", "ECE, mean"]:
        table.add_column(heading, justify="right")
    for name, rows in robustness.of(kind).items():
        by_severity = [f"{values['ensemble']['accuracy']:.4f}" for _, values in rows]
        found = means(robustness, kind, "ensemble", name=name)
        clean = f"{robustness.clean['ensemble']['accuracy']:.4f}"
        table.add_row(name, clean, *by_severity, *(f"{found[label]:.4f}" for label in ("cA", "cNLL", "cECE")))
    return table


def _lost(robustness: Robustness) -> Table:
    table = _table("one head lost: the ensemble of the others", "lost")
    for heading in ("accuracy ↑", "change", "NLL ↓", "change"):
        table.add_column(heading, justify="right")
    clean = robustness.clean["ensemble"]
    table.add_row("none", f"{clean['accuracy']:.4f}", "", f"{clean['nll']:.4f}", "")
    for row in robustness.lost_heads:
        lost = label_of(robustness.members[int(row["lost"])])
        table.add_row(
            lost, f"{row['accuracy']:.4f}", f"{row['accuracy_change']:+.4f}", f"{row['nll']:.4f}",
            f"{row['nll_change']:+.4f}",
        )  # fmt: skip
    return table


def _domains(robustness: Robustness) -> Table:
    table = _table("other corpora: the ensemble", "corpus")
    shown = ["accuracy", "nll", "perplexity", "ece"]
    for value in shown:
        table.add_column(HEADINGS.get(value, f"{value} ↓"), justify="right")
    table.add_column(HEADINGS["bits_per_character"], justify="right")
    for name, values in {"own": robustness.clean, **robustness.domains}.items():
        ensemble = values["ensemble"]
        bits = f"{ensemble['bits_per_character']:.4f}" if "bits_per_character" in ensemble else "-"
        table.add_row(name, *(f"{ensemble[value]:,.4f}" for value in shown), bits)
    return table


def _table(title: str, first: str) -> Table:
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    table.add_column(first)
    return table
