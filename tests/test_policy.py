"""Image operations against torchvision's, on the same Pillow images."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from timm.data.auto_augment import AugmentOp
from torchvision.transforms import InterpolationMode
from torchvision.transforms import autoaugment as peer
from torchvision.transforms import functional as F

from skipway.config import AugmentConfig
from skipway.data import Key
from skipway.data.augment import POLICY
from skipway.data.policy import MOST, OPERATIONS, augmented, jittered, level_of
from skipway.images import Preprocess
from skipway.tasks.classify import Classify

THEIRS = {
    "identity": "Identity", "shear_x": "ShearX", "shear_y": "ShearY",
    "translate_x": "TranslateX", "translate_y": "TranslateY", "rotate": "Rotate",
    "brightness": "Brightness", "colour": "Color", "contrast": "Contrast",
    "sharpness": "Sharpness", "posterize": "Posterize", "solarize": "Solarize",
    "autocontrast": "AutoContrast", "equalize": "Equalize",
}  # fmt: skip
FILL = (124, 116, 104)


def picture(height: int = 61, width: int = 80, channels: int = 3) -> np.ndarray:
    """Smooth, with noise."""
    rng = np.random.default_rng(height)
    coarse = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), 3), int)
    noisy = np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
    return noisy[:, :, :channels]


def test_the_spaces_are_torchvisions() -> None:
    assert THEIRS.keys() == OPERATIONS.keys()
    height, width = 61, 80
    spaces: dict[Any, Any] = {
        "rand": peer.RandAugment()._augmentation_space(MOST + 1, (height, width)),
        "trivial": peer.TrivialAugmentWide()._augmentation_space(MOST + 1),
    }
    for policy, space in spaces.items():
        assert space.keys() == set(THEIRS.values())
        for name, operation in OPERATIONS.items():
            levels, signed = space[THEIRS[name]]
            assert operation.signed == signed, name
            for strength in (0, 7, 15, 22, MOST) if levels.ndim else ():
                expected = float(levels[strength])
                found = level_of(name, policy, strength, (height, width))
                found = {"posterize": 8 - round(found), "solarize": 255 - found}.get(name, found)
                assert found == pytest.approx(expected, abs=1e-4), (policy, name, strength)


LEVELS = [(n, level) for n, o in OPERATIONS.items() for level in (0.0, 0.3, -0.3)[: 2 + o.signed]]


@pytest.mark.parametrize(("name", "level"), LEVELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_operation_is_torchvisions(name: str, channels: int, level: float) -> None:
    scale = {"translate_x": 60, "translate_y": 60, "rotate": 90, "posterize": 10, "solarize": 600}
    operation = OPERATIONS[name]
    level *= scale.get(name, 1)
    image = picture(channels=channels)
    given = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    theirs = {"posterize": 8 - round(level), "solarize": 255 - level}.get(name, level)
    fill = [float(v) for v in FILL[:channels]]
    expected = peer._apply_op(given, THEIRS[name], theirs, InterpolationMode.BILINEAR, fill)
    found = operation.apply(given, level, FILL[:channels])
    a, b = (np.asarray(i, int) for i in (found, expected))
    if name == "solarize":  # they keep a fraction of a level
        assert np.abs(a - b).max() <= 255 * (level > 0)
        a, b = a[a == b], b[a == b]
        assert len(a) > 0.98 * image.size
    assert np.abs(a - b).max() <= 1 + 2 * name.startswith("shear")


def test_rand_applies_so_many_and_trivial_one() -> None:
    image = picture()
    names = list(OPERATIONS)
    draws = np.array(
        [[(names.index(n) + 0.5) / len(names), 0.9, 0.5, 0.5] for n in ("rotate", "colour")]
    )
    rotated = Image.fromarray(image).rotate(9.0, Image.Resampling.BILINEAR, fillcolor=FILL)
    expected = F.adjust_saturation(rotated, 1 + 0.9 * 9 / 30)
    assert np.array_equal(augmented(image, "rand", 9, FILL, draws), np.asarray(expected))
    once = augmented(image, "trivial", 9, FILL, draws[:1])
    expected = Image.fromarray(image).rotate(
        135 * 15 / 30, Image.Resampling.BILINEAR, fillcolor=FILL
    )
    assert np.array_equal(once, np.asarray(expected))
    draws[:, 1] = 0.1  # the other sign
    expected = Image.fromarray(image).rotate(-67.5, Image.Resampling.BILINEAR, fillcolor=FILL)
    assert np.array_equal(augmented(image, "trivial", 9, FILL, draws[:1]), np.asarray(expected))


@given(
    st.integers(0, 2**32), st.sampled_from(["rand", "trivial"]), st.sampled_from([1, 3]),
    st.sampled_from([np.uint8, np.uint16]),
)  # fmt: skip
def test_shapes_stay_and_nothing_fails(seed: int, policy: Any, channels: int, kind: Any) -> None:
    rng = np.random.default_rng(seed)
    shape = (*rng.integers(1, 20, 2), channels)
    image = rng.integers(0, np.iinfo(kind).max + 1, shape, kind)
    before = image.copy()
    found = augmented(image, policy, 30, FILL[:channels], rng.random((3, 4)), 0.7, 9)
    assert (found.shape, found.dtype) == (shape, np.uint8)
    assert jittered(image, 0.9, rng.random(6)).shape == shape
    assert np.array_equal(image, before)


def test_every_operation_and_sign_is_drawn_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[tuple[str, bool], int] = {}
    for name, operation in OPERATIONS.items():

        def record(image: Any, level: float, _: Any, name: str = name) -> Any:
            seen[name, level < 0] = seen.get((name, level < 0), 0) + 1
            return image

        monkeypatch.setitem(OPERATIONS, name, dataclasses.replace(operation, apply=record))
    image = picture(4, 4)
    for i in range(7000):
        augmented(image, "rand", 15, FILL, Key(3, 1, i).uniform(8, POLICY).reshape(-1, 4))
    for name, operation in OPERATIONS.items():
        found = [seen.get((name, sign), 0) for sign in (False, True)]
        assert 850 < sum(found) < 1150, name
        assert 0.4 < found[1] / sum(found) < 0.6 if operation.signed else not found[1], name


def rows(*draws: tuple[str, float, float, float]) -> np.ndarray:
    """Draws that choose these operations."""
    names = list(OPERATIONS)
    return np.array([[(names.index(n) + 0.5) / len(names), *rest] for n, *rest in draws])


def test_an_operation_is_left_out_as_often_as_asked() -> None:
    image = picture()
    twice = rows(("rotate", 0.9, 0.5, 0.6), ("shear_x", 0.9, 0.5, 0.4))
    left = augmented(image, "rand", 9, FILL, twice, 0.5)
    assert np.array_equal(left, augmented(image, "rand", 9, FILL, twice[1:]))
    assert np.array_equal(left, augmented(image, "rand", 9, FILL, twice[1:], 0.41))
    assert np.array_equal(augmented(image, "rand", 9, FILL, twice, 0.4), image)
    one = augmented(image, "trivial", 9, FILL, twice[:1], 0.1, 9)  # of rand alone
    assert np.array_equal(one, augmented(image, "trivial", 9, FILL, twice[:1]))
    assert not np.array_equal(one, image)


@pytest.mark.parametrize(
    ("magnitude", "deviation"), [(7, 0.5), (6, 0.5), (10, 0.5), (1, 2), (5, 0)]
)
def test_probability_and_strength_are_timms(
    monkeypatch: pytest.MonkeyPatch, magnitude: int, deviation: float
) -> None:
    """The strengths of rand-m7-mstd0.5-inc1, which go to 10, as a sample of theirs has them."""
    random.seed(0)
    theirs: list[float] = []
    peer = AugmentOp("ShearX", 0.5, magnitude, {"magnitude_std": deviation, "img_mean": FILL})
    peer.level_fn = lambda strength, _: (theirs.append(strength), (0.0,))[1]
    ours: list[float] = []
    shear = OPERATIONS["shear_x"]

    def record(image: Any, level: float, _: Any) -> Any:
        ours.append(abs(level) / shear.rand * 10)
        return image

    monkeypatch.setitem(OPERATIONS, "shear_x", dataclasses.replace(shear, apply=record))
    image, n = picture(4, 4), 4000
    for i in range(n):
        peer(Image.fromarray(image))
        draws = rows(("shear_x", *Key(3, 0, i).uniform(3, POLICY)))
        augmented(image, "rand", 3 * magnitude, FILL, draws, 0.5, 3 * deviation)
    assert 0.47 < len(ours) / n < 0.53
    assert max(ours) <= 10 + 1e-9
    assert min(ours) >= 0
    if deviation:
        assert stats.ks_2samp(ours, theirs).pvalue > 0.001
        at_ends = [[np.isclose(s, (0, 10)).any() for s in found] for found in (ours, theirs)]
        assert abs(np.mean(at_ends[0]) - np.mean(at_ends[1])) < 0.04
    else:
        assert ours == pytest.approx([magnitude] * len(ours))


@pytest.mark.parametrize("operations", [1, 2, 5])
def test_the_task_draws_whether_and_how_strongly_apart(operations: int) -> None:
    image = picture(12, 12)
    preprocess = Preprocess(size=(12, 12), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))
    config = AugmentConfig(
        policy="rand", operations=operations, magnitude=21, magnitude_std=6,
        operation_probability=0.5,
    )  # fmt: skip
    differ = 0
    for i in range(40):
        key = Key(3, 1, i)
        draws = key.uniform(4 * operations, POLICY)
        table = [[*draws[3 * j : 3 * j + 3], draws[3 * operations + j]] for j in range(operations)]
        expected = augmented(image, "rand", 21, (102, 128, 153), np.array(table), 0.5, 6)
        found, label = Classify(preprocess, config).augment(image, 7, key)
        assert label == 7
        assert np.array_equal(found, expected)
        always = augmented(image, "rand", 21, (102, 128, 153), np.array(table))
        differ += not np.array_equal(found, always)
    assert differ > 10


def test_the_strength_of_a_draw_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A normal distribution is below its mean plus one deviation with probability 0.8413."""
    levels: list[float] = []
    rotate = dataclasses.replace(
        OPERATIONS["rotate"], apply=lambda i, level, _: (levels.append(level), i)[1]
    )
    monkeypatch.setitem(OPERATIONS, "rotate", rotate)
    for strength in (0.5, 0.841344746, 0.158655254, 0.0, 1 - 2.0**-53):
        draws = rows(("rotate", 0.9, strength, 0.0))
        augmented(picture(4, 4), "rand", 20, FILL, draws, 1.0, 2.0)
    assert levels[:3] == pytest.approx([20, 22, 18], abs=1e-6)
    assert 0 <= levels[3] < 10  # 8.3 deviations below
    assert levels[4] == 30  # as much as there is


def test_jitter_is_torchvisions() -> None:
    image = picture()
    draws = np.array([0.7, 0.1, 0.4, 0.9, 0.2, 0.6])  # contrast, then saturation, then brightness
    steps = (
        (F.adjust_contrast, 1 + 0.5 * (2 * 0.2 - 1)),
        (F.adjust_saturation, 1 + 0.5 * (2 * 0.6 - 1)),
        (F.adjust_brightness, 1 + 0.5 * (2 * 0.9 - 1)),
    )
    expected = Image.fromarray(image)
    for change, factor in steps:
        expected = change(expected, factor)
    assert np.array_equal(jittered(image, 0.5, draws), np.asarray(expected))
    assert np.array_equal(jittered(image, 0.0, draws), image)
