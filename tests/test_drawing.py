"""What is drawn on images can be read, stays inside, and hides little."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import unicodedata

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import ndimage

from skipway.drawing import (
    COVER,
    LEAST_LETTERS,
    PAINT,
    SPARSE,
    beside,
    colour,
    contact_sheet,
    cut,
    drawn,
    ink_on,
    lettering,
    painted,
    palette,
    placed,
)
from skipway.errors import InputError
from skipway.segmentations import IGNORED

GREY = 128


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def where(picture: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    return (picture == np.array(colour)).all(axis=2)


def contrast(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """WCAG 2.1."""

    def luminance(rgb: tuple[int, ...]) -> float:
        s = np.array(rgb) / 255
        linear = np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


# --- colours ------------------------------------------------------------------------------------


def test_class_colours_begin_with_the_houses_and_do_not_come_back() -> None:
    house = ["0072b2", "d55e00", "009e73", "cc79a7", "e69f00", "56b4e9", "f0e442"]
    assert ["{:02x}{:02x}{:02x}".format(*colour(i)) for i in range(7)] == house
    many = [colour(i) for i in range(300)]
    assert len(set(many)) == 300
    assert many == [colour(i) for i in reversed(range(300))][::-1]
    assert [colour(i) for i in (63, 64, 1202)] == [tuple(palette(1203)[i]) for i in (63, 64, 1202)]


def lab(rgb: object) -> np.ndarray:
    """CIE L*a*b* of sRGB [..., 3], white being D65."""
    share = np.asarray(rgb, float) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array(
        [[0.4124564, 0.2126729, 0.0193339],
         [0.3575761, 0.7151522, 0.1191920],
         [0.1804375, 0.0721750, 0.9503041]]
    ) / [0.95047, 1, 1.08883]  # fmt: skip
    x, y, z = np.moveaxis(
        np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29), -1, 0
    )
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@pytest.mark.parametrize(("classes", "least"), [(12, 26), (24, 20), (64, 12), (255, 5)])
def test_any_two_classes_have_colours_apart(classes: int, least: float) -> None:
    """A difference of 2.3 can be noticed (CIE 1976)."""
    colours = lab(palette(classes))
    apart = np.linalg.norm(colours[:, None] - colours, axis=-1)
    assert apart[np.triu_indices(classes, 1)].min() > least


def test_a_palette_is_that_of_an_indexed_png() -> None:
    colours = palette(30)
    assert (colours.dtype, colours.shape) == (np.uint8, (30, 3))
    assert [tuple(row) for row in colours.tolist()] == [colour(i) for i in range(30)]
    assert palette(0).shape == (0, 3)
    indexed = Image.fromarray(np.arange(30, dtype=np.uint8)[None], "L")
    indexed.putpalette(colours.tobytes())
    assert np.array_equal(np.asarray(indexed.convert("RGB"))[0], colours)


@hypothesis.given(st.tuples(*[st.integers(0, 255)] * 3))
def test_letters_have_contrast_on_any_plate(plate: tuple[int, int, int]) -> None:
    assert contrast(plate, ink_on(plate)) >= 4.5


# --- letters ------------------------------------------------------------------------------------


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.text(max_size=30), st.integers(8, 60), st.integers(0, 300))
def test_any_text_becomes_letters_that_fit(text: str, size: int, room: int) -> None:
    said, font = lettering(text, size)
    assert not {unicodedata.category(c) for c in said} & {"Cc", "Cs", "Zl", "Zp"}
    assert "\u202e" not in said
    absent = bytes(font.getmask("\uffff"))
    assert all(c.isascii() or bytes(font.getmask(c)) != absent for c in said)
    assert font.getlength(cut(said, font, room)) <= room


def test_what_no_font_has_is_spelt_out() -> None:
    assert lettering("a\U0010fffdb\x1b[31m", 20)[0] == "a\\U0010fffdb\\x1b[31m"
    assert lettering("plain 0.98", 20)[0] == "plain 0.98"


def test_what_is_cut_ends_with_an_ellipsis() -> None:
    said, font = lettering("a rather long name of a class", 20)
    assert cut(said, font, 1000) == said
    short = cut(said, font, 120)
    assert short.endswith("…")
    assert said.startswith(short[:-1])
    assert font.getlength(short) > 80
    assert cut(said, font, 5) == ""


# --- places of labels ---------------------------------------------------------------------------


def clashes(corners: np.ndarray, sizes: np.ndarray) -> int:
    """Pairs of labels that share a pixel."""
    found = 0
    for (a, s), (b, t) in itertools.combinations(zip(corners, sizes, strict=True), 2):
        found += bool((np.minimum(a + s, b + t) > np.maximum(a, b)).all())
    return found


@st.composite
def scenes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    width, height = draw(st.integers(60, 500)), draw(st.integers(30, 500))
    n = draw(st.integers(0, 12))
    sizes = [(draw(st.integers(5, 60)), draw(st.integers(5, 30))) for _ in range(n)]
    boxes = []
    for _ in range(n):
        xs = sorted(draw(st.tuples(*[st.integers(0, width)] * 2)))
        ys = sorted(draw(st.tuples(*[st.integers(0, height)] * 2)))
        boxes.append((xs[0], ys[0], xs[1], ys[1]))
    return np.reshape(sizes, (-1, 2)), np.reshape(boxes, (-1, 4)), (width, height)


@hypothesis.given(scenes())
def test_labels_stay_in_the_frame_and_at_their_box(scene) -> None:
    sizes, boxes, frame = scene
    corners, stands = placed(sizes, boxes, frame)
    assert stands.all()
    assert (corners >= 0).all()
    assert (corners + sizes <= frame).all()
    apart = np.maximum(corners - boxes[:, 2:], boxes[:, :2] - corners - sizes)
    assert (apart <= 0).all()  # it touches its box


@hypothesis.given(st.integers(0, 2**32))
def test_labels_of_objects_apart_do_not_cover_each_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = np.argwhere(np.ones((5, 5)))[rng.permutation(25)[: rng.integers(1, 26)]][:, ::-1]
    corners = 100 * cells + rng.integers(0, 40, cells.shape)
    boxes = np.concatenate([corners, corners + rng.integers(10, 60, cells.shape)], axis=1)
    sizes = np.stack([rng.integers(20, 70, len(boxes)), np.full(len(boxes), 16)], axis=1)
    assert clashes(placed(sizes, boxes, (500, 500))[0], sizes) == 0


def test_labels_of_one_place_spread_around_it() -> None:
    boxes = np.tile([[100, 100, 200, 180]], (8, 1))
    sizes = np.tile([[60, 16]], (8, 1))
    assert clashes(placed(sizes, boxes, (300, 300))[0], sizes) == 0
    corners, _ = placed(sizes, boxes, (300, 300))
    assert corners[0].tolist() == [100, 84]  # the first stands on its box


def test_a_small_object_is_not_hidden_by_its_own_label() -> None:
    box = np.array([[40, 0, 60, 10]])  # at the upper edge: above it is no room
    (x, y), (w, h) = placed(np.array([[50, 14]]), box, (200, 200))[0][0], (50, 14)
    assert y >= 10 or x >= 60 or x + w <= 40
    assert y + h <= 200


# --- boxes --------------------------------------------------------------------------------------


def test_a_box_stands_around_its_object_and_hides_nothing_of_it() -> None:
    picture = drawn(grey(700, 900), np.array([[200, 100, 400, 300.0]]), [""], [0])
    assert picture.shape == (700, 900, 3)
    line = where(picture, colour(0))
    assert (picture[100:300, 200:400][2:-2, 2:-2] == GREY).all()
    rows, columns = np.nonzero(line)
    assert 94 <= rows.min() < 100
    assert 300 <= rows.max() < 306
    assert 194 <= columns.min() < 200
    assert 400 <= columns.max() < 406
    assert line[98, 200:400].all()
    changed = (picture != GREY).any(axis=2)
    assert changed[85:315, 185:415].sum() == changed.sum()


def test_a_box_at_the_edge_is_seen_whole() -> None:
    picture = drawn(grey(700, 900), np.array([[-20, -5, 950, 707.0]]), [""], [1])
    line = where(picture, colour(1))
    assert line[0].all()
    assert line[-1].all()
    assert line[:, 0].all()
    assert line[:, -1].all()


def test_the_line_is_seen_on_any_ground() -> None:
    """Where its colour is near that of the image, the thin lines beside it are not."""
    for index in range(12):
        own = colour(index)
        ground = np.tile(np.array(own, np.uint8), (700, 700, 1))
        picture = drawn(ground, np.array([[100, 100, 300, 300.0]]), [""], [index])
        assert where(picture, ink_on(own)).sum() > 4 * 190


def test_dashes_leave_gaps() -> None:
    boxes = np.array([[50, 50, 250, 250.0], [400, 50, 600, 250]])
    picture = drawn(grey(700, 700), boxes, ["", ""], [0, 0], dashed=np.array([True, False]))
    line = where(picture, colour(0))
    dashed, solid = line[:, :330].sum(), line[:, 330:].sum()
    assert 0.35 * solid < dashed < 0.7 * solid


def test_small_objects_stand_on_top_of_large_ones() -> None:
    boxes = np.array([[200, 200, 210, 210.0], [195, 150, 400, 400]])
    for order in ([0, 1], [1, 0]):
        picture = drawn(grey(700, 700), boxes[order], ["", ""], order)
        assert tuple(picture[205, 198]) == colour(0)


@pytest.mark.parametrize(
    "box",
    [[math.nan, 0, 9, 9], [0, 0, math.inf, 9], [-30, 0, -10, 40], [0, 701, 20, 720]],
)
def test_a_box_that_cannot_be_shown_is_left_out_with_its_label(box: list[float]) -> None:
    boxes = np.array([box, [100, 100, 200, 200]])
    assert np.array_equal(
        drawn(grey(700, 700), boxes, ["gone", "there"], [0, 1], dashed=np.array([False, True])),
        drawn(grey(700, 700), boxes[1:], ["there"], [1], dashed=np.array([True])),
    )


def test_nothing_found_leaves_the_image_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (650, 700, 3), dtype=np.uint8)
    assert np.array_equal(drawn(image, np.zeros((0, 4)), [], []), image)


# --- masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 4])
def test_a_mask_is_half_transparent_with_an_opaque_edge(factor: int) -> None:
    size = 640 // factor
    y, x = np.mgrid[:size, :size]
    mask = (x - size / 2) ** 2 + (y - size / 2) ** 2 < (size / 5) ** 2
    rows, columns = np.nonzero(mask)
    box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1.0]])
    picture = drawn(grey(size, size), box, [""], [2], mask[None])
    assert picture.shape == (640, 640, 3)
    own = np.array(colour(2))
    whole = mask.repeat(factor, axis=0).repeat(factor, axis=1)
    mixed = np.rint(GREY * (1 - COVER) + own * COVER).astype(int)
    inner, edge = where(picture, tuple(mixed)), where(picture, tuple(own))
    assert not (inner & ~whole).any()
    assert (inner | edge)[whole].all()
    assert inner.sum() > 0.9 * whole.sum()
    assert edge[whole].sum() > 300
    outside = ~whole & ~edge
    assert (picture[outside] == GREY).all()


def test_masks_of_objects_at_the_edge_and_empty_masks() -> None:
    masks = np.zeros((3, 50, 40), bool)
    masks[0, :10, :10] = masks[1, 49:, 39:] = True
    boxes = np.array([[0, 0, 10, 10], [39, 49, 40, 50], [5, 5, 9, 9.0]])
    picture = drawn(grey(50, 40), boxes, ["", "", ""], [0, 1, 2], masks)
    assert where(picture, colour(0))[0, :100].all()  # its edge runs along the image's
    assert where(picture, colour(1))[-1, -5:].all()
    shrunk = drawn(grey(500, 400), boxes * 10, ["", "", ""], [0, 1, 2],
                   masks.repeat(10, 1).repeat(10, 2), side=50)  # fmt: skip
    assert shrunk.shape == (50, 40, 3)


# --- class maps ---------------------------------------------------------------------------------


def mix(level: int, index: int) -> np.ndarray:
    """A pixel of that grey under that class."""
    return (1 - PAINT) * (64 + level // 2) + PAINT * np.array(colour(index))


def plates(labels: np.ndarray, names: list[str], **options) -> tuple[np.ndarray, np.ndarray]:
    """A painted grey image, and where names stand on it."""
    image = grey(*labels.shape)
    picture = painted(image, labels, names, **options)
    return picture, (picture != painted(image, labels, [""] * len(names), **options)).any(axis=2)


def pieces(mask: np.ndarray) -> int:
    """Connected parts of a mask."""
    return ndimage.label(mask, np.ones((3, 3)))[1]


def test_a_class_covers_its_pixels_half_and_keeps_their_light() -> None:
    labels = np.zeros((700, 900), np.uint8)
    labels[:, 450:] = 9
    for level in (0, GREY, 255):
        picture = painted(np.full((700, 900, 3), level, np.uint8), labels, [""] * 10)
        for index, part in ((0, picture[:, :440]), (9, picture[:, 460:])):
            assert np.abs(part - mix(level, index)).max() <= 1


def test_a_class_looks_the_same_on_dark_and_bright_and_coloured_ground() -> None:
    """Its pixels are nearer to their own class, on a middle ground, than to any other."""
    names = [""] * 12
    grounds = [(32, 32, 32), (224, 224, 224), (200, 30, 30), (40, 90, 220), (GREY,) * 3]
    labels = np.arange(12, dtype=np.uint8).repeat(40).reshape(12, 40)
    seen = [
        lab(painted(np.full((12, 40, 3), ground, np.uint8), labels, names, side=40)[:, 20])
        for ground in grounds
    ]
    for found in seen:
        apart = np.linalg.norm(found[:, None] - seen[-1], axis=-1)
        assert apart.argmin(axis=1).tolist() == list(range(12))


@pytest.mark.parametrize("ignored", [IGNORED, 3, 200])
def test_what_is_no_class_stays_as_it_is_but_for_a_hatch(ignored: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    labels = np.full((700, 900), ignored, np.uint8)
    labels[:, 500:] = 1
    picture = painted(image, labels, ["a", "b", "c"])
    left = (slice(None), slice(0, 490))
    lines = where(picture[left], (255, 255, 255)) | where(picture[left], (27, 31, 36))
    assert 0.05 < lines.mean() < 0.25
    assert np.array_equal(picture[left][~lines], image[left][~lines])
    assert all(lines[y : y + 60, x : x + 60].any() for y in (0, 300, 640) for x in (0, 200, 430))
    small = painted(image, labels, ["a", "b", "c"], side=64)  # without room for lines
    plain = np.asarray(Image.fromarray(image).resize((64, 50), Image.Resampling.LANCZOS))
    assert np.array_equal(small[:, :34], plain[:, :34])


@pytest.mark.parametrize("side", [200, 700, 2000])
def test_a_line_runs_between_regions_and_grows_with_the_picture(side: int) -> None:
    y, x = np.mgrid[:280, :400]
    labels = ((x - 200) ** 2 + (y - 140) ** 2 < 90**2).astype(np.uint8)
    picture = painted(grey(280, 400), labels, ["", ""], side=side)
    dark = where(picture, (27, 31, 36))
    middle = dark[picture.shape[0] // 2]
    runs = [len([*run]) for on, run in itertools.groupby(middle) if on]
    assert len(runs) == 2
    assert all(max(side / 1400, 1) <= run <= side / 190 for run in runs)
    inside, outside = (np.abs(picture - mix(GREY, k)).max(axis=2) <= 1 for k in (1, 0))
    for axis, step in itertools.product((0, 1), (-1, 1)):
        assert not (np.roll(inside, step, axis) & outside).any()  # no gap in the line
    assert where(picture, (255, 255, 255)).any() == (side >= 640)


def test_a_large_region_bears_its_name_and_a_small_one_none() -> None:
    labels = np.zeros((480, 640), np.uint8)
    labels[:, 320:] = 1
    labels[100:106, 50:300] = 2  # too thin
    labels[440:, :320] = 3
    labels[400:470, 400:600] = IGNORED
    picture, named = plates(labels, ["sky", "road", "pole", "fence"])
    assert pieces(named) == 3
    for k, n in ((0, 1), (1, 1), (2, 0), (3, 1)):
        plate = named & where(picture, colour(k))
        assert pieces(plate) >= n
        assert plate.any() == bool(n)
        assert (labels[plate] == k).all()


def test_a_name_stands_again_where_another_region_is_between() -> None:
    labels = np.zeros((480, 640), np.uint8)
    _, once = plates(labels, ["wall", "door"])
    labels[:, 300:340] = 1
    _, twice = plates(labels, ["wall", "door"])
    labels[:] = 1
    labels[100:200, 100:300] = labels[230:330, 100:300] = 0
    _, near = plates(labels, ["wall", ""])
    assert (pieces(once), pieces(twice), pieces(near)) == (1, 3, 1)
    labels[:] = 1
    for top, left in itertools.product((10, 450), (10, 590)):  # each large enough for the name
        labels[top : top + 20, left : left + 40] = 0
    _, corners = plates(labels, ["wall", ""])
    assert pieces(corners) == 4


@hypothesis.settings(max_examples=10)
@hypothesis.example(57633)  # two regions beside each other, each as narrow as its name
@hypothesis.given(st.integers(0, 2**32))
def test_names_stand_in_their_regions_apart_from_each_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:150, :200]
    points = rng.uniform(0, 1, (rng.integers(2, 14), 2)) * (150, 200)
    labels = ((y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2).argmin(-1)
    labels = (labels % 6).astype(np.uint8)
    picture, named = plates(labels, [f"class {k}" for k in range(6)], side=600)
    large = labels.repeat(3, axis=0).repeat(3, axis=1)
    parts, n = ndimage.label(named, np.ones((3, 3)))
    assert n >= 1
    for part in ndimage.find_objects(parts):
        own = large[part]
        k = int(np.bincount(own.ravel()).argmax())
        assert (own == k).mean() > 0.8
        assert where(picture[part], colour(k)).mean() > 0.4
        assert part[0].stop - part[0].start < 0.1 * 600


@pytest.mark.parametrize("side", [80, 416, 2000])
def test_names_can_be_read_at_any_size(side: int) -> None:
    labels = np.zeros((round(0.75 * side), side), np.uint8)
    picture, named = plates(labels, ["red blood cell"])
    rows = np.nonzero(named.any(axis=1))[0]
    height, longer = rows[-1] - rows[0] + 1, picture.shape[1]
    assert height >= LEAST_LETTERS
    assert 1 / 60 < height / longer < 1 / 30
    letters = named & (picture.min(axis=2) > 140)  # more white than the blue below
    assert letters.any(axis=0).sum() > 2 * height


def test_a_small_picture_has_names_only_where_they_fit() -> None:
    labels = np.zeros((48, 64), np.uint8)
    labels[:, 40:] = 1
    _, named = plates(labels, ["sky", "building"], side=64)
    assert pieces(named) == 1
    assert named[:, :40].sum() > 0.9 * named.sum()


# --- any image ----------------------------------------------------------------------------------

images = st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3])).flatmap(
    lambda shape: hnp.arrays(np.uint8, shape) | hnp.arrays(np.uint16, shape)
)


@hypothesis.settings(max_examples=40)
@hypothesis.given(images, st.data())
def test_anything_can_be_drawn(image: np.ndarray, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 4))
    numbers = st.floats(-50, 90, width=32) | st.just(math.nan) | st.just(math.inf)
    boxes = data.draw(hnp.arrays(np.float32, (n, 4), elements=numbers))
    texts = data.draw(st.lists(st.text(max_size=12), min_size=n, max_size=n))
    masks = data.draw(st.none() | hnp.arrays(bool, (n, *image.shape[:2])))
    side = data.draw(st.none() | st.integers(1, 300))
    before = image.copy()
    picture = drawn(image, boxes, texts, list(range(n)), masks, np.arange(n) % 2 == 0, side)
    assert picture.dtype == np.uint8
    height, width = image.shape[:2]
    longer = max(picture.shape[:2])
    assert longer == side if side else 480 <= longer <= 960
    ratio = longer / max(height, width)
    assert picture.shape[2] == 3
    assert abs(picture.shape[0] - max(height * ratio, 1)) <= 1
    assert abs(picture.shape[1] - max(width * ratio, 1)) <= 1
    assert np.array_equal(image, before)


@hypothesis.settings(max_examples=40)
@hypothesis.given(images, st.data())
def test_anything_can_be_painted(image: np.ndarray, data: st.DataObject) -> None:
    labels = data.draw(hnp.arrays(np.uint8, image.shape[:2]))
    names = data.draw(st.lists(st.text(max_size=12), max_size=255))
    side = data.draw(st.none() | st.integers(1, 300))
    before = image.copy(), labels.copy()
    picture = painted(image, labels, names, side)
    assert picture.dtype == np.uint8
    assert picture.shape == drawn(image, np.zeros((0, 4)), [], [], side=side).shape
    assert np.array_equal(image, before[0])
    assert np.array_equal(labels, before[1])


def test_sixteen_bits_and_grey_are_drawn_as_eight_and_colour() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (90, 80, 1), dtype=np.uint8)
    boxes = np.array([[10, 10, 40, 40.0]])
    plain = drawn(levels.repeat(3, axis=2), boxes, ["one"], [0])
    assert np.array_equal(drawn(levels, boxes, ["one"], [0]), plain)
    assert np.array_equal(drawn(levels.astype(np.uint16) * 256 + 17, boxes, ["one"], [0]), plain)


@pytest.mark.parametrize("side", [80, 416, 3000])
def test_labels_and_lines_can_be_read_at_any_size(side: int) -> None:
    """Plates are high enough for letters, and grow with the picture; lines too."""
    image = grey(round(0.75 * side), side)
    box = np.array([[0.3, 0.3, 0.6, 0.6]]) * side
    picture = drawn(image, box, ["cell 0.98"], [0])
    longer = picture.shape[1]
    bare = drawn(image, box, [""], [0])
    plate = (picture != bare).any(axis=2)
    rows = np.nonzero(plate.any(axis=1))[0]
    height = rows[-1] - rows[0] + 1
    assert height >= LEAST_LETTERS
    assert 1 / 60 < height / longer < 1 / 30
    letters = (picture.min(axis=2) > 140) & plate  # more white than the blue below
    assert ink_on(colour(0)) == (255, 255, 255)
    assert letters.any(axis=0).sum() > 2 * height
    column = where(bare, colour(0))[:, round(0.45 * longer)]
    thick = column.sum() // 2
    assert thick >= 2
    assert 1 / 500 < thick / longer < 1 / 200


def test_many_labels_are_smaller_but_not_too_small_to_be_read() -> None:
    def plate(n: int) -> int:
        """The commonest height of a plate."""
        corners = np.random.default_rng(0).uniform(0, 1400, (n, 2))
        boxes = np.concatenate([corners, corners + 90], axis=1)
        picture = drawn(grey(1500, 1500), boxes, ["red cell 0.91"] * n, [0] * n)
        columns = where(picture, colour(0)).T
        runs = [len([*run]) for column in columns for on, run in itertools.groupby(column) if on]
        return int(np.bincount([run for run in runs if run > 8]).argmax())

    assert LEAST_LETTERS <= plate(120) < plate(4)


def test_a_crowd_is_not_hidden_by_its_labels() -> None:
    """One label of each class, and of the others those that have a place of their own."""
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 590, (200, 2))
    boxes = np.concatenate([corners, corners + 10], axis=1)
    classes = [0] * 150 + [1] * 50
    picture = grey(600, 600)
    bare = drawn(picture, boxes, [""] * 200, classes, side=600)
    labelled = drawn(picture, boxes, ["nucleus 97%"] * 200, classes, side=600)
    changed = (bare != labelled).any(axis=2)
    assert 0.01 < changed.mean() < 1.1 * SPARSE
    for k in (0, 1):
        assert (changed & where(labelled, colour(k))).sum() > 200  # a plate of it
    lines = (bare != drawn(picture, np.empty((0, 4)), [], [], side=600)).any(axis=2)
    assert (lines & changed).sum() < 0.15 * lines.sum()


# --- several pictures ---------------------------------------------------------------------------


@hypothesis.settings(max_examples=25)
@hypothesis.given(st.data())
def test_a_contact_sheet_holds_each_picture_whole(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 9))
    shapes = [(data.draw(st.integers(5, 60)), data.draw(st.integers(5, 60))) for _ in range(n)]
    pictures = [np.full((*shape, 3), (i, 10 + i, 250), np.uint8) for i, shape in enumerate(shapes)]
    captions = data.draw(st.lists(st.text(max_size=40), min_size=n, max_size=n))
    sheet = contact_sheet(pictures, captions, data.draw(st.none() | st.integers(1, 12)))
    for i, (height, width) in enumerate(shapes):
        rows, columns = np.nonzero(where(sheet, (i, 10 + i, 250)))
        assert len(rows) == height * width
        assert rows.max() - rows.min() == height - 1
        assert columns.max() - columns.min() == width - 1
    assert (sheet[0] == 255).all()


def test_captions_have_two_lines_and_are_cut() -> None:
    picture = grey(100, 100)

    def inked(caption: str) -> np.ndarray:
        sheet = contact_sheet([picture], [caption])
        below = (sheet[110:] != 255).any(axis=2)
        return np.nonzero(below.any(axis=1))[0]

    assert len(inked("")) == 0
    assert np.ptp(inked("short")) < 20
    assert np.ptp(inked("short\nmore")) > 20
    assert np.ptp(inked("much more words than stand in one line of it")) > 20
    sheet = contact_sheet([picture], ["W" * 200])
    assert (sheet[:, -8:] == 255).all()


def test_two_pictures_stand_side_by_side() -> None:
    left, right = np.full((90, 60, 3), 10, np.uint8), np.full((90, 60, 3), 20, np.uint8)
    sheet = beside(left, right, ("truth", "found"))
    first, second = (np.nonzero((sheet == level).all(axis=2)) for level in (10, 20))
    assert first[0].min() == second[0].min()
    assert first[1].max() < second[1].min()


def test_pictures_of_a_sheet_can_be_brought_to_one_size() -> None:
    sheet = contact_sheet([grey(10, 20), grey(200, 100)], ["", ""], columns=1, side=50)
    assert where(sheet, (GREY,) * 3).sum() == 25 * 50 + 50 * 25


def test_an_empty_sheet_is_refused() -> None:
    with pytest.raises(InputError, match="no picture"):
        contact_sheet([], [])


def test_drawing_needs_no_torch() -> None:
    code = "import sys, skipway.drawing; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
