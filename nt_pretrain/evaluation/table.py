"""The table of an evaluation, for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from nt_pretrain.eval.members import label_of as voice_label
from nt_pretrain.eval.members import member_names
from nt_pretrain.evaluation.cost_table import cost_table

COLUMNS = {
    "accuracy": "acc ↑",
    "accuracy_top5": "top-5 ↑",
    "nll": "NLL ↓",
    "perplexity": "ppl ↓",
    "brier": "Brier ↓",
    "ece": "ECE ↓",
    "ece_equal_mass": "ECE mass ↓",
    "ece_classwise": "ECE class ↓",
    "aurc": "AURC ↓",
}
WIDTH = 160
"""No table is wider; narrower terminals wrap a line rather than lose columns."""
HEADLINE = {"probability": "ensemble", "logit": "ensemble_logit"}
"""The member that ``eval.ensemble`` puts first."""
DIVERSITY = {
    "disagreement": "disagreement of pairs of heads",
    "disagreement_with_diagonal": "the same with the zero diagonal (NeuroTrails' code)",
    "kl": "KL divergence (nats)",
    "jensen_shannon": "Jensen-Shannon divergence (nats)",
    "mutual_information": "mutual information (nats)",
    "logit_cosine": "cosine of logits",
    "logit_cosine_centred": "cosine of centred logits",
    "error_correlation": "correlation of errors",
}
GAIN = {
    "ensemble_gain": "NLL: mean head less ensemble (nats) ↑",
    "ensemble_gain_logit": "NLL: mean head less ensemble of logits (nats) ↑",
    "ensemble_gain_accuracy": "accuracy: ensemble less mean head ↑",
}


def render(record: dict[str, Any], more: Sequence[Table] = (), *, bold: bool = False) -> str:
    """The table and what stands below it, from a :func:`nt_pretrain.evaluation.record.record_of`.

    Args:
        more: tables of robustness.
        bold: for a terminal: the headlined ensemble in bold, titles in italics.
    """
    parts: list[Any] = [_heading(record), _quality(record)]
    parts += [_pairs(record)] if record["heads"] > 1 else []
    parts += [_foreign(record)] if record["foreign"] is not None else []
    parts += more
    parts += [cost_table(record["costs"])] if record["costs"] is not None else []
    parts += [Text(f"note: {note}") for note in record["notes"]]
    console = Console(width=WIDTH, force_terminal=bold, color_system="standard" if bold else None, highlight=False)
    with console.capture() as capture:
        console.print(Group(*parts))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _heading(record: dict[str, Any]) -> Text:
    data, samples = record["data"], record["set"]["samples"]
    first = f", of the first {data['first']:,} samples" if data["first"] else ""
    where = ", ".join(data["locations"])
    broken = record["set"]["broken"]
    lost = f"; {broken:,} of them have outputs that are no numbers, so nothing can be said" if broken else ""
    average = ", average of the weights" if record["weights"] == "average" else ""
    again = record["norms_measured_on"]
    norms = f", running statistics measured again on {again:,} training pictures" if again else ""
    of = record.get("ensemble_of")
    who = f"{record['run']}, ensemble of {len(of)}" if of else f"{record['run']}, step {record['step']:,}"
    if drop := record["asked"].get("dropout"):
        who += f", {drop['passes']} passes with units dropped at rate {drop['rate']:g}"
    return Text(f"{who}{average}{norms}: {samples:,} {data['units']} of {where}{first}{lost}")


def _quality(record: dict[str, Any]) -> Table:
    """Rows of members; sections for the whole set and, where temperatures were fitted, raw and calibrated."""
    calibration, units = record["calibration"], record["data"]["units"]
    shown = {key: label for key, label in COLUMNS.items() if key in record["members"]["mean_head"]}
    shown.pop("ece_classwise" if units == "targets" else "perplexity", None)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, safe_box=True)
    table.add_column("")
    for label in [*shown.values(), *(["T"] if calibration else [])]:
        table.add_column(label, justify="right")
    order, headline = _order(record["voices"]), HEADLINE[record["ensemble"]]
    total = record["set"]["samples"]
    sections = [(f"raw, all {total:,} {units}", record["members"], None)]
    if calibration:
        count = calibration["reported_on"]
        sections += [
            (f"raw, the {count:,} that fit no temperature", calibration["raw"], None),
            (f"calibrated, the same {count:,}", calibration["calibrated"], calibration["temperatures"]),
        ]
        table.caption = (
            f"temperatures fitted on the other {calibration['fitted_on']:,} {units}; calibrated values are never of "
            "samples that fitted them"
        ) + _undecided(calibration)
        table.caption_justify = "left"
    for title, members, temperatures in sections:
        table.add_row(title, style="italic")
        for name in order:
            cells = [_cell(key, members[name][key]) for key in shown]
            if calibration:
                cells.append(f"{temperatures[name]:.3f}" if temperatures and name in temperatures else "")
            table.add_row(f"  {label_of(name)}", *cells, style="bold" if name == headline else "")
        table.add_section()
    return table


def _undecided(calibration: dict[str, Any]) -> str:
    names = [label_of(name) for name in calibration["undecided"]]
    return f". They decide no temperature of: {', '.join(names)}" if names else ""


def _pairs(record: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, safe_box=True)
    table.add_column("diversity and gain")
    table.add_column("", justify="right")
    for key, label in (DIVERSITY | GAIN).items():
        table.add_row(f"  {label}", _cell(key, record["set"][key]))
    overlap = record["mask_overlap"]
    if overlap is not None:
        table.add_row("  mask overlap of pairs of heads (Jaccard)", _cell("", _off_diagonal(overlap["jaccard"])))
        table.add_row("  that of random masks of these densities", _cell("", _off_diagonal(overlap["expected"])))
    return table


def _foreign(record: dict[str, Any]) -> Table:
    foreign = record["foreign"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, safe_box=True)
    table.add_column(f"told from {foreign['samples']:,} foreign {record['data']['units']}")
    table.add_column("AUROC ↑", justify="right")
    table.add_column("FPR95 ↓", justify="right")
    for name in _order(record["voices"]):
        values = foreign["members"][name]
        table.add_row(f"  {label_of(name)}", _cell("", values["auroc"]), _cell("", values["fpr95"]))
    table.caption, table.caption_justify = ", ".join(foreign["locations"]), "left"
    return table


def label_of(name: str) -> str:
    """A member's name for people."""
    words = {"ensemble": "ensemble (probabilities)", "ensemble_logit": "ensemble (logits)"}
    return words.get(name) or voice_label(name)


def _order(heads: Sequence[str]) -> list[str]:
    return [*heads, "mean_head", *member_names(())]


def _cell(key: str, value: float) -> str:
    if math.isnan(value) or math.isinf(value):
        return str(value)
    if key == "perplexity":
        return f"{value:,.2f}"
    return f"{value:.4f}"


def _off_diagonal(matrix: list[list[float]]) -> float:
    values = [value for row, line in enumerate(matrix) for column, value in enumerate(line) if row != column]
    return math.nan if any(map(math.isnan, values)) else sum(values) / len(values)
