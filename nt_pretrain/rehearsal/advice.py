"""What a calibration found, as text: a table, which way is fastest, and the options that choose it."""

from __future__ import annotations

from nt_pretrain.config.checks import problems
from nt_pretrain.config.schema import Config
from nt_pretrain.rehearsal.calibrate import Calibration
from nt_pretrain.rehearsal.matrices import Kind

SINGLE = "single weights"
CLOSE = 0.05
"""Differences in time that a calibration does not tell apart."""


def options_of(way: str) -> dict[str, str | int]:
    """The options of section ``sparsity`` that make a run go ``way``; empty where none do."""
    if way == "masked":
        return {"backend": "masked"}
    if way == SINGLE:
        return {"backend": "block", "unit": 1, "balance": "layer"}
    if way.startswith("block ") and way[6:].isdigit():
        return {"backend": "block", "unit": int(way[6:]), "balance": "line"}
    return {}


def overrides(way: str) -> str:
    """The same as a command line takes them."""
    return " ".join(f"sparsity.{key}={value}" for key, value in options_of(way).items())


def refusal(config: Config, way: str) -> str | None:
    """Why ``config`` cannot go ``way``; None if it can."""
    options = options_of(way)
    if not options:
        return "no option of a run chooses it"
    changed = config.model_copy(update={"sparsity": config.sparsity.model_copy(update=options)})
    return next(iter(problems(changed)), None)


def fastest(config: Config, found: Calibration) -> str:
    """The way that takes the least time over all sparse matrices, of those that a run can go."""
    return min((way for way in ways(found) if refusal(config, way) is None), key=lambda way: total(found, way))


def ways(found: Calibration) -> list[str]:
    return list(found.timed[0].seconds)


def total(found: Calibration, way: str) -> float:
    """Seconds of all sparse matrices of a micro-batch, forward and backward."""
    return sum(each.kind.count * each.seconds[way] for each in found.timed)


def of_one_head(found: Calibration, way: str) -> float | None:
    """What the sparse matrices of all heads take, as a multiple of those of one dense head; None without any."""
    dense = sum(each.kind.in_heads * each.seconds["dense"] for each in found.timed) / found.matrices.heads
    taken = sum(each.kind.in_heads * each.seconds[way] for each in found.timed)
    return taken / dense if dense else None


def density(found: Calibration, way: str) -> float:
    """Active share of all sparse matrices together: whole blocks come near to what was asked."""
    weights = sum(each.kind.count * _size(each.kind) for each in found.timed)
    return sum(each.kind.count * _size(each.kind) * _share(each.kind, way) for each in found.timed) / weights


def _share(kind: Kind, way: str) -> float:
    if way == "dense":
        return 1.0
    return kind.densities[int(way.split()[1].rstrip(","))] if way.startswith("block") else kind.density


def _size(kind: Kind) -> int:
    return kind.shape[0] * kind.shape[1]


def in_full(config: Config, found: Calibration) -> str:
    """Everything: what was timed, the table, what was not timed, and what to use."""
    parts = [_head(found), _table(found), *_not_timed(found), _verdict(config, found)]
    return "\n".join(part for part in parts if part)


def _head(found: Calibration) -> str:
    rounds = [each.rounds for each in found.timed]
    return (
        f"sparse matrices on {found.device}, {found.precision}: forward, gradient of the input, gradient of the "
        f"weight, of a micro-batch of {found.tokens:,} tokens.\nMedians of {min(rounds)} to {max(rounds)} rounds, "
        f"ratios to dense within a round; {found.how}."
    )


def _table(found: Calibration) -> str:
    names = ways(found)
    rows = [["matrix", "shape", "count", "density", "tokens", "dense", *names[1:]]]
    for each in found.timed:
        shape = f"{each.kind.shape[0]} x {each.kind.shape[1]}"
        ratios = [f"{each.of_dense[way]:.2f}" for way in names[1:]]
        alone = [each.kind.label, shape, f"{each.kind.count}", f"{each.kind.density:.3f}"]
        rows.append([*alone, f"{each.tokens:,}", _time(each.seconds["dense"]), *ratios])
    empty = [""] * 4
    rows.append(["all", *empty, *(_time(total(found, way)) for way in names)])
    rows.append(["of dense", *empty, *(f"{total(found, way) / total(found, 'dense'):.2f}" for way in names)])
    if of_one_head(found, "dense") is not None:
        ratios = [f"{of_one_head(found, way):.2f}" for way in names]
        rows.append([f"{found.matrices.heads} heads, of one dense head", *empty, *ratios])
    rows.append(["active share", *empty, *(f"{density(found, way):.3f}" for way in names)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def _not_timed(found: Calibration) -> list[str]:
    told = [f"blocks of {unit} do not fit: {why}" for unit, why in found.matrices.refused.items()]
    if found.matrices.left_out:
        names, count = found.matrices.left_out, len(found.matrices.left_out)
        told.append(f"not timed: {count} sparse embeddings or convolutions ({names[0]}{', ...' if count > 1 else ''})")
    if any(each.tokens < found.tokens for each in found.timed):
        told.append("times of fewer tokens than the micro-batch has are scaled to all of them")
    return told


def _verdict(config: Config, found: Calibration) -> str:
    best = fastest(config, found)
    refused = {way: why for way in ways(found)[1:] if options_of(way) and (why := refusal(config, way))}
    faster = [way for way in refused if total(found, way) < total(found, best)]
    told = [f"faster, but this configuration cannot use it: {way}: {refused[way]}" for way in faster]
    one = of_one_head(found, best)
    heads = "" if one is None else f", {found.matrices.heads} heads cost {one:.2f} of one dense head"
    gain = "" if best == "masked" else f", {total(found, 'masked') / total(found, best):.2f} times as fast as masked"
    told.append(f"fastest: {best}: {_time(total(found, best))} a micro-batch for all sparse matrices{gain}{heads}")
    told.append(f"to use it: {overrides(best)}")
    close = [way for way in ways(found)[1:] if way != best and total(found, way) <= (1 + CLOSE) * total(found, best)]
    if usable := [way for way in close if options_of(way) and way not in refused]:
        told.append(f"within {CLOSE:.0%} of it, which another calibration may reverse: {', '.join(usable)}")
    if best.startswith("block"):
        told.append("blocks and single weights learn differently well: docs/QUALITY.md")
    return "\n".join(told)


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
