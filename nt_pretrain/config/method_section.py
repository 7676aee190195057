"""The options of methods: which one, and what it reads beside the other sections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nt_pretrain.config.section import Fraction, Inside, Positive, Section

MethodName = Literal[
    "none", "dense", "treenet", "neurotrails", "set", "rigl", "static", "deep_ensemble", "dst_ensemble", "edst",
    "snapshot", "fge", "prune_and_tune", "subnetworks", "ex_uno_plures", "batch_ensemble", "mimo", "lora_ensemble",
    "bridge",
]  # fmt: skip


class MethodSection(Section):
    """How an ensemble is made: docs/METHODS.md. Each option says which methods read it; others refuse it."""

    name: MethodName = Field(
        "none", description="The method; none: the sections model and sparsity as they stand, in one phase."
    )
    members: Positive | None = Field(
        None,
        description="Members of the ensemble; default: model.heads, or 3 where that is 1. Of no effect on "
        "single models.",
    )
    joint: bool = Field(
        False, description="deep_ensemble: all members in one network, on the same batches, not one after the other."
    )
    explore: Inside = Field(0.3333, description="edst: share of train.steps before the first ticket's refinement.")
    escape_rate: Fraction = Field(
        0.8, description="edst: prune rate of the one update between tickets (the authors': 0.8); 0: no escape."
    )
    refine_lr: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.1, description="edst: peak learning rate of a refinement, as a share of optim.lr (the authors': 0.1)."
    )
    refine_schedule: Literal["step", "cosine"] = Field(
        "step", description="edst: refinement falls tenfold at its middle (the authors'), or along a cosine."
    )
    lowest_lr: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.05, description="fge: learning rate where members are taken, as a share of optim.lr."
    )
    start: Inside = Field(0.8, description="fge: share of train.steps before the short cycles begin.")
    parent: str = Field(
        "",
        description="prune_and_tune, subnetworks, lora_ensemble: run or checkpoint whose children are tuned; "
        "default: a parent is trained first. ex_uno_plures: whose units are dealt.",
    )
    parent_share: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        None,
        description="prune_and_tune, subnetworks, lora_ensemble: share of train.steps that the parent is trained for; "
        "default 0.7. ex_uno_plures: the same, before its units are dealt; default 0: at its initial values.",
    )
    dealing: Literal["sequential", "interleaved"] = Field(
        "interleaved",
        description="ex_uno_plures: the first member gets the best units, the second the best of the remainder; or "
        "members get units by turns, so that they are alike.",
    )
    residual: Literal["split", "whole"] = Field(
        "split",
        description="ex_uno_plures of text: hidden units of the residual stream are dealt to members too; or each "
        "member has them all, and embedding and output layer of its own.",
    )
    tune_share: Fraction = Field(
        0.05,
        description="prune_and_tune, subnetworks, lora_ensemble: share of train.steps that a child is tuned for.",
    )
    tune_lr: Annotated[float, Field(gt=0.0)] = Field(
        1.0,
        description="prune_and_tune, subnetworks, lora_ensemble: peak learning rate of tuning, as a share of optim.lr.",
    )
    masks: Literal["antirandom", "random", "magnitude"] = Field(
        "antirandom",
        description="prune_and_tune: pairs of random masks and their complements; independent random ones; or the same "
        "largest weights for every child.",
    )
    sample: Literal["partition", "random", "noise"] = Field(
        "partition",
        description="subnetworks: children are disjoint parts of the parent, or drawn independently; or the whole "
        "parent with noise on a random few of its weights.",
    )
    noise: Annotated[float, Field(gt=0.0)] = Field(
        0.3,
        description="subnetworks with sample: noise: deviation of the noise, in units of a matrix's root mean square.",
    )
    noise_density: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.1, description="subnetworks with sample: noise: share of every matrix's weights that it moves."
    )
    annealing: Literal["none", "temperature", "random"] = Field(
        "none",
        description="prune_and_tune, subnetworks: a child's masks are drawn at every step, outside of its own weights "
        "ever more rarely, from one probability for all (temperature) or one for each (random).",
    )
    annealing_decay: Literal["linear", "cosine"] = Field("linear", description="How these probabilities move.")
    annealing_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="Share of a child's steps after which only its own weights are left."
    )
    child_density: Inside | None = Field(
        None,
        description="prune_and_tune, subnetworks: density of a child; default: one half, of a partition 1 / members, "
        "and no other is possible for antirandom pairs and partitions.",
    )
    modes: tuple[str, ...] = Field(
        (), description="bridge: runs or checkpoints between which curves are laid; default: they are trained first."
    )
    bridge_type: Literal["I", "II"] = Field(
        "I",
        description="bridge: I: one mode, and a bridge to each other one that reads its features. II: all modes, and a "
        "bridge between the first and each other one that reads the features of both; 2 k + 1 members.",
    )
    bridge_blocks: Positive = Field(1, description="bridge: last blocks of the network that a bridge is made of.")
    slim: Positive = Field(
        1, description="bridge: its blocks are so many times narrower (the authors': 1, medium; 2, small)."
    )
    mixup: Annotated[float, Field(ge=0.0)] = Field(
        0.0,
        description="bridge: pictures and rows are mixed in pairs by Beta(a, a) while a bridge learns (the authors': "
        "0.4); 0: not.",
    )
    curve_share: Annotated[float, Field(gt=0.0)] = Field(
        1.0, description="bridge: steps of a curve, as a share of train.steps."
    )
    bridge_share: Annotated[float, Field(gt=0.0)] = Field(
        1.0, description="bridge: steps of a bridge, as a share of train.steps."
    )
    control: bool = Field(
        False,
        description="bridge: also distil the same head from the first mode itself, to compare; it does not speak.",
    )
