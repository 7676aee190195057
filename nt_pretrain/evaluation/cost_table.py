"""The costs of those that speak as a table: its rows and columns, for the terminal here, for pages elsewhere."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from nt_pretrain.train.plan import aligned_table, power


def rows(costs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of a table of costs, by their labels: members, all of them together, and what they compare with."""
    found = dict(costs["members"])
    if len(found) > 1:
        found["all together"] = costs["ensemble"]
    if costs["dense"] is not None:
        found[f"one dense model, {costs['dense']['steps']:,} steps"] = costs["dense"]
    return found


def columns(costs: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Their columns: where in a row each figure stands, and its heading, which names what it is counted for."""
    headings = {"inference": f"FLOPs/{costs['per']}", "training": "training FLOPs"}
    found = {("parameters", "total"): "parameters", ("parameters", "active"): "active"}
    return found | {(kind, how): f"{said}, {how}" for kind, said in headings.items() for how in ("counted", "executed")}


def lines(costs: dict[str, Any]) -> list[str]:
    """What stands below them: the unit, what the words mean, and what is left out."""
    words = f"{costs['unit']}. Counted: of active weights only; executed: what is really computed."
    if len(costs["members"]) > 1:
        words += " Training of a member: its own phase or run."
    if costs["passes"] > 1:
        words += f" Members are run {costs['passes']} times."
    if any(row["training"] is None for row in rows(costs).values()):
        words += " –: not known."
    return [words, *costs["notes"]]


def figure(kind: str, value: int | None) -> str:
    """Parameters in full, operations in powers of ten."""
    if value is None:
        return "–"
    return f"{value:,}" if kind == "parameters" else power(value)


def cost_table(costs: dict[str, Any]) -> Table:
    """The table of a :func:`nt_pretrain.evaluation.costs.costs_of_chosen`."""
    wanted = columns(costs)
    table = aligned_table("costs", *wanted.values())
    for label, row in rows(costs).items():
        figures = [(kind, (row[kind] or {}).get(how)) for kind, how in wanted]
        table.add_row(f"  {label}", *(figure(kind, value) for kind, value in figures))
    table.caption, table.caption_justify = "\n".join(lines(costs)), "left"
    return table
