"""Batches: the same images in the same order, whoever decodes them and wherever a run goes on."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor, nn

from skipway.config import AugmentConfig, ScheduleConfig
from skipway.data import Key, Split, open_data
from skipway.data.augment import partner
from skipway.data.feed import (
    Batch,
    DecodedFeed,
    Part,
    ResidentFeed,
    batches,
    decode_all,
    pixel_mean,
    repeated,
    telling_of_a_killed_worker,
    widened,
)
from skipway.data.keyed import permutation
from skipway.data.split import ArrayReader, Names
from skipway.errors import InputError
from skipway.images import Preprocess
from skipway.machine import cores
from skipway.tasks.classify import Classify
from skipway.training.clock import Clock, Schedule
from skipway.training.loop import Loop, in_parts

SIZE = (6, 8)
PREPROCESS = Preprocess(size=SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def noise(i: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images of different sizes in two classes."""
    place = tmp_path_factory.mktemp("images")
    for i in range(23):
        path = place / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(noise(i, 8 + i, 30 - i)))
    return place


@pytest.fixture
def split(folder: Path) -> Split:
    return open_data(str(folder), "none").splits["train"]


def classify(**augmentation: object) -> Classify:
    return Classify(PREPROCESS, AugmentConfig.model_validate(augmentation))


def decoded(
    split: Split,
    task: Classify,
    workers: int = 0,
    batch_size: int = 5,
    seed: int = 3,
    repeats: int = 1,
) -> DecodedFeed:
    work = task.augment, task.collate
    return DecodedFeed(split, 3, *work, batch_size, seed, workers, repeats=repeats)


FAILS = """
import sys
from skipway.data import open_data
from skipway.data.feed import DecodedFeed
from skipway.config import AugmentConfig
from skipway.images import Preprocess
from skipway.tasks.classify import Classify
split = open_data(sys.argv[1], "none").splits["train"]
task = Classify(Preprocess(size=(6, 8), mean=(0.5,) * 3, std=(0.2,) * 3), AugmentConfig())
feed = DecodedFeed(split, 3, task.augment, task.collate, 5, 3, workers=2)
for batch in feed.epoch(0):
    raise KeyError("of the script")
"""


def test_an_error_in_a_script_ends_its_workers_too(folder: Path) -> None:
    """They answer no signal but the last one: the script would wait for them for ever."""
    command = [sys.executable, "-W", "error::UserWarning", "-c", FAILS, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith("KeyError: 'of the script'")


def test_more_workers_than_cores_are_no_warning(split: Split) -> None:
    feed = decoded(split, classify(), workers=cores() + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sum(map(len, feed.epoch(0))) == len(split)


def listed(feed: Iterable[Batch]) -> list[tuple[list[int], torch.Tensor, list[int]]]:
    return [(b.index.tolist(), b.images.clone(), b.targets.tolist()) for b in feed]


def same(some: Iterable[Batch], others: Iterable[Batch]) -> bool:
    here, there = listed(some), listed(others)
    return len(here) == len(there) and all(
        a[0] == b[0] and a[1].dtype == b[1].dtype and torch.equal(a[1], b[1]) and a[2] == b[2]
        for a, b in zip(here, there, strict=True)
    )


# --- bounds of batches ------------------------------------------------------------------------


@given(st.integers(1, 500), st.integers(1, 70))
def test_batches_cover_all_and_none_is_single(n: int, size: int) -> None:
    bounds = batches(n, size)
    assert [i for low, high in bounds for i in range(low, high)] == list(range(n))
    lengths = [high - low for low, high in bounds]
    assert all(length == size for length in lengths[:-1])
    if size > 1 and n > 1:
        assert min(lengths) > 1
    assert max(lengths) <= size + (size > 1)
    joined = n % size == 1 and n > size > 1
    assert len(bounds) == -(-n // size) - joined


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [
        (10, 5, [(0, 5), (5, 10)]),
        (11, 5, [(0, 5), (5, 11)]),
        (12, 5, [(0, 5), (5, 10), (10, 12)]),
        (6, 5, [(0, 6)]),
        (3, 5, [(0, 3)]),
        (1, 5, [(0, 1)]),
        (3, 1, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_batches_by_hand(n: int, size: int, expected: list[tuple[int, int]]) -> None:
    assert batches(n, size) == expected


# --- the two feeds ----------------------------------------------------------------------------


def test_memory_and_decoding_give_the_same(split: Split) -> None:
    task = classify()
    frames, scanned = decode_all(split, PREPROCESS, 2)
    assert scanned.failed == []
    assert frames.shape == (23, *SIZE, 3)
    resident = ResidentFeed(frames, split.labels, 5, 3)
    feed = decoded(split, task)
    assert len(resident) == len(feed) == 23
    for epoch in (0, 1, 7):
        assert same(resident.epoch(epoch), feed.epoch(epoch))
        assert same(resident.epoch(epoch, 2), feed.epoch(epoch, 2))
    assert same(resident.in_order(), feed.in_order())


def test_images_are_those_of_the_split(split: Split) -> None:
    frames, _ = decode_all(split, PREPROCESS, 1)
    for index, images, targets in listed(ResidentFeed(frames, split.labels, 5, 3).epoch(2)):
        assert images.shape == (len(index), 3, *SIZE)
        for i, image, target in zip(index, images, targets, strict=True):
            assert target == split.labels[i]
            expected = PREPROCESS.frame(noise(int(split.names[i][2:4]), *_size(split, i)))[0]
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def _size(split: Split, i: int) -> tuple[int, int]:
    number = int(split.names[i][2:4])
    return 8 + number, 30 - number


@pytest.mark.parametrize("augmentation", [{}, {"area": (0.3, 1.0)}], ids=["plain", "crops"])
def test_workers_change_nothing(split: Split, augmentation: dict[str, object]) -> None:
    task = classify(**augmentation)
    alone, two = decoded(split, task), decoded(split, task, workers=2)
    for epoch in range(2):
        assert same(alone.epoch(epoch), two.epoch(epoch))
    assert same(alone.in_order(), two.in_order())
    assert same(list(alone.epoch(1))[3:], two.epoch(1, 3))  # a resume


def test_the_size_of_batches_changes_no_image(split: Split) -> None:
    task = classify(area=(0.3, 1.0))

    def by_index(batch_size: int) -> dict[int, bytes]:
        return {
            i: image.numpy().tobytes()
            for index, images, _ in listed(decoded(split, task, 0, batch_size).epoch(4))
            for i, image in zip(index, images, strict=True)
        }

    assert by_index(5) == by_index(4) == by_index(23)


@pytest.mark.parametrize("kind", ["resident", "decoded"])
def test_the_order_is_that_of_the_key(split: Split, kind: str) -> None:
    frames, _ = decode_all(split, PREPROCESS, 1)

    def feed(seed: int) -> ResidentFeed | DecodedFeed:
        if kind == "resident":
            return ResidentFeed(frames, split.labels, 5, seed)
        return decoded(split, classify(), seed=seed)

    def order(seed: int, epoch: int, start: int = 0) -> list[int]:
        return [i for b in feed(seed).epoch(epoch, start) for i in b.index.tolist()]

    assert order(3, 4) == permutation(23, 3, 4).tolist()
    assert order(3, 4, 2) == order(3, 4)[10:]
    assert order(3, 4, 5) == []
    assert order(3, 4) != order(3, 5) != order(4, 4)
    assert [i for b in feed(3).in_order() for i in b.index.tolist()] == list(range(23))


def test_evaluation_is_not_augmented(split: Split) -> None:
    assert same(
        decoded(split, classify(area=(0.3, 1.0))).in_order(), decoded(split, classify()).in_order()
    )
    cropped = listed(decoded(split, classify(area=(0.3, 1.0))).epoch(0))
    assert any(
        not torch.equal(a[1], b[1])
        for a, b in zip(cropped, listed(decoded(split, classify()).epoch(0)), strict=True)
    )


def test_crops_are_drawn_by_epoch_and_position(split: Split) -> None:
    feed = decoded(split, classify(area=(0.1, 0.5)), batch_size=23)
    found = {}
    for epoch in (0, 1):
        for index, images, _ in listed(feed.epoch(epoch)):
            found |= {(epoch, i): x for i, x in zip(index, images, strict=True)}
    task = classify(area=(0.1, 0.5))
    for (epoch, i), image in found.items():
        expected, _ = task.augment(split.image(i, 3), 0, Key(3, epoch, i))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
    assert any(not torch.equal(found[0, i], found[1, i]) for i in range(23))


def test_an_epoch_that_was_left_disturbs_no_other(split: Split) -> None:
    """Workers stay, and what they had prepared for the pass before must not be handed out."""
    feed = decoded(split, classify(), workers=2, batch_size=2)
    whole = decoded(split, classify(), batch_size=2)
    left = feed.epoch(0)
    next(iter(left))
    assert same(feed.epoch(1), whole.epoch(1))
    next(iter(feed.in_order()))
    assert same(feed.epoch(2, 4), whole.epoch(2, 4))


def test_a_decoding_process_that_was_killed_is_told(split: Split) -> None:
    feed = decoded(split, classify(), workers=1, batch_size=2)
    found = iter(feed.epoch(0))
    next(found)
    for process in multiprocessing.active_children():
        os.kill(cast(int, process.pid), signal.SIGKILL)

    def train() -> None:
        with telling_of_a_killed_worker():
            for _ in found:
                time.sleep(0.05)  # PyTorch may say so in the middle of a step

    with pytest.raises(InputError, match=r"decodes images was killed.*\n.*fewer --workers"):
        train()


@pytest.mark.parametrize(
    "error",
    [RuntimeError, EOFError, pytest.param(ConnectionResetError, marks=pytest.mark.slow)],
)
def test_what_goes_wrong_in_a_decoding_process_is_told_as_it_is(
    split: Split, error: type[Exception]
) -> None:
    class Broken(Classify):
        def augment(self, image: Any, target: Any, key: Any) -> Any:
            raise error("ours")

    feed = decoded(split, Broken(PREPROCESS, AugmentConfig()), workers=1)
    with pytest.raises(error, match=r"Caught .* in DataLoader worker"):
        list(feed.epoch(0))


def test_parts_of_a_batch_are_of_no_single_image() -> None:
    """But where each is: a network whose last map is of one pixel has then no batch norm."""

    def parts(at_once: int | None, images: int) -> list[int]:
        whole = Batch(torch.zeros(images), torch.zeros(images), np.arange(images))
        return [len(part) for part in in_parts(whole, at_once)]

    assert [len(parts(*of)) for of in ((None, 9), (1, 5), (4, 8), (4, 9))] == [1, 5, 2, 3]
    assert parts(2, 1) == [1]  # of each of several processes, at the end of an epoch
    for at_once in range(2, 9):
        for images in range(2, 40):
            sizes = parts(at_once, images)
            assert min(sizes) >= 2
            assert max(sizes) <= max(at_once, 3)


@pytest.mark.parametrize(
    ("workers", "zipped"),
    [
        (0, False),
        (2, True),
        pytest.param(0, True, marks=pytest.mark.slow),
        pytest.param(2, False, marks=pytest.mark.slow),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, workers: int, zipped: bool) -> None:
    for i in range(8):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = png(noise(i, 20, 20))
        path.write_bytes(content[: len(content) // 2] if i == 5 else content)
    place = str(tmp_path / "data")
    if zipped:
        place = shutil.make_archive(place, "zip", place)
    feed = decoded(open_data(place, "none").splits["train"], classify(), workers, 3)
    for _ in range(2):  # and the workers live on
        with pytest.raises(InputError, match=r"b/5\.png: truncated PNG"):
            list(feed.epoch(0))
        with pytest.raises(InputError, match=r"b/5\.png: truncated PNG"):
            list(feed.in_order())


def test_batches_move_whole() -> None:
    tensor = torch.zeros(2, 3)
    batch = Batch([tensor, tensor], {"boxes": [tensor], "name": "x"}, np.arange(2))
    moved = batch.to(torch.device("meta"))
    assert [x.device.type for x in moved.images] == ["meta", "meta"]
    assert moved.targets["boxes"][0].device.type == "meta"
    assert moved.targets["name"] == "x"
    assert len(moved) == 2


# --- repeated augmentation --------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 9), st.integers(0, 5))
def test_an_epoch_of_copies_is_as_long_as_one_without(n: int, repeats: int, epoch: int) -> None:
    index, repeat = repeated(n, repeats, 3, epoch)
    assert len(index) == len(repeat) == n
    images = permutation(n, 3, epoch)[: -(-n // repeats)]
    assert sorted(set(index.tolist())) == sorted(images.tolist())
    copies = {i: sorted(repeat[index == i].tolist()) for i in images.tolist()}
    last = copies.pop(int(images[-1]))
    assert all(found == list(range(repeats)) for found in copies.values())
    assert last == list(range(len(last)))


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("repeats", [1, 2, 3, 4])
def test_copies_are_dealt_as_timm_deals_them(repeats: int, processes: int) -> None:
    """But for the order of the images: each has its own permutation."""
    n, epoch = 44, 5
    ours = np.argsort(permutation(n, 3, epoch))[repeated(n, repeats, 3, epoch)[0]]
    theirs = torch.argsort(torch.randperm(n, generator=torch.Generator().manual_seed(epoch)))
    for rank in range(processes):
        options = {"num_replicas": processes, "rank": rank, "num_repeats": repeats}
        peer = RepeatAugSampler(range(n), **options, selected_round=0)
        peer.set_epoch(epoch)
        assert Part(rank, processes).of(ours).tolist() == theirs[list(peer)].tolist()


def test_both_feeds_give_the_same_copies_and_each_has_its_key(split: Split) -> None:
    frames, _ = decode_all(split, PREPROCESS, 1)
    resident = ResidentFeed(frames, split.labels, 5, 3, repeats=3)
    plain = decoded(split, classify(), repeats=3)
    task = classify(area=(0.1, 0.5))
    crops = decoded(split, task, repeats=3)
    seen = []
    for a, b, c in zip(resident.epoch(4), plain.epoch(4), crops.epoch(4), strict=True):
        for batch in (b, c):
            assert np.array_equal(a.index, batch.index)
            assert np.array_equal(a.repeat, batch.repeat)
        assert torch.equal(a.images, b.images)
        assert isinstance(c.repeat, np.ndarray)
        for image, i, repeat in zip(c.images, c.index.tolist(), c.repeat.tolist(), strict=True):
            expected, _ = task.augment(split.image(i, 3), 0, Key(3, 4, i, repeat))
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
            seen.append((i, repeat, image.numpy().tobytes()))
    index, repeat = repeated(23, 3, 3, 4)
    assert [s[:2] for s in seen] == list(zip(index.tolist(), repeat.tolist(), strict=True))
    assert len({pixels for *_, pixels in seen}) == 23  # of eight images
    assert resident.steps == plain.steps == 5
    for feed in (resident, crops):
        assert same(list(feed.epoch(4))[2:], feed.epoch(4, 2))  # a resume
    assert same(crops.epoch(1), decoded(split, task, workers=2, repeats=3).epoch(1))


def test_copies_are_in_training_alone(split: Split) -> None:
    frames, _ = decode_all(split, PREPROCESS, 1)
    once, thrice = (ResidentFeed(frames, split.labels, 5, 3, repeats=r) for r in (1, 3))
    task = classify(area=(0.3, 1.0))
    for a, b in ((once, thrice), (decoded(split, task), decoded(split, task, repeats=3))):
        assert same(a.in_order(), b.in_order())
        assert same(a.shuffled(2), b.shuffled(2))
        assert not same(a.epoch(2), b.epoch(2))


@given(st.integers(2, 60), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
def test_processes_see_together_the_copies_that_one_sees(
    n: int, size: int, processes: int, repeats: int
) -> None:
    frames = np.arange(n, dtype=np.uint8)[:, None, None, None]

    def feed(size: int, part: Part) -> ResidentFeed:
        return ResidentFeed(frames, np.arange(n), size, 3, part, repeats)

    several = [feed(size, Part(rank, processes)).epoch(2) for rank in range(processes)]
    if batches(n, size * processes) != batches(n, size, processes):
        return  # the last one is joined to the one before
    for whole, *parts in zip(feed(size * processes, Part()).epoch(2), *several, strict=True):
        for rank, part in enumerate(parts):
            assert np.array_equal(whole.index[rank::processes], part.index)
            assert isinstance(whole.repeat, np.ndarray)
            assert np.array_equal(whole.repeat[rank::processes], part.repeat)


def test_parts_and_moved_batches_keep_which_copy_an_image_is() -> None:
    repeat = np.array([0, 1, 2, 0, 1])
    batch = Batch(torch.zeros(5, 2), torch.zeros(5), np.arange(5), repeat)
    assert np.array_equal(np.concatenate([part.repeat for part in batch.split(2)]), repeat)
    assert np.array_equal(batch.to(torch.device("meta")).repeat, repeat)
    assert [part.repeat for part in Batch(torch.zeros(4), torch.zeros(4), np.arange(4)).split(2)]


def test_the_loop_augments_each_copy_by_its_key() -> None:
    """Through the parts of a batch too."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (11, *SIZE, 3), np.uint8)
    feed = ResidentFeed(frames, np.zeros(11, np.int64), 4, 3, repeats=3)
    seen: list[Tensor] = []

    class Watching(Classify):
        def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
            seen.append(batch.images)
            return super().losses(model, batch)

    augment = AugmentConfig(flip=True, pad_crop=2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE[0] * SIZE[1], 2))
    clock = Clock(feed.steps, feed.steps)
    Loop(
        Watching(PREPROCESS, augment),
        net,
        feed,
        _scaled(torch.optim.SGD(net.parameters(), 0.1)),
        clock,
        Schedule(ScheduleConfig(), clock, 0.1),
        seed=3,
        device=torch.device("cpu"),
        at_once=2,
    ).epoch(lambda _: False)
    task = Classify(PREPROCESS, augment)
    index, repeat = repeated(11, 3, 3, 0)
    for x, i, r in zip(torch.cat(seen), index.tolist(), repeat.tolist(), strict=True):
        one = Batch(feed.frames[i][None].permute(0, 3, 1, 2), torch.zeros(1), np.array([i]))
        expected = task.to_input(one, Key(3, 0, np.array([i]), r)).images[0]
        assert torch.equal(x, expected)


def _scaled(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group["scale"] = 1.0
    return optimizer


@given(st.integers(2, 300), st.integers(2, 64), st.integers(1, 5), st.integers(1, 4))
def test_no_image_is_mixed_with_a_copy_of_itself(
    n: int, size: int, repeats: int, processes: int
) -> None:
    """Where that can be: no image is more than half of the batch."""
    index = Part(0, processes).of(repeated(n, repeats, 3, 0)[0][: size * processes])
    shift = partner(index)
    meets = (np.roll(index, -shift) == index).any()
    possible = any((np.roll(index, -s) != index).all() for s in range(1, len(index)))
    assert meets != possible
    if len(set(index.tolist())) == len(index):
        assert shift == 1  # as without copies
    if possible:
        assert shift <= repeats


def test_batches_that_begin_with_copies_of_one_image_are_mixed_each_in_its_own_way() -> None:
    """As those of several processes do."""
    index = np.array([5, 6])
    firsts = [Key(3, 0, index, np.array([r, 0])).generator().random() for r in range(4)]
    assert len(set(firsts)) == 4
    assert firsts[0] == Key(3, 0, index).generator().random()


def test_copies_are_mixed_with_other_images_and_their_labels() -> None:
    frames = torch.arange(4, dtype=torch.uint8).repeat_interleave(3)[:, None, None, None] * 60
    frames = frames.expand(12, 3, *SIZE)
    labels = torch.arange(4).repeat_interleave(3)
    index, repeat = labels.numpy(), np.tile(np.arange(3), 4)
    task = classify(mixup=1.0)
    batch = Batch(frames, labels, index, repeat)
    found = task.to_input(batch, Key(0, 0, index, repeat))
    assert (found.targets.others != found.targets.labels).all()
    share, plain = found.targets.share, task.to_input(batch, None).images
    others = plain[3 * found.targets.others]
    torch.testing.assert_close(found.images, share * plain + (1 - share) * others)


# --- decode_all -------------------------------------------------------------------------------


def in_memory(*images: np.ndarray) -> Split:
    """A split of arrays of any kind and size, as a folder gives them."""

    class Mixed(ArrayReader):
        def read(self, name: str) -> np.ndarray:
            return images[int(name)]

    names = Names(str(i) for i in range(len(images)))
    return Split(Mixed(np.zeros(0)), names, np.zeros(len(images), np.int64))


EIGHT = noise(1, *SIZE)
SIXTEEN = np.random.default_rng(2).integers(0, 65536, (*SIZE, 3), np.uint16)


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0, 1), (1, 1), (0, 0)])
def test_eight_and_sixteen_bits_together(order: tuple[int, ...]) -> None:
    images = [(EIGHT, SIXTEEN)[i] for i in order]
    frames, scanned = decode_all(in_memory(*images), PREPROCESS, 1)
    assert scanned.failed == []
    assert frames.dtype == (np.uint16 if 1 in order else np.uint8)
    expected = np.stack([PREPROCESS.normalise(image) for image in images])
    assert np.allclose(PREPROCESS.normalise(frames), expected, atol=1e-6)


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 1), (0, 0)])
def test_decoded_batches_of_eight_and_sixteen_bits(order: tuple[int, ...]) -> None:
    """An 8-bit image must not turn black because a 16-bit one shares its batch."""
    images = [(EIGHT, SIXTEEN)[i] for i in order]
    task = classify()
    (batch,) = decoded(in_memory(*images), task).in_order()
    expected = np.stack([PREPROCESS.normalise(image) for image in images])
    assert np.allclose(task.to_input(batch, None).images.numpy(), expected, atol=1e-6)


def test_widened_levels_keep_their_brightness() -> None:
    levels = np.arange(256, dtype=np.uint8)
    wide = widened(levels)
    assert wide.dtype == np.uint16
    assert np.allclose(wide / 65535, levels / 255, atol=1e-12)
    assert widened(wide) is wide


@pytest.mark.parametrize("bad", [0, 1, 3])
def test_failures_are_told_by_position(bad: int) -> None:
    images = [EIGHT, SIXTEEN, EIGHT, SIXTEEN]
    images[bad] = np.zeros((2, 2, 2), np.uint8)  # no image has two channels
    frames, scanned = decode_all(in_memory(*images), PREPROCESS, 2)
    assert [i for i, _ in scanned.failed] == [bad]
    assert scanned.failed[0][1].startswith(f"{bad}: ")
    kept = [i for i in range(4) if i != bad]
    expected = np.stack([PREPROCESS.normalise(images[i]) for i in kept])
    assert np.allclose(PREPROCESS.normalise(frames)[kept], expected, atol=1e-6)


def test_threads_change_nothing(split: Split) -> None:
    assert np.array_equal(decode_all(split, PREPROCESS, 1)[0], decode_all(split, PREPROCESS, 4)[0])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_pixel_mean(kind: type) -> None:
    frames = np.random.default_rng(0).integers(0, np.iinfo(kind).max + 1, (7, 4, 5, 3), kind)
    found = pixel_mean(frames)
    assert found.dtype == np.float32
    assert found.shape == (3, 4, 5)
    expected = sum(frame.astype(float) for frame in frames) / 7 / np.iinfo(kind).max
    assert np.allclose(found, expected.transpose(2, 0, 1), atol=1e-7)


# --- the executor on the device ---------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_normalising_on_the_device_is_the_specification(
    kind: type, channels: int, per_pixel: bool
) -> None:
    """To the bit: `Preprocess.normalise` in NumPy is the canonical one."""
    rng = np.random.default_rng(channels)
    frames = rng.integers(0, np.iinfo(kind).max + 1, (5, *SIZE, channels), kind)
    preprocess = Preprocess(
        size=SIZE,
        channels=channels,
        mean=tuple(rng.uniform(0.3, 0.6, channels)),
        std=tuple(rng.uniform(0.1, 0.4, channels)),
    )
    if per_pixel:
        preprocess = preprocess.with_pixel_mean(pixel_mean(frames))
    task = Classify(preprocess, AugmentConfig())
    batch = Batch(torch.from_numpy(frames).permute(0, 3, 1, 2), torch.zeros(5), np.arange(5))
    expected = preprocess.normalise(frames)
    for _ in range(2):  # the second time from kept constants
        found = task.to_input(batch, None).images
        assert found.dtype == torch.float32
        assert np.array_equal(found.numpy(), expected)
    last = batch.images.contiguous(memory_format=torch.channels_last)
    assert np.array_equal(task.normalise(last).numpy(), expected)
    resident = ResidentFeed(frames, np.zeros(5, np.int64), 2, 0)
    parts = [task.to_input(b, None).images for b in resident.in_order()]
    assert np.array_equal(torch.cat(parts).numpy(), expected)


def test_one_task_normalises_both_kinds() -> None:
    """Constants are kept by kind: levels count as 255 or as 65,535."""
    task = classify()
    for image in (EIGHT, SIXTEEN, EIGHT):
        found = task.normalise(torch.from_numpy(image[None]).permute(0, 3, 1, 2))
        assert np.array_equal(found.numpy()[0], PREPROCESS.normalise(image))
