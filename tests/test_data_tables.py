"""Tables of paths, and parquets of images: what their writers can do to them."""

from __future__ import annotations

import csv
import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import writers
from skipway.data import open_data, open_split
from skipway.data.forms import find, parquet, rowgroups
from skipway.data.preflight import scan
from skipway.data.split import image_sizes
from skipway.images import DecodeError, verify
from writers import error_of

MADE = writers.content(side=8)
HELD = writers.files(MADE, ("ants", "bees"))
ROWS = [(name, name.split("/")[1]) for name in HELD]
HEADER = ("path", "label")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return writers.folder(tmp_path, HELD)


def labelled(path: Path) -> dict[str, str]:
    data = open_data(str(path), "none")
    split = data.splits["train"]
    return {n: data.classes[y] for n, y in zip(split.names, split.labels, strict=True)}


# --- CSV ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["path", "File", "FILENAME", "file_name", " image "])
@pytest.mark.parametrize("label", ["label", "Class", "target"])
def test_columns_by_their_names(place: Path, file: str, label: str) -> None:
    rows = [(7, label, "x", file) for file, label in ROWS]
    path = writers.table(place / "list.csv", rows, ("id", label, "note", file))
    assert labelled(path) == dict(ROWS)


def test_spaces_behind_separators_are_none_of_the_text(place: Path) -> None:
    lines = [f'{file}, "{label} "' for file, label in ROWS]
    (place / "list.csv").write_text("\n".join(['path, "label"', *lines]))
    assert labelled(place / "list.csv") == dict(ROWS)


@pytest.mark.parametrize("name", ["subset", "Set", "partition", "dataset_split"])
@pytest.mark.parametrize("form", ["csv", "parquet", "parquet of images"])
def test_other_names_of_the_column_of_splits(place: Path, name: str, form: str) -> None:
    """They count where all that is in them are names of splits."""
    for values, splits in (
        (("Train", "test "), {"train": len(ROWS) // 2, "test": len(ROWS) // 2}),
        (("train", "x"), {"train": len(ROWS)}),
    ):
        columns: dict[str, Any] = {
            "path": [file for file, _ in ROWS],
            "label": [label for _, label in ROWS],
            name: [values[i % 2] for i in range(len(ROWS))],
        }
        if form == "csv":
            path = writers.table(
                place / "l.csv", [*zip(*columns.values(), strict=True)], [*columns]
            )
        else:
            if form != "parquet":
                columns["image"] = [HELD[file] for file in columns.pop("path")]
            path = place / "l.parquet"
            pq.write_table(pa.table(columns), path)
        data = open_data(str(path), "none")
        used = "x" not in values
        if used:
            assert {split: len(found) for split, found in data.splits.items()} == splits
        else:
            assert "train" in data.splits
            assert len(find(str(path)).splits["all"]) == len(ROWS)
        if form != "parquet of images":
            assert (f"columns not used: {name}" in data.notes) is not used


def test_columns_that_could_both_tell_splits(place: Path) -> None:
    rows = [(*row, "train", "test") for row in ROWS]
    path = writers.table(place / "list.csv", rows, (*HEADER, "subset", "set"))
    text = error_of(lambda: open_data(str(path)))
    assert text.endswith("list.csv, line 1: subset and set could both be meant")


def test_columns_that_are_not_used_are_told(place: Path) -> None:
    rows = [(i, *row, i % 5, "") for i, row in enumerate(ROWS)]
    path = writers.table(place / "list.csv", rows, ("", *HEADER, "fold", "gr\x1boup"))
    note = open_data(str(path), "none").notes[0]
    assert note.startswith("columns not used: fold, gr")
    assert "\x1b" not in note


def test_spaces_around_labels_in_a_parquet_are_no_class(place: Path) -> None:
    columns = {
        "image": [*HELD.values()],
        "label": [f" {label} "[i % 2 :] for i, (_, label) in enumerate(ROWS)],
    }
    pq.write_table(pa.table(columns), place / "list.parquet")
    assert open_data(str(place / "list.parquet"), "none").classes == ("ants", "bees")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_separators_and_ends_of_lines(place: Path, delimiter: str, mark: str, end: str) -> None:
    lines = [delimiter.join(row) for row in (HEADER, *ROWS)]
    (place / "list.csv").write_text(mark + end.join(lines) + end, "utf-8")
    assert labelled(place / "list.csv") == dict(ROWS)


def test_splits_of_a_table(place: Path) -> None:
    rows = [(n, c, "Validation" if n.startswith("test") else "TRAIN ") for n, c in ROWS]
    data = open_data(str(writers.table(place / "list.csv", rows, (*HEADER, "split"))))
    assert {n: len(s) for n, s in data.splits.items()} == {"train": 12, "val": 6}
    for name, split in data.splits.items():
        folder = "train" if name == "train" else "test"
        assert all(n.startswith(folder) for n in split.names)


def test_the_order_of_rows_does_not_matter(place: Path) -> None:
    one = open_data(str(writers.table(place / "list.csv", ROWS, HEADER)))
    two = open_data(str(writers.table(place / "list.csv", ROWS[::-1], HEADER)))
    assert one.digest() == two.digest()


def test_absolute_paths_are_told(place: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    rows = [(str(place / n) if i < 3 else f"../{n}", c) for i, (n, c) in enumerate(ROWS)]
    data = open_data(str(writers.table(tmp_path / "lists" / "list.csv", rows, HEADER)), "none")
    assert "3 paths are absolute" in data.notes[0]
    split = data.splits["train"]
    assert scan(split, 1, verify).failed == []
    at = split.names[:].index(str(place / "train/ants/002.png"))
    assert np.array_equal(split.image(at, 1)[..., 0], MADE["train"][0][2])


def rows_with(*more: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [ROWS[0], *more, *ROWS[1:]]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (rows_with(("train/ants/x.png", "ants")), "line 3: train/ants/x.png: no such file"),
        (rows_with(("/nowhere/x.png", "ants")), "line 3: /nowhere/x.png: no such file"),
        (rows_with(("train/ants", "ants")), "line 3: train/ants: no such file"),
        (rows_with(("", "ants")), "line 3: no path"),
        (rows_with((ROWS[4][0], " ")), "line 3: no label"),
        (rows_with(("a", "b", "c")), "line 3: 3 fields where the header has 2"),
        (rows_with(("a",)), "line 3: 1 fields where the header has 2"),
        (rows_with(("a\x1b\u202e.png", "b")), "line 3: a\\x1b\\u202e.png: no such file"),
        ([*ROWS, ROWS[0]], "line 20: train/ants/000.png again, first in line 2"),
        ([*ROWS, ("./train/../train/ants/000.png", "bees")], "line 20: ./train/../train/ants/000"),
        ([], "no lines below the header"),
        ([(n, "ants") for n, _ in ROWS], "one class only"),
    ],
)  # fmt: skip
def test_rows_at_fault(place: Path, rows: list[Any], said: str) -> None:
    path = writers.table(place / "list.csv", rows, HEADER)
    text = error_of(lambda: open_data(str(path)))
    assert said in text
    assert "list.csv" in text
    assert text == error_of(lambda: open_data(str(path)))


def test_other_rows_at_fault_are_counted(place: Path) -> None:
    rows = [*ROWS, *((f"{i}.png", "ants") for i in range(9))]
    text = error_of(lambda: open_data(str(writers.table(place / "list.csv", rows, HEADER))))
    assert "line 20: 0.png: no such file" in text
    assert "also at fault: line 21, 22, 23, 24, 25 and 3 more" in text


def test_a_split_that_is_none(place: Path) -> None:
    rows = [(*row, "train" if i else "trian") for i, row in enumerate(ROWS)]
    path = writers.table(place / "list.csv", rows, (*HEADER, "split"))
    assert "line 2: the split 'trian' is none of" in error_of(lambda: open_data(str(path)))


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_labels_that_are_not_in_the_list_are_told_with_their_lines(place: Path, form: str) -> None:
    rows = [
        (n, "wasps" if n == "test/ants/002.png" else c, n.split("/")[0])
        for n, c in sorted(ROWS, reverse=True)
    ]
    number = [n for n, _, _ in rows].index("test/ants/002.png") + 1
    if form == "csv":
        path = writers.table(place / "list.csv", rows, (*HEADER, "split"))
        said = f"'wasps' (line {number + 1})"
    else:
        columns = dict(zip((*HEADER, "split"), map(list, zip(*rows, strict=True)), strict=True))
        path = place / "list.parquet"
        pq.write_table(pa.table(columns), path)
        said = f"'wasps' (row {number})"
    assert f"(test): unknown classes: {said}" in error_of(lambda: open_data(str(path)))
    assert said in error_of(lambda: open_split(str(path), "test", ("ants", "bees"), 0, "auto"))
    found = open_split(str(path), "test", ("wasps", "bees", "ants"), 0, "auto")[1]
    assert found.labels.tolist().count(0) == 1


def test_the_classes_of_the_model_in_a_table_without_splits(place: Path) -> None:
    path = str(writers.table(place / "list.csv", ROWS, HEADER))
    text = error_of(lambda: open_split(path, "test", ("bees",), 0, "auto"))
    assert "'ants' (line 2 and others)" in text
    assert len(open_split(path, "test", ("bees", "ants"), 0, "auto")[1]) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,b\nx,y\n", "its first line does not name a path and a label: 'a,b'"),
        (b"", "its first line does not name"),
        (b"train/ants/000.png,ants\n", "its first line does not name"),
        (b"path,label,file\nx,y,z\n", "line 1: path and file could both be meant"),
        (b"path,class,label\nx,y,z\n", "line 1: class and label could both be meant"),
        (b"path,label\ncaf\xe9.png,ants\n", "not UTF-8"),
        (b'path,label\n"x,ants\n', "line 1"),
        (b'path,label\nx,"an"ts\n', "line 1"),
        (b"path,label\n" + b"x" * 200_000 + b",ants\n", "field larger than field limit"),
    ],
)
def test_what_is_no_table(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    text = error_of(lambda: open_data(str(path)))
    assert said in text
    assert "list.csv" in text


name = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1
).filter(lambda text: text not in (".", "..") and len(text.encode()) < 200)
label = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)


@settings(max_examples=60)
@given(
    rows=st.dictionaries(name, label, min_size=2, max_size=6),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    delimiter=st.sampled_from(",;\t"),
)
def test_names_and_labels_of_all_kinds(
    tmp_path_factory: pytest.TempPathFactory,
    rows: dict[str, str],
    quoting: int,
    delimiter: str,
) -> None:
    """Commas, quotes, line breaks and control characters, as Python's own writer quotes them."""
    place = tmp_path_factory.mktemp("odd")
    for file in rows:
        (place / "images" / file).parent.mkdir(exist_ok=True)
        (place / "images" / file).write_bytes(b"")
    path = writers.table(
        place / "list.csv",
        [(f"images/{file}", text) for file, text in rows.items()],
        HEADER,
        quoting=quoting,
        delimiter=delimiter,
    )
    found = find(str(path))
    split = found.splits["all"]
    assert {
        n: found.classes[y] for n, y in zip(split.names, split.labels.tolist(), strict=True)
    } == {f"images/{file}": text for file, text in rows.items()}
    assert list(found.classes) == sorted(set(rows.values()))
    for unit, numbers in found.rows.values():
        assert unit == "line"
        text = path.read_bytes().decode()
        lines = io.StringIO(text, newline="").readlines()
        for number, file in zip(numbers, split.names, strict=True):
            first = file.replace('"', '""')
            whole = "".join(lines[number - 1 :])
            assert whole.startswith((file, f'"{first}"'))


# --- parquet of paths ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_a_parquet_of_paths(place: Path, kind: Any) -> None:
    files, labels = map(list, zip(*ROWS, strict=True))
    columns = {
        "filename": files,
        "label": pa.array(labels).cast(kind),
        "id": list(range(len(files))),
    }
    pq.write_table(pa.table(columns), place / "list.parquet")
    assert labelled(place / "list.parquet") == dict(ROWS)


def test_a_parquet_of_paths_and_numbers(place: Path) -> None:
    files = [n for n, _ in ROWS]
    numbers = [12 if c == "ants" else 3 for _, c in ROWS]
    pq.write_table(pa.table({"path": files, "label": numbers}), place / "list.parquet")
    assert set(labelled(place / "list.parquet").values()) == {"12", "3"}


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint8(), "dictionary"])
def test_whole_numbers_are_classes_in_their_order(place: Path, kind: Any) -> None:
    """As in a parquet of images without names, whose labels are the same numbers."""
    files = [n for n, _ in ROWS]
    numbers = [(0, 1, 2, 9, 10, 11, 100)[i % 7] for i in range(len(files))]
    labels = pa.array(numbers)
    labels = labels.dictionary_encode() if kind == "dictionary" else labels.cast(kind)
    pq.write_table(pa.table({"path": files, "label": labels}), place / "list.parquet")
    one = find(str(place / "list.parquet"))
    assert one.classes == ("0", "1", "2", "9", "10", "11", "100")
    split = one.splits["all"]
    named = {n: one.classes[y] for n, y in zip(split.names, split.labels.tolist(), strict=True)}
    assert named == dict(zip(files, map(str, numbers), strict=True))
    assert split.labels.tolist() == sorted(split.labels.tolist())
    table = writers.image_table([HELD[n] for n in files], numbers)
    pq.write_table(table, place / "images.parquet")
    assert find(str(place / "images.parquet")).classes == one.classes


def test_numbers_below_zero_are_in_order_too(place: Path) -> None:
    columns = {"path": [n for n, _ in ROWS], "label": [(-2, 3, -10)[i % 3] for i in range(18)]}
    pq.write_table(pa.table(columns), place / "list.parquet")
    assert find(str(place / "list.parquet")).classes == ("-10", "-2", "3")


def test_rows_of_a_parquet_at_fault(place: Path) -> None:
    columns = {"path": [ROWS[0][0], "x.png", None, ROWS[1][0]], "label": ["a", "b", "a", None]}
    pq.write_table(pa.table(columns), place / "list.parquet")
    text = error_of(lambda: open_data(str(place / "list.parquet")))
    assert "list.parquet, row 2: x.png: no such file" in text
    assert "also at fault: row 3, 4" in text


# --- parquet of images --------------------------------------------------------------------------


def images() -> list[bytes]:
    return [data for name, data in HELD.items() if name.startswith("train")]


def written(path: Path, table: pa.Table, **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return str(path)


def image_table(**changed: Any) -> pa.Table:
    labels = changed.pop("labels", MADE["train"][1])
    classes = changed.pop("classes", ("bees", "ants"))
    return writers.image_table(images(), labels, classes)


def test_classes_are_in_the_order_of_the_metadata(tmp_path: Path) -> None:
    path = written(tmp_path / "x.parquet", image_table(classes=("bees", "ants", "wasps")))
    data = open_data(path, "none")
    assert data.classes == ("bees", "ants", "wasps")
    assert data.splits["train"].labels.tolist() == MADE["train"][1].tolist()
    _, split, _ = open_split(path, None, ("ants", "bees"), 0, "auto")
    assert split.labels.tolist() == (1 - MADE["train"][1]).tolist()
    assert find(path).declared


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.array([10, 9])[MADE["train"][1]], ("9", "10")),
        (["é" if y else "b" for y in MADE["train"][1]], ("b", "é")),
    ],
)
def test_classes_without_metadata(tmp_path: Path, labels: Any, classes: tuple[str, ...]) -> None:
    path = written(tmp_path / "x.parquet", image_table(labels=labels, classes=None))
    data = open_data(path, "none")
    assert data.classes == classes
    named = [data.classes[y] for y in data.splits["train"].labels]
    assert named == [str(value) for value in labels]


@pytest.mark.parametrize("plain", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("column", ["img", "a.b", "any name"])
def test_a_plain_column_of_bytes(tmp_path: Path, plain: Any, column: str) -> None:
    table = pa.table({column: pa.array(images(), plain), "fine_label": MADE["train"][1]})
    split = open_data(written(tmp_path / "x.parquet", table), "none").splits["train"]
    for i, image in enumerate(MADE["train"][0]):
        assert np.array_equal(split.image(i, 1)[..., 0], image)


def test_folders_called_key_and_value_add_no_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "label=1" / "x.parquet", image_table())
    assert open_data(path, "none").splits["train"].labels.tolist() == MADE["train"][1].tolist()


@pytest.mark.parametrize("inner", ["", "data", "plain_text"])
@pytest.mark.parametrize("style", ["{}-00000-of-00001", "{}", "{}_0", "{}.0", "{}-0000"])
def test_where_files_lie_and_what_they_are_called(tmp_path: Path, inner: str, style: str) -> None:
    for name in ("train", "validation", "test"):
        written(tmp_path / inner / f"{style.format(name)}.parquet", image_table())
    (tmp_path / "README.md").write_text("text")
    (tmp_path / ".cache").mkdir()
    data = open_data(str(tmp_path))
    assert {n: len(s) for n, s in data.splits.items()} == {"train": 12, "val": 12, "test": 12}


def test_files_of_no_split(tmp_path: Path) -> None:
    for name in ("train", "extra", "trainer"):
        written(tmp_path / f"{name}-0.parquet", image_table())
    data = open_data(str(tmp_path), "none")
    assert len(data.splits["train"]) == 12
    assert "2 parquet files of no split are left out: extra-0" in data.notes[0]
    (tmp_path / "train-0.parquet").unlink()
    assert len(open_data(str(tmp_path), "none").splits["train"]) == 24


@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int8(), pa.string())])
def test_a_column_of_splits_beside_images(tmp_path: Path, kind: Any) -> None:
    """Rows keep their images and labels, whatever split they go to."""
    told = ["train", "TEST ", "Validation", "train"] * 3
    table = image_table().append_column("Split", pa.array(told).cast(kind))
    data = open_data(written(tmp_path / "x.parquet", table, row_group_size=5))
    assert data.notes == ()
    parts = {"train": [0, 3, 4, 7, 8, 11], "val": [2, 6, 10], "test": [1, 5, 9]}
    assert {name: len(split) for name, split in data.splits.items()} == {
        name: len(rows) for name, rows in parts.items()
    }
    pixels, labels = MADE["train"]
    for name, rows in parts.items():
        split = data.splits[name]
        assert split.names[:] == [f"x.parquet#{i}" for i in rows]
        assert split.labels.tolist() == labels[rows].tolist()
        for at, row in enumerate(rows):
            assert np.array_equal(split.image(at, 1)[..., 0], pixels[row])
    assert open_split(str(tmp_path / "x.parquet"), None, None, 0, "auto")[0] == "test"


def test_the_names_of_files_go_before_a_column_of_splits(tmp_path: Path) -> None:
    table = image_table().append_column("Split", pa.array(["train", "test"] * 6))
    for name in ("train", "test"):
        written(tmp_path / "hf" / f"{name}.parquet", table)
    data = open_data(str(tmp_path / "hf"), "none")
    assert data.notes == ("the column Split is not used: the names of the files tell the splits",)
    assert {n: len(s) for n, s in data.splits.items()} == {"train": 12, "test": 12}
    for name in ("one", "two"):  # files of no split
        written(tmp_path / "other" / f"{name}.parquet", table)
    data = open_data(str(tmp_path / "other"), "none")
    assert data.notes == ()
    for name, odd in (("train", 0), ("test", 1)):
        names = [f"{file}.parquet#{i}" for file in ("one", "two") for i in range(odd, 12, 2)]
        assert data.splits[name].names[:] == names


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (["train", "test", "trian"], "x.parquet#2: the split 'trian', not one of train, val, test"),
        (["train", "\x1b[2J", "test"], "x.parquet#1: the split '"),
        (["", "train", "test"], "x.parquet#0: the split '', not one of"),
        (["train", "test", None], "x.parquet#2: no split, not one of"),
        ([0, 0, 1], "x.parquet#0: the split '0', not one of"),
    ],
)
def test_a_split_of_an_image_that_is_none(tmp_path: Path, told: list[Any], said: str) -> None:
    table = image_table().append_column("split", pa.array(told * 4))
    text = error_of(lambda: open_data(written(tmp_path / "x.parquet", table)))
    assert said in text
    assert "give the column split another name" in text


def test_a_split_whose_labels_are_held_back(tmp_path: Path) -> None:
    labels = [-1 if i % 3 == 2 else y for i, y in enumerate(MADE["train"][1].tolist())]
    table = image_table(labels=labels)
    table = table.append_column("split", pa.array(["train", "val", "test"] * 4))
    data = open_data(written(tmp_path / "x.parquet", table))
    assert {n: len(s) for n, s in data.splits.items()} == {"train": 4, "val": 4}
    assert data.notes == ("test has no labels and is left out",)


def test_a_missing_file_of_a_set_is_told(tmp_path: Path) -> None:
    for i in (0, 2):
        written(tmp_path / "data" / f"train-{i:05}-of-00003.parquet", image_table())
    text = error_of(lambda: open_data(str(tmp_path)))
    assert "train-00001-of-00003.parquet: missing, 2 of 3 files are there" in text


def test_a_split_without_labels_is_left_out(tmp_path: Path) -> None:
    written(tmp_path / "train.parquet", image_table())
    written(tmp_path / "test.parquet", image_table(labels=[-1] * 12))
    data = open_data(str(tmp_path), "none")
    assert list(data.splits) == ["train"]
    assert "test has no labels and is left out" in data.notes
    written(tmp_path / "test.parquet", image_table().slice(12))
    assert "test has no rows and is left out" in open_data(str(tmp_path)).notes
    written(tmp_path / "test.parquet", image_table(labels=[0] * 11 + [-1]))
    assert "test.parquet#11: the label -1" in error_of(lambda: open_data(str(tmp_path)))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0] * 10 + [1, 2], "x.parquet#11: the label 2, not one of its 2 classes"),
        ([0] * 10 + [1, -1], "x.parquet#11: the label -1, not one of its 2 classes"),
        ([0] * 10 + [1, None], "x.parquet#11: no label"),
        ([0.0] * 11 + [1.0], "the labels are double; give whole numbers or text"),
        ([True] * 11 + [False], "the labels are bool; give whole numbers or text"),
        ([[0]] * 12, "the labels are list"),
        ([0] * 12, "one class only ('bees')"),
    ],
)
def test_labels_of_a_parquet_at_fault(tmp_path: Path, labels: list[Any], said: str) -> None:
    path = written(tmp_path / "x.parquet", image_table(labels=labels))
    text = error_of(lambda: open_data(path))
    assert said in text
    assert "x.parquet" in text


@pytest.mark.parametrize("broken", ["", "struct", "plain"])
def test_broken_bytes_are_told_by_image(tmp_path: Path, broken: str) -> None:
    held: list[bytes | None] = list(images())
    held[2], held[5], held[7], held[9] = b"", None, held[7][:40], b"no image"  # type: ignore[index]
    if broken == "plain":
        table = pa.table({"image": pa.array(held, pa.binary()), "label": MADE["train"][1]})
    else:
        table = writers.image_table(held, MADE["train"][1], ("a", "b"))
    path = written(tmp_path / "x.parquet", table, row_group_size=4)
    split = open_data(path, "none").splits["train"]
    failed = dict(scan(split, 2, verify).failed)
    assert list(failed) == [2, 5, 7, 9]
    assert all(f"x.parquet#{i}: " in text for i, text in failed.items())
    assert "no bytes" in failed[5]
    assert len(image_sizes(split)) >= 8


def test_a_broken_parquet_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    whole = Path(written(path, image_table())).read_bytes()
    for content in (b"PAR1", whole[:-1], whole[: len(whole) // 2], b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(content)
        text = error_of(lambda: open_data(str(path)))
        assert len(text.splitlines()) == 1
        assert "x.parquet: damaged parquet: " in text


def test_damaged_groups_are_told_by_image(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    written(path, image_table(), row_group_size=4, compression="gzip", use_dictionary=False)
    column = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    split = open_data(str(path), "none").splits["train"]
    failed = scan(split, 1, verify).failed
    assert [i for i, _ in failed] == [4, 5, 6, 7]
    assert all("x.parquet" in text and len(text.splitlines()) == 1 for _, text in failed)
    again = pickle.loads(pickle.dumps(split))
    path.unlink()
    with pytest.raises(DecodeError, match=r"x\.parquet#0: .*No such file"):
        again.image(0, 3)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pa.table({"a": [1], "b": ["x"]}), "no columns of image and label, or path and label"),
        (pa.table({"image": [b"x"], "b": ["x"]}), "no columns of image and label"),
        (pa.table({"image": [b"x"], "mask": [b"x"], "label": [1]}), "several columns of bytes"),
        (pa.table({"image": [b"x"], "class": [0], "label": [1]}), "could both be meant"),
        (pa.table({"path": ["x"], "file": ["x"], "label": [1]}), "could both be meant"),
        (pa.table({"image": [b"x"], "label": [1]}).slice(1), "no labelled images"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit(tmp_path: Path, table: pa.Table, said: str) -> None:
    assert said in error_of(lambda: open_data(written(tmp_path / "x.parquet", table)))


def test_files_that_do_not_fit_each_other(tmp_path: Path) -> None:
    written(tmp_path / "train-0.parquet", image_table())
    written(tmp_path / "train-1.parquet", image_table(classes=("ants", "bees")))
    text = error_of(lambda: open_data(str(tmp_path)))
    assert "train-1.parquet: other columns or classes than" in text
    written(tmp_path / "train-1.parquet", pa.table({"path": ["x"], "label": [1]}))
    assert "train-1.parquet: no column of image bytes" in error_of(lambda: open_data(str(tmp_path)))


@pytest.mark.parametrize(
    "metadata",
    [
        b"no json",
        b"[]",
        json.dumps({"info": {"features": {}}}).encode(),
        json.dumps({"info": {"features": {"label": {"_type": "Value"}}}}).encode(),
        json.dumps({"info": {"features": {"label": None}}}).encode(),
    ],
)
def test_metadata_of_other_kinds(tmp_path: Path, metadata: bytes) -> None:
    table = image_table().replace_schema_metadata({b"huggingface": metadata})
    assert open_data(written(tmp_path / "x.parquet", table)).classes == ("0", "1")


@pytest.mark.parametrize(
    ("names", "said"), [([1, 2], "are no text"), (["a", "a"], "two classes of one name")]
)
def test_class_names_of_the_metadata_at_fault(tmp_path: Path, names: Any, said: str) -> None:
    path = written(tmp_path / "x.parquet", image_table(classes=names))
    assert said in error_of(lambda: open_data(path))


def test_only_the_latest_groups_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "x.parquet", image_table(), row_group_size=2)
    monkeypatch.setattr(rowgroups, "KEPT", 3 * sum(map(len, images())) // 6)
    split = open_data(path, "none").splits["train"]
    for i in np.random.default_rng(0).permutation(12):
        assert np.array_equal(split.image(int(i), 1)[..., 0], MADE["train"][0][i])
    assert 1 <= len(split.reader._groups) <= 3  # type: ignore[attr-defined]


def test_large_groups_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "x.parquet", image_table())
    assert open_data(path, "none").notes == ()
    monkeypatch.setattr(parquet, "KEPT", 100)
    monkeypatch.setattr(parquet, "_LARGE_GROUP", 100)
    assert "row_group_size=100" in open_data(path, "none").notes[0]


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "x.parquet", image_table())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install '.[tables]'" in error_of(lambda: open_data(path))
