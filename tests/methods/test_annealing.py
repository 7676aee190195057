import pytest
import torch

from nt_pretrain.methods.annealing import Annealing
from nt_pretrain.sparsity.budget import LayerBudget
from nt_pretrain.sparsity.topology import Held, SparseLayer, empty_layer

ROWS, COLUMNS = 60, 50


def layer() -> SparseLayer:
    found = empty_layer(
        "blocks.0.ffn.up.weight",
        LayerBudget((ROWS, COLUMNS), 1, ROWS * COLUMNS, 600),
        Held(torch.arange(ROWS), torch.arange(COLUMNS), COLUMNS),
    )
    found.active[::5] = True
    return found


@pytest.mark.parametrize("decay", ["linear", "cosine"])
@pytest.mark.parametrize("form", ["temperature", "random"])
def test_masks_reach_the_target_and_not_before(form: str, decay: str) -> None:
    annealing, target = Annealing(form, decay, steps=10, seed=3), layer()  # type: ignore[arg-type]
    outside = [int((annealing.drawn(target, step) & ~target.active).sum()) for step in range(1, 12)]
    assert torch.equal(annealing.drawn(target, 11), target.active), "to the weight"
    assert outside[0] > outside[4] > outside[9] > 0
    if form == "temperature":
        assert outside[0] == int((~target.active).sum()), "at first every weight is there"
        assert all((annealing.drawn(target, step) & target.active).sum() == 600 for step in (1, 5, 10))


def test_shares_are_those_of_the_probabilities() -> None:
    target = layer()
    half = Annealing("temperature", "linear", steps=10, seed=3)
    free = int((~target.active).sum())
    # Step 6: half of the way is left. Six standard deviations of a binomial.
    drawn = int((half.drawn(target, 6) & ~target.active).sum())
    assert abs(drawn - free / 2) < 6 * (free / 4) ** 0.5
    random = Annealing("random", "linear", steps=10, seed=3)
    at_first = random.drawn(target, 1).double().mean()
    assert abs(float(at_first) - 0.5) < 6 * (0.25 / (ROWS * COLUMNS)) ** 0.5, "uniform probabilities: half on average"


def test_draws_differ_from_step_to_step_and_not_from_rank_to_rank() -> None:
    target, annealing = layer(), Annealing("temperature", "cosine", steps=10, seed=3)
    assert not torch.equal(annealing.drawn(target, 5), annealing.drawn(target, 6))
    part = empty_layer(target.name, target.budget, Held(torch.arange(20, 40), torch.arange(COLUMNS), COLUMNS))
    part.active.copy_(target.active.view(ROWS, COLUMNS)[20:40].reshape(-1))
    assert torch.equal(annealing.drawn(part, 5), annealing.drawn(target, 5).view(ROWS, COLUMNS)[20:40].reshape(-1))
