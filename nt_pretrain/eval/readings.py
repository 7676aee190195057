"""Measures as flat metrics of a run (``validation/...`` to float), as docs/RUNDIR.md lists them."""

from __future__ import annotations

from nt_pretrain.eval.measure import Measures, values_of

LOSSES = ("nll", "perplexity")


def readings_of(measures: Measures, *, with_losses: bool) -> dict[str, float]:
    """Values of every member (heads, their mean, ensembles), and diversity.

    Args:
        with_losses: as ``validation/loss_MEMBER`` (nats) with ``validation/targets``; False where these are of more
            samples than ``measures`` and come from elsewhere.
    """
    table = values_of(measures)
    found: dict[str, float] = {}
    for member in [*measures.members, "mean_head"]:
        found |= {f"validation/{name}_{member}": value for name, value in table[member].items() if name not in LOSSES}
        if with_losses:
            found[f"validation/loss_{member}"] = table[member]["nll"]
    whole = dict(table["set"])
    samples, broken = whole.pop("samples"), whole.pop("broken")
    if with_losses:
        found["validation/targets"] = float(samples)
    if broken:
        found["validation/broken"] = float(broken)
    if measures.heads > 1:
        found |= {f"validation/{name}": value for name, value in whole.items()}
    return found
