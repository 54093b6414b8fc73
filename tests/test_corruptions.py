"""Corruptions of images: each by its definition, for every kind of pixels."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from skipway.data import Key
from skipway.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupted, mean_accuracy

KEY = Key(3, 0, 7)


def photo(side: int = 224, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth, with edges, and neither dark nor bright."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(50, 200, (9, 9, channels))
    smooth = ndimage.zoom(coarse, (side / 9, side / 9, 1), order=1)[:side, :side]
    return np.clip(np.rint(smooth), 0, 255).astype(np.uint8)


def far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("side", "channels"), [(32, 1), (32, 3), (64, 4), (224, 3)])
def test_the_contract_of_all(name: str, side: int, channels: int) -> None:
    image = photo(side, channels)
    before = image.copy()
    distances = []
    for severity in range(1, SEVERITIES + 1):
        found = corrupted(image, name, severity, KEY)
        assert found.shape == image.shape
        assert found.dtype == np.uint8
        assert np.array_equal(found, corrupted(image, name, severity, Key(3, 0, 7)))
        if channels == 4:
            assert np.array_equal(found[..., 3], image[..., 3])
        distances.append(far(found, image))
    assert np.array_equal(image, before)
    assert distances == sorted(distances)  # each severity is worse
    assert 0 < distances[0] < distances[-1] < 128


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_sixteen_bits_are_as_eight(name: str) -> None:
    image = photo(48)
    wide = corrupted(image.astype(np.uint16) * 257, name, 3, KEY)
    assert wide.dtype == np.uint16
    assert far(wide / 257, corrupted(image, name, 3, KEY)) < 0.6


def test_noise_has_its_deviation_and_key() -> None:
    grey = np.full((224, 224, 3), 128, np.uint8)
    for severity, deviation in zip((1, 3), (0.06, 0.15), strict=True):
        found = corrupted(grey, "gaussian noise", severity, KEY).astype(float)
        assert found.mean() == pytest.approx(128, abs=0.5)
        assert found.std() == pytest.approx(255 * deviation, rel=0.02)
    small = np.full((56, 56, 3), 128, np.uint8)  # a quarter: half the noise
    assert corrupted(small, "gaussian noise", 3, KEY).astype(float).std() == pytest.approx(
        255 * 0.075, rel=0.04
    )
    mine = corrupted(grey, "gaussian noise", 1, KEY)
    for other in (Key(3, 0, 8), Key(4, 0, 7)):
        there = corrupted(grey, "gaussian noise", 1, other)
        assert abs(np.corrcoef(mine.ravel(), there.ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("side", [32, 112, 224])
def test_blur_against_scipy(side: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (side, side + 9, 3), np.uint8)
    for severity, deviation in ((1, 1), (5, 4)):
        sigma = deviation * (side / 224) ** 0.5
        expected = ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="reflect")
        found = corrupted(image, "gaussian blur", severity, KEY)
        assert np.abs(found - expected).max() <= 0.51


def test_brightness_raises_the_value_alone() -> None:
    image = np.array([[[200, 100, 40], [0, 0, 0], [250, 250, 250], [10, 60, 30]]], np.uint8)
    found = corrupted(image, "brightness", 2, KEY)
    for before, after in zip(image[0], found[0], strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(before / 255))
        expected = np.array(colorsys.hsv_to_rgb(h, s, min(v + 0.2, 1))) * 255
        assert np.abs(after - expected).max() <= 0.51


def test_contrast_keeps_the_mean() -> None:
    image = photo()
    found = corrupted(image, "contrast", 4, KEY).astype(float)
    assert found.mean(axis=(0, 1)) == pytest.approx(image.mean(axis=(0, 1)), abs=0.5)
    assert found.std(axis=(0, 1)) == pytest.approx(0.2 * image.std(axis=(0, 1)), rel=0.03)


def test_jpeg_is_pillows() -> None:
    image = np.random.default_rng(1).integers(0, 256, (224, 224, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=25)
    assert np.array_equal(corrupted(image, "jpeg", 3, KEY), np.asarray(Image.open(buffer)))


def test_the_mean_is_over_all_with_an_interval_over_images() -> None:
    rng = np.random.default_rng(0)
    right = rng.random((5, 5, 400)) < np.linspace(0.2, 0.9, 400)
    mean, (low, high) = mean_accuracy(right)
    assert mean == pytest.approx(right.mean())
    by_image = right.mean(axis=(0, 1))
    half = 1.96 * by_image.std() / 20
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.25 * half)
    assert mean_accuracy(np.ones((5, 5, 40), bool)) == (1, None)  # no more certain than that
    assert mean_accuracy(right[:, :, :2])[1] is None
