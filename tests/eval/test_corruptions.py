"""Corruptions: defined for any size, stronger with severity, decided by their counter, and what their formulas say."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from nt_pretrain.counter_random import uniform
from nt_pretrain.eval.corruption_blur import convolved, motion_blur
from nt_pretrain.eval.corruption_light import brightness, contrast, saturation
from nt_pretrain.eval.corruption_noise import shot_noise
from nt_pretrain.eval.corruptions import CORRUPTIONS, SEVERITIES, corrupted

RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog")


def picture(height: int = 64, width: int = 80) -> torch.Tensor:
    """Edges, gradients and colours."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    red = (rows * 255 / height).long()
    green = ((rows // 8 + columns // 8) % 2) * 180 + 30
    blue = (columns * 200 / width).long()
    return torch.stack([red, green, blue]).to(torch.uint8)


def change(name: str, severity: int, sample: int = 0) -> float:
    before = picture(112, 112)
    after = corrupted(before, name, severity, seed=1, sample=sample)
    return float((after.double() - before.double()).square().mean().sqrt())


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_severity_harms_more(name: str) -> None:
    changes = [np.mean([change(name, severity, sample) for sample in range(2)]) for severity in SEVERITIES]
    if name == "saturation":  # the first two take colour away, the others add some
        assert changes[0] < changes[1] and changes[2] < changes[3] < changes[4]
    elif name in ("pixelate", "jpeg", "fog"):  # squares meet boxes now better, now worse; fog 3 and 4 differ in grain
        assert 0 < changes[0] < max(changes[3:])
    else:
        assert changes == sorted(changes) and changes[0] > 0


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_the_counter_decides(name: str) -> None:
    before = picture()
    kept = before.clone()
    first = corrupted(before, name, 3, seed=1, sample="a")
    torch.rand(5)  # draws of others change nothing
    assert torch.equal(corrupted(before, name, 3, seed=1, sample="a"), first)
    assert first.dtype == torch.uint8 and first.shape == before.shape and torch.equal(before, kept)
    others = [corrupted(before, name, 3, seed=1, sample="b"), corrupted(before, name, 3, seed=2, sample="a")]
    assert all(torch.equal(other, first) != (name in RANDOM) for other in others)


@pytest.mark.parametrize("name", list(CORRUPTIONS))
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (32, 17)])
def test_any_size_and_flat_pictures(name: str, size: tuple[int, int]) -> None:
    for severity in (1, 5):
        for value in (0, 128, 255):
            flat = torch.full((3, *size), value, dtype=torch.uint8)
            assert corrupted(flat, name, severity, seed=0, sample=0).shape == flat.shape
            if name.endswith("blur") or name in ("contrast", "saturation", "pixelate"):
                assert torch.equal(corrupted(flat, name, severity, seed=0, sample=0), flat), (
                    "nothing to see, nothing lost"
                )


def test_noise_has_the_moments_of_its_formula():
    grey = torch.full((3, 200, 200), 128, dtype=torch.uint8)
    x = 128 / 255
    noisy = corrupted(grey, "gaussian_noise", 1, seed=3, sample=0).double() / 255
    assert float(noisy.mean()) == pytest.approx(x, abs=1e-3) and float(noisy.std()) == pytest.approx(0.08, rel=0.01)
    impulses = corrupted(grey, "impulse_noise", 5, seed=3, sample=0)
    assert float((impulses == 0).double().mean()) == pytest.approx(0.135, abs=0.004)
    assert float((impulses == 255).double().mean()) == pytest.approx(0.135, abs=0.004)
    shots = shot_noise(torch.full((3, 200, 200), x, dtype=torch.float64), (60.0,), 5) * 60
    assert torch.allclose(shots, shots.round(), rtol=0, atol=1e-9)
    assert float(shots.mean()) == pytest.approx(60 * x, rel=0.003)
    assert float(shots.var()) == pytest.approx(60 * x, rel=0.02)


def test_shot_noise_is_inversion_of_poissons_distribution():
    from scipy.stats import poisson

    x = torch.linspace(0, 1, 500, dtype=torch.float64)[None, None]
    expected = poisson.ppf(uniform(8, torch.arange(500)).numpy(), 60 * x[0, 0].numpy())
    assert shot_noise(x, (60.0,), 8)[0, 0].mul(60).round().tolist() == np.maximum(expected, 0).tolist()


def test_gaussian_blur_against_pillow():
    before = picture(224, 224)
    ours = corrupted(before, "gaussian_blur", 3, seed=0, sample=0).double()
    theirs = Image.fromarray(before.permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(3.0))
    inside = torch.from_numpy(np.array(theirs)).permute(2, 0, 1).double()[:, 20:-20, 20:-20]
    assert float((ours[:, 20:-20, 20:-20] - inside).abs().mean()) < 1.5, "Pillow's is made of boxes"


def test_blurs_spread_a_point_by_their_kernel():
    point = torch.zeros(3, 225, 225, dtype=torch.float64)
    point[:, 112, 112] = 1.0
    kernel = torch.rand(5, 3, dtype=torch.float64)
    spread = convolved(point, kernel)
    assert torch.allclose(spread[0, 110:115, 111:114], (kernel / kernel.sum()).flip(0, 1))
    line = motion_blur(point, (10.0, 30.0), 4)[0]
    places = torch.arange(225, dtype=torch.float64) - 112
    assert float(line.sum()) == pytest.approx(1.0)
    rows, columns = (float((line.sum(1 - axis) * places.square()).sum()) for axis in (0, 1))
    # Evenly spread over 20 pixels, but for the weights (s = 30) and a bilinear pixel: the variance is near 20^2 / 12.
    assert rows + columns == pytest.approx(20**2 / 12, rel=0.1) and rows <= columns, "at most 45 degrees"


def test_light_follows_hsv():
    import colorsys

    x = torch.rand(3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[:, 0, 0], x[:, 0, 1] = 0.0, 0.6
    bright, vivid = brightness(x, (0.2,), 0), saturation(x, (2.0, 0.1), 0)
    for row in range(9):
        for column in range(9):
            h, s, v = colorsys.rgb_to_hsv(*x[:, row, column].tolist())
            assert bright[:, row, column].tolist() == pytest.approx(colorsys.hsv_to_rgb(h, s, min(v + 0.2, 1.0)))
            expected = colorsys.hsv_to_rgb(h, min(2 * s + 0.1, 1.0), v) if s else (v, v, v)
            assert vivid[:, row, column].tolist() == pytest.approx(expected)
    assert contrast(x, (0.4,), 0).mean((1, 2)).tolist() == pytest.approx(x.mean((1, 2)).tolist())
    assert contrast(x, (0.4,), 0).std((1, 2)).tolist() == pytest.approx((0.4 * x.std((1, 2))).tolist())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="corruption 'snow' is not known; choose one of gaussian_noise, "):
        corrupted(picture(), "snow", 1, seed=0, sample=0)
    with pytest.raises(ValueError, match=r"severity 6 of fog is not known; it is 1 \(mild\) to 5"):
        corrupted(picture(), "fog", 6, seed=0, sample=0)
    with pytest.raises(ValueError, match=r"uint8 \[3, height, width\], not torch.float32 \[3, 4, 4\]"):
        corrupted(torch.zeros(3, 4, 4), "fog", 1, seed=0, sample=0)
