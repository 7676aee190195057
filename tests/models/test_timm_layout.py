"""Forward equality with timm: stored logits of timm's own networks, and a forward written a second time."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nt_pretrain.counter_random import CHUNK, key_of, uniform
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.models.timm_layout import from_timm, timm_name, to_timm
from nt_pretrain.models.vision import Family, VisionModel, build_vision

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "timm_resnets.json").read_text(encoding="utf-8"))
"""Of timm 1.0.31 in fp64: names of the state dict and logits in evaluation and training mode, for the weights of
:func:`golden_values` and the pictures of :func:`golden_pictures`. timm needs torchvision and is not installed here."""


def golden_values(name: str, shape: tuple[int, ...]) -> Tensor:
    flat = noise(name, shape)
    if name.endswith("running_var"):
        return flat.abs() + 1
    if name.endswith("running_mean") or (len(shape) == 1 and name.endswith("bias")):
        return 0.1 * flat
    if len(shape) == 1:
        return 1 + 0.1 * flat
    return flat * (2 / (shape[0] * shape[2] * shape[3])) ** 0.5 if len(shape) == 4 else flat / shape[1] ** 0.5


def golden_pictures() -> Tensor:
    return noise("pictures", (2, 3, 48, 32))


def noise(name: str, shape: tuple[int, ...]) -> Tensor:
    """Uniform in fp64, variance 1."""
    key, size = key_of("timm golden", name), torch.Size(shape).numel()
    parts = [uniform(key, torch.arange(i, min(i + CHUNK, size))) for i in range(0, size, CHUNK)]
    return ((torch.cat(parts) - 0.5) * 12**0.5).view(shape)


def state_of(model: VisionModel, values: Callable[[str, tuple[int, ...]], Tensor]) -> dict[str, Tensor]:
    """In timm's layout."""
    with torch.device("meta"):
        shapes = {timm_name(name, model): t for name, t in build_vision(model).state_dict().items()}
    return {
        name: torch.zeros((), dtype=torch.int64) if t.dtype == torch.int64 else values(name, tuple(t.shape))
        for name, t in shapes.items()
    }


def cheap_values(_: str, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape)


def loaded(model: VisionModel, state: dict[str, Tensor]) -> MultiHead:
    with torch.device("meta"):
        network = build_vision(model)
    network.load_state_dict(from_timm(state, model), assign=True)
    return network


def logits_of(network: MultiHead, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        hidden = network.trunk_output(x, None)
        return [head(hidden, None) for head in network.heads.values()]


@pytest.mark.parametrize("family", ["resnet18", "resnet50"])
def test_logits_are_those_of_timm(family: Family) -> None:
    golden = GOLDEN[family]
    model = VisionModel(family, 10, blocks_in_head=3, output_bias=True)
    state = state_of(model, golden_values)
    assert hashlib.sha256(" ".join(sorted(state)).encode()).hexdigest() == golden["names_sha256"]
    assert len(state) == golden["tensors"]
    network = loaded(model, state)
    wanted = torch.tensor(golden["evaluating"], dtype=torch.float64)
    (logits,) = logits_of(network.eval(), golden_pictures())
    torch.testing.assert_close(logits, wanted, rtol=1e-9, atol=1e-9)
    (logits,) = logits_of(copy.deepcopy(network).float(), golden_pictures().float())
    torch.testing.assert_close(logits.double(), wanted, rtol=0, atol=1e-5)
    trained = torch.tensor(golden["training"], dtype=torch.float64)
    torch.testing.assert_close(logits_of(network.train(), golden_pictures())[0], trained, rtol=1e-9, atol=1e-9)


def plain_resnet50(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """ResNet-50 v1.5 in evaluation, from a state dict in timm's layout and nothing else."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, variance = (state[f"{name}.running_{each}"].view(1, -1, 1, 1) for each in ("mean", "var"))
        gain, bias = (state[f"{name}.{each}"].view(1, -1, 1, 1) for each in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * gain + bias

    x = F.conv2d(x, state["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(norm("bn1", x).clamp_min(0), 3, stride=2, padding=1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = norm(f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"])).clamp_min(0)
            y = F.conv2d(y, state[f"{name}.conv2.weight"], stride=stride, padding=1)
            y = norm(f"{name}.bn2", y).clamp_min(0)
            y = norm(f"{name}.bn3", F.conv2d(y, state[f"{name}.conv3.weight"]))
            if block == 0:
                x = norm(f"{name}.downsample.1", F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride))
            x = (y + x).clamp_min(0)
    return x.mean(dim=(2, 3)) @ state["fc.weight"].t() + state["fc.bias"]


def test_each_head_saves_as_a_whole_network_of_its_own() -> None:
    """Heads with different weights, without bias: what is written computes what the head computes."""
    model = VisionModel("resnet50", 10, heads=2, blocks_in_head=10)
    torch.manual_seed(0)
    network = build_vision(model)
    pictures = golden_pictures().float()
    logits_of(network.train(), pictures)  # statistics of norms that are not 0 and 1
    found = logits_of(network.eval(), pictures)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    for head, logits in enumerate(found):
        state = to_timm(network.state_dict(), model, head=head)
        assert len(state) == GOLDEN["resnet50"]["tensors"]
        torch.testing.assert_close(logits, plain_resnet50(state, pictures), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blocks_in_head", [0, 4, 8])
def test_what_was_loaded_is_saved_again(blocks_in_head: int) -> None:
    model = VisionModel("resnet18", 10, heads=2, blocks_in_head=blocks_in_head, output_bias=True, small_stem=True)
    state = state_of(model, cheap_values)
    saved = to_timm(from_timm(state, model), model, head=1)
    assert saved.keys() == state.keys() and all(torch.equal(saved[name], state[name]) for name in state)


def test_files_without_counters_of_batches_load() -> None:
    model = VisionModel("resnet18", 10, output_bias=True)
    state = {name: t for name, t in state_of(model, cheap_values).items() if not name.endswith("num_batches_tracked")}
    loaded(model, state)


def test_a_bias_of_zeros_is_dropped_and_another_refused() -> None:
    state = state_of(VisionModel("resnet18", 10, output_bias=True), cheap_values)
    plain = VisionModel("resnet18", 10)
    with pytest.raises(ValueError, match=r"set model\.output_bias: true"):
        from_timm(state, plain)
    state["fc.bias"] = torch.zeros(10)
    assert "heads.0.output.bias" not in from_timm(state, plain)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (VisionModel("resnet34", 10, output_bias=True), r"no timm resnet34: \d+ missing \(layer1.2.bn1.bias"),
        (VisionModel("resnet50", 10, output_bias=True), "no timm resnet50: .*see that model.family"),
        (VisionModel("resnet18", 11, output_bias=True), r"fc.weight: shape \[10, 512\], but heads.0.output.weight"),
        (VisionModel("resnet18", 10, output_bias=True, small_stem=True), "conv1.weight: shape .*model.small_stem"),
        (VisionModel("wide_resnet28_10", 10), "no layout in timm"),
        (VisionModel("resnet20", 10), "resnet20 has no layout in timm"),
    ],
)
def test_another_networks_file_is_refused_in_words(model: VisionModel, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_timm(state_of(VisionModel("resnet18", 10, output_bias=True), cheap_values), model)


def test_a_head_that_is_not_there_is_refused() -> None:
    model = VisionModel("resnet18", 10, heads=2)
    with pytest.raises(ValueError, match="head 2 does not exist; the model has heads 0 to 1"):
        to_timm({}, model, head=2)
