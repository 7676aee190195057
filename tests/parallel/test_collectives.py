"""Sums that are the same bits however the terms are spread over ranks."""

import torch
import torch.distributed as dist

from nt_pretrain.parallel.collectives import exact_sums, sum_integers
from tests.gloo import run_ranks


def _sums(rank: int, world: int, seed: int) -> tuple[list[float], list[float], list[int]]:
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(1000, generator=generator) * 10.0**e for e in (-20, 0, 15)] + [torch.zeros(1000)]
    mine = [part[rank * 1000 // world : (rank + 1) * 1000 // world] for part in values]
    device = torch.device("cpu")
    group = dist.group.WORLD
    return (
        exact_sums(mine, [1000] * 4, group, power=1),
        exact_sums(mine, [1000] * 4, group, power=2),
        sum_integers([rank + 1, -1, 2**62], group, device),
    )


def test_sums_do_not_depend_on_the_number_of_ranks():
    results = {world: run_ranks(_sums, world, 5) for world in (1, 2, 3)}
    alone = results[1][0]
    for world, ranks in results.items():
        for found in ranks:
            assert found[0] == alone[0] and found[1] == alone[1]
            assert found[2][:2] == [world * (world + 1) // 2, -world]


def test_sums_are_right():
    generator = torch.Generator().manual_seed(5)
    values = [torch.randn(1000, generator=generator) * 10.0**e for e in (-20, 0, 15)]
    (first, second, third), squares = (
        exact_sums(values, [1000] * 3, None),
        exact_sums(values, [1000] * 3, None, power=2),
    )
    for found, value in zip((first, second, third), values, strict=True):
        assert abs(found / float(value.double().abs().sum()) - 1) < 1e-12
    for found, value in zip(squares, values, strict=True):
        assert abs(found / float(value.double().square().sum()) - 1) < 1e-12


def test_values_that_only_fp64_holds():
    tiny, huge = torch.tensor([1e-160, 1e-170], dtype=torch.float64), torch.tensor([1e200], dtype=torch.float64)
    found = exact_sums([tiny, huge, torch.tensor([3.0])], [2, 1, 1], None, power=2)
    assert found[0] < 1e-300 and found[1] != found[1] and found[2] == 9.0, "no exception; nan where there is no square"
