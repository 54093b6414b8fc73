"""The class of each pixel, in use: views, tiles, maps in original pixels, files and commands."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from sklearn.metrics import confusion_matrix
from torch import Tensor

from commands import call
from skipway.architecture import architecture
from skipway.card import Card
from skipway.data.ahead import batches, read_ahead
from skipway.data.pixels import MaskedSplit, open_pixels
from skipway.drawing import colour
from skipway.errors import InputError
from skipway.heads import SegmenterConfig
from skipway.images import DecodeError, Preprocess, decode, write_png
from skipway.loading import load
from skipway.pixel_predictor import (
    SCALES,
    STRIDE,
    PixelPredictor,
    PixelViews,
    load_pixel_predictor,
    score_pixels,
    tiles,
    write_mask,
)
from skipway.resnet import ResNet
from skipway.segmentations import IGNORED
from skipway.segmenters import build_segmenter
from skipway.tasks import maps
from skipway.tasks.segment import SegmentationEvaluator
from skipway.weights import save_weights

CLASSES = ("road", "sky", "tree", "car")
FIT = Preprocess(size=(48, 64), resize="fit", mean=(0.5,) * 3, std=(0.25,) * 3)
SHORT = FIT.model_copy(update={"size": (192, 192), "short_side": 48})
"""As of torchvision's files, where the size bounds long images alone."""


def card(preprocess: Preprocess = FIT, **fields: Any) -> Card:
    return Card(
        task="segment",
        model="resnet18",
        architecture=architecture("resnet18", num_classes=4, in_channels=preprocess.channels),
        classes=CLASSES,
        segmenter=SegmenterConfig(),
        preprocess=preprocess,
        **fields,
    )


def pointwise(x: np.ndarray) -> Tensor:
    """Logits of a pixel from its own channels alone."""
    weights = torch.randn(4, x.shape[1], generator=torch.Generator().manual_seed(1))
    return torch.einsum("kc,nchw->nkhw", weights, torch.from_numpy(x))


def around(x: np.ndarray) -> Tensor:
    """Logits from a neighbourhood, that are another near the border of an input and from the left
    than from the right: what tiles and mirrors change."""
    weights = torch.randn(4, x.shape[1], 5, 5, generator=torch.Generator().manual_seed(2))
    return F.conv2d(torch.from_numpy(x), weights, padding=2)


def predictor(run: Callable[[np.ndarray], Tensor] = around, **fields: Any) -> PixelPredictor:
    return PixelPredictor(run, card(**fields), "a model")


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth, so that neighbours are alike, as in a photograph."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 7 + 2, width // 7 + 2, channels), dtype=np.uint8)
    layers = [
        np.asarray(Image.fromarray(coarse[:, :, c]).resize((width, height), 3))
        for c in range(channels)
    ]
    return np.stack(layers, axis=2)


def seen(image: np.ndarray, run: Callable[[np.ndarray], Tensor] = around) -> np.ndarray:
    """Logits of pixels as they are."""
    return run(FIT.normalise(image)[None])[0].numpy()


def resized(scores: np.ndarray | Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(torch.as_tensor(scores)[None], size, mode="bilinear", align_corners=False)[
        0
    ]


# From scores to maps


@given(st.data())
@settings(max_examples=20)
def test_strips_are_the_whole_resized(data: st.DataObject) -> None:
    sides = st.integers(1, 30)
    k, h, w, height, width = (data.draw(sides) for _ in range(5))
    scores = torch.randn(k, h, w, generator=torch.Generator().manual_seed(h * w))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "_STRIP", data.draw(st.integers(1, 2000)))
        found = [*maps.strips(scores, (height, width))]
        assert max(strip.numel() for strip in found) <= max(maps._STRIP, k * width)
        whole = maps.class_map(scores, (height, width))
    torch.testing.assert_close(torch.cat(found, 1), resized(scores, (height, width)))
    np.testing.assert_array_equal(whole, torch.cat(found, 1).argmax(0))
    assert whole.dtype == np.uint8
    same = torch.cat([*maps.strips(scores, (h, w))], 1)
    assert torch.equal(same, scores)


@given(st.integers(1, 255), st.integers(0, 10**6))
@settings(max_examples=40)
def test_the_best_class_is_the_first_of_the_highest(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 3, (classes, 4, 5)).astype(np.float32)
    found = maps.best(torch.from_numpy(scores))
    np.testing.assert_array_equal(found.numpy(), scores.argmax(0))


# Tiles


@given(st.integers(1, 3000), st.integers(1, 700))
@settings(max_examples=100)
def test_tiles_cover_each_pixel_and_count_one_together(length: int, tile: int) -> None:
    starts, weights = tiles(length, tile)
    side = min(tile, length)
    assert weights.shape == (len(starts), side)
    assert (starts[0], starts[-1] + side) == (0, length)
    apart = np.diff(starts)
    assert ((apart > 0) & (apart <= max(side * STRIDE, 1))).all()
    assert len(apart) == 0 or np.ptp(apart) <= 1
    total = np.zeros(length)
    for start, own in zip(starts, weights, strict=True):
        assert (own > 0).all()
        total[start : start + side] += own
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("size", [(48, 64), (40, 64), (48, 17), (9, 5), (1, 1)])
def test_one_tile_is_the_image_as_it_is(size: tuple[int, int]) -> None:
    image = noise(*size)
    found = predictor().scores(image, PixelViews.slide)
    np.testing.assert_allclose(found, seen(image), atol=1e-5)
    if size == FIT.size:
        np.testing.assert_array_equal(found, predictor().scores(image))


@pytest.mark.parametrize("size", [(49, 64), (100, 150), (48, 300), (211, 30), (145, 193)])
def test_tiles_of_a_network_that_sees_single_pixels_are_the_whole(size: tuple[int, int]) -> None:
    image = noise(*size)
    model = predictor(pointwise)
    whole = seen(image, pointwise)
    np.testing.assert_allclose(model.scores(image, PixelViews.slide), whole, atol=1e-5)
    (labels,) = model.found([image], PixelViews.slide)
    ordered = np.sort(whole, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    np.testing.assert_array_equal(labels[clear], whole.argmax(0)[clear])


def test_tiles_are_averaged_by_their_windows() -> None:
    """Against the sum of everything, written out."""
    image = noise(101, 173)
    above, below = np.zeros((4, 101, 173)), np.zeros((101, 173))
    window = np.outer(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in FIT.size))
    tops, lefts = [0, 26, 53], [0, 36, 73, 109]
    assert [tiles(101, 48)[0], tiles(173, 64)[0]] == [tops, lefts]
    for top, left in itertools.product(tops, lefts):
        place = slice(top, top + 48), slice(left, left + 64)
        above[:, *place] += window * seen(image[place])
        below[place] += window
    found = predictor().scores(image, PixelViews.slide)
    np.testing.assert_allclose(found, above / below, rtol=1e-3, atol=1e-3)


def test_tiles_are_as_large_as_a_short_side_that_is_limited() -> None:
    shapes: list[tuple[int, ...]] = []

    def kept(x: np.ndarray) -> Tensor:
        shapes.append(x.shape[2:])
        return around(x)

    image = noise(101, 173)
    square = FIT.model_copy(update={"size": (48, 48)})
    found = predictor(kept, preprocess=SHORT).scores(image, PixelViews.slide)
    assert {*shapes} == {(48, 48)}
    expected = predictor(preprocess=square).scores(image, PixelViews.slide)
    np.testing.assert_array_equal(found, expected)
    squash = SHORT.model_copy(update={"resize": "squash"})  # which has no use for a short side
    shapes.clear()
    predictor(kept, preprocess=squash).scores(image, PixelViews.slide)
    assert {*shapes} == {(101, 173)}


def test_no_seam_is_seen_between_tiles() -> None:
    """Each tile says something else of all its pixels; the answer glides from one to the next."""
    said: Iterator[float] = itertools.cycle([0.0, 1.0])

    def constant(x: np.ndarray) -> Tensor:
        return torch.full((1, 4, *x.shape[2:]), next(said))

    found = predictor(constant).scores(noise(48, 400), PixelViews.slide)[0]
    assert {found.min().round(3), found.max().round(3)} == {0, 1}
    assert tiles(400, 64)[0][1] == 42  # so 22 pixels are shared
    assert np.abs(np.diff(found, axis=1)).max() < 0.12


@pytest.mark.parametrize("views", [PixelViews.one, PixelViews.slide])
def test_the_scores_of_a_large_image_are_never_held_together(
    views: PixelViews, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "_STRIP", 4 * 640 * 10)
    strips = [*predictor(pointwise).strips(noise(480, 640), views)]
    assert max(strip.shape[1] for strip in strips) <= FIT.size[0]
    assert sum(strip.shape[1] for strip in strips) == 480


# Views


def probabilities(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Of an image in pixels of another size, by the mean over it and its mirror image."""
    plain, mirrored = seen(image), seen(image[:, ::-1])[:, :, ::-1].copy()
    return (resized(plain, size).softmax(0) + resized(mirrored, size).softmax(0)) / 2


def test_whole_images_are_interpolated_to_the_original_pixels() -> None:
    image = noise(77, 123)
    frame = FIT.frame(image)[0]
    assert frame.shape[:2] == (40, 64)
    expected = resized(seen(frame), (77, 123))
    np.testing.assert_allclose(predictor().scores(image), expected, atol=1e-4)
    (labels,) = predictor().found([image])
    assert (labels.shape, labels.dtype) == ((77, 123), np.uint8)
    assert (labels == expected.argmax(0).numpy()).mean() > 0.999


def test_flip_is_the_mean_of_probabilities() -> None:
    image = noise(77, 123)
    found = predictor().scores(image, PixelViews.flip)
    expected = resized(probabilities(FIT.frame(image)[0], (40, 64)), (77, 123))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("preprocess", [FIT, SHORT])
def test_scales_are_the_mean_of_probabilities_at_six_sizes(preprocess: Preprocess) -> None:
    image = noise(150, 200)
    total = torch.zeros(4, 48, 64)
    for height, width in [(24, 32), (36, 48), (48, 64), (60, 80), (72, 96), (84, 112)]:
        picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        total += probabilities(np.asarray(picture), (48, 64)) / 6
    assert len(SCALES) == 6
    found = predictor(preprocess=preprocess).scores(image, PixelViews.scales)
    np.testing.assert_allclose(found, resized(total, (150, 200)), atol=1e-5)


@pytest.mark.parametrize("views", [PixelViews.flip, PixelViews.scales])
def test_a_mirrored_image_has_the_mirrored_map(views: PixelViews) -> None:
    image = noise(96, 128)
    plain = predictor().scores(image, views)
    mirrored = predictor().scores(np.ascontiguousarray(image[:, ::-1]), views)
    np.testing.assert_allclose(plain, mirrored[:, :, ::-1], atol=1e-5)
    assert np.abs(predictor().scores(image) - plain).max() > 0.1


def test_probabilities_are_at_the_temperature_of_the_card() -> None:
    image = noise(48, 64)
    warm = predictor(temperature=2.5).scores(image, PixelViews.flip)
    halves = predictor(lambda x: around(x) / 2.5).scores(image, PixelViews.flip)
    np.testing.assert_allclose(warm, halves, atol=1e-6)


@pytest.mark.parametrize("views", PixelViews)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (200, 2), (5, 4), (48, 64), (130, 97)])
def test_images_of_any_size(views: PixelViews, size: tuple[int, int]) -> None:
    image = noise(*size)
    (labels,) = predictor().found([image], views)
    assert labels.shape == size
    assert labels.max() < 4


def test_outputs_that_are_no_numbers_are_refused() -> None:
    broken = predictor(lambda x: around(x) * torch.nan)
    for views in PixelViews:
        with pytest.raises(InputError, match="not finite"):
            broken.found([noise(60, 60)], views)


# Images


MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "LA"]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", MODES)
def test_any_image_has_a_map(mode: str, channels: int, tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    picture = Image.fromarray(noise(60, 90))
    if mode == "I;16":
        Image.fromarray(noise(60, 90)[:, :, 0].astype(np.uint16) << 8).save(path)
    else:
        (picture.convert("L").convert("LA") if mode == "LA" else picture.convert(mode)).save(path)
    plain = Preprocess(
        size=(48, 64), resize="fit", channels=channels, mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )  # fmt: skip
    model = predictor(preprocess=plain)
    for source in (path, path.read_bytes(), Image.open(path)):
        found = model(source)
        assert found.labels.shape == (60, 90)
    np.testing.assert_array_equal(model(path).labels, model.found([decode(path, channels)])[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_image_has_the_map_of_what_is_shown(orientation: int) -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(60, 90)).save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as opened:
        shown = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    found = predictor()(buffer.getvalue())
    assert found.labels.shape == shown.shape[:2] == ((90, 60) if orientation > 4 else (60, 90))
    np.testing.assert_array_equal(found.labels, predictor().found([shown])[0])


def test_what_is_told_of_an_image(tmp_path: Path) -> None:
    def levels(x: np.ndarray) -> Tensor:
        wanted = torch.from_numpy(np.rint((x[:, 0] * 0.25 + 0.5) * 255 / 50))
        return -((wanted[:, None] - torch.arange(4).view(1, -1, 1, 1)) ** 2)

    labels = np.repeat(np.uint8([3, 0, 0, 2, 2, 2, 2, 2]), 6)[:, None].repeat(64, 1)
    Image.fromarray(labels * 50).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    paths = [tmp_path / "a.png", tmp_path / "bad.png"]
    good, bad = predictor(levels).stream(paths)
    np.testing.assert_array_equal(good.labels, labels)
    assert [(s.label, s.share) for s in good.shares] == [
        ("tree", 0.625), ("road", 0.25), ("car", 0.125)
    ]  # fmt: skip
    assert json.loads(json.dumps(good.to_json())) == {
        "path": str(paths[0]),
        "size": [48, 64],
        "classes": [
            {"label": "tree", "share": 0.625},
            {"label": "road", "share": 0.25},
            {"label": "car", "share": 0.125},
        ],
        "error": None,
    }
    assert bad.labels.shape == (0, 0)
    assert "bad.png" in str(bad.error)
    assert bad.to_json() == {
        "path": str(paths[1]), "size": None, "classes": [], "error": bad.error
    }  # fmt: skip
    with pytest.raises(DecodeError):
        predictor(levels)(paths[1])


def test_a_mask_is_an_indexed_png_that_replaces_nothing(tmp_path: Path) -> None:
    found = predictor()(noise(60, 90))
    first, second = (write_mask(found, tmp_path, CLASSES) for _ in range(2))
    assert [first.name, second.name] == [".png", "-2.png"]
    with Image.open(first) as image:
        assert (image.mode, image.format) == ("P", "PNG")
        np.testing.assert_array_equal(np.asarray(image), found.labels)
        shown = np.asarray(image.convert("RGB"))
    for k in range(4):
        assert (shown[found.labels == k] == colour(k)).all()
    assert first.read_bytes() == second.read_bytes()


def test_pictures_of_one_name_get_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("kept")
    (tmp_path / "a-3.png").write_text("kept")
    picture = Image.new("L", (2, 2))
    assert [write_png(picture, tmp_path, "a").name for _ in range(3)] == [
        "a-2.png", "a-4.png", "a-5.png"
    ]  # fmt: skip
    assert (tmp_path / "a.png").read_text() == (tmp_path / "a-3.png").read_text() == "kept"
    assert len([*tmp_path.iterdir()]) == 5
    with pytest.raises(InputError, match="cannot be written"):
        write_png(picture, tmp_path / "none", "a")


# Scores


def masked_folder(place: Path, n: int = 6) -> Path:
    """Scenes whose grey tells their classes, 50 levels each; of the last class there is little."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            (place / split / folder).mkdir(parents=True)
        for i in range(n):
            patches = rng.choice([0, 1, 2, 3, 9], (5, 7), p=[0.4, 0.3, 0.2, 0.05, 0.05])
            labels = np.kron(patches.astype(np.uint8), np.ones((16, 16), np.uint8))
            levels = np.where(labels == 9, 250, labels * 50).astype(np.uint8)
            Image.fromarray(labels).save(place / split / "masks" / f"{i}.png")
            Image.fromarray(levels).save(place / split / "images" / f"{i}.png")
    (place / "classes.json").write_text(json.dumps({"classes": list(CLASSES), "ignore_index": 9}))
    return place


def val_of(place: Path) -> MaskedSplit:
    split = open_pixels(str(place), classes=CLASSES).splits["val"]
    assert isinstance(split, MaskedSplit)
    return split


@pytest.mark.parametrize(("threads", "views"), [(1, PixelViews.one), (3, PixelViews.slide)])
def test_scores_of_a_split(threads: int, views: PixelViews, tmp_path: Path) -> None:
    split, model = val_of(masked_folder(tmp_path)), predictor()
    evaluator, skipped = score_pixels(model, split, threads, views=views)
    assert skipped == []
    truth = np.stack([split.target(i) for i in range(len(split))])
    found = np.stack([model(split.image(i, 3), views).labels for i in range(len(split))])
    known = truth != IGNORED
    counts = confusion_matrix(truth[known], found[known], labels=range(4))
    np.testing.assert_array_equal(evaluator.confusions.sum(0), counts)
    assert evaluator.metrics()["pixel_accuracy"] == pytest.approx(np.trace(counts) / counts.sum())


def test_images_that_cannot_be_read_are_skipped_or_refused(tmp_path: Path) -> None:
    split = val_of(masked_folder(tmp_path))
    (tmp_path / "val" / "images" / "2.png").write_bytes(b"")
    with pytest.raises(DecodeError, match=r"2\.png"):
        score_pixels(predictor(), split, 2)
    evaluator, skipped = score_pixels(predictor(), split, 2, "skip")
    assert [("2.png" in reason) for reason in skipped] == [True]
    assert len(evaluator.confusions) == 5
    for path in (tmp_path / "val" / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"0\.png"):
        score_pixels(predictor(), split, 2, "skip")


# Reading ahead


@given(
    st.integers(0, 30), st.integers(1, 4), st.integers(0, 9), st.sets(st.integers(0, 29)),
    st.integers(1, 7),
)  # fmt: skip
@settings(max_examples=40)
def test_what_is_read_ahead_comes_in_order(
    n: int, threads: int, most: int, bad: set[int], size: int
) -> None:
    def read(i: int) -> int:
        if i in bad:
            raise DecodeError(f"{i} is damaged")
        return i * i

    rows = [*read_ahead(range(n), read, threads, most, "skip")]
    assert [i for i, _ in rows] == [*range(n)]
    for i, found in rows:
        assert str(found) == f"{i} is damaged" if i in bad else found == i * i
    together = [*batches(iter(rows), size)]
    assert [*itertools.chain(*together)] == rows
    assert all(len(batch) == size for batch in together[:-1])
    first = min((i for i in bad if i < n), default=n)
    strict = read_ahead(range(n), read, threads, most)
    assert [i for i, _ in itertools.islice(strict, first)] == [*range(first)]
    with pytest.raises(DecodeError if first < n else StopIteration, match=f"^{first} is|^$"):
        next(strict)


def test_no_more_is_read_ahead_than_asked() -> None:
    begun: list[int] = []
    rows = read_ahead(itertools.count(), begun.append, 2, 3)
    for expected in range(5):
        assert next(rows)[0] == expected
        assert len(begun) <= expected + 4


def test_what_waits_is_given_up_where_reading_ends_early() -> None:
    read: list[int] = []
    gate = threading.Event()

    def slowly(i: int) -> None:
        if i:
            gate.wait(10)
        read.append(i)

    before = {*threading.enumerate()}
    rows = read_ahead(range(9), slowly, 1, 5)
    assert next(rows)[0] == 0
    timer = threading.Timer(0.1, gate.set)
    timer.start()
    rows.close()  # type: ignore[attr-defined]
    timer.join()
    for thread in {*threading.enumerate()} - before:
        thread.join()
    assert read in ([0], [0, 1])  # the one that was begun


# Commands


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter with weights by chance, one of another task beside it, and data."""
    place = tmp_path_factory.mktemp("segment")
    small = {"depths": (1, 1, 1, 1), "width": 0.125, "num_classes": 4}
    arch = architecture("resnet18", **small)
    config = SegmenterConfig(head="unet", widths=(8, 8, 8, 8, 8))
    torch.manual_seed(0)
    net = build_segmenter(arch, config, 4)
    with torch.no_grad():
        for _ in range(20):  # gives the batch norms their statistics
            net(torch.randn(4, 3, 48, 64))
    fields = {"model": "custom", "architecture": arch, "classes": CLASSES, "preprocess": FIT}
    save_weights(place / "m.safetensors", net, Card(task="segment", segmenter=config, **fields))
    save_weights(place / "c.safetensors", ResNet(arch), Card(**fields))
    others = fields | {"classes": ("road", "sky", "tree", "bus")}
    save_weights(
        place / "others.safetensors", net, Card(task="segment", segmenter=config, **others)
    )
    with torch.no_grad():  # another model, and the same one with its classes turned around
        net.classifier.classify.bias += torch.tensor([3.0, 0.0, 0.0, -3.0])
    save_weights(place / "n.safetensors", net, Card(task="segment", segmenter=config, **fields))
    state = net.state_dict()
    for key in ("classifier.classify.weight", "classifier.classify.bias"):
        state[key] = state[key].flip(0)
    turned = fields | {"classes": CLASSES[::-1]}
    save_weights(
        place / "turned.safetensors", state, Card(task="segment", segmenter=config, **turned)
    )
    masked_folder(place / "data")
    return place


@pytest.mark.parametrize("command", ["predict", "eval"])
def test_without_torch_it_is_said_what_to_install(places: Path, command: str) -> None:
    code = "import sys; sys.modules['torch'] = None; from skipway.cli import main; main()"
    data = places / "data" / ("val/images" if command == "predict" else "")
    done = subprocess.run(
        [sys.executable, "-c", code, command, str(places / "m.safetensors"), str(data)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "m.safetensors needs the package 'torch', which is not installed" in done.stderr
    assert "pip install '.[train]'" in done.stderr


def test_its_task_is_told_by_its_content(places: Path, tmp_path: Path) -> None:
    for name in ("m.bin", "m"):
        shutil.copy(places / "m.safetensors", tmp_path / name)
        assert isinstance(load(tmp_path / name, threads=1), PixelPredictor)


def test_predict_tells_shares_and_writes_maps(places: Path, tmp_path: Path) -> None:
    model, images = places / "m.safetensors", places / "data" / "val" / "images"
    flags = ("--threads=1", f"--masks={tmp_path / 'masks'}", f"--draw={tmp_path / 'drawings'}")
    answer = call("predict", model, images, *flags, "--json")
    assert answer.code == 0, answer.err
    assert len(answer.value) == 6
    loaded = load(model, threads=1)
    assert isinstance(loaded, PixelPredictor)
    for row in answer.value:
        own, name = loaded(row["path"]), Path(row["path"]).name
        files = {place: str(tmp_path / f"{place}s" / name) for place in ("drawing", "mask")}
        assert row == own.to_json() | files
        assert row["size"] == [80, 112]
        assert len(row["classes"]) > 1
        assert sum(c["share"] for c in row["classes"]) == pytest.approx(1)
        with Image.open(row["mask"]) as mask:
            assert mask.mode == "P"
            np.testing.assert_array_equal(np.asarray(mask), own.labels)
        with Image.open(row["drawing"]) as drawn:
            assert drawn.mode == "RGB"
    first = images / "0.png"
    again = call("predict", model, first, *flags)
    share = loaded(first).shares[0]
    assert again.out.startswith(f"{first}: {share.label} {share.share:.1%}")
    assert len(again.out.splitlines()) == 1
    for place in ("drawing", "mask"):  # the first of that name stays
        file = tmp_path / f"{place}s" / "0-2.png"
        assert file.exists()
        assert f"-> {file}" in again.out
    slid = call("predict", model, first, "--threads=1", "--views=slide", "--json")
    assert slid.value == [
        loaded(first, PixelViews.slide).to_json() | {"drawing": None, "mask": None}
    ]


def test_predict_goes_on_after_an_image_that_cannot_be_read(places: Path, tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.png", places / "data" / "val" / "images" / "1.png"
    bad.write_bytes(b"none")
    model, masks = places / "m.safetensors", f"--masks={tmp_path / 'masks'}"
    answer = call("predict", model, bad, good, "--threads=1", masks)
    assert answer.code == 2
    assert answer.error[0].startswith(f"skipway: {bad}: not an image")
    assert answer.out.startswith(f"{good}: ")
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["1.png"]


@pytest.mark.parametrize("flag", ["--masks=out", "--views=slide"])
def test_predict_refuses_maps_of_other_tasks(flag: str, places: Path) -> None:
    answer = call("predict", places / "c.safetensors", places / "data", flag)
    assert answer.code == 2
    assert answer.error[0].startswith(f"skipway: {flag.split('=')[0]}: ")
    assert "of the task classify" in answer.error[0]


def test_eval_tells_each_class(places: Path) -> None:
    model, data = places / "m.safetensors", places / "data"
    answer = call("eval", model, data, "--threads=1", "--json")
    assert answer.code == 0, answer.err
    told = answer.value
    assert (told["n"], told["split"], told["views"], told["size"]) == (6, "val", "one", [48, 64])
    loaded = load(model, threads=1)
    assert isinstance(loaded, PixelPredictor)
    evaluator, _ = score_pixels(loaded, val_of(data), 1)
    assert told["metrics"] == evaluator.metrics()
    assert next(iter(told["metrics"])) == "miou"
    for name, (low, high) in told["intervals"].items():
        assert low <= told["metrics"][name] <= high
    assert [row["label"] for row in told["per_class"]] == [*CLASSES]
    text = call("eval", model, data, "--threads=1").out.splitlines()
    assert text[0] == f"{model} on {data}, val: 6 images"
    low, high = evaluator.intervals["miou"] or (0, 0)
    miou = told["metrics"]["miou"]
    assert text[1] == f"mIoU {miou:.2%}  (95 % interval {low:.2%} to {high:.2%})"
    assert [line.split()[0] for line in text[-4:]] == [*CLASSES]
    assert max(map(len, text[1:])) <= 100


def test_eval_of_a_segmenter_where_there_are_no_splits(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images, but what was held out of them for a run that was trained on them."""
    root = masked_folder(tmp_path, n=12) / "val"
    shutil.copy(tmp_path / "classes.json", root)
    made = open_pixels(str(root), seed=3)
    fields: dict[str, Any] = {"recipe": {"seed": 3, "data_path": str(root)}}

    def loaded(*given: Any) -> PixelPredictor:
        found = load_pixel_predictor(*given)
        found.card = found.card.model_copy(update=fields)
        return found

    monkeypatch.setattr("skipway.pixel_predictor.load_pixel_predictor", loaded)

    def scored(*flags: str) -> tuple[str, int, str]:
        told = call("eval", places / "m.safetensors", root, *flags, "--json", "--threads=1")
        assert told.code == 0, told.err
        return told.value["split"], told.value["n"], told.err

    assert scored()[:2] == scored("--split=all")[:2] == ("all", 12)
    for name, split in made.splits.items():
        assert scored(f"--split={name}")[:2] == (name, len(split))
    text = call("eval", places / "m.safetensors", root, "--threads=1").out.splitlines()
    assert text[0].endswith(f"{root}, all: 12 images")
    assert scored(f"--against={places / 'n.safetensors'}")[:2] == ("all", 12)
    fields["provenance"] = {"data": made.digest()}
    name, n, err = scored()
    assert (name, n) == ("test", len(made.splits["test"]))
    assert "became test" in err
    rival = f"--against={places / 'n.safetensors'}"
    assert "was trained on" not in scored(rival)[2]
    n = len(made.splits["train"])
    for model in ("m", "n"):
        said = f"note: {places / model}.safetensors was trained on {n} of these images"
        assert said in scored(rival, "--split=all")[2].splitlines()
    fields["recipe"] |= {"seed": 5}
    name, n, err = scored()
    assert (name, n) == ("all", 12)
    assert "may have been trained on" in err
    assert "test is drawn anew" in scored("--split=test")[2]
    fields["provenance"] = {}
    assert "drawn anew" not in scored("--split=test")[2]


@pytest.mark.parametrize("views", ["one", "slide"])
def test_eval_against_another_segmenter(views: str, places: Path) -> None:
    m, n, data = places / "m.safetensors", places / "n.safetensors", places / "data"
    flags = (f"--views={views}", "--threads=1")
    one, two = (call("eval", model, data, *flags, "--json").value for model in (m, n))
    found = call("eval", m, data, "--against", n, *flags, "--json").value
    told = found.pop("against")
    assert found == one
    assert (told["model"], told["n"], told["metrics"]) == (str(n), 6, two["metrics"])
    assert [*told["p"]] == [*one["metrics"]]
    for name, value in told["differences"].items():
        assert value == pytest.approx(two["metrics"][name] - one["metrics"][name])
        assert told["clear"][name] == (told["p"][name] < 0.05)
    lines = call("eval", m, data, "--against", n, *flags).out.splitlines()
    at = lines.index(f"against B, {n}, on the same 6 images:")
    low, high = (f"{100 * end:+.2f}" for end in told["intervals"]["miou"])
    assert lines[at + 1] == (
        f"  mIoU {two['metrics']['miou']:.2%}, B minus A "
        f"{100 * told['differences']['miou']:+.2f} points ({low} to {high}), "
        f"p = {told['p']['miou']:.2g}"
    )
    assert re.fullmatch(
        r"(Not told apart|[AB] is better): mIoU differs by \d+\.\d\d points, p = \S+\.", lines[-1]
    )
    for same in (n, places / "turned.safetensors"):  # classes are matched by name
        told = call("eval", n, data, "--against", same, *flags, "--json").value["against"]
        assert set(told["differences"].values()) == {0}
        assert set(told["p"].values()) == {1}


def test_segmenters_are_compared_on_images_that_both_could_read() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 4, (3, 9, 8, 8), dtype=np.uint8)
    first, second = SegmentationEvaluator(4), SegmentationEvaluator(4)
    for i in range(9):
        if i < 7:
            first.add(i, drawn[0, i], drawn[2, i])
        if i > 1:
            second.add(i, drawn[1, i], drawn[2, i])
    found, part = first.against(second), SegmentationEvaluator(4)
    for i in range(2, 7):
        part.add(i, drawn[0, i], drawn[2, i])
    assert (found.n, found.first) == (5, part.metrics())
    with pytest.raises(InputError, match="no image was read by both"):
        first.against(SegmentationEvaluator(4))
    for evaluator in (blank := SegmentationEvaluator(4)), first:
        evaluator.add(0, drawn[0, 0], np.full((8, 8), IGNORED, np.uint8))
    with pytest.raises(InputError, match="no pixel is judged"):
        first.against(blank)


@pytest.mark.parametrize("views", ["flip", "scales", "slide"])
def test_eval_over_views(views: str, places: Path) -> None:
    answer = call("eval", places / "m.safetensors", places / "data", f"--views={views}",
                  "--threads=1", "--split=train", "--json")  # fmt: skip
    loaded = load(places / "m.safetensors", threads=1)
    assert isinstance(loaded, PixelPredictor)
    split = open_pixels(str(places / "data"), classes=CLASSES).splits["train"]
    assert isinstance(split, MaskedSplit)
    evaluator, _ = score_pixels(loaded, split, 1, views=PixelViews(views))
    assert answer.value["metrics"] == evaluator.metrics()
    assert (answer.value["views"], answer.value["split"]) == (views, "train")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--views=shift"], "one, flip, scales, slide"),
        (["--views=crops"], "one, flip, scales, slide"),
        (["--split=test"], "has train, val"),
        (["--size=32"], "of classifiers"),
        (["--corruptions"], "of classifiers"),
        (["--calibrate"], "of classifiers"),
        (["--slices={}/a.csv:b"], "of classifiers"),
        (["--slices=absent.csv:b"], "of classifiers"),
        (["--against=absent"], "--against: absent: no such file"),
        (["--against={}/c.safetensors"], "--against: "),
        (["--against={}/others.safetensors"], "its classes are not those of MODEL"),
        (["--out=x"], "--calibrate"),
    ],
)
def test_eval_refuses_what_it_cannot_do(flags: list[str], said: str, places: Path) -> None:
    (places / "a.csv").write_text("path,b\nval/0.png,1\n")
    given = [flag.format(places) for flag in flags]
    answer = call("eval", places / "m.safetensors", places / "data", *given)
    assert answer.code == 2
    assert said in "\n".join(answer.error)
    assert len(answer.error) <= 3
    other = call("eval", places / "c.safetensors", places / "data", "--views=slide")
    assert other.code == 2
    assert "one, flip, shift, ten-crop, scales" in other.error[0]


def test_eval_skips_images_that_cannot_be_read(places: Path, tmp_path: Path) -> None:
    data = masked_folder(tmp_path / "data")
    whole = (data / "val" / "images" / "3.png").read_bytes()
    (data / "val" / "images" / "3.png").write_bytes(whole[: len(whole) // 2])
    refused = call("eval", places / "m.safetensors", data, "--threads=1")
    assert refused.code == 2
    assert "3.png" in refused.error[0]
    answer = call("eval", places / "m.safetensors", data, "--threads=1", "--on-bad=skip", "--json")
    assert answer.value["n"] == 5
    assert "3.png" in answer.err


def test_classes_are_matched_by_name(places: Path, tmp_path: Path) -> None:
    """The same masks with other numbers for the classes."""
    data = masked_folder(tmp_path / "data")
    for path in data.glob("*/masks/*.png"):
        Image.fromarray(np.uint8([3, 2, 1, 0] + 6 * [9])[np.asarray(Image.open(path))]).save(path)
    legend = {"classes": [*reversed(CLASSES)], "ignore_index": 9}
    (data / "classes.json").write_text(json.dumps(legend))
    one, other = (
        call("eval", places / "m.safetensors", d, "--threads=1", "--json").value
        for d in (places / "data", data)
    )
    assert one["per_class"] == other["per_class"]
