"""Whatever a file holds, the same RGB pixels with both decoders, or an error of a kind that can be counted."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nt_pretrain.data import images
from nt_pretrain.data.images import ImageError, check, decode, extension_of, pixels, size_of
from tests.data.photos import encoded, photo


@pytest.fixture(params=["simplejpeg", "pillow"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test runs with both decoders."""
    if request.param == "pillow":
        monkeypatch.setattr(images, "simplejpeg", None)
    elif images.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    return str(request.param)


def pillow(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_is_what_pillow_gives(decoder: str, progressive: bool) -> None:
    content = encoded(photo(121, 203), progressive=progressive)
    found = decode(content)
    assert (found.dtype, tuple(found.shape)) == (torch.uint8, (3, 121, 203))
    assert found.is_contiguous(memory_format=torch.channels_last) or found.permute(1, 2, 0).is_contiguous()
    assert np.array_equal(found.permute(1, 2, 0).numpy(), pillow(content))
    assert size_of(content) == (121, 203)


@pytest.mark.parametrize("reduce", [2, 4, 8])
@pytest.mark.parametrize("shape", [(121, 203), (64, 8), (9, 17), (400, 401)])
def test_scaled_decoding_is_the_same_with_both_decoders(
    decoder: str, shape: tuple[int, int], reduce: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded(photo(*shape))
    found = pixels(content, reduce)
    assert found.shape == (-(-shape[0] // reduce), -(-shape[1] // reduce), 3)
    monkeypatch.setattr(images, "simplejpeg", None)
    assert np.array_equal(found, pixels(content, reduce))


def test_scaled_decoding_is_near_the_averaged_picture(decoder: str) -> None:
    content = encoded(photo(240, 320))
    averaged = np.asarray(Image.fromarray(pillow(content)).reduce(4)).astype(int)
    assert np.abs(pixels(content, 4).astype(int) - averaged).mean() < 3


def test_other_formats_are_reduced_to_the_same_size(decoder: str) -> None:
    content = encoded(photo(41, 63), "PNG")
    assert pixels(content, 4).shape == (11, 16, 3)


def test_grey_becomes_three_equal_channels(decoder: str) -> None:
    content = encoded(photo(40, 50).convert("L"))
    found = pixels(content)
    assert np.array_equal(found, pillow(content))
    assert (found[..., 0] == found[..., 1]).all() and (found[..., 0] == found[..., 2]).all()


def test_cmyk_is_converted_as_pillow_does(decoder: str) -> None:
    content = encoded(photo(40, 50).convert("CMYK"))
    assert np.array_equal(pixels(content), pillow(content))
    assert np.abs(pixels(content).astype(int) - np.asarray(photo(40, 50)).astype(int)).mean() < 12
    assert pixels(content, 2).shape == (20, 25, 3)


def test_16_bit_grey_keeps_its_upper_bits() -> None:
    values = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 32
    found = pixels(encoded(Image.fromarray(values), "PNG"))
    assert np.array_equal(found, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, 2))
    assert 200 < found.max() < 255, "not clipped to white"


def test_16_bit_rgb_keeps_its_upper_bits() -> None:
    values = (np.arange(6 * 7 * 3).reshape(6, 7, 3) * 500).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    found = pixels(png(7, 6, 16, 2, rows))
    assert np.array_equal(found, (values >> 8).astype(np.uint8))


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand: Pillow writes none with 16 bits in three channels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_alpha_is_dropped() -> None:
    image = photo(30, 40).convert("RGBA")
    image.putalpha(0)
    assert np.array_equal(pixels(encoded(image, "PNG")), np.asarray(photo(30, 40)))
    grey = photo(30, 40).convert("L")
    two = grey.convert("LA")
    two.putalpha(7)
    assert np.array_equal(pixels(encoded(two, "PNG"))[..., 1], np.asarray(grey))


@pytest.mark.parametrize("transparent", [False, True])
def test_a_palette_gives_its_colours(transparent: bool) -> None:
    image = photo(30, 40).quantize(16)
    file = io.BytesIO()
    image.save(file, "PNG", **({"transparency": bytes(range(16))} if transparent else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(pixels(file.getvalue()), np.asarray(image.convert("RGB")))


def test_one_bit_is_black_and_white() -> None:
    found = pixels(encoded(photo(30, 40).convert("1"), "PNG"))
    assert set(np.unique(found)) == {0, 255}


def test_exif_orientation_is_not_applied(decoder: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    file = io.BytesIO()
    photo(30, 50).save(file, "JPEG", quality=90, exif=exif)
    assert size_of(file.getvalue()) == (30, 50)
    assert np.array_equal(pixels(file.getvalue()), pixels(encoded(photo(30, 50))))


def test_bytes_say_what_a_file_is_not_its_name() -> None:
    assert [extension_of(encoded(photo(8, 8), kind)) for kind in ("JPEG", "PNG", "WEBP")] == ["jpg", "png", "webp"]
    assert np.array_equal(pixels(encoded(photo(8, 9), "PNG")), np.asarray(photo(8, 9)))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "not an image"),
        (encoded(photo(8, 8), "GIF"), "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
        (encoded(photo(60, 80))[:900], "truncated"),
        (encoded(photo(60, 80), "PNG")[:4000], "truncated"),
        (b"\xff\xd8\xff" + bytes(100), "damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "damaged"),
        (png(60_000, 60_000, 8, 2, b""), "too large"),
        (png(9_000, 9_000, 8, 2, b""), "too large"),
    ],
)
def test_what_cannot_be_decoded_has_a_kind(decoder: str, content: bytes, kind: str) -> None:
    for function in (pixels, check):
        with pytest.raises(ImageError) as caught:
            function(content)
        assert caught.value.kind == kind
        assert str(caught.value).startswith(f"{kind}: ") and len(str(caught.value)) < 200


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_cut_anywhere_it_is_an_image_error_or_whole(decoder: str, kind: str) -> None:
    content = encoded(photo(20, 30), kind)
    for length in range(len(content)):
        try:
            found = pixels(content[:length])
        except ImageError:
            continue
        assert found.shape == (20, 30, 3) and length > 0.9 * len(content)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_damage_is_an_image_error_or_pixels(decoder: str, kind: str, place: int, garbage: bytes) -> None:
    content = bytearray(encoded(photo(20, 30), kind))
    place %= len(content)
    content[place : place + len(garbage)] = garbage
    try:
        found = decode(bytes(content))
    except ImageError:
        return
    assert found.dtype == torch.uint8 and found.shape[0] == 3


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=4))
def test_the_decoders_agree_on_damaged_files(monkeypatch: pytest.MonkeyPatch, place: int, garbage: bytes) -> None:
    content = bytearray(encoded(photo(20, 30)))
    place %= len(content)
    content[place : place + len(garbage)] = garbage
    found = []
    for with_simplejpeg in (True, False):
        with monkeypatch.context() as patch:
            if not with_simplejpeg:
                patch.setattr(images, "simplejpeg", None)
            try:
                found.append(pixels(bytes(content)).tobytes())
            except ImageError as error:
                found.append(error.kind.encode())
    assert found[0] == found[1]
