"""A corrupted validation set: every picture as the formula has it (that ranks, batches and reader processes leave no
trace is tested where they deal pictures out, in tests/data/test_validation.py).
"""

from __future__ import annotations

import pickle

import pytest
import torch

from nt_pretrain.eval.corrupted_set import Corruptor
from nt_pretrain.eval.corruptions import corrupted


@pytest.mark.parametrize("name", ["gaussian_noise", "fog", "motion_blur", "brightness"])
def test_a_corruptor_is_the_same_function_and_leaves_what_came_in(name: str) -> None:
    pictures = torch.randint(0, 256, (3, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    kept = pictures.clone()
    corrupt = pickle.loads(pickle.dumps(Corruptor(name, 3, 7)))  # as it comes to a reader process
    for number, picture in enumerate(pictures):
        found = corrupt(picture, number)
        assert torch.equal(found, corrupted(picture, name, 3, seed=7, sample=number))
        assert not torch.equal(found, picture) and found.dtype == torch.uint8
    assert torch.equal(pictures, kept)


def test_chance_follows_the_number_of_a_picture() -> None:
    picture = torch.full((3, 12, 10), 128, dtype=torch.uint8)
    first, second = (Corruptor("gaussian_noise", 3, 7)(picture, number) for number in (0, 1))
    assert not torch.equal(first, second)


def test_mistakes_are_named() -> None:
    picture = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="corruption 'snow' is not known"):
        Corruptor("snow", 1, 0)(picture, 0)
    with pytest.raises(ValueError, match="severity 6"):
        Corruptor("fog", 6, 0)(picture, 0)
