"""Decoding and preprocessing against torchvision, the EXIF standard and arithmetic by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pydantic import ValidationError
from torchvision.transforms import v2

from skipway import images
from skipway.images import DecodeError, Preprocess, decode, header_size, resize, verify

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random pixels with some large structure, so that resizing does not average it away."""
    rng = np.random.default_rng((seed, height, width))
    coarse = rng.integers(0, 256, (-(-height // 5), -(-width // 5), channels))
    blocks = coarse.repeat(5, axis=0).repeat(5, axis=1)[:height, :width]
    return np.where(rng.random((height, width, 1)) < 0.3, 255 - blocks, blocks).astype(np.uint8)


def preprocess(size: int | tuple[int, int], **fields: object) -> Preprocess:
    pair = (size, size) if isinstance(size, int) else size
    return Preprocess.model_validate({"size": pair, "mean": MEAN, "std": STD} | fields)


def one_pixel_each(image: Image.Image, *values: object) -> Image.Image:
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    return image


# --- decode: modes ----------------------------------------------------------------------------


def palette(transparency: bytes | int | None) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 100, 0, 10, 20, 30])
    one_pixel_each(image, 0, 1)
    options = {} if transparency is None else {"transparency": transparency}
    return encoded(image, "PNG", **options)


WHITE = [255, 255, 255]
MODES = {
    "1": (
        lambda: encoded(one_pixel_each(Image.new("1", (2, 1)), 0, 255), "PNG"),
        [[0, 0, 0], WHITE],
    ),
    "L": (
        lambda: encoded(one_pixel_each(Image.new("L", (2, 1)), 7, 200), "PNG"),
        [[7, 7, 7], [200, 200, 200]],
    ),
    "LA": (
        lambda: encoded(one_pixel_each(Image.new("LA", (2, 1)), (7, 255), (7, 0)), "PNG"),
        [[7, 7, 7], WHITE],
    ),
    "P": (lambda: palette(None), [[200, 100, 0], [10, 20, 30]]),
    "P, one index transparent": (lambda: palette(1), [[200, 100, 0], WHITE]),
    "P, alpha table": (lambda: palette(bytes([0, 255])), [WHITE, [10, 20, 30]]),
    "RGB": (
        lambda: encoded(one_pixel_each(Image.new("RGB", (2, 1)), (1, 2, 3), (4, 5, 6)), "PNG"),
        [[1, 2, 3], [4, 5, 6]],
    ),
    "RGBA": (  # half of (0, 100, 200) on white
        lambda: encoded(
            one_pixel_each(Image.new("RGBA", (2, 1)), (0, 100, 200, 128), (9, 9, 9, 0)), "PNG"
        ),
        [[127, 177, 227], WHITE],
    ),
    "GIF": (
        lambda: encoded(
            one_pixel_each(Image.new("RGB", (2, 1)), (0, 0, 255), (255, 0, 0)).quantize(), "GIF"
        ),
        [[0, 0, 255], [255, 0, 0]],
    ),
    "BMP": (
        lambda: encoded(one_pixel_each(Image.new("RGB", (2, 1)), (1, 2, 3), (4, 5, 6)), "BMP"),
        [[1, 2, 3], [4, 5, 6]],
    ),
    "TIFF, CMYK": (
        lambda: encoded(
            one_pixel_each(Image.new("CMYK", (2, 1)), (0, 255, 255, 0), (0, 0, 0, 255)), "TIFF"
        ),
        [[255, 0, 0], [0, 0, 0]],
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_give_the_pixels_that_were_written(mode: str) -> None:
    make, expected = MODES[mode]
    pixels = decode(make())
    assert pixels.dtype == np.uint8
    assert pixels.shape == (1, 2, 3)
    np.testing.assert_allclose(pixels[0].astype(int), expected, atol=1 if mode == "RGBA" else 0)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_one_three_and_four_channels(mode: str) -> None:
    data = MODES[mode][0]()
    colour = decode(data, 3).astype(float)
    with_alpha = decode(data, 4).astype(float)
    assert with_alpha.shape == (1, 2, 4)
    alpha = with_alpha[..., 3:] / 255
    np.testing.assert_allclose(with_alpha[..., :3] * alpha + 255 * (1 - alpha), colour, atol=1)
    grey = decode(data, 1)
    assert grey.shape == (1, 2, 1)
    luma = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2
    np.testing.assert_allclose(grey[..., 0], luma, atol=1.01)


def blocks(*colours: tuple[int, ...], mode: str) -> Image.Image:
    """One 16-pixel block for each colour, side by side: JPEG keeps the middle of each."""
    image = Image.new(mode, (16 * len(colours), 16))
    for i, colour in enumerate(colours):
        image.paste(colour, (16 * i, 0, 16 * i + 16, 16))
    return image


def test_cmyk_jpeg_has_the_colours_of_its_inks() -> None:
    inks = [(0, 255, 255, 0), (255, 0, 255, 0), (255, 255, 0, 0), (0, 0, 0, 0), (0, 0, 0, 255)]
    data = encoded(blocks(*inks, mode="CMYK"), "JPEG", quality=95)
    middle = decode(data)[8, 8::16].astype(int)
    expected = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]]
    np.testing.assert_allclose(middle, expected, atol=8)


def test_ycbcr_and_grey_jpeg() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90)]
    data = encoded(blocks(*colours, mode="RGB").convert("YCbCr"), "JPEG", quality=95)
    np.testing.assert_allclose(decode(data)[8, 8::16].astype(int), colours, atol=8)
    grey = encoded(blocks((40,), (200,), mode="L"), "JPEG", quality=95)
    np.testing.assert_allclose(decode(grey)[8, 8::16, 1], [40, 200], atol=3)


@pytest.mark.parametrize("mode", ["La", "RGBa", "RGBX", "YCbCr", "HSV", "PA", "I;16B"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_modes_that_only_live_in_memory(mode: str, channels: images.Channels) -> None:
    assert decode(Image.new(mode, (3, 2)), channels).shape == (2, 3, channels)


# --- decode: 16 bits --------------------------------------------------------------------------

RAMP = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: encoded(Image.fromarray(RAMP), "PNG"), id="I;16 PNG"),
        pytest.param(lambda: encoded(Image.fromarray(RAMP), "TIFF"), id="I;16 TIFF"),
        pytest.param(lambda: encoded(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), id="I TIFF"),
        pytest.param(
            lambda: encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), id="F TIFF"
        ),
    ],
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_kept(data: object, channels: images.Channels) -> None:
    assert callable(data)
    pixels = decode(data(), channels)
    assert pixels.dtype == np.uint16
    assert pixels.shape == (64, 64, channels)
    for c in range(min(channels, 3)):
        np.testing.assert_array_equal(pixels[..., c], RAMP)
    if channels == 4:
        assert (pixels[..., 3] == 65535).all()


def test_sixteen_bit_ramp_keeps_its_levels_through_preprocess() -> None:
    spec = preprocess(64, channels=1, mean=(0.0,), std=(1.0,))
    x = spec(encoded(Image.fromarray(RAMP), "PNG"))
    assert len(np.unique(x)) == 4096
    np.testing.assert_allclose(x[0], RAMP / 65535, atol=1e-7)
    smaller = preprocess(48, channels=1, mean=(0.0,), std=(1.0,))(RAMP)
    assert len(np.unique(smaller)) > 256


@pytest.mark.parametrize(
    "values", [[[0.5, 1.0]], [[-1.0, 1.0]], [[0.0, 65536.0]], [[np.nan, 1.0]], [[np.inf, 1.0]]]
)
def test_values_that_sixteen_bits_would_lose_are_refused(values: list[list[float]]) -> None:
    data = encoded(Image.fromarray(np.array(values, np.float32)), "TIFF")
    with pytest.raises(DecodeError, match=r"^depth\.tif: mode F with values"):
        decode(data, name="depth.tif")


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_eight_bits_are_not_taken_for_sixteen(kind: type) -> None:
    """Which would be a nearly black picture, and an answer without a word."""
    image = Image.fromarray(np.arange(256).reshape(16, 16).astype(kind))
    for source in (image, encoded(image, "TIFF")):
        with pytest.raises(DecodeError, match="nearly black"):
            decode(source)
    assert decode(Image.fromarray(np.zeros((2, 2), kind))).max() == 0
    dark = Image.fromarray(np.full((2, 2), 255, np.uint16))  # says that it has 16 bits
    for kind_of_file in ("PNG", "TIFF", "PPM"):
        assert decode(encoded(dark, kind_of_file)).max() == 255


def test_no_image_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives PostScript to Ghostscript, whatever the file is called."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / "cat.jpg"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n"
    )
    with contextlib.suppress(OSError), Image.open(path) as image:
        image.load()
    assert (tmp_path / "started").exists()  # it would
    (tmp_path / "started").unlink()
    for read in (decode, verify, header_size):
        with pytest.raises(DecodeError, match="not an image that can be read"):
            read(path)
    assert not (tmp_path / "started").exists()


def test_warnings_of_others_stay_on() -> None:
    before = list(warnings.filters)
    data = encoded(Image.fromarray(noise(8, 8)), "PNG")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode, [data] * 400))
    assert list(warnings.filters) == before


# --- decode: EXIF -----------------------------------------------------------------------------

# Exif 2.3, tag 0x0112: the visual side of the stored row 0 and of the stored column 0.
ORIENTATIONS = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def stored(upright: np.ndarray, row_0: str, column_0: str) -> np.ndarray:
    if row_0 in ("left", "right"):
        upright = upright.swapaxes(0, 1)
    if row_0 in ("bottom", "right"):
        upright = upright[::-1]
    if column_0 in ("bottom", "right"):
        upright = upright[:, ::-1]
    return np.ascontiguousarray(upright)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "16-bit PNG"])
def test_exif_rotation_gives_the_upright_picture(orientation: int, kind: str) -> None:
    upright = noise(32, 48).repeat(8, axis=0).repeat(8, axis=1)
    if kind == "16-bit PNG":
        upright = upright[..., 0].astype(np.uint16) * 200
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(stored(upright, *ORIENTATIONS[orientation]))
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    data = encoded(image, kind.removeprefix("16-bit "), exif=exif, **options)
    pixels = decode(data)
    expected = np.atleast_3d(upright) if upright.ndim == 3 else np.dstack([upright] * 3)
    assert pixels.shape == expected.shape
    assert header_size(data) == expected.shape[:2]
    np.testing.assert_allclose(pixels.astype(int), expected, atol=4 if kind == "JPEG" else 0)


def test_broken_exif_is_no_reason_to_refuse_a_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    good = encoded(Image.fromarray(noise(16, 24)), "JPEG", exif=exif)
    start = good.index(b"Exif\0\0") + 6
    for damage in (b"\xff" * 8, b"MM\0*\xff\xff\xff\xff", b"II*\0\0\0\0\0"):
        broken = good[:start] + damage + good[start + 8 :]
        assert decode(broken).shape == (16, 24, 3)
        assert header_size(broken) == (16, 24)
    exif[0x0112] = 99
    odd = encoded(Image.fromarray(noise(16, 24)), "PNG", exif=exif)
    np.testing.assert_array_equal(decode(odd), noise(16, 24))
    assert header_size(odd) == (16, 24)


@pytest.mark.parametrize(
    ("tag", "kind", "count", "value"),
    [
        pytest.param(0x011A, 2, 3, b"72\0\0", id="a resolution in ASCII"),
        pytest.param(0x0100, 9, 1, b"\xff\xff\xff\xff", id="a negative width"),
    ],
)
def test_another_entry_that_is_odd_does_not_lay_a_picture_on_its_side(
    tag: int, kind: int, count: int, value: bytes
) -> None:
    """Cameras write such, and Pillow fails on writing them again."""
    turned = struct.pack("<HHII", 0x0112, 3, 1, 6)
    odd = struct.pack("<HHI", tag, kind, count) + value
    entries = sorted([turned, odd], key=lambda entry: struct.unpack("<H", entry[:2]))
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + b"".join(entries) + b"\0\0\0\0"
    data = encoded(Image.fromarray(noise(16, 24)), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as image, pytest.raises(Exception):  # noqa: B017, PT011
        ImageOps.exif_transpose(image)
    np.testing.assert_array_equal(decode(data), np.rot90(noise(16, 24), -1))
    assert header_size(data) == (24, 16)


# --- decode: damage ---------------------------------------------------------------------------


@functools.cache
def samples() -> dict[str, bytes]:
    picture = Image.fromarray(noise(40, 30))
    return {
        "JPEG": encoded(picture, "JPEG"),
        "PNG": encoded(picture, "PNG"),
        "GIF": encoded(picture.quantize(16), "GIF"),
        "WEBP": encoded(picture, "WEBP"),
        "TIFF": encoded(picture, "TIFF", compression="tiff_lzw"),
        "BMP": encoded(picture, "BMP"),
    }


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (lambda: samples()["JPEG"][:-200], "truncated JPEG"),
        (lambda: samples()["PNG"][:-400], "truncated PNG"),
        (lambda: samples()["BMP"][:-100], "truncated BMP"),
        (lambda: b"", "an empty file"),
        (lambda: b"hello, this is not a picture\n", "not an image that can be read (29 bytes)"),
        (lambda: samples()["JPEG"][:3], "not an image that can be read (3 bytes)"),
    ],
)
def test_damage_is_named(data: object, says: str, tmp_path: Path) -> None:
    assert callable(data)
    path = tmp_path / "ants 04.jpg"
    path.write_bytes(data())
    for read in (decode, verify):
        with pytest.raises(DecodeError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert says in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 3


def test_whole_images_are_verified_and_left_as_they_are() -> None:
    for data in samples().values():
        verify(data)
    mine = Image.open(io.BytesIO(samples()["JPEG"]))
    verify(mine)
    np.testing.assert_array_equal(decode(mine), decode(samples()["JPEG"]))
    with pytest.raises(DecodeError):
        verify(np.zeros((2, 2, 5), np.uint8))


def test_paths_that_hold_no_image(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for path in ("missing.jpg", ".", "file/below.jpg", "n" * 300, "null\0.jpg"):
        whole = f"{tmp_path}/{path}"
        with pytest.raises(DecodeError) as caught:
            decode(whole)
        text = str(caught.value)
        assert text.startswith(whole.replace("\0", r"\x00") + ": ")
        assert "damaged" not in text


def test_a_hostile_name_is_shown_harmless() -> None:
    with pytest.raises(DecodeError) as caught:
        decode(b"", name="a\n\x1b[2Jb.jpg")
    assert str(caught.value) == r"a\n\x1b[2Jb.jpg: an empty file"


def test_no_pixels_and_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DecodeError, match=r"^image: an image of 0 x 4 pixels"):
        decode(Image.new("RGB", (0, 4)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DecodeError, match=r"^image: too many pixels"):
        decode(samples()["PNG"])


def survives(data: bytes) -> None:
    """Either whole pixels or DecodeError in at most three lines that begin with the name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)  # damaged headers promise gigapixels
        try:
            pixels, text = decode(data, name="x.img"), ""
        except DecodeError as error:
            pixels, text = None, str(error)
        for read in (verify, header_size):
            with contextlib.suppress(DecodeError):
                read(data)
    if pixels is None:
        assert text.startswith("x.img: ")
        assert len(text.splitlines()) <= 3
    else:
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert pixels.size > 0


@given(st.binary(max_size=400), st.sampled_from(["", *samples()]))
@settings(max_examples=200)
def test_random_bytes_never_surprise(junk: bytes, kind: str) -> None:
    survives((samples()[kind][:24] if kind else b"") + junk)


@given(st.sampled_from([*samples()]), st.floats(0, 1))
@settings(max_examples=150)
def test_truncation_never_surprises(kind: str, part: float) -> None:
    data = samples()[kind]
    survives(data[: int(part * len(data))])


@given(st.sampled_from([*samples()]), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7))))
@settings(max_examples=300)
def test_bit_flips_never_surprise(kind: str, flips: list[tuple[float, int]]) -> None:
    data = bytearray(samples()[kind])
    for where, bit in flips:
        data[int(where**3 * (len(data) - 1))] ^= 1 << bit  # headers more often than pixels
    survives(bytes(data))


# --- decode: arrays and PIL images ------------------------------------------------------------


def test_arrays() -> None:
    rgb = noise(5, 7)
    np.testing.assert_array_equal(decode(rgb), rgb)
    np.testing.assert_array_equal(decode(Image.fromarray(rgb)), rgb)
    grey = rgb[..., 0]
    for same in (grey, grey[..., None]):
        np.testing.assert_array_equal(decode(same, 1), grey[..., None])
        np.testing.assert_array_equal(decode(same), np.dstack([grey] * 3))
        np.testing.assert_array_equal(decode(same, 4)[..., 3], 255)
    clear = np.dstack([rgb, np.zeros((5, 7), np.uint8)])
    np.testing.assert_array_equal(decode(clear), 255)
    np.testing.assert_array_equal(decode(clear, 4), clear)


def test_sixteen_bit_colour_arrays_follow_the_same_rules() -> None:
    rgb = noise(5, 7).astype(np.uint16) * 257
    alpha = np.full((5, 7, 1), 32768, np.uint16)
    on_white = decode(np.dstack([rgb, alpha]))
    assert on_white.dtype == np.uint16
    np.testing.assert_allclose(on_white, rgb / 2 + 65535 / 2, atol=2)
    np.testing.assert_allclose(
        decode(rgb, 1)[..., 0], rgb @ np.array([0.299, 0.587, 0.114]), atol=0.5
    )


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((3, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(DecodeError, match=r"^image: an array of .*; give "):
        decode(array)


# --- Preprocess against torchvision -----------------------------------------------------------


def test_python_rounds_the_crop_as_torchvision_does() -> None:
    """Both halves of an odd margin: banker's rounding, 0.5 to 0, 1.5 to 2, 2.5 to 2."""
    spec = preprocess(8, short_side=8)
    for width in range(8, 24):
        image = noise(8, width)
        expected = np.asarray(v2.CenterCrop(8)(Image.fromarray(image)))
        np.testing.assert_array_equal(spec.frame(image)[0], expected)


@given(
    height=st.integers(1, 160),
    width=st.integers(1, 160),
    sizes=st.sampled_from([(224, 256), (224, 232), (32, 36), (17, 17)]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    mode=st.sampled_from(["RGB", "L"]),
)
@settings(max_examples=60)
def test_crop_equals_torchvision(
    height: int, width: int, sizes: tuple[int, int], interpolation: str, mode: str
) -> None:
    size, short = sizes
    channels = len(mode) if mode == "RGB" else 1
    image = Image.fromarray(noise(height, width)).convert(mode)
    statistics = {"mean": MEAN[:channels], "std": STD[:channels], "channels": channels}
    spec = preprocess(size, short_side=short, interpolation=interpolation, **statistics)
    geometric = v2.Compose(
        [v2.Resize(short, v2.InterpolationMode(interpolation)), v2.CenterCrop(size)]
    )
    numeric = v2.Compose(
        [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(MEAN[:channels]), list(STD[:channels])),
        ]
    )
    expected = geometric(image)
    frame, _ = spec.frame(decode(image, 1 if mode == "L" else 3))
    np.testing.assert_array_equal(frame.squeeze(), np.asarray(expected))
    x = spec(image)
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    np.testing.assert_allclose(x, numeric(expected).numpy(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(20, 33), (70, 90), (13, 90)])
def test_resize_is_torchs_antialiased_bilinear(
    dtype: type[np.unsignedinteger], size: tuple[int, int]
) -> None:
    levels = np.iinfo(dtype).max
    image = (noise(48, 60) * (levels / 255)).astype(dtype)
    x = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(
        x, size, mode="bilinear", antialias=True, align_corners=False
    )
    got = resize(image, size)
    assert got.dtype == dtype
    np.testing.assert_allclose(
        got.astype(float), expected[0].permute(1, 2, 0).numpy(), atol=1.01, rtol=0
    )


def test_four_channels_are_not_multiplied_by_the_last() -> None:
    image = noise(40, 50, 4)
    image[..., 3] = 0  # Pillow's RGBA resize would give black everywhere
    got = resize(image, (22, 31))
    for c in range(4):
        np.testing.assert_array_equal(got[..., c], resize(image[..., c : c + 1], (22, 31))[..., 0])
    assert got[..., :3].max() > 100


@pytest.mark.parametrize("mode", ["crop", "letterbox", "squash"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3), (331, 17), (33, 65)])
@pytest.mark.parametrize("size", [(32, 32), (31, 57), (57, 31), (1, 1)])
def test_odd_and_tiny_shapes(mode: str, shape: tuple[int, int], size: tuple[int, int]) -> None:
    frame, geometry = preprocess(size, resize=mode).frame(noise(*shape))
    assert frame.shape == (*size, 3)
    assert frame.dtype == np.uint8
    assert geometry.size == shape
    if mode != "letterbox":  # the centre of the image is the centre of the input
        centre = geometry.to_model(np.array(shape[::-1]) / 2)
        np.testing.assert_allclose(centre, np.array(size[::-1]) / 2, atol=0.51)


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
def test_a_long_strip_is_cropped_without_being_blown_up(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resized as a whole it would take 9 GB; the part that stays must be the same."""
    spec = preprocess(224)
    image = noise(*shape)
    middle = 60_000 // 2
    part = image[:, middle - 50 : middle + 50] if shape[0] == 1 else image[middle - 50 :][:100]
    expected = spec.frame(part)[0]

    def spy(values: np.ndarray, size: tuple[int, int], *rest: object) -> np.ndarray:
        assert size == (224, 224)
        return resize(values, size, *rest)

    monkeypatch.setattr(images, "resize", spy)
    frame, _ = spec.frame(image)
    np.testing.assert_allclose(frame.astype(int), expected.astype(int), atol=1)


@given(st.integers(20, 90), st.integers(20, 90), st.sampled_from([(24, 24), (24, 40)]))
@settings(max_examples=40)
def test_the_two_ways_of_cropping_agree(height: int, width: int, size: tuple[int, int]) -> None:
    spec, image = preprocess(size), noise(height, width)
    whole, geometry = spec.frame(image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_WHOLE", 0)
        part, same = spec.frame(image)
    assert same == geometry
    assert np.abs(whole.astype(int) - part).max() <= 1


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([(64, 64), (48, 96)]))
@settings(max_examples=60)
def test_letterbox_keeps_everything_and_the_aspect_ratio(
    height: int, width: int, size: tuple[int, int]
) -> None:
    spec = preprocess(size, resize="letterbox", fill=0.25)
    image = np.full((height, width, 3), 200, np.uint8)
    frame, geometry = spec.frame(image)
    corners = geometry.to_model(np.array([[0, 0], [width, height]]))
    (left, top), (right, bottom) = np.rint(corners).astype(int)
    np.testing.assert_allclose(corners, [[left, top], [right, bottom]], atol=1e-9)
    assert left >= 0
    assert top >= 0
    assert right <= size[1]
    assert bottom <= size[0]
    assert abs(left - (size[1] - right)) <= 1  # in the middle
    assert abs(top - (size[0] - bottom)) <= 1
    ratio = min(size[0] / height, size[1] / width)
    assert right - left == size[1] or bottom - top == size[0]
    assert abs((right - left) - max(width * ratio, 1)) <= 0.5
    assert abs((bottom - top) - max(height * ratio, 1)) <= 0.5
    assert (frame[top:bottom, left:right] == 200).all()
    frame[top:bottom, left:right] = 64
    assert (frame == 64).all()  # 0.25 of 255


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("fill", [0.0, 0.5, 1.0])
def test_the_border_of_a_letterbox_has_the_grey_that_was_asked(dtype: type, fill: float) -> None:
    frame, _ = preprocess(8, resize="letterbox", fill=fill).frame(np.ones((2, 8, 3), dtype))
    np.testing.assert_allclose(frame[0], fill * np.iinfo(dtype).max, atol=0.5)


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([(64, 64), (48, 96)]))
@settings(max_examples=60)
def test_what_fits_is_a_letterbox_without_its_border(
    height: int, width: int, size: tuple[int, int]
) -> None:
    image = noise(height, width)
    frame, geometry = preprocess(size, resize="fit").frame(image)
    boxed, other = preprocess(size, resize="letterbox").frame(image)
    left, top = map(int, other.offset)
    inner = boxed[top : top + frame.shape[0], left : left + frame.shape[1]]
    np.testing.assert_array_equal(frame, inner)
    assert geometry == dataclasses.replace(other, offset=(0.0, 0.0))
    assert preprocess(size, resize="fit")(image).shape == (3, *frame.shape[:2])


def test_squash_is_a_plain_resize() -> None:
    image = noise(30, 70)
    frame, geometry = preprocess((40, 20), resize="squash").frame(image)
    expected = v2.Resize((40, 20))(Image.fromarray(image))
    np.testing.assert_array_equal(frame, np.asarray(expected))
    np.testing.assert_allclose(geometry.to_model(np.array([70, 30])), [20, 40])


# --- geometry ---------------------------------------------------------------------------------

MODES_OF_RESIZE = st.sampled_from(["crop", "letterbox", "squash", "fit"])


@given(
    st.integers(1, 300), st.integers(1, 300), st.floats(0, 1), st.floats(0, 1), MODES_OF_RESIZE,
    st.sampled_from([(32, 32), (24, 41)]),
)  # fmt: skip
@settings(max_examples=150)
def test_points_come_back(
    height: int, width: int, x: float, y: float, mode: str, size: tuple[int, int]
) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    geometry = preprocess(size, resize=mode).frame(image)[1]
    point = np.array([x * width, y * height])
    np.testing.assert_allclose(geometry.to_original(geometry.to_model(point)), point, atol=1e-6)


def test_points_outside_are_clipped_to_the_image() -> None:
    geometry = preprocess(64, resize="letterbox").frame(noise(20, 100))[1]
    far = geometry.to_original(np.array([[-9.0, -9.0], [99.0, 99.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(far, [[0, 0], [100, 20], [0, 0]])


@given(
    st.integers(60, 200), st.integers(60, 200), st.floats(16, 48), st.floats(16, 48),
    MODES_OF_RESIZE,
)  # fmt: skip
@settings(max_examples=80)
def test_a_bright_pixel_lands_where_the_geometry_says(
    height: int, width: int, x: float, y: float, mode: str
) -> None:
    spec = preprocess(64, resize=mode, fill=0.0)
    image = np.zeros((height, width, 3), np.uint8)
    point = spec.frame(image)[1].to_original(np.array([x, y]))
    column, row = np.clip(point, 8, (width - 9, height - 9)).astype(int)
    image[row, column] = 255
    frame, geometry = spec.frame(image)
    weight = frame[..., 0].astype(float)
    centroid = [
        (weight.sum(axis) * (np.arange(frame.shape[1 - axis]) + 0.5)).sum() / weight.sum()
        for axis in (0, 1)
    ]
    expected = geometry.to_model(np.array([column + 0.5, row + 0.5]))
    np.testing.assert_allclose(centroid, expected, atol=0.3)


# --- the numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_normalise_is_the_formula(dtype: type[np.unsignedinteger]) -> None:
    levels = np.iinfo(dtype).max
    frames = np.random.default_rng(0).integers(0, levels + 1, (2, 5, 6, 3)).astype(dtype)
    expected = (frames / levels - np.array(MEAN)) / np.array(STD)
    got = preprocess((5, 6)).normalise(frames)
    assert got.shape == (2, 3, 5, 6)
    np.testing.assert_allclose(got, expected.transpose(0, 3, 1, 2), atol=1e-6, rtol=0)


def test_pixel_mean_is_subtracted_pixel_by_pixel_and_survives_json() -> None:
    mean = np.random.default_rng(1).random((3, 4, 5)).astype(np.float32)
    spec = preprocess((4, 5)).with_pixel_mean(mean)
    again = Preprocess.model_validate_json(spec.model_dump_json())
    assert again == spec
    image = noise(4, 5)
    expected = (image.transpose(2, 0, 1) / 255 - mean) / np.array(STD)[:, None, None]
    np.testing.assert_allclose(again(image), expected, atol=1e-6, rtol=0)


def test_pixel_mean_in_the_wrong_order_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        preprocess((4, 5)).with_pixel_mean(np.zeros((4, 5, 3), np.float32))
    with pytest.raises(ValueError, match="finite"):
        preprocess((4, 5)).with_pixel_mean(np.full((3, 4, 5), np.nan, np.float32))


def test_a_changed_copy_does_not_remember_old_numbers() -> None:
    spec = preprocess((2, 2))
    black = np.zeros((2, 2, 3), np.uint8)
    spec(black)
    changed = spec.model_copy(update={"mean": (0.0, 0.0, 0.0)})
    assert (changed(black) == 0).all()


# --- the specification ------------------------------------------------------------------------


@st.composite
def specifications(draw: st.DrawFn) -> Preprocess:
    size = draw(st.tuples(st.integers(1, 500), st.integers(1, 500)))
    channels = draw(st.sampled_from([1, 3, 4]))
    per_channel = {"min_size": channels, "max_size": channels}
    return Preprocess(
        size=size,
        channels=channels,
        resize=draw(st.sampled_from(["crop", "letterbox", "squash"])),
        short_side=draw(st.none() | st.integers(min(size), 600)),
        interpolation=draw(st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"])),
        fill=draw(st.floats(0, 1)),
        mean=tuple(draw(st.lists(st.floats(-10, 10), **per_channel))),
        std=tuple(draw(st.lists(st.floats(1e-3, 10), **per_channel))),
    )


@given(specifications())
def test_json_round_trip(spec: Preprocess) -> None:
    again = Preprocess.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert hash(again) == hash(spec)


@given(specifications(), st.floats(0.01, 4), st.integers(1, 600))
def test_another_size_is_a_valid_specification_of_the_same_view(
    spec: Preprocess, ratio: float, side: int
) -> None:
    scaled, square = spec.scaled(ratio), spec.at_size(side)
    assert square.size == (side, side)
    for changed, times in ((scaled, ratio), (square, side / min(spec.size))):
        assert Preprocess.model_validate(changed.model_dump()) == changed
        kept = {"size": spec.size, "short_side": spec.short_side}
        assert changed.model_copy(update=kept) == spec
        assert (changed.short_side is None) == (spec.short_side is None)
        if spec.short_side is not None:
            assert changed.short_side == max(round(spec.short_side * times), 1)
    assert all(abs(a - b * ratio) <= 1 for a, b in zip(scaled.size, spec.size, strict=True))
    assert spec.scaled(1) == spec


def test_what_fits_is_scaled_by_its_short_side_too() -> None:
    spec = preprocess(2080, resize="fit", short_side=520)
    assert spec.fitted(375, 500) == (520, 693)
    for ratio in (0.5, 0.75, 1.25, 1.75):
        expected = [round(side * ratio * 520 / 375) for side in (375, 500)]
        assert [*spec.scaled(ratio).fitted(375, 500)] == expected
    with pytest.raises(ValueError, match="one size"):
        preprocess((2, 2)).with_pixel_mean(np.zeros((3, 2, 2), np.float32)).scaled(2)


@pytest.mark.parametrize(
    "fields",
    [
        {"size": (0, 4)},
        {"size": (4,)},
        {"size": (4, -1)},
        {"channels": 2},
        {"channels": 1},  # mean and std have three values
        {"mean": (0.5,)},
        {"mean": (0.5, 0.5, float("nan"))},
        {"std": (1.0, 0.0, 1.0)},
        {"std": (1.0, -1.0, 1.0)},
        {"std": (1.0, float("inf"), 1.0)},
        {"short_side": 3},
        {"short_side": 0},
        {"fill": 1.5},
        {"fill": float("nan")},
        {"interpolation": "area"},
        {"resize": "stretch"},
        {"pixel_mean": "AAAA"},
        {"pixel_mean": "not base64!"},
        {"pixel_mean": "é"},
        {"crop": True},
    ],
)
def test_invalid_specifications_are_refused(fields: dict[str, object]) -> None:
    valid = {"size": (4, 4), "mean": MEAN, "std": STD}
    Preprocess.model_validate(valid)
    with pytest.raises(ValidationError):
        Preprocess.model_validate(valid | fields)


def test_a_specification_cannot_be_changed() -> None:
    spec = preprocess((4, 4))
    with pytest.raises(ValidationError, match="frozen"):
        spec.fill = 1.0
