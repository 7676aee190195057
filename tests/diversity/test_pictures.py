"""Pictures climbed for a unit and maps of where a network looks, on networks made to know one thing."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from nt_pretrain.data.augment import normalised
from nt_pretrain.diversity.maximise import maximise, total_variation
from nt_pretrain.diversity.occlusion import occlusion
from nt_pretrain.diversity.overlay import overlay
from nt_pretrain.diversity.pictures import as_bytes, as_network_takes
from nt_pretrain.diversity.png import png
from nt_pretrain.diversity.saliency import saliency
from nt_pretrain.diversity.section_maps import shown_pictures

TOP, LEFT, SIDE = 12, 4, 8


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Many threads on small pictures wait for one another most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def looks_at_a_patch(pictures: torch.Tensor) -> torch.Tensor:
    """A log-probability that hangs on the brightness of one patch alone."""
    patch = pictures[:, :, TOP : TOP + SIDE, LEFT : LEFT + SIDE]
    return nn.functional.logsigmoid(6.0 * patch.mean(dim=(1, 2, 3)) - 3.0)


def inside_and_outside(heat: torch.Tensor) -> tuple[float, float]:
    patch = torch.zeros_like(heat, dtype=torch.bool)
    patch[TOP : TOP + SIDE, LEFT : LEFT + SIDE] = True
    return float(heat[patch].mean()), float(heat[~patch].mean())


def test_a_climbed_picture_raises_its_own_unit_the_same_way_every_time() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 5, stride=2), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()

    def score(pictures: torch.Tensor) -> torch.Tensor:
        return network(as_network_takes(pictures)).mean(dim=(2, 3)).diagonal()

    found = maximise(score, 4, 24, seed=0, steps=40)
    assert found.pictures.shape == (4, 3, 24, 24)
    assert float(found.pictures.min()) >= 0.0 and float(found.pictures.max()) <= 1.0
    assert (found.after > found.before + 0.05).all(), (found.before, found.after)
    with torch.no_grad():
        every = network(as_network_takes(found.pictures)).mean(dim=(2, 3))
    assert torch.equal(every.argmax(0), torch.arange(4))  # of all pictures a unit answers most to its own
    assert torch.equal(found.pictures, maximise(score, 4, 24, seed=0, steps=40).pictures)
    assert not torch.equal(found.pictures, maximise(score, 4, 24, seed=1, steps=40).pictures)


def test_a_climbed_picture_is_smooth() -> None:
    kernel = torch.ones(1, 3, 1, 1)
    kernel[0, 1] = -2.0

    def score(pictures: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(pictures, kernel).mean(dim=(1, 2, 3))

    found = maximise(score, 1, 32, seed=0, steps=40)
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert total_variation(found.pictures) < 0.2 * total_variation(noise)


def test_occlusion_finds_the_patch_that_a_network_looks_at() -> None:
    picture = torch.full((3, 32, 32), 0.9)
    heat = occlusion(looks_at_a_patch, picture)
    within, outside = inside_and_outside(heat)
    assert within > 0.1 and outside < 0.3 * within
    row, column = divmod(int(heat.argmax()), 32)
    assert TOP <= row < TOP + SIDE and LEFT <= column < LEFT + SIDE
    # The far corner covers nothing of it.
    assert float(heat[-8:, -8:].abs().max()) == 0.0


def test_every_pixel_is_covered_also_where_the_patch_does_not_divide_the_side() -> None:
    heat = occlusion(lambda x: x.flatten(1).sum(1), torch.full((3, 29, 21), 0.9))
    assert bool(heat.isfinite().all()) and float(heat.min()) > 0.0


def test_saliency_finds_the_patch_that_a_network_looks_at() -> None:
    heat = saliency(looks_at_a_patch, torch.full((3, 32, 32), 0.7), seed=0)
    within, outside = inside_and_outside(heat)
    assert within > 0.0 and outside == 0.0
    assert torch.equal(heat, saliency(looks_at_a_patch, torch.full((3, 32, 32), 0.7), seed=0))


def test_a_map_colours_what_speaks_for_and_against() -> None:
    heat = torch.zeros(2, 3)
    heat[0, 0], heat[1, 2] = 1.0, -1.0
    drawn = overlay(torch.full((3, 2, 3), 0.5), heat, 1.0)
    assert drawn[:, 0, 0].tolist() == [230, 97, 1] and drawn[:, 1, 2].tolist() == [30, 120, 210]
    assert len(set(drawn[:, 0, 1].tolist())) == 1  # grey
    assert not overlay(torch.zeros(3, 2, 2), torch.zeros(2, 2), 0.0).bool().all(0).logical_not().any()


def test_a_png_holds_the_pixels() -> None:
    picture = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
    content = png(picture)
    pillow = pytest.importorskip("PIL.Image")
    read = torch.tensor(list(pillow.open(io.BytesIO(content)).tobytes()), dtype=torch.uint8).view(4, 5, 3)
    assert torch.equal(read.permute(2, 0, 1), picture)
    assert (
        struct.unpack(">II", content[16:24]) == (5, 4) and zlib.crc32(b"IEND") == struct.unpack(">I", content[-4:])[0]
    )


def test_values_are_rounded_to_bytes_and_normalised_as_training_does() -> None:
    pixels = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(as_bytes(pixels / 255.0), pixels)
    assert torch.allclose(as_network_takes(pixels / 255.0), normalised(pixels), atol=1e-5)


def test_the_pictures_that_voices_differ_about_come_first() -> None:
    p = torch.full((2, 6, 2), 0.5)
    p[0, 4], p[1, 4] = torch.tensor([0.99, 0.01]), torch.tensor([0.01, 0.99])
    p[0, 2], p[1, 2] = torch.tensor([0.8, 0.2]), torch.tensor([0.2, 0.8])
    assert shown_pictures(p.double().log()) == [4, 2, 0, 1]
