"""What does not go together with members that share their weights."""

from __future__ import annotations

from typing import Any

from nt_pretrain.config.schema import Config, ModelSection, OptimSection, TrainSection

READ_BY = {
    "rank_one": (("model", "factor_init"), ("optim", "factor_lr")),
    "inputs": (("train", "batch_repeats"), ("train", "same_inputs")),
    "low_rank": (("model", "rank"), ("model", "factor_gain")),
}
"""Options that only one kind of sharing reads."""


def sharing_problems(config: Config) -> list[str]:
    """One line each; empty where weights are not shared and nothing is said about it."""
    model, kind = config.model, config.model.sharing
    found = [
        f"{section}.{key}: has no effect without model.sharing: {owner}"
        for owner, options in READ_BY.items()
        for section, key in options
        if owner != kind and getattr(getattr(config, section), key) != _default(section, key)
    ]
    if kind == "none":
        if model.members > 1:
            found.append(
                f"model.members: {model.members} share nothing with model.sharing: none; choose rank_one, inputs or "
                "low_rank, or set model.heads"
            )
        return found
    return found + _family(config) + _others(config)


def _default(section: str, key: str) -> Any:
    sections = {"model": ModelSection(), "optim": OptimSection(), "train": TrainSection()}
    return getattr(sections[section], key)


def _family(config: Config) -> list[str]:
    model, train = config.model, config.train
    if model.sharing == "low_rank" and model.data != "text":
        return [f"model.sharing: low_rank adds to attention, which {model.family} has not; rank_one fits"]
    if model.sharing != "inputs":
        return []
    if model.data == "text":
        return ["model.sharing: inputs is for pictures and rows, not for text; rank_one fits"]
    rows = train.micro_batch * train.batch_repeats
    if model.members > 1 and rows < 2 and train.same_inputs < 1.0:
        return [
            f"train.micro_batch: {train.micro_batch}: members see the samples of a micro-batch in different orders, "
            "which needs at least 2"
        ]
    return []


def _others(config: Config) -> list[str]:
    """Options that hold for one network with heads of its own."""
    model, sparsity, parallel = config.model, config.sparsity, config.parallel
    wrong = {
        f"model.heads: {model.heads}": (model.heads > 1, "members share one head; set 1"),
        f"model.blocks_in_head: {model.blocks_in_head}": (model.blocks_in_head > 0, "the trunk is shared; set 0"),
        f"model.dropout: {model.dropout}": (model.dropout > 0.0, "masks are of samples, not of members; set 0"),
        f"parallel.tensor: {parallel.tensor}": (parallel.tensor > 1, "factors are not cut with their matrices; set 1"),
        f"stripping.every_steps: {config.stripping.every_steps}": (
            config.stripping.every_steps > 0, "a unit may be dead for one member only; set 0"
        ),
        "sparsity.backend: block": (sparsity.backend == "block", "factors go with dense matrices; set masked"),
        f"sparsity.density: {sparsity.density}": (
            sparsity.density < 1.0 and model.sharing == "low_rank", "weights are frozen; set 1"
        ),
    }  # fmt: skip
    return [f"{what} does not go with model.sharing: {model.sharing}: {why}" for what, (on, why) in wrong.items() if on]
