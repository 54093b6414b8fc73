"""ImageNet as it is unpacked, and models that know it by human names."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
from scipy.io import savemat
from torchvision.datasets import imagenet as peer
from torchvision.models._meta import _IMAGENET_CATEGORIES as NAMES

import writers
from skipway.data import open_data, open_split
from skipway.data.forms.imagenet import in_models_order
from skipway.errors import InputError

WNIDS = tuple(timm.data.ImageNetInfo().label_names())
"""The 1,000 of ILSVRC 2012, from timm's own list."""
SOME = WNIDS[:3]
MADE = writers.content(train=9, test=6, classes=3, side=8)
HELD = writers.files(MADE, SOME)
TRAIN = {n.replace(".png", ".JPEG"): d for n, d in HELD.items() if n.startswith("train")}
VAL = [
    (f"ILSVRC2012_val_{i:08}", name.split("/")[1], data)
    for i, (name, data) in enumerate(sorted(HELD.items(), key=lambda item: item[0][-7:]), 1)
    if name.startswith("test")
]


def error_of(action: Any) -> str:
    with pytest.raises(InputError) as error:
        action()
    assert len(str(error.value).splitlines()) <= 3
    return str(error.value)


def laid_out(base: Path) -> Path:
    """Class folders for training, all of validation in one folder."""
    val = {f"val/{name}.JPEG": data for name, _, data in VAL}
    return writers.folder(base, TRAIN | val)


def solution(path: Path, rows: Iterable[tuple[str, str]] | None = None) -> None:
    """As Kaggle's competition gives it: an id and a box for each object."""
    if rows is None:
        rows = [(name, f"{wnid} 1 2 3 4 {wnid} 5 6 7 8 ") for name, wnid, _ in VAL[::-1]]
    writers.table(path, rows, ("ImageId", "PredictionString"))


def devkit(place: Path) -> None:
    """Numbers of the classes are in no order of the WordNet ids; a synset has children."""
    place.mkdir(parents=True)
    ids = {"n00000001": 4} | dict(zip(SOME, (3, 1, 2), strict=True))
    kind = [
        ("ILSVRC2012_ID", "O"),
        ("WNID", "O"),
        ("words", "O"),
        ("gloss", "O"),
        ("num_children", "O"),
    ]
    synsets = np.array(
        [(number, wnid, "a, b", "x", 3 * (number == 4)) for wnid, number in ids.items()], kind
    )
    savemat(place / "meta.mat", {"synsets": synsets})
    last = max(int(name[-8:]) for name, _, _ in VAL)
    truth = {int(name[-8:]): ids[wnid] for name, wnid, _ in VAL}
    lines = [str(truth.get(i, 1)) for i in range(1, last + 1)]
    (place / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(lines) + "\n")


def assert_right(path: Path) -> None:
    data = open_data(str(path))
    assert data.classes == SOME
    assert list(data.splits) == ["train", "val"]
    truth = {f"val/{name}.JPEG": wnid for name, wnid, _ in VAL}
    val = data.splits["val"]
    assert {n: SOME[y] for n, y in zip(val.names, val.labels, strict=True)} == truth
    train = data.splits["train"]
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert val.image(0, 1).shape == train.image(0, 1).shape == (8, 8, 1)
    name, split, classes = open_split(str(path), None, SOME[::-1], 0, "auto")
    assert (name, classes) == ("val", SOME[::-1])
    assert [SOME[::-1][y] for y in split.labels] == [truth[n] for n in split.names]
    assert split.notes == ()


@pytest.mark.parametrize("given", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC"])
@pytest.mark.parametrize("beside", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_as_kaggle_unpacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, beside: str
) -> None:
    base = laid_out(tmp_path / "ILSVRC/Data/CLS-LOC")
    writers.folder(
        base, {"test/ILSVRC2012_test_00000001.JPEG": HELD["test/" + SOME[0] + "/000.png"]}
    )
    solution(tmp_path / beside / "LOC_val_solution.csv")
    assert_right(tmp_path / given)
    assert "the test images have no labels and are left out" in open_data(str(tmp_path)).notes
    monkeypatch.chdir(tmp_path / given)
    assert_right(Path("."))


@pytest.mark.parametrize("place", ["ILSVRC2012_devkit_t12/data", ""])
def test_with_the_development_kit(tmp_path: Path, place: str) -> None:
    laid_out(tmp_path)
    devkit(tmp_path / "kit")
    for file in (tmp_path / "kit").iterdir():
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        file.rename(tmp_path / place / file.name)
    (tmp_path / "kit").rmdir()
    assert_right(tmp_path)


def test_the_development_kit_is_as_torchvision_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid_out(tmp_path)
    devkit(tmp_path / "ILSVRC2012_devkit_t12/data")
    monkeypatch.setattr(peer, "_verify_archive", lambda *_: None)
    monkeypatch.setattr(
        peer, "extract_archive", lambda _, to: devkit(Path(to) / "ILSVRC2012_devkit_t12/data")
    )
    monkeypatch.setattr(peer, "check_integrity", lambda *_: True)
    peer.parse_devkit_archive(tmp_path)
    wnids = peer.load_meta_file(tmp_path)[1]
    val = open_data(str(tmp_path)).splits["val"]
    for name, label in zip(val.names, val.labels, strict=True):
        assert SOME[label] == wnids[int(name[-13:-5]) - 1]


def test_class_folders_of_validation_are_class_folders(tmp_path: Path) -> None:
    val = {n.replace("test/", "val/"): d for n, d in HELD.items() if n.startswith("test")}
    writers.folder(tmp_path, TRAIN | val)
    data = open_data(str(tmp_path))
    assert data.classes == SOME
    assert len(data.splits["val"]) == 6


def test_labels_that_nothing_tells(tmp_path: Path) -> None:
    laid_out(tmp_path)
    text = error_of(lambda: open_data(str(tmp_path)))
    assert "nothing tells the labels" in text
    assert "LOC_val_solution.csv" in text
    solution(tmp_path / "LOC_val_solution.csv", [(n, f"{w} 1 2 3 4") for n, w, _ in VAL[1:]])
    assert f"{VAL[0][0]}.JPEG: its label is not told" in error_of(lambda: open_data(str(tmp_path)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("ImageId,Label\n", "line 1: the header is not ImageId,PredictionString"),
        ("ImageId,PredictionString\nx,n00000001 1 2 3 4 n00000002 1 2 3 4\n", "line 2"),
        ("ImageId,PredictionString\nx,cat 1 2 3 4\n", "line 2: 'cat 1 2 3 4' is not one class"),
        ("ImageId,PredictionString\nx,\n", "line 2"),
        ("ImageId,PredictionString\nx\n", "line 2"),
    ],
)
def test_a_solution_at_fault(tmp_path: Path, content: str, said: str) -> None:
    laid_out(tmp_path)
    (tmp_path / "LOC_val_solution.csv").write_text(content)
    text = error_of(lambda: open_data(str(tmp_path)))
    assert "LOC_val_solution.csv" in text
    assert said in text


def test_a_development_kit_at_fault(tmp_path: Path) -> None:
    laid_out(tmp_path)
    devkit(tmp_path / "devkit/data")
    truth = tmp_path / "devkit/data/ILSVRC2012_validation_ground_truth.txt"
    before = truth.read_text()
    for line in (b"5", b"4", b"x", b"", b"\xe9"):  # 4 has children: no class of its own
        truth.write_bytes(line + b"\n" + before.encode())
        assert "ground_truth.txt, line 1: no class" in error_of(lambda: open_data(str(tmp_path)))
    (tmp_path / "devkit/data/meta.mat").write_bytes(b"nonsense")
    assert "meta.mat: damaged" in error_of(lambda: open_data(str(tmp_path)))


def test_a_class_that_training_lacks(tmp_path: Path) -> None:
    laid_out(tmp_path)
    rows = [
        (n, "n99999999 1 2 3 4" if i == 0 else f"{w} 1 2 3 4") for i, (n, w, _) in enumerate(VAL)
    ]
    solution(tmp_path / "LOC_val_solution.csv", rows)
    assert "(val): unknown classes: 'n99999999'" in error_of(lambda: open_data(str(tmp_path)))


def test_an_empty_class_folder_of_training_is_told(tmp_path: Path) -> None:
    laid_out(tmp_path)
    solution(tmp_path / "LOC_val_solution.csv")
    (tmp_path / "train" / WNIDS[9]).mkdir()
    assert f"{WNIDS[9]!r}" in error_of(lambda: open_data(str(tmp_path)))


def test_what_is_no_class_of_training_makes_none(tmp_path: Path) -> None:
    laid_out(tmp_path)
    solution(tmp_path / "LOC_val_solution.csv")
    writers.folder(tmp_path / "train", {"cover.JPEG": b"", ".cache/x.JPEG": b""})
    assert_right(tmp_path)
    note = "1 images outside class folders are left out"
    assert note in open_data(str(tmp_path)).notes


def test_a_file_that_the_system_does_not_give_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid_out(tmp_path)
    solution(tmp_path / "LOC_val_solution.csv")
    opened = Path.open

    def refused(self: Path, *arguments: Any, **more: Any) -> Any:
        if self.name == "LOC_val_solution.csv":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *arguments, **more)

    monkeypatch.setattr(Path, "open", refused)
    text = error_of(lambda: open_data(str(tmp_path)))
    assert text == f"{tmp_path / 'LOC_val_solution.csv'}: Permission denied"


# --- a model's 1,000 human names ----------------------------------------------------------------


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Class folders of all 1,000, an image in each."""
    data = writers.png(MADE["train"][0][0])
    place = tmp_path_factory.mktemp("thousand")
    return str(writers.folder(place, {f"val/{wnid}/1.JPEG": data for wnid in WNIDS}))


@pytest.mark.parametrize("style", ["torchvision", "timm", "underscores"])
def test_human_names_are_matched_by_position(thousand: str, style: str) -> None:
    info = timm.data.ImageNetInfo()
    names = {
        "torchvision": list(NAMES),
        "timm": [info.index_to_description(i) for i in range(1000)],
        "underscores": [name.replace(" ", "_") for name in NAMES],
    }[style]
    name, split, classes = open_split(thousand, None, names, 0, "auto")
    assert (name, classes) == ("val", tuple(names))
    assert split.labels.tolist() == list(range(1000))
    assert split.names[207].split("/")[1] == "n02099601"  # golden retriever
    assert "golden retriever" in names[207].replace("_", " ")
    assert "matched by position" in split.notes[0]


def test_ids_are_matched_by_name(thousand: str) -> None:
    _, split, _ = open_split(thousand, None, WNIDS[::-1], 0, "auto")
    assert split.labels.tolist() == list(range(1000))[::-1]
    assert split.notes == ()


def test_anything_else_is_matched_by_name(thousand: str, tmp_path: Path) -> None:
    shuffled = [*NAMES[:1], *NAMES[2:], NAMES[1]]
    others = [f"class {i}" for i in range(1000)]
    for names in (shuffled, others, NAMES[:999], [*NAMES[:-1], WNIDS[0]]):
        text = error_of(lambda n=names: open_split(thousand, None, n, 0, "auto"))
        assert "unknown classes" in text
    few = writers.folder(tmp_path, {f"val/{w}/1.JPEG": b"" for w in WNIDS[:999]})
    assert "unknown classes" in error_of(lambda: open_split(str(few), None, NAMES, 0, "auto"))
    writers.folder(few, {"val/n99999999/1.JPEG": b""})
    assert "unknown classes" in error_of(lambda: open_split(str(few), None, NAMES, 0, "auto"))


def test_the_order_of_the_ids_is_asked_for() -> None:
    assert in_models_order(WNIDS, NAMES)
    assert list(WNIDS) == sorted(WNIDS)
    assert not in_models_order(WNIDS[::-1], NAMES)
