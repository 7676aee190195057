"""Statistics measured again are those of the data, and nothing else moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from nt_pretrain.models.batch_norm import measured_moments, store_moments
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.models.vision import VisionModel, build_vision


def small() -> MultiHead:
    torch.manual_seed(0)
    return build_vision(VisionModel("resnet18", 5, heads=2, blocks_in_head=2, small_stem=True)).eval()


def batches(sizes: tuple[int, ...] = (8, 8)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [3 + 2 * torch.randn(size, 3, 12, 12, generator=generator) for size in sizes]


def measured_again(
    modules: Iterable[nn.Module], forward: Callable[[Tensor], object], batches: Iterable[Tensor]
) -> None:
    store_moments(measured_moments(modules, forward, batches))


def through(network: MultiHead, head: str):
    return lambda x: network.heads[head](network.trunk_output(x, None), None)


def test_mean_and_unbiased_variance_of_all_values_whatever_the_batches() -> None:
    """A mean of variances would miss that batches differ in their means."""
    norm = nn.BatchNorm2d(3).eval()
    data = [x + 10 * i for i, x in enumerate(batches((5, 2, 7)))]
    measured_again([norm], norm, data)
    values = torch.cat(data).double().transpose(0, 1).reshape(3, -1)
    torch.testing.assert_close(norm.running_mean.double(), values.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), values.var(1), rtol=1e-5, atol=1e-5)


def test_only_the_heads_own_norms_change_and_modes_are_put_back() -> None:
    network = small()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.heads["1"].train()
    measured_again([network.heads["1"]], through(network, "1"), batches())
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    norms = {f"heads.1.{n}" for n, m in network.heads["1"].named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert changed == {f"{norm}.running_{what}" for norm in norms for what in ("mean", "var")}
    assert all(m.training for m in network.heads["1"].modules())
    assert not any(m.training for part in (network.trunk, network.heads["0"]) for m in part.modules())
    for module in network.modules():
        assert not isinstance(module, nn.BatchNorm2d) or (module.momentum, module.track_running_stats) == (0.1, True)
        assert not module._forward_pre_hooks


def test_evaluation_then_agrees_with_training_on_the_same_batch() -> None:
    """Of one batch, the statistics measured are those that training mode uses (but for the unbiased variance)."""
    network = small()
    (data,) = batches((64,))
    wrong = through(network, "0")(data)
    measured_again([network], lambda x: [through(network, h)(x) for h in "01"], [data])
    found = through(network, "0")(data)
    expected = through(network.train(), "0")(data)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    assert not torch.allclose(wrong, expected, rtol=0.02, atol=0.02)


def test_moments_of_ranks_merge_to_those_of_one() -> None:
    norm = nn.BatchNorm2d(3).eval()
    first, second, third = batches((5, 1, 9))
    together = measured_moments([norm], norm, [first, second, third])[norm]
    apart = measured_moments([norm], norm, [first])[norm].merged(measured_moments([norm], norm, [second, third])[norm])
    assert apart.count == together.count == 15 * 144
    torch.testing.assert_close(apart.mean, together.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(apart.squares, together.squares, rtol=1e-12, atol=1e-9)


def test_bf16_pictures_are_measured_in_fp32() -> None:
    norm = nn.BatchNorm2d(3).eval()
    data = [x.bfloat16() for x in batches()]
    measured_again([norm], norm, data)
    values = torch.cat(data).double().transpose(0, 1).reshape(3, -1)
    torch.testing.assert_close(norm.running_var.double(), values.var(1), rtol=1e-5, atol=1e-5)


def test_a_failure_changes_nothing() -> None:
    network = small()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    good, _ = batches()

    def fails() -> object:
        yield good
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        measured_again([network], through(network, "0"), fails())
    for says, modules, data in (
        ("have no batch norm", [network.heads["0"].output], batches()),
        (r"11 of 11 batch norms saw no batch", [network.heads["0"], network.heads["1"], network.trunk.stem], []),
        (r"5 of 10 batch norms saw no batch", [network.heads["0"], network.heads["1"]], batches()),
    ):
        with pytest.raises(ValueError, match=says):
            measured_again(modules, through(network, "0"), data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(m.training for m in network.modules())
