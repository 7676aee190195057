"""What of a configuration is timed, and what is said of it: never how long anything takes."""

from __future__ import annotations

import pytest
import torch

from nt_pretrain.config.load import load_config
from nt_pretrain.config.schema import Config
from nt_pretrain.rehearsal import advice
from nt_pretrain.rehearsal.calibrate import Calibration, Timed, calibrate, ways_of
from nt_pretrain.rehearsal.matrices import Kind, Matrices, NothingToTime, matrices_of
from tests.contract import ROOT

SMALL = ["model.hidden=64", "model.intermediate=96", "sparsity.scope=heads"]


def config_of(*overrides: str, file: str = "tiny") -> Config:
    return load_config(ROOT / "configs" / f"{file}.yaml", [*SMALL, *overrides] if file == "tiny" else [*overrides])


def test_matrices_that_are_alike_are_timed_once_and_counted() -> None:
    found = matrices_of(config_of())
    assert {each.label: (each.shape, each.in_heads, each.in_trunk) for each in found.kinds} == {
        "attention.query, key, value": ((64, 64), 18, 0),
        "attention.out": ((64, 64), 6, 0),
        "ffn.gate, up": ((96, 64), 12, 0),
        "ffn.down": ((64, 96), 6, 0),
        "output": ((512, 64), 3, 0),
    }
    assert all(set(each.fans) == {16, 32} for each in found.kinds)
    assert "not divisible into 64 x 64 blocks" in found.refused[64] and set(found.refused) == {64, 128}
    assert found.heads == 3 and not found.left_out


def test_embeddings_are_named_as_not_timed() -> None:
    found = matrices_of(config_of("sparsity.scope=all"))
    assert found.left_out == ["trunk.embedding.weight"]
    assert any(each.in_trunk for each in found.kinds)


def test_dense_layers_are_left_alone() -> None:
    found = matrices_of(config_of("sparsity.group_density={attention: 1.0}"))
    assert not any("attention" in each.label for each in found.kinds)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (("sparsity.density=1",), "sparsity.density is 1: no layer is sparse.* sparsity.density=0.2"),
        (("sparsity.scope=no_vocab",), "no matrix products .*conv"),
    ],
)
def test_nothing_to_time_is_told(config: tuple[str, ...], words: str) -> None:
    file = "wrn28_cifar" if "conv" in words else "tiny"
    with pytest.raises(NothingToTime, match=words):
        matrices_of(config_of(*config, file=file))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_every_way_is_timed_whatever_the_seconds(precision: str) -> None:
    told: list[str] = []
    config = config_of(f"train.precision={precision}", "run.device=cpu")
    found = calibrate(config, [], 0.0, told.append)
    assert len(told) == len(found.timed) == 5 and "1 of 5 kinds of matrices" in told[0]
    for each in found.timed:
        assert list(each.seconds) == ["dense", "masked", "single weights", "block 16", "block 32"]
        assert each.rounds == 3 and each.tokens == 64 and all(value > 0 for value in each.seconds.values())
    text = advice.in_full(config, found)
    best = advice.fastest(config, found)
    assert f"fastest: {best}: " in text and f"to use it: {advice.overrides(best)}" in text
    table = [line.split() for line in text.splitlines() if line.startswith("  ")]
    assert table[0][-6:] == ["single", "weights", "block", "16", "block", "32"] and len(table) == 10
    assert "blocks of 64 do not fit" in text


def test_every_way_multiplies_as_its_dense_matrix_would() -> None:
    """A pass leaves gradients where the operands are, of shapes that belong to the matrix."""
    kind = matrices_of(config_of()).kinds[3]
    assert kind.label == "ffn.down", "kept as its transpose"
    for way in ways_of(kind, torch.float32, torch.device("cpu"), with_stk=True).values():
        x, slope = torch.randn(5, 96, requires_grad=True), torch.randn(5, 64)
        way(x, slope)
        assert x.grad is not None and x.grad.shape == (5, 96) and x.grad.abs().sum() > 0


def found_with(**seconds: float) -> Calibration:
    kind = Kind("heads.0.output.weight", "output", (64, 64), 0.25, {16: 1, 64: 1}, {16: 0.25, 64: 1.0}, 3, 0)
    times = {"dense": 8.0, "masked": 9.0, "single weights": 7.0, "block 16": 6.0} | {
        name.replace("_", " "): value for name, value in seconds.items()
    }
    timed = Timed(kind, 64, 3, times, {way: value / 8.0 for way, value in times.items()})
    return Calibration("CPU", "by the clock", "fp32", 64, Matrices([kind], {}, [], 3), [timed])


def test_the_fastest_that_a_run_can_go_is_named_with_its_options() -> None:
    found = found_with(block_16=2.0)
    assert advice.fastest(config_of(), found) == "block 16"
    text = advice.in_full(config_of(), found)
    assert "to use it: sparsity.backend=block sparsity.unit=16 sparsity.balance=line" in text
    assert "4.50 times as fast as masked, 3 heads cost 0.75 of one dense head" in text
    assert advice.of_one_head(found, "masked") == pytest.approx(3 * 9 / 8)
    assert "within 5% of it" not in text
    tied = advice.in_full(config_of(), found_with(block_16=2.0, masked=2.05))
    assert "within 5% of it, which another calibration may reverse: masked" in tied
    assert advice.fastest(config_of(), found_with(masked=1.0)) == "masked"
    assert advice.overrides("masked") == "sparsity.backend=masked"


def test_options_that_are_named_are_options_of_a_run() -> None:
    config = config_of(*advice.overrides("block 16").split())
    assert advice.refusal(config_of(), "block 16") is None
    assert (config.sparsity.backend, config.sparsity.unit, config.sparsity.balance) == ("block", 16, "line")


def test_a_faster_way_that_does_not_fit_is_named_and_not_advised() -> None:
    """Two of tiny's matrices have 96 rows, which are no blocks of 64."""
    found = found_with(block_64=1.0, block_16=2.0)
    assert advice.fastest(config_of(), found) == "block 16"
    text = advice.in_full(config_of(), found)
    assert "faster, but this configuration cannot use it: block 64: " in text
    assert "model.intermediate 96 is not divisible into blocks of 64" in text
    assert advice.refusal(config_of(), "block 128, stk") == "no option of a run chooses it"
