"""Counter-based random numbers: right distribution, and a function of key and index alone."""

import math

import torch

from nt_pretrain.counter_random import bits31, bits64, distinct32, exponential, key_of, mix64, normal

INDEX = torch.arange(200_000)


def splitmix64(x: int) -> int:
    """Reference in Python integers."""
    wrap = (1 << 64) - 1
    x &= wrap
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & wrap
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & wrap
    return x ^ (x >> 31)


def test_mix64_is_the_splitmix_finaliser():
    for value in (0, 1, 2, 12345678901234567, -1, -(1 << 63)):
        assert int(mix64(torch.tensor(value))) & ((1 << 64) - 1) == splitmix64(value)


def test_values_do_not_depend_on_what_is_computed_beside_them():
    for draw in (bits31, bits64, distinct32, exponential, normal):
        whole = draw(7, INDEX)
        pieces = torch.cat([draw(7, part) for part in INDEX.split([1, 12_345, 7, 100_000, 87_647])])
        assert torch.equal(whole, pieces), draw.__name__


def test_distinct32_never_collides():
    assert distinct32(3, INDEX).unique().numel() == INDEX.numel()


def test_keys_give_unrelated_streams():
    first, second = normal(key_of(0, "a"), INDEX), normal(key_of(0, "b"), INDEX)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.01


def test_moments():
    values = normal(1, INDEX)
    assert abs(float(values.mean())) < 0.01
    assert abs(float(values.std()) - 1) < 0.01
    assert abs(float((values**4).mean()) - 3) < 0.1
    waits = exponential(1, INDEX)
    assert abs(float(waits.mean()) - 1) < 0.01 and float(waits.min()) > 0
    assert abs(float((waits < math.log(2)).float().mean()) - 0.5) < 0.01
