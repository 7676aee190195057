"""Which token comes next: shares of draws, what temperature and top-p do, and that a draw can be had again."""

from __future__ import annotations

import pytest
import torch

from nt_pretrain.evaluation.sampling import Sampling, draw, pooled

P = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])


def shares(sampling: Sampling, draws: int = 4000) -> torch.Tensor:
    found = torch.tensor([draw(P, sampling, place) for place in range(draws)])
    return torch.bincount(found, minlength=len(P)) / draws


def test_pooled_is_the_mean_of_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, 0.0, 0.0]])
    expected = (torch.softmax(logits[0].double(), 0) + torch.softmax(logits[1].double(), 0)) / 2
    assert torch.equal(pooled(logits), expected)
    assert torch.equal(pooled(logits[:1]), torch.softmax(logits[0].double(), 0))


# Four standard errors of a share of 4,000 draws are at most 0.032.
@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), P),
        (Sampling(temperature=0.5), P**2 / (P**2).sum()),
        (Sampling(temperature=2.0), P.sqrt() / P.sqrt().sum()),
        (Sampling(top_p=0.6), torch.tensor([0, 4 / 7, 0, 3 / 7, 0])),
        (Sampling(top_p=0.39), torch.tensor([0.0, 1, 0, 0, 0])),
        (Sampling(temperature=0.5, top_p=0.9), torch.tensor([0, 16, 0, 9, 2.25]) / 27.25),
        (Sampling(temperature=0.0), torch.tensor([0.0, 1, 0, 0, 0])),
        (Sampling(temperature=0.01), torch.tensor([0.0, 1, 0, 0, 0])),
    ],
)
def test_shares_of_draws(sampling: Sampling, expected: torch.Tensor) -> None:
    found = shares(sampling)
    assert (found - expected).abs().max() < 0.032
    assert not found[expected == 0].any()


def test_the_same_again_and_another_seed() -> None:
    def drawn(seed: int) -> list[int]:
        return [draw(P, Sampling(seed=seed), place) for place in range(50)]

    assert drawn(0) == drawn(0) and drawn(0) != drawn(1)


def test_equal_probabilities() -> None:
    assert draw(torch.full((4,), 0.25), Sampling(temperature=0.0), 0) == 0
    assert draw(torch.full((4,), 0.25), Sampling(top_p=0.2), 7) == 0, "the lowest number first"
    # A probability of 1, and zeros.
    assert draw(torch.tensor([0.0, 0.0, 1.0]), Sampling(), 3) == 2
