"""The guess at what a person meant."""

import pytest

from nt_pretrain.config.allowed import known_keys
from nt_pretrain.config.suggest import closest, closest_key


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("model.hiden", "model.hidden"),
        ("model.Hidden", "model.hidden"),
        ("train.global-batch", "train.global_batch"),
        ("train.lr", "optim.lr"),
        ("lr", "optim.lr"),
        ("model.blocks_per_head", "model.blocks_in_head"),
        ("sparsity.group_density.fnn", "sparsity.group_density.ffn"),
        ("optimizer.lr", "optim.lr"),
        ("trian.steps", "train.steps"),
        ("model.hidden.x", "model.hidden"),
        ("model.qqq", None),
        ("qqq", None),
    ],
)
def test_keys(typed: str, meant: str | None) -> None:
    assert closest_key(typed, known_keys()) == meant


def test_nothing_near_is_no_guess() -> None:
    assert closest("zzz", ["model", "train"]) is None
