"""A corrupted validation set: every picture as the formula has it, whatever batch or rank it came in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nt_pretrain.data.samples import NO_LABEL
from nt_pretrain.eval.corrupted_set import Corruptor, corrupted_batches, numbered
from nt_pretrain.eval.corruptions import corrupted

COUNT = 23


def pictures() -> Tensor:
    return torch.randint(0, 256, (COUNT, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


def dealt(size: int, rank: int, world: int) -> list[tuple[Tensor, Tensor]]:
    """A rank's batches, as the validation set deals them out; filled up with black."""
    pixels, found = pictures(), []
    for first in range(rank * size, -(-COUNT // (world * size)) * world * size, world * size):
        batch = torch.zeros(size, 3, 12, 10, dtype=torch.uint8).to(memory_format=torch.channels_last)
        labels = torch.full((size,), NO_LABEL)
        held = pixels[first : first + size]
        batch[: len(held)], labels[: len(held)] = held, torch.arange(first, first + len(held))
        found.append((batch, labels))
    return found


def whole(name: str, size: int, world: int) -> Tensor:
    """All corrupted pictures in the order of the set; labels are their numbers here."""
    out = torch.zeros_like(pictures())
    for rank in range(world):
        batches = numbered(dealt(size, rank, world), rank=rank, world=world)
        for pixels, labels in corrupted_batches(batches, name, 3, seed=7):
            assert pixels.is_contiguous(memory_format=torch.channels_last) and pixels.dtype == torch.uint8
            assert not pixels[labels == NO_LABEL].any(), "filling stays black"
            out[labels[labels != NO_LABEL]] = pixels[labels != NO_LABEL]
    return out


@pytest.mark.parametrize("name", ["gaussian_noise", "fog", "motion_blur", "brightness"])
def test_batches_and_ranks_leave_no_trace(name: str) -> None:
    expected = torch.stack([corrupted(p, name, 3, seed=7, sample=n) for n, p in enumerate(pictures())])
    for size, world in ((1, 1), (7, 2), (4, 3), (64, 3)):
        assert torch.equal(whole(name, size, world), expected), (size, world)


def test_what_came_in_stays() -> None:
    ((pixels, labels),) = dealt(64, 0, 1)
    kept = pixels.clone()
    ((changed, same),) = corrupted_batches([(pixels, labels, 0)], "gaussian_noise", 5, seed=1)
    assert torch.equal(pixels, kept) and not torch.equal(changed, kept) and same is labels


def test_a_corruptor_is_the_same_function() -> None:
    picture = pictures()[5]
    assert torch.equal(Corruptor("fog", 2, 9)(picture, 5), corrupted(picture, "fog", 2, seed=9, sample=5))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="corruption 'snow' is not known"):
        list(corrupted_batches(numbered(dealt(4, 0, 1), rank=0, world=1), "snow", 1, seed=0))
