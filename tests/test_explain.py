"""What a model sees: the maps against captum, their way back to original pixels, the pictures."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from commands import call, environment
from skipway import heatmap, shipped
from skipway.architecture import ARCHITECTURES
from skipway.card import Card
from skipway.errors import InputError
from skipway.explain import (
    Explainer,
    Explanation,
    GradCam,
    Method,
    Occlusion,
    Of,
    grad_cam,
    occlusion,
    open_explainer,
)
from skipway.explain.classes import mistake_maps
from skipway.images import Preprocess
from skipway.predictor import Predictor, torch_predictor
from skipway.report.gallery import pictures
from skipway.resnet import ResNet
from skipway.weights import create_model, save_weights

CLASSES = ("dark", "bright", "caf\u00e9")


class Tapped(nn.Module):
    """A network as captum wants it: the cells of one stage pass a module of their own."""

    def __init__(self, net: ResNet, stage: str) -> None:
        super().__init__()
        self.net, self.stage, self.tap = net, stage, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        *_, last = net.strides
        for name, units in zip(net.strides, net.stages(), strict=True):
            x = units(x)
            if name == last and net.arch.order == "pre":
                x = net.norm(x).relu()
            if name == self.stage:
                x = self.tap(x)
        return net.fc(x.mean((2, 3)))


def settled(name: str, side: int, dtype: torch.dtype = torch.float64, **fields: Any) -> ResNet:
    """Random weights with statistics of noise, so that no activation dies away."""
    net = create_model(name, num_classes=4, seed=1, **fields)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            net.train()(torch.randn(4, net.arch.in_channels, side, side, generator=generator))
    return net.eval().to(dtype)


def noise(net: ResNet, n: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (n, net.arch.in_channels, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(net.fc.weight.dtype)


# --- Grad-CAM ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "size", "fields"),
    [
        ("resnet18", (64, 96), {"width": 0.5}),
        ("resnet50", (64, 64), {"width": 0.25}),
        ("resnet20", (32, 30), {}),
        ("preresnet110", (32, 32), {"depths": (2, 1, 2)}),
        ("preresnet50", (70, 64), {"width": 0.25, "in_channels": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_grad_cam_is_captums(
    name: str, size: tuple[int, int], fields: dict[str, Any], dtype: torch.dtype
) -> None:
    attr = pytest.importorskip("captum.attr")
    net = settled(name, 64, dtype, **fields)
    x, classes = noise(net, 3, *size), [2, 0, 3]
    for stage in net.strides:
        tapped = Tapped(net, stage)
        oracle = attr.LayerGradCam(tapped, tapped.tap)
        expected = oracle.attribute(x, torch.tensor(classes), relu_attributions=True)[:, 0]
        found = grad_cam(net, x, classes, stage)
        assert found.dtype == dtype
        assert not found.requires_grad
        assert found.shape == expected.shape
        assert expected.max() > 0
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(grad_cam(net, x, classes), found)  # the last stage is the default


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_grad_cam_of_every_row(name: str) -> None:
    """The definition, eq. 1-2, by finite differences: what a channel's cells all a bit higher do
    to the logit."""
    row = ARCHITECTURES[name]
    side = 32 * min(row.stem_stride, 2)
    stages = len(row.depths)
    net = settled(name, side, depths=(1,) * stages, width=0.1)
    x, k = noise(net, 1, side, side), 1
    stage = [*net.strides][-1]
    with torch.no_grad():
        cells = net.features(x)[stage]
        step = 1e-4 * torch.eye(cells.shape[1], dtype=torch.float64)[:, :, None, None]
        up, down = (net.fc((cells + s * step).mean((2, 3)))[:, k] for s in (1, -1))
        weights = (up - down) / 2e-4 / cells[0, 0].numel()
        expected = (weights[:, None, None] * cells[0]).sum(0).relu()
    torch.testing.assert_close(grad_cam(net, x, [k])[0], expected, rtol=1e-5, atol=1e-8)
    for stage, stride in net.strides.items():
        found = grad_cam(net, x, [k], stage)
        assert found.shape == (1, -(-side // stride), -(-side // stride))
        assert torch.isfinite(found).all()


def test_grad_cam_in_inference_mode_and_with_frozen_weights() -> None:
    net = settled("resnet20", 32, depths=(1, 1, 1))
    x = noise(net, 2, 32, 32)
    expected = grad_cam(net, x, [0, 1], "c3")
    net.requires_grad_(False)
    assert torch.equal(grad_cam(net, x, [0, 1], "c3"), expected)
    with torch.no_grad():
        assert torch.equal(grad_cam(net, x, [0, 1], "c3"), expected)
    assert all(p.grad is None for p in net.parameters())


# --- occlusion --------------------------------------------------------------------------------


def engine_of(net: ResNet, preprocess: Preprocess | None = None) -> Predictor:
    preprocess = preprocess or Preprocess(
        size=(32, 32),
        channels=net.arch.in_channels,
        mean=(0.5,) * net.arch.in_channels,
        std=(0.25,) * net.arch.in_channels,
    )
    names = tuple(map(str, range(net.arch.num_classes)))
    card = Card(model="custom", architecture=net.arch, classes=names, preprocess=preprocess)
    return torch_predictor(net, card, "net")


@pytest.mark.parametrize("of", Of)
@pytest.mark.parametrize(
    ("window", "stride", "size"),
    [(8, 4, (32, 32)), (5, 3, (24, 31)), (7, 7, (20, 20)), (32, 1, (32, 32)), (9, 2, (16, 30))],
)
def test_occlusion_is_captums(of: Of, window: int, stride: int, size: tuple[int, int]) -> None:
    attr = pytest.importorskip("captum.attr")
    net = settled("resnet20", 32, torch.float32, depths=(1, 1, 1))
    net.fc.weight.data.mul_(5)
    x = noise(net, 1, *size)

    def scores(views: Tensor) -> Tensor:
        logits = net(views).double()
        return logits.softmax(1) if of is Of.probability else logits

    with torch.no_grad():
        expected = attr.Occlusion(scores).attribute(
            x, (3, window, window), (3, stride, stride), target=2, baselines=0
        )
    found = occlusion(engine_of(net), x[0].numpy(), 2, window, stride, of, batch_size=7)
    assert found.dtype == np.float32
    assert found.shape == size
    assert np.abs(found).max() > 1e-3
    for channel in expected[0].numpy():
        np.testing.assert_allclose(found, channel, atol=1e-5)


def test_occlusion_reads_probabilities_as_predict_gives_them() -> None:
    """A card's temperature is in the probabilities, not in the logits."""
    net = settled("resnet20", 32, torch.float32, depths=(1, 1, 1))
    plain = engine_of(net)
    warm = Predictor(plain.run, plain.card.model_copy(update={"temperature": 3.0}), "net")
    x = noise(net, 1, 32, 32)[0].numpy()
    scaled = Predictor(lambda views: plain.run(views) / np.float32(3), plain.card, "net")
    found = occlusion(warm, x, 1, 16, 16)
    np.testing.assert_allclose(found, occlusion(scaled, x, 1, 16, 16), atol=1e-6)
    assert np.abs(found - occlusion(plain, x, 1, 16, 16)).max() > 1e-4
    logits = [occlusion(p, x, 1, 16, 16, Of.logit) for p in (warm, plain)]
    assert np.array_equal(*logits)


# --- the way back -----------------------------------------------------------------------------


sides = st.integers(1, 40)


@given(st.integers(0, 99), sides, sides, sides, sides)
def test_cells_are_spread_as_torch_spreads_them(seed: int, h: int, w: int, H: int, W: int) -> None:
    cells = np.random.default_rng(seed).normal(size=(h, w)).astype(np.float32)
    exact = torch.from_numpy(cells).double()[None, None]
    expected = F.interpolate(exact, (H, W), mode="bilinear")[0, 0]
    found = heatmap.enlarged(cells, (H, W))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


ways = st.fixed_dictionaries(
    {
        "resize": st.sampled_from(["crop", "letterbox", "squash"]),
        "size": st.tuples(st.integers(8, 28), st.integers(8, 28)),
        "short_side": st.one_of(st.none(), st.integers(40, 60)),
    }
)


def preprocess_of(way: dict[str, Any]) -> Preprocess:
    return Preprocess(mean=(0.0,) * 3, std=(1.0,) * 3, **way)


@given(ways, st.integers(8, 90), st.integers(8, 90))
def test_a_map_comes_back_to_the_pixels_it_is_of(way: dict[str, Any], h: int, w: int) -> None:
    """A map whose value is its place: over the original it must tell where each pixel went."""
    _, geometry = preprocess_of(way).frame(np.zeros((h, w, 3), np.uint8))
    height, width = way["size"]
    ys, xs = np.arange(height) + 0.5, np.arange(width) + 0.5
    places = np.stack(np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5), axis=-1)
    x, y = np.moveaxis(geometry.to_model(places), -1, 0)
    seen = (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    for values, wanted in ((np.tile(xs, (height, 1)), x), (np.tile(ys[:, None], width), y)):
        found = heatmap.over_original(values.astype(np.float32), geometry)
        assert found.shape == (h, w)
        assert found.dtype == np.float32
        assert np.array_equal(np.isfinite(found), seen)
        limits = values.min(), values.max()
        np.testing.assert_allclose(found[seen], wanted.clip(*limits)[seen], atol=1e-3)
    if way["resize"] != "crop":
        assert seen.all()


def brightness(preprocess: Preprocess) -> Predictor:
    """A model whose logit of "bright" is how bright its input is, and that of "dark" less it."""
    net = create_model("resnet20", num_classes=3, seed=0)

    def engine(x: np.ndarray) -> np.ndarray:
        bright = x.mean((1, 2, 3), dtype=np.float64)
        return np.stack([-bright, bright, 0 * bright], axis=1).astype(np.float32)

    card = Card(model="custom", architecture=net.arch, classes=CLASSES, preprocess=preprocess)
    return Predictor(engine, card, "brightness")


STORED = {
    1: lambda p: p,
    2: ImageOps.mirror,
    3: lambda p: p.transpose(Image.Transpose.ROTATE_180),
    4: ImageOps.flip,
    5: lambda p: p.transpose(Image.Transpose.TRANSPOSE),
    6: lambda p: p.transpose(Image.Transpose.ROTATE_90),
    7: lambda p: p.transpose(Image.Transpose.TRANSVERSE),
    8: lambda p: p.transpose(Image.Transpose.ROTATE_270),
}
"""How an upright picture lies in a file, by the EXIF orientation that turns it upright again."""


def stored(upright: np.ndarray, orientation: int) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    STORED[orientation](Image.fromarray(upright)).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


@settings(max_examples=25)
@given(ways, st.integers(30, 90), st.integers(30, 90), st.integers(1, 8), st.data())
def test_what_is_bright_is_found_where_it_is(
    way: dict[str, Any], h: int, w: int, orientation: int, data: st.DataObject
) -> None:
    preprocess = preprocess_of(way | {"fill": 0.0})  # a border that is not bright
    upright = np.zeros((h, w, 3), np.uint8)
    _, geometry = preprocess.frame(upright)
    (left, top), (right, bottom) = geometry.to_original(np.array([(0, 0), way["size"][::-1]]))
    side = 10
    if min(right - left, bottom - top) < side + 2:
        return  # the square would not be seen whole
    x = data.draw(st.integers(int(np.ceil(left)), int(right) - side))
    y = data.draw(st.integers(int(np.ceil(top)), int(bottom) - side))
    upright[y : y + side, x : x + side] = 255
    predictor = brightness(preprocess)
    explainer = Explainer(predictor, Occlusion(predictor, 2, 1, Of.logit))
    found = explainer(stored(upright, orientation), 1)
    assert np.array_equal(found.image, upright)
    assert found.asked.label == "bright"
    assert found.peak is not None
    over = found.over_image()
    assert over.shape == (h, w)
    strongest = np.unravel_index(np.nanargmax(over), over.shape)
    slack = max(1.0, *(1 / scale for scale in geometry.scale))  # a pixel of the model's input
    for at in (found.peak, (int(strongest[1]), int(strongest[0]))):
        assert x - slack <= at[0] <= x + side - 1 + slack
        assert y - slack <= at[1] <= y + side - 1 + slack
    assert explainer(stored(upright, orientation), 0).peak is None  # nothing speaks for "dark"


def lamp(in_channels: int = 3) -> ResNet:
    """A network whose logit of class 1 is the mean over the image of what is bright in it: all
    residual branches are 0, and the stem passes the mean of the channels on."""
    net = create_model("resnet20", num_classes=3, in_channels=in_channels, seed=0).eval()
    with torch.no_grad():
        for unit in net.units().values():
            unit.get_submodule("bn2").get_parameter("weight").zero_()
        stem = net.conv1.get_parameter("weight")
        stem.zero_()[0, :, 1, 1] = 1 / in_channels
        net.fc.weight.zero_()[1, 0] = 1
        net.fc.bias.zero_()
    return net


@pytest.mark.parametrize("resize", ["crop", "letterbox", "squash"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("stage", ["c2", "c3", "c4"])
def test_grad_cam_points_at_what_is_bright(resize: Any, orientation: int, stage: str) -> None:
    way = {"size": (32, 32), "resize": resize, "short_side": 36, "fill": 0.0}
    upright = np.zeros((60, 90, 3), np.uint8)
    x, y = 47, 22
    upright[y : y + 16, x : x + 16] = 255
    net = lamp()
    explainer = Explainer(engine_of(net, preprocess_of(way)), GradCam(net, stage))
    found = explainer(stored(upright, orientation))
    assert found.asked.label == found.best.label == "1"
    assert found.peak is not None
    # These shortcuts see the upper left pixel of their cells: half a cell, in original pixels.
    slack = max(net.strides[stage] / 2 / scale for scale in found.geometry.scale)
    assert x - 1 <= found.peak[0] <= x + 16 + slack
    assert y - 1 <= found.peak[1] <= y + 16 + slack
    near = found.over_image()[y - 6 : y + 16 + round(2 * slack), x - 6 : x + 16 + round(2 * slack)]
    assert np.nansum(near) > 0.8 * np.nansum(found.over_image())


def test_a_peak_in_a_letterboxs_border_is_not_one() -> None:
    """What lies beside the image is none of its pixels, whatever the map says there."""
    preprocess = preprocess_of({"size": (20, 20), "resize": "letterbox"})
    _, geometry = preprocess.frame(np.zeros((10, 40, 3), np.uint8))
    heat = np.zeros((20, 20), np.float32)
    heat[2, 3], heat[8, 6] = 5, 1
    assert heatmap.peak(heat, geometry) == (13, 3)
    heat[8, 6] = 0
    assert heatmap.peak(heat, geometry) is None
    heat[8:12, 4:9] = 2
    assert heatmap.peak(heat, geometry) == (13, 5)  # the middle of a flat top


def test_grey_and_deep_images() -> None:
    """A network of one channel, and 16 bits: the picture is that of the file all the same."""
    net = lamp(in_channels=1)
    preprocess = Preprocess(size=(32, 32), channels=1, mean=(0.0,), std=(1.0,))
    deep = np.zeros((40, 40), np.uint16)
    deep[5:20, 20:35] = 65535
    found = Explainer(engine_of(net, preprocess), GradCam(net, None))(deep)
    assert found.image.shape == (40, 40, 3)
    assert found.peak is not None
    assert 20 <= found.peak[0] < 35
    assert 5 <= found.peak[1] < 20
    assert opened(found.picture()).getpixel((330, 150)) == (255, 255, 255)  # enlarged 11 times


# --- pictures ---------------------------------------------------------------------------------


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return image


def explanation(h: int, w: int, way: dict[str, Any] | None = None, **more: Any) -> Explanation:
    image = np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8)
    preprocess = preprocess_of(way or {"size": (32, 32), "resize": "squash"})
    predictor = brightness(preprocess)
    explainer = Explainer(predictor, Occlusion(predictor, 8, 4, Of.probability))
    return Explanation(**(vars(explainer(image, 1)) | more))


@pytest.mark.parametrize(
    ("size", "factor", "beside"),
    [
        ((32, 32), 14, True),
        ((160, 213), 2, True),
        ((375, 500), 1, True),
        ((500, 375), 1, True),
        ((200, 600), 1, False),
        ((3, 400), 1, False),
    ],
)
def test_the_image_is_on_the_picture_as_it_is(
    size: tuple[int, int], factor: int, beside: bool
) -> None:
    found = explanation(*size)
    page = np.asarray(opened(found.picture()))
    h, w = (factor * n for n in size)
    enlarged = np.kron(found.image, np.ones((factor, factor, 1), np.uint8))
    starts = [
        (y, x)
        for y in range(60)
        for x in range(60)
        if (page[y : y + h, x : x + w].shape == enlarged.shape)
        and np.array_equal(page[y, x : x + w], enlarged[0])
        and np.array_equal(page[y : y + h, x : x + w], enlarged)
    ]
    assert len(starts) == 1
    assert page.shape[1] >= (2 * w if beside else w)
    assert page.shape[0] >= (h if beside else 2 * h) + 30  # the caption
    assert page.shape[0] < (1 if beside else 2) * h + 300
    assert page.shape[1] < (2 if beside else 1) * w + 420


def test_a_large_image_is_made_smaller() -> None:
    found = explanation(30, 9000)
    page = opened(found.picture())
    assert heatmap.LARGE_SIDE <= page.width < heatmap.LARGE_SIDE + 100


@pytest.mark.parametrize(
    "label",
    [
        "x" * 300,
        "a long name of many words, " * 20,
        "\u732b \u0441\u043e\u0431\u0430\u043a\u0430 caf\u00e9 \u202etxt\x1b[31m",
        "",
    ],
    ids=["one word", "words", "scripts", "empty"],
)
@pytest.mark.parametrize("size", [(20, 20), (600, 90)])
def test_captions_stay_on_the_page(label: str, size: tuple[int, int]) -> None:
    found = explanation(*size)
    odd = explanation(*size, asked=type(found.asked)(label, 0.25), best=type(found.best)("b", 0.5))
    page = np.asarray(opened(odd.picture()))
    assert page.shape[1] == opened(found.picture()).width
    assert (page[:, [0, -1]] == 255).all()  # nothing runs over the margin
    assert (page[-1] == 255).all()
    assert (page[-60:] < 128).any()


@pytest.mark.parametrize(
    ("fall", "words"),
    [(1.0, "100.0 points"), (0.042, "4.2 points"), (2e-6, "0.0002 points"), (-1, "0 points")],
)
def test_the_caption_says_how_much_is_lost(fall: float, words: str) -> None:
    """The colours are relative; a map of next to nothing must not look like more."""
    look = Occlusion(brightness(preprocess_of({"size": (32, 32)})), 8, 4, Of.probability)
    assert look.said(np.full((32, 32), fall, np.float32)).endswith(
        f"falls by up to {words}, the mean of the squares over a place"
    )


def test_an_empty_map_is_said_to_be_empty() -> None:
    found = explanation(64, 64)
    none = explanation(64, 64, heat=np.zeros((32, 32), np.float32))
    assert none.peak is None
    page, full = (np.asarray(opened(f.picture())).astype(int) for f in (none, found))
    assert np.ptp(page[20:400, 480:880], axis=2).max() == 0  # grey: no colour in the second panel
    assert np.ptp(full[20:400, 480:880], axis=2).max() > 50


def test_what_was_cut_off_is_dark_and_hatched() -> None:
    image = np.full((40, 80, 3), 200, np.uint8)
    _, geometry = preprocess_of({"size": (20, 20)}).frame(image)
    heat = heatmap.over_original(np.zeros((20, 20), np.float32), geometry)
    found = heatmap.overlay(image, heat)
    assert (found[:, 20:60] == 200).all()
    cut = found[:, [*range(20), *range(60, 80)]]
    assert cut.max() < 128
    assert len(np.unique(cut)) == 2


def lightness(rgb: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB [N, 3] in 0..255."""
    c = rgb / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    y = linear @ np.array([0.2126, 0.7152, 0.0722])
    return np.where(y > 216 / 24389, 116 * np.cbrt(y) - 16, y * 24389 / 27)


def test_colours_rise_evenly_in_lightness() -> None:
    """So they are told apart without colour vision; a rainbow would fail."""
    table = heatmap.colours()
    assert table.shape == (256, 3)
    steps = np.diff(lightness(table.astype(float))[::15])
    assert steps.min() > 0.6 * steps.mean()
    assert steps.max() < 1.4 * steps.mean()
    assert np.ptp(lightness(table.astype(float))) > 60


def test_the_strongest_is_the_brightest() -> None:
    image = np.full((4, 5, 3), 100, np.uint8)
    heat = np.array([[-1.0, 0, 0.25, 0.5, 1]] * 4, np.float32)
    found = heatmap.overlay(image, heat)
    assert (found[:, :2] == 100).all()  # what speaks against is left grey
    light = lightness(found[0].astype(float))
    assert light[4] > light[3] > light[2]
    assert np.array_equal(found, heatmap.overlay(image, 7 * heat))


# --- in the report ----------------------------------------------------------------------------


class Pictures:
    """As much of a split as `mistake_maps` asks."""

    def __init__(self, images: list[np.ndarray]) -> None:
        self.images = images

    def image(self, i: int, channels: int) -> np.ndarray:
        assert channels == self.images[i].shape[2]
        return self.images[i]


@pytest.mark.parametrize("channels", [1, 3])
def test_maps_beside_the_pictures_of_the_report(channels: Any) -> None:
    net = lamp(channels).train()
    preprocess = Preprocess(
        size=(32, 32), channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels
    )
    image = np.zeros((300, 400, channels), np.uint8)
    image[60:90, 250:290] = 255
    rows = [{"index": 1, "label": "0", "predicted": "1", "name": "a.png"}]
    mistake_maps(rows, net, preprocess, Pictures([image[:1], image]), ("0", "1", "2"))  # type: ignore[arg-type]
    data = str(rows[0]["heat"]).removeprefix("data:image/png;base64,")
    small = np.asarray(opened(base64.b64decode(data)).convert("RGB")).astype(int)
    assert small.shape == (84, 112, 3)
    colourful = np.ptp(small, axis=2)
    y, x = np.unravel_index(colourful.argmax(), colourful.shape)
    assert 50 <= y / 84 * 300 <= 110
    assert 240 <= x / 112 * 400 <= 310
    shown = pictures([rows[0] | {"image": rows[0]["heat"]}, {"label": "0"}], lambda row: [])
    assert shown.count("<img") == 2
    assert 'class="pictures pairs"' in shown


def test_a_report_without_maps_is_as_it_was() -> None:
    for heat in (None, 3, "", "https://example.org/a.png", 'data:image/png;base64,"><script>'):
        shown = pictures([{"label": "a", "name": "b", "heat": heat}], lambda row: [])
        assert 'class="pictures"' in shown
        assert "<img" not in shown
        assert "script" not in shown


# --- the command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run")
    net = lamp()
    card = Card(
        model="resnet20",
        architecture=net.arch,
        classes=CLASSES,
        preprocess=preprocess_of({"size": (32, 32)}),
    )
    save_weights(place / "best.safetensors", net, card)
    (place / "run.json").write_text("{}")
    return place


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    image = np.zeros((48, 64, 3), np.uint8)
    image[10:26, 30:50] = 255
    path = tmp_path / "photo.png"
    Image.fromarray(image).save(path)
    return path


@pytest.mark.parametrize("method", Method)
def test_the_command(run: Path, photo: Path, tmp_path: Path, method: Method) -> None:
    out = tmp_path / "some" / "where"
    arguments = [run, photo, "--method", method, "--out", out, "--threads", "1"]
    answer = call("explain", *arguments, "--json")
    assert answer.code == 0, answer.err
    (row,) = answer.value
    assert set(row) == {
        "path", "class", "probability", "answer", "method", "peak", "file", "error"
    }  # fmt: skip
    assert (row["path"], row["class"], row["answer"]) == (str(photo), "bright", "bright")
    assert row["method"] == method
    assert row["file"] == str(out / f"photo-{method}.png")
    assert 30 <= row["peak"][0] < 50
    assert 10 <= row["peak"][1] < 26
    assert row["error"] is None
    page = opened(Path(row["file"]).read_bytes())
    assert page.width > 2 * 64 * 7
    told = call("explain", *arguments, "--class", "caf\u00e9")
    assert told.code == 0, told.err
    assert told.out.startswith(f"{photo}: caf\u00e9 ")
    assert "nowhere" in told.out
    predicted = call("predict", run, photo, "--json", "--threads", "1").value
    assert row["probability"] == pytest.approx(predicted[0]["predictions"][0]["score"], abs=1e-6)


def test_pictures_of_one_name_and_images_that_are_none(run: Path, photo: Path) -> None:
    folder = photo.parent / "more"
    folder.mkdir()
    (folder / "photo.png").write_bytes(photo.read_bytes())
    bad = photo.parent / "bad.jpg"
    bad.write_text("text")
    out = photo.parent / "out"
    given = [run, photo, bad, folder, "--out", out, "--threads", "1"]
    told = call("explain", *given)
    assert told.code == 2
    assert told.err.startswith(f"skipway: {bad}: ")
    assert told.out.count("\n") == 2
    answer = call("explain", *given, "--json")
    assert answer.code == 2
    files = [row.get("file") for row in answer.value]
    expected = [str(out / "photo-grad-cam.png"), None, str(out / "photo-grad-cam-2.png")]
    assert files == expected
    assert answer.value[1]["error"].startswith(str(bad))
    assert sorted(map(str, out.iterdir())) == sorted(filter(None, expected))


BAD = [
    (["--class", "brigth"], ["--class brigth", "Did you mean 'bright'?", "dark, bright, caf"]),
    (["--stage", "c5"], ["--stage c5", "c2, c3, c4"]),
    (["--method", "gradcam"], ["--method gradcam", "Did you mean 'grad-cam'?"]),
    (["--window", "8"], ["--window", "occlusion"]),
    (["--of", "logit"], ["--of", "occlusion"]),
    (["--method", "occlusion", "--stage", "c3"], ["--stage", "grad-cam"]),
    (["--method", "occlusion", "--of", "logits"], ["--of logits", "Did you mean 'logit'?"]),
    (["--method", "occlusion", "--window", "33"], ["--window 33", "32 x 32"]),
    (["--method", "occlusion", "--window", "4", "--stride", "5"], ["--stride 5", "4 pixels"]),
    (["--method", "occlusion", "--window", "0"], ["window"]),
    (["--device", "gpu"], ["--device gpu"]),
]


@pytest.mark.parametrize(("flags", "words"), BAD, ids=lambda v: " ".join(v) if v else "")
def test_bad_input(run: Path, photo: Path, flags: list[str], words: list[str]) -> None:
    answer = call("explain", run, photo, *flags, "--out", photo.parent / "out")
    assert answer.code == 2, answer.err
    assert 1 <= len(answer.error) <= 3
    for word in words:
        assert word in answer.err
    assert not (photo.parent / "out").exists()


def test_bad_places(run: Path, photo: Path) -> None:
    for arguments in (
        [run, photo.parent / "none.png"],
        [photo.parent / "no-model", photo],
        [run, photo, "--out", photo],
        [photo, photo],
    ):
        answer = call("explain", *arguments, "--threads", "1")
        assert answer.code == 2, answer.err
        assert 1 <= len(answer.error) <= 3


def test_an_onnx_file_has_no_gradients(photo: Path) -> None:
    path = shipped.file("cifar10-resnet20", ".onnx")
    with pytest.raises(InputError, match="--method occlusion"):
        open_explainer(path)
    assert isinstance(open_explainer(path, Method.occlusion).look, Occlusion)
    # by its name it is the weights that are taken
    assert isinstance(open_explainer("cifar10-resnet20").look, GradCam)


def test_other_tasks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = brightness(preprocess_of({"size": (32, 32)}))
    card = predictor.card.model_copy(update={"task": "embed"})
    model = Predictor(predictor.run, card, "it")
    monkeypatch.setattr("skipway.explain.opening.load", lambda *_: model)
    monkeypatch.setattr("skipway.explain.opening.task_of", lambda _: "classify")  # as of ONNX files
    with pytest.raises(InputError, match="it: a model of the task embed; of ONNX files explain"):
        open_explainer("it", Method.occlusion)


def test_occlusion_needs_no_torch(photo: Path) -> None:
    code = (
        "import sys\n"
        "from skipway.cli.commands import run\n"
        f"assert run(['explain', 'cifar10-resnet20', {str(photo)!r}, '--method', 'occlusion',\n"
        f"    '--out', {str(photo.parent)!r}, '--json', '--threads', '1']) == 0\n"
        "assert not {'torch', 'safetensors', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["file"] == str(photo.parent / "photo-occlusion.png")


def test_grad_cam_without_torch_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, photo: Path
) -> None:
    monkeypatch.delitem(sys.modules, "skipway.weights", raising=False)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(InputError, match=r"'\.\[train\]'"):
        open_explainer("cifar10-resnet20")
