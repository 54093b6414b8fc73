"""What reading the images of a run gave, kept with it: as good as reading again, and only then."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import writers
from commands import draw
from skipway.data import open_data
from skipway.training import reading
from skipway.training.plan import Plan, make_plan
from skipway.training.prepare import prepare

CLASSES = ("cat", "dog")
FORMS = writers.forms(writers.content(), CLASSES)
RESIDENT = [True, False]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading that takes long enough for pixels to be kept."""
    monkeypatch.setattr(reading, "SLOW", -1.0)


def planned(place: Path, resident: bool, **more: Any) -> Plan:
    given = {"threads": 1, "data.workers": 0, "data.resident": resident}
    return make_plan(str(draw(place / "data", CLASSES, n=12)), given | more)


def read(plan: Plan, run: Path | None = None) -> reading.Reading:
    found = prepare(plan, run=run).reading
    assert found is not None
    return found


def kept(plan: Plan, run: Path) -> reading.Reading:
    """What is read first, kept in that run."""
    run.mkdir()
    found = read(plan)
    found.keep(run)
    return found


def assert_equal(a: reading.Reading, b: reading.Reading) -> None:
    assert a.stamps == b.stamps
    assert a.frames.keys() == b.frames.keys()
    assert a.scans.keys() == b.scans.keys()
    for name, frames in a.frames.items():
        assert frames.dtype == b.frames[name].dtype
        assert np.array_equal(frames, b.frames[name])
    for name, found in a.scans.items():
        sound = np.setdiff1d(np.arange(len(found.digests)), [i for i, _ in found.failed])
        assert np.array_equal(found.digests[sound], b.scans[name].digests[sound])
        assert found.failed == b.scans[name].failed


def refuse(*_: object) -> Any:
    raise AssertionError("images are read again")


@pytest.mark.parametrize("resident", RESIDENT)
def test_what_is_kept_is_not_read_again(
    resident: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: None
) -> None:
    plan = planned(tmp_path, resident, **{"data.on_bad": "skip"})
    first = sorted((tmp_path / "data" / "cat").iterdir())[0]
    first.write_bytes(first.read_bytes()[:60])
    before = kept(plan, tmp_path / "run")
    assert sum(len(found.failed) for found in before.scans.values()) == 1
    monkeypatch.setattr(reading, "scan", refuse)
    monkeypatch.setattr(reading, "decode_all", refuse)
    again = read(plan, tmp_path / "run")
    assert_equal(before, again)
    assert again.seconds == 0
    written = (tmp_path / "run" / reading.KEPT).stat()
    again.keep(tmp_path / "run")  # it is there
    assert (tmp_path / "run" / reading.KEPT).stat().st_mtime_ns == written.st_mtime_ns


def test_pixels_that_are_quick_to_read_are_not_kept(tmp_path: Path) -> None:
    plan = planned(tmp_path, True)
    kept(plan, tmp_path / "run")
    with np.load(tmp_path / "run" / reading.KEPT) as held:
        assert not [name for name in held if "frames" in name]
    assert read(plan, tmp_path / "run").seconds > 0


@pytest.mark.parametrize("resident", RESIDENT)
def test_touched_files_are_read_again_and_are_as_they_were(
    resident: bool, tmp_path: Path, slow: None
) -> None:
    plan = planned(tmp_path, resident)
    before = kept(plan, tmp_path / "run")
    for path in (tmp_path / "data").rglob("*.png"):
        os.utime(path)
    again = read(plan, tmp_path / "run")
    assert again.seconds > 0
    assert again.stamps != before.stamps
    for name, found in before.scans.items():
        assert np.array_equal(found.digests, again.scans[name].digests)


@pytest.mark.parametrize("resident", RESIDENT)
@pytest.mark.parametrize("how", ["other pixels", "not an image", "repaired"])
def test_another_image_under_the_same_name_is_refused(
    how: str, resident: bool, tmp_path: Path, slow: None
) -> None:
    plan = planned(tmp_path, resident, **{"data.on_bad": "skip"})
    one, two, three, *_ = sorted((tmp_path / "data" / "dog").iterdir())
    if how == "repaired":
        whole = one.read_bytes()
        one.write_bytes(whole[:60])
    kept(plan, tmp_path / "run")
    if how == "repaired":
        one.write_bytes(whole)
    elif how == "other pixels":
        shutil.copy(three, one)
        shutil.copy(three, two)
    else:
        one.write_bytes(one.read_bytes()[:60])
    text = writers.error_of(lambda: read(plan, tmp_path / "run"))
    others = " and 1 others" if how == "other pixels" else ""
    assert f"dog/{one.name}{others} in {tmp_path / 'data'} changed" in text.replace(
        two.name, one.name
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path, bytes, reading.Reading]:
    place = tmp_path_factory.mktemp("whole")
    plan = planned(place, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "SLOW", -1.0)
        found = kept(plan, place / "run")
    return plan, place / "run", (place / "run" / reading.KEPT).read_bytes(), found


@settings(max_examples=150)
@given(data=st.data())
def test_what_is_damaged_is_not_believed(
    data: st.DataObject, whole: tuple[Plan, Path, bytes, reading.Reading]
) -> None:
    """Bits flipped anywhere, or the end cut off: the images are read again, or nothing is wrong."""
    plan, run, content, found = whole
    damaged = bytearray(content)
    if data.draw(st.booleans()):
        for bit in data.draw(st.sets(st.integers(0, 8 * len(content) - 1), min_size=1)):
            damaged[bit // 8] ^= 1 << bit % 8
    else:
        del damaged[data.draw(st.integers(0, len(content) - 1)) :]
    (run / reading.KEPT).write_bytes(damaged)
    assert_equal(found, read(plan, run))


@pytest.mark.parametrize("form", FORMS)
def test_a_stamp_tells_whether_what_is_read_may_have_changed(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every form: the same stamps when it is opened again, others when it is written anew."""
    path = FORMS[form](tmp_path, monkeypatch)

    def stamps() -> list[bytes]:
        splits = open_data(str(path)).splits.values()
        return [split.reader.stamp(split.names) for split in splits]

    before = stamps()
    assert stamps() == before
    assert all(len(stamp) == 32 for stamp in before)
    other = writers.content()
    other["train"][0][0, 0, 0] ^= 1
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    assert writers.forms(other, CLASSES)[form](tmp_path, monkeypatch) == path
    assert stamps()[0] != before[0]


def test_a_copy_with_the_times_of_the_old_is_noticed(tmp_path: Path) -> None:
    """`cp -p` and `touch -r` set the time of writing."""
    data = draw(tmp_path / "data", CLASSES)

    def stamp() -> bytes:
        split = open_data(str(data)).splits["train"]
        return split.reader.stamp(split.names)

    before = stamp()
    split = open_data(str(data)).splits["train"]
    path = data / split.names[0]
    was = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert path.stat().st_size == was.st_size
    assert path.stat().st_mtime_ns == was.st_mtime_ns
    assert stamp() != before
