"""What a parameter is, read from its name: its group (kind of layer) and its part (trunk or which head)."""

from __future__ import annotations

from typing import Literal, get_args

Group = Literal[
    "embedding", "attention", "ffn", "stem", "conv1x1", "conv3x3", "downsample", "linear", "output", "norm", "factor"
]  # fmt: skip

GROUPS: tuple[Group, ...] = get_args(Group)


def group_of(name: str) -> Group:
    """Group of the parameter ``name`` of a :class:`~nt_pretrain.models.multihead.MultiHead`.

    Raises:
        ValueError: the name is none of this project's models'.
    """
    layer = name.removesuffix(".weight").removesuffix(".bias").split(".")
    if layer[-1].isdigit():
        layer.pop()  # of one of several members, whose other layers are shared
    if layer[-1].endswith("norm"):
        return "norm"
    if is_factor(name):
        return "factor"
    # A convolution beside others of its kind has a number behind its kernel: conv1x1_first.
    kinds = [part.split("_")[0] if part.startswith("conv") else part for part in layer[-2:]]
    for group in GROUPS:
        if group in kinds:
            return group
    raise ValueError(f"parameter {name!r} belongs to no known group; known: {', '.join(GROUPS)}")


def is_factor(name: str) -> bool:
    """Whether the parameter is what makes a member out of a shared layer."""
    return name.rpartition(".")[2].startswith(("rank_one", "low_rank"))


def without_member(name: str) -> str:
    """The name of a parameter, without the number of the member that owns it."""
    layer, _, kind = name.rpartition(".")
    shared, _, number = layer.rpartition(".")
    return f"{shared}.{kind}" if number.isdigit() else name


def part_of(name: str) -> str:
    """``"trunk"`` or ``"heads.0"``, ``"heads.1"``, ...: who owns the parameter."""
    parts = name.split(".")
    return "trunk" if parts[0] == "trunk" else ".".join(parts[:2])


def balance_of(name: str) -> Literal["row", "col"]:
    """Along what a layer has as many active blocks in every line, where lines are balanced: block rows, or, for the
    layers that end a residual branch, block columns.

    Tensor parallelism cuts the former along their rows and the latter along their columns, so ranks get as much work.
    """
    return "col" if name.removesuffix(".weight").split(".")[-1] in ("out", "down") else "row"
