"""Augmentation against plain loops over images, Pillow, and the distributions that it promises."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from skipway.data import Key, augment
from skipway.data.augment import erased, mixed, pad_crop_flip, random_resized_crop

Box = tuple[float, float, float, float]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pixels(height: int, width: int, channels: int = 3, kind: type = np.uint8) -> np.ndarray:
    rng = np.random.default_rng((height, width))
    return rng.integers(0, np.iinfo(kind).max + 1, (height, width, channels), kind)


# --- pad, crop, mirror ------------------------------------------------------------------------


def reference(image: np.ndarray, draws: np.ndarray, pad: int, flip: bool) -> np.ndarray:
    """He et al. 2015, section 4.2, for one image [C, H, W]."""
    _, height, width = image.shape
    top, left = int(draws[0] * (2 * pad + 1)), int(draws[1] * (2 * pad + 1))
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    cropped = padded[:, top : top + height, left : left + width]
    return cropped[:, :, ::-1] if flip and draws[2] < 0.5 else cropped


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    st.integers(0, 5),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**40),
)
def test_against_a_loop_over_images(
    shape: tuple[int, int, int, int], pad: int, flip: bool, last: bool, seed: int
) -> None:
    images = noise(*shape)
    index = np.random.default_rng(seed).integers(0, 2**40, len(images))
    x = torch.from_numpy(images)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    found = pad_crop_flip(x, Key(seed, 3, index), pad, flip)
    draws = [Key(seed, 3, int(i)).uniform(3) for i in index]
    expected = [reference(*pair, pad, flip) for pair in zip(images, draws, strict=True)]
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), np.stack(expected))
    assert np.array_equal(x.numpy(), images)  # the input stays


def test_the_batch_does_not_matter() -> None:
    images, index = torch.from_numpy(noise(7, 3, 8, 8)), np.arange(7)
    whole = pad_crop_flip(images, Key(1, 2, index), 2, True)
    parts = [
        pad_crop_flip(images[part], Key(1, 2, index[part]), 2, True)
        for part in (slice(0, 3), slice(3, 4), slice(4, 7))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(pad_crop_flip(images, Key(1, 3, index), 2, True), whole)


def test_the_border_is_the_mean() -> None:
    """Normalised pixels that equal the mean are zero, and so is the padding."""
    found = pad_crop_flip(torch.full((500, 1, 4, 4), 2.0), Key(0, 0, np.arange(500)), 3, True)
    assert set(found.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(
        pad_crop_flip(torch.zeros(500, 1, 4, 4), Key(0, 0, np.arange(500)), 3, True),
        torch.zeros(500, 1, 4, 4),
    )


def test_every_offset_and_mirror_is_equally_likely() -> None:
    n, pad = 9800, 3
    spot = torch.zeros(1, 1, 9, 9)
    spot[0, 0, 4, 4], spot[0, 0, 4, 5] = 1.0, 0.5  # the half is on the right, or mirrored the left
    found = pad_crop_flip(spot.expand(n, 1, 9, 9), Key(0, 0, np.arange(n)), pad, True)
    images, _, y, x = (found == 1).nonzero().T
    assert images.tolist() == list(range(n))
    mirrored = found[images, 0, y, x - 1] == 0.5
    assert ((found[images, 0, y, x + 1] == 0.5) != mirrored).all()
    assert stats.binomtest(int(mirrored.sum()), n).pvalue > 0.001
    counts = np.zeros((2, 9, 9))
    np.add.at(counts, (mirrored.long().numpy(), y.numpy(), x.numpy()), 1)
    assert counts[:, 1:8, 1:8].sum() == n
    assert stats.chisquare(counts[:, 1:8, 1:8].ravel()).pvalue > 0.001


def test_nothing_asked_changes_nothing() -> None:
    x = torch.from_numpy(noise(3, 3, 5, 6))
    assert torch.equal(pad_crop_flip(x, Key(0, 0, np.arange(3)), 0, False), x)


# --- random resized crops ---------------------------------------------------------------------


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Box]]:
    """The parts that are cut out of images of some size, by key, without resizing."""
    seen: list[Box] = []

    def note(image: np.ndarray, size: tuple[int, int], interpolation: str, box: Box) -> np.ndarray:
        seen.append(box)
        return image

    def found(
        height: int, width: int, n: int, area: tuple[float, float], seed: int = 0
    ) -> list[Box]:
        seen.clear()
        image = np.zeros((height, width, 1), np.uint8)
        with monkeypatch.context() as patch:
            patch.setattr(augment, "resize", note)
            for i in range(n):
                random_resized_crop(image, (8, 8), Key(seed, 0, i), area, "bilinear")
        return list(seen)

    return found


def test_area_aspect_and_place_are_uniform(boxes: Callable[..., list[Box]]) -> None:
    """1409.4842, section 6: area uniform, aspect ratio in 3/4..4/3 (its logarithm uniform)."""
    left, top, right, bottom = np.array(boxes(3000, 3000, 3000, (0.2, 0.6))).T
    width, height = right - left, bottom - top
    area = width * height / 3000**2
    assert stats.kstest(area, stats.uniform(0.2, 0.4).cdf).pvalue > 0.001
    ratio = np.log(width / height)
    span = np.log(4 / 3)
    assert stats.kstest(ratio, stats.uniform(-span, 2 * span).cdf).pvalue > 0.001
    for low, free in ((left, 3000 - width), (top, 3000 - height)):
        assert stats.kstest(low / (free + 1), "uniform").pvalue > 0.001
    columns = np.corrcoef([area, ratio, left / (3001 - width), top / (3001 - height)])
    assert np.abs(columns[~np.eye(4, dtype=bool)]).max() < 4 / np.sqrt(3000)


def test_mirrored_images_are_cropped_like_the_others(boxes: Callable[..., list[Box]]) -> None:
    """One key serves the crop and, later in the batch, the mirror: draws must not be shared."""
    n = 2000
    left, top, right, bottom = np.array(boxes(1000, 1000, n, (0.2, 0.6))).T
    spot = torch.zeros(n, 1, 1, 2)
    spot[..., 0] = 1
    mirrored = pad_crop_flip(spot, Key(0, 0, np.arange(n)), 0, True)[:, 0, 0, 1].numpy() == 1
    assert 0.45 < mirrored.mean() < 0.55
    for column in (top / (1001 - bottom + top), left / (1001 - right + left), right - left):
        assert stats.ks_2samp(column[mirrored], column[~mirrored]).pvalue > 0.001
    padded = pad_crop_flip(torch.ones(n, 1, 9, 9), Key(0, 0, np.arange(n)), 4, False)
    rows = padded[:, 0].amax(2).sum(1).numpy()  # rows of the image that stayed: by the offset
    area = (right - left) * (bottom - top)
    assert abs(np.corrcoef(rows, area)[0, 1]) < 4 / np.sqrt(n)


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from([(0.08, 1.0), (1.0, 1.0), (0.001, 0.002)]),
    st.integers(0, 2**40),
)
def test_the_part_lies_in_the_image(
    height: int, width: int, area: tuple[float, float], seed: int
) -> None:
    seen: list[Box] = []

    def note(image: np.ndarray, size: tuple[int, int], interpolation: str, box: Box) -> np.ndarray:
        seen.append(box)
        return image

    image = np.broadcast_to(np.zeros((1, 1, 1), np.uint8), (height, width, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "resize", note)
        random_resized_crop(image, (8, 8), Key(seed, 0, 0), area, "bilinear")
    ((left, top, right, bottom),) = seen
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    if min(height, width) > 1 and min(w, h) > 20:  # below, whole pixels leave no such choice
        assert 0.75 * 0.95 <= w / h <= 4 / 3 * 1.05
        assert w * h <= area[1] * height * width * 1.1 or area == (1.0, 1.0)


@pytest.mark.parametrize(
    ("height", "width", "part"),
    [
        (100, 10_000, (100, 133)),  # the largest of ratio 4/3
        (10_000, 100, (133, 100)),  # of 3/4
        (1, 5000, (1, 1)),
        (5000, 1, (1, 1)),
        (1, 1, (1, 1)),
    ],
)
def test_images_too_long_for_any_part_give_their_centre(
    boxes: Callable[..., list[Box]], height: int, width: int, part: tuple[int, int]
) -> None:
    for left, top, right, bottom in boxes(height, width, 20, (0.9, 1.0)):
        assert (bottom - top, right - left) == part
        assert abs((left + right) - width) <= 1
        assert abs((top + bottom) - height) <= 1


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1000))
def test_pixels_against_pillow(height: int, width: int, seed: int) -> None:
    image, key, seen = pixels(height, width), Key(seed, 1, 5), []
    real = augment.resize

    def note(*arguments: object) -> np.ndarray:
        seen.append(arguments[3])
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "resize", note)
        found = random_resized_crop(image, (24, 16), key, (0.2, 1.0), "bilinear")
    expected = Image.fromarray(image).resize((16, 24), Image.Resampling.BILINEAR, box=seen[0])
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.asarray(expected))
    # The same key, the same image; another repeat, epoch or index, another part.
    assert np.array_equal(random_resized_crop(image, (24, 16), key, (0.2, 1.0), "bilinear"), found)


def test_keys_give_parts_of_their_own(boxes: Callable[..., list[Box]]) -> None:
    assert len(set(boxes(500, 500, 200, (0.1, 1.0)))) > 190
    assert boxes(500, 500, 20, (0.1, 1.0), seed=1) != boxes(500, 500, 20, (0.1, 1.0), seed=2)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(3, 1), (1, 600), (37, 53)])
def test_size_and_type_of_the_result(channels: int, kind: type, size: tuple[int, int]) -> None:
    image = pixels(*size, channels, kind)
    found = random_resized_crop(image, (16, 20), Key(0, 0, 0), (0.08, 1.0), "bicubic")
    assert found.shape == (16, 20, channels)
    assert found.dtype == kind


# --- erasing and mixing -----------------------------------------------------------------------


def test_erased_rectangles_are_of_the_sizes_and_as_many_as_promised() -> None:
    x = torch.ones(4000, 1, 32, 24)
    key = Key(1, 2, np.arange(4000))
    found = erased(x.clone(), key, 0.25)
    gone = (found == 0).flatten(1).sum(1)
    hit = gone[gone > 0]
    assert abs(len(hit) / 4000 - 0.25) < 0.03
    share = hit / (32 * 24)
    assert 0.015 < share.min() < 0.04
    assert 0.30 < share.max() < 0.36
    assert abs(share.mean() - 0.17) < 0.02
    for image in found[gone > 0][:50, 0]:  # one rectangle each
        rows, columns = (image == 0).any(1), (image == 0).any(0)
        assert int((image == 0).sum()) == int(rows.sum()) * int(columns.sum())
        ratio = int(rows.sum()) / int(columns.sum())
        assert 0.2 < ratio < 4.5
    again = erased(x[7:9].clone(), Key(1, 2, np.arange(7, 9)), 0.25)
    assert torch.equal(again, found[7:9])  # of its own key, whatever its batch


def test_mixup_is_a_mean_and_cutmix_a_rectangle() -> None:
    x = torch.arange(6.0)[:, None, None, None].expand(6, 2, 20, 30).clone()
    shares = []
    for epoch in range(400):
        key = Key(0, epoch, np.arange(6))
        found, share = mixed(x, key, 0.4, 0.0)
        expected = share * x + (1 - share) * x.roll(-1, 0)
        torch.testing.assert_close(found, expected)
        shares.append(share)
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    for epoch in range(200):
        found, share = mixed(x, Key(0, epoch, np.arange(6)), 0.0, 1.0)
        for i, image in enumerate(found):
            other = image == (i + 1) % 6
            assert torch.equal(image == i, ~other)
            rows, columns = other[0].any(1), other[0].any(0)
            assert int(other[0].sum()) == int(rows.sum()) * int(columns.sum())
            assert 1 - float(other.float().mean()) == pytest.approx(share)
    assert x[0, 0, 0, 0] == 0  # the batch itself is left as it was


def test_of_both_each_is_taken_half_of_the_time_and_by_the_key() -> None:
    x = torch.randn(4, 1, 8, 8)
    blended = 0
    for epoch in range(300):
        key = Key(5, epoch, np.array([9, 2, 4, 7]))
        found, share = mixed(x, key, 1.0, 1.0)
        again, same = mixed(x, key, 1.0, 1.0)
        assert torch.equal(found, again)
        assert share == same
        own = torch.isclose(found, x).float().mean()
        blended += bool(own < 0.01) and share > 0.02
    assert 110 < blended < 190
