"""Counter-based random numbers: right distribution, and a function of key and index alone."""

import math

import pytest
import torch

from nt_pretrain.counter_random import bits31, bits64, distinct32, exponential, key_of, mix64, normal, uniform
from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.scores import code, soft_magnitude_codes
from nt_pretrain.sparsity.topology import Held, empty_layer

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
    for draw in (bits31, bits64, distinct32, exponential, normal, uniform):
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
    even = uniform(1, INDEX)
    assert abs(float(even.mean()) - 0.5) < 0.005 and abs(float(even.std()) - 12**-0.5) < 0.005
    assert float(even.min()) >= 0 and float(even.max()) < 1
    waits = exponential(1, INDEX)
    assert abs(float(waits.mean()) - 1) < 0.01 and float(waits.min()) > 0
    assert abs(float((waits < math.log(2)).float().mean()) - 0.5) < 0.01


def index_with_bits(key: int, bits: int) -> int:
    """The index whose 31 random bits under ``key`` are ``bits``: the hash, line by line, backwards."""
    word = (1 << 32) - 1
    x = bits ^ (bits >> 16)
    x = x * pow(0xC2B2AE35, -1, 1 << 32) & word
    x = x - (key >> 32) & word
    x ^= x >> 13 ^ x >> 26
    x = x * pow(0x85EBCA6B, -1, 1 << 32) & word
    x ^= x >> 16
    return x ^ key & word


@pytest.mark.parametrize("bits", [0, 1, 0x7FFFFF7F, 0x7FFFFFFE, 0x7FFFFFFF])
def test_rare_bits_give_usable_variates(bits: int) -> None:
    """One index in two thousand million has them, and a large model has as many weights."""
    index = torch.tensor([index_with_bits(7, bits)])
    assert int(bits31(7, index)) == bits
    wait = exponential(7, index)
    assert 0 < float(wait) < 20


def test_rare_bits_give_usable_codes() -> None:
    key, active = key_of(0, "first topology", "w"), torch.tensor([True])
    for name_of_key, bits in ((key, 0x7FFFFFFF), (key, 0)):
        row = index_with_bits(name_of_key, bits)
        held = Held(torch.tensor([row]), torch.tensor([0]), total_columns=1)
        layer = empty_layer("w", LayerBudget((1 << 32, 1), 1, 1 << 32, 1), held)
        assert int(code(layer.random_bits(0, "first topology"), active)) > 0
    key = key_of(0, 20, "drop", "w")
    for bits in (0x7FFFFFFF, 0):
        layer.held.rows[0] = index_with_bits(key, bits)
        layer.active[0] = True
        weights = torch.tensor([0.0]), torch.tensor([1e-3]), torch.tensor([5.0])
        codes = [int(soft_magnitude_codes(layer, w, temperature=3.0, key=(0, 20, "drop"))) for w in weights]
        assert 0 < codes[0] < codes[1] < codes[2]
