"""What a parameter is, read from its name: its group (kind of layer) and its part (trunk or which head)."""

from __future__ import annotations

from typing import Literal

Group = Literal["embedding", "attention", "ffn", "output", "norm"]

GROUPS: tuple[Group, ...] = ("embedding", "attention", "ffn", "output", "norm")


def group_of(name: str) -> Group:
    """Group of the parameter ``name`` of a :class:`~nt_pretrain.models.multihead.MultiHead`.

    Raises:
        ValueError: the name is none of this project's models'.
    """
    layer = name.removesuffix(".weight").split(".")
    if layer[-1].endswith("norm"):
        return "norm"
    for group in GROUPS:
        if group in (layer[-1], layer[-2] if len(layer) > 1 else ""):
            return group
    raise ValueError(f"parameter {name!r} belongs to no known group; known: {', '.join(GROUPS)}")


def part_of(name: str) -> str:
    """``"trunk"`` or ``"heads.0"``, ``"heads.1"``, ...: who owns the parameter."""
    parts = name.split(".")
    return "trunk" if parts[0] == "trunk" else ".".join(parts[:2])
