"""Counts of the paper's networks, and that the cut into trunk and heads computes what a plain network computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.models.vision import VisionModel, build_vision
from nt_pretrain.models.vision_accounting import vision_shapes

SMALL = VisionModel("resnet18", classes=7, heads=3, blocks_in_head=3, small_stem=True)
WIDE = VisionModel("wide_resnet28_10", classes=100, output_bias=True)
RESNET20 = VisionModel("resnet20", classes=10, output_bias=True)


def seeded(model: VisionModel) -> MultiHead:
    torch.manual_seed(0)
    return build_vision(model)


def pictures(count: int = 4, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def logits_of(model: MultiHead, x: Tensor) -> list[Tensor]:
    hidden = model.trunk_output(x, None)
    return [head(hidden, None) for head in model.heads.values()]


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (VisionModel("resnet50", heads=3, blocks_in_head=10), 74_338_368),
        (VisionModel("resnet50"), 25_556_032),
        (VisionModel("resnet50", heads=3, blocks_in_head=16), 3 * 25_556_032),
        (VisionModel("resnet50", output_bias=True), 25_557_032),
        (VisionModel("resnet34", output_bias=True), 21_797_672),
        (VisionModel("resnet18", output_bias=True), 11_689_512),
        # He et al. 2015 count 0.27 M without the 1x1 shortcuts: 2,752 less.
        (RESNET20, 269_722 + 2_752),
        (WIDE, 36_536_884),
        # The reference has 106,325,884: its heads share one final norm of 640 channels; here each has its own.
        (VisionModel("wide_resnet28_10", 100, 3, 8, output_bias=True), 106_325_884 + 2 * 2 * 640),
    ],
)
def test_parameter_counts(model: VisionModel, parameters: int) -> None:
    assert sum(torch.Size(shape).numel() for shape in vision_shapes(model).values()) == parameters


def test_ten_of_sixteen_blocks_are_the_papers_split() -> None:
    """Shared: stage 1 and three blocks of stage 2; a head: the last of stage 2, stages 3 and 4, its classifier."""
    with torch.device("meta"):
        model = build_vision(VisionModel("resnet50", heads=3, blocks_in_head=10))
    assert len(model.trunk.blocks) == 6 and set(model.heads) == {"0", "1", "2"}
    first = dict(model.named_parameters())["heads.2.blocks.0.conv3x3.weight"]
    assert first.shape == (128, 128, 3, 3)
    assert model.trunk_output(torch.empty(2, 3, 224, 224, device="meta"), None).shape == (2, 512, 28, 28)


def test_resnet20_is_that_of_small_pictures() -> None:
    """Table in section 4.2 of He et al. 2015: maps of 32, 16 and 8 pixels with 16, 32 and 64 channels, 19 convolutions
    on the path and one classifier.
    """
    model = seeded(RESNET20).eval()
    shapes = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    logits_of(model, pictures(2, 32))
    assert shapes == [(16, 32, 32)] * 7 + [(32, 16, 16)] * 6 + [(64, 8, 8)] * 6


@pytest.mark.parametrize(
    "plain", [VisionModel("resnet18", 7, small_stem=True), VisionModel("resnet50", 7), RESNET20, WIDE]
)
@pytest.mark.parametrize("blocks_in_head", [1, None])
def test_one_head_computes_the_same_wherever_it_is_cut(plain: VisionModel, blocks_in_head: int | None) -> None:
    blocks = len(plain.blocks) if blocks_in_head is None else blocks_in_head
    cut = VisionModel(plain.family, plain.classes, 1, blocks, plain.small_stem, plain.output_bias)
    reference, model = seeded(plain), build_vision(cut)
    assert (model.trunk is None) is (blocks_in_head is None)
    with torch.no_grad():
        for target, source in zip(model.parameters(), reference.parameters(), strict=True):
            target.copy_(source)
        x = pictures(2, 32 if plain.family == "resnet50" else 8)
        assert torch.equal(logits_of(reference, x)[0], logits_of(model, x)[0])


@pytest.mark.parametrize("model", [SMALL, VisionModel("wide_resnet28_10", 5, heads=2, blocks_in_head=1)])
def test_heads_share_nothing_but_the_trunk(model: VisionModel) -> None:
    """The reference's WideResNet has one final norm for all heads, whose statistics then mix them."""
    built = seeded(model).train()
    before = {name: buffer.clone() for name, buffer in built.named_buffers()}
    hidden = built.trunk_output(pictures(), None).detach()
    built.heads["1"](hidden, None, torch.tensor([0, 1, 2, 3]), 1024).backward()
    changed = {name for name, buffer in built.named_buffers() if not torch.equal(buffer, before[name])}
    assert changed and all(name.startswith(("trunk.", "heads.1.")) for name in changed)
    graded = {name.rsplit(".", 1)[0] for name, p in built.named_parameters() if p.grad is not None}
    assert graded and all(name.startswith("heads.1.") for name in graded)


@pytest.mark.parametrize("model", [SMALL, VisionModel("wide_resnet28_10", 5, heads=2, blocks_in_head=1)])
def test_a_head_leaves_the_trunks_output_alone(model: VisionModel) -> None:
    """Heads run one after another on the same tensor, so nothing may be written into it."""
    built = seeded(model).train()
    hidden = built.trunk_output(pictures(), None).detach().requires_grad_()
    before = hidden.detach().clone()
    for head in built.heads.values():
        head(hidden, None, torch.tensor([0, 1, 2, 3])).backward()
    assert torch.equal(hidden.detach(), before) and hidden.grad is not None


def test_head_by_head_gives_the_gradient_of_the_joint_loss() -> None:
    model = seeded(VisionModel("resnet18", 7, heads=2, blocks_in_head=1, small_stem=True)).double().train()
    x, targets = pictures(4, 8).double(), torch.tensor([0, 6, -100, 3])
    joint = model.trunk_output(x, None)
    sum(head(joint, None, targets) for head in model.heads.values()).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    hidden = model.trunk_output(x, None)
    start = hidden.detach().requires_grad_()
    for head in model.heads.values():
        head(start, None, targets).backward()
    hidden.backward(start.grad)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [7, 9])
def test_features_are_averaged_over_the_whole_map(size: int) -> None:
    """The reference averages the top-left 4x4 window of a 7x7 map."""
    model = seeded(VisionModel("resnet50", 5))
    head = model.heads["0"].eval()
    maps = torch.rand(2, 2048, size, size)
    expected = maps.sum(dim=(2, 3)) / size**2 @ head.output.weight.t()
    torch.testing.assert_close(head(maps, None), expected)
    far = maps.clone()
    far[:, :, -1, -1] += 1.0
    assert not torch.allclose(head(far, None), head(maps, None), atol=1e-4)


def test_loss_is_smoothed_cross_entropy_of_the_logits_that_count() -> None:
    smooth = VisionModel("resnet18", 7, small_stem=True, label_smoothing=0.1)
    model = seeded(smooth).eval()
    x, targets = pictures(5), torch.tensor([0, 6, -100, 3, 2])
    (logits,) = logits_of(model, x)
    logp = logits.detach().double().log_softmax(1)
    wanted = 0.0
    for row, target in zip(logp, targets.tolist(), strict=True):
        if target != -100:
            wanted -= 0.9 * float(row[target]) + 0.1 * float(row.mean())
    loss = model.heads["0"](model.trunk_output(x, None), None, targets, 2)
    assert loss.item() == pytest.approx(wanted, rel=1e-6)
    none = model.heads["0"](model.trunk_output(x, None), None, torch.full((5,), -100))
    assert none.item() == 0.0, "no target is no loss, not nan"


def test_mixed_precision_keeps_norms_and_weights_in_fp32_and_the_layout_of_the_pictures() -> None:
    model = seeded(SMALL).train()
    x = pictures().contiguous(memory_format=torch.channels_last)
    seen: list[torch.dtype] = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda norm, inputs, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.trunk_output(x, None)
        loss = sum(head(hidden, None, torch.tensor([0, 1, 2, 3])) for head in model.heads.values())
    assert hidden.dtype == torch.bfloat16 and hidden.is_contiguous(memory_format=torch.channels_last)
    assert set(seen) == {torch.bfloat16} and loss.dtype == torch.float32
    loss.backward()
    for name, parameter in model.named_parameters():
        # Topologies see weights and gradients flat; a gradient in another layout would number them otherwise.
        assert parameter.is_contiguous() and parameter.grad.is_contiguous(), name
        assert parameter.dtype == parameter.grad.dtype == torch.float32
    assert {b.dtype for n, b in model.named_buffers() if "running" in n} == {torch.float32}
    assert loss.item() == pytest.approx(_fp32_loss(x).item(), rel=0.05)


def _fp32_loss(x: Tensor) -> Tensor:
    model = seeded(SMALL).train()
    hidden = model.trunk_output(x.contiguous(), None)
    return sum(head(hidden, None, torch.tensor([0, 1, 2, 3])) for head in model.heads.values())


def test_only_the_heads_asked_for_are_built() -> None:
    with torch.device("meta"):
        assert set(build_vision(SMALL, range(1, 3)).heads) == {"1", "2"}
        assert not build_vision(SMALL, range(0)).heads


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(family="resnet101"), r"model.family: 'resnet101' .* known: resnet18, resnet34, resnet50"),
        (dict(blocks_in_head=17), "17 of the 16 blocks of resnet50; a head owns 0 .* to 16"),
        (dict(blocks_in_head=-1), "-1 of the 16 blocks"),
        (dict(heads=0), "model.heads: 0 must be at least 1"),
        (dict(label_smoothing=1.0), "train.label_smoothing: 1.0 must be"),
        (dict(family="resnet20", small_stem=True), "model.small_stem: has no effect on resnet20"),
        (dict(family="wide_resnet28_10", small_stem=True), "model.small_stem: has no effect"),
        (dict(family="resnet20", channels=(16, 32)), r"\[16, 32\] are 2 numbers; resnet20 has a stem and 3 stages"),
        (dict(family="wide_resnet28_10", zero_last_norm=True), "model.zero_last_norm: has no effect"),
    ],
)
def test_impossible_networks_are_refused_in_words(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        VisionModel(**options)
