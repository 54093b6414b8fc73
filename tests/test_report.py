"""The report of a run, told by parsing the page that it writes. No training: runs are made up."""

import base64
import functools
import hashlib
import html.parser
import io
import itertools
import json
import math
import os
import re
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import precision_score, recall_score

from skipway.architecture import architecture
from skipway.card import Card
from skipway.errors import InputError
from skipway.images import Preprocess
from skipway.report import write_report

HOSTILE = "[/x]<script>alert(1)</script>\"'&\x1b[31m\n\u202egnp.exe\u2066"
TEN = tuple(str(digit) for digit in range(10))
VOID = {"meta", "link", "img", "br"}


class Page(html.parser.HTMLParser):
    """Elements with attributes and text; raises where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.raw = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(k) == v for k, v in attributes.items())
        ]

    @functools.cached_property
    def text(self) -> str:
        return "\n".join(data for tag, data in self.texts if tag != "style")


def png(side: int = 8, seed: int = 0) -> str:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def confusion(classes: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.3, (classes, classes)) + np.diag(rng.integers(20, 40, classes))
    return counts.tolist()


def record(classes=TEN, **fields) -> dict:
    counts = {name: 100 + 3 * i for i, name in enumerate(classes)}
    splits = {
        split: {
            "n": sum(counts.values()) // part,
            "counts": {k: n // part for k, n in counts.items()},
        }
        for split, part in (("train", 1), ("val", 8), ("test", 4))
    }
    return {
        "version": 1,
        "skipway": "0.1.0",
        "name": "digits-1",
        "command": "skipway train digits --seed 1",
        "created": "2025-01-02T03:04:05+00:00",
        "config": {
            "seed": 1,
            "precision": "float32",
            "recipe": "default",
            "schedule": {"length": 40, "warmup": 2},
            "optim": {"lr": 0.1, "milestones": [20, 30]},
            "model": {"name": "resnet20", "weights": None},
        },
        "choices": [
            {"key": "model", "value": "resnet20", "reason": "images are 8 px: CIFAR stem"},
            {"key": "workers", "value": 0, "reason": "2 cores: the images fit in memory"},
        ],
        "data": {
            "path": "digits",
            "classes": list(classes),
            "splits": splits,
            "notes": ["10 % of train became validation (seed 0)"],
            "skipped": [{"path": "train/3/broken.png", "reason": "truncated PNG (31 bytes)"}],
        },
        "environment": {"python": "3.12.1", "torch": "2.11.0", "cpu": "Some CPU", "threads": 2,
                        "instruction_set": "AVX2", "device": "cpu"},
        "params": 269722,
        "macs": 40551040,
        "status": "finished",
        "result": {
            "metrics": {"accuracy": 0.9889, "top5": 1.0, "loss": 0.0345, "ece": 0.0123},
            "interval": [0.9719, 0.9957],
            "split": "test",
            "weights": "best.safetensors (EMA)",
            "best_epoch": 31,
            "n": 360,
            "seconds": 61.2,
            "images_per_second": 1234.5,
        },
    } | fields  # fmt: skip


def metrics(epochs: int = 40, blocks: int = 9) -> list[dict]:
    rng = np.random.default_rng(0)
    names = [
        "conv1",
        *(f"layer{1 + i * 3 // blocks}.{i % (blocks // 3)}" for i in range(blocks)),
        "fc",
    ]
    return [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "lr": 0.05 * (1 + math.cos(math.pi * epoch / epochs)),
            "train_loss": 2.3 * math.exp(-epoch / 6) + 0.02 * rng.random(),
            "train_accuracy": 1 - 0.9 * math.exp(-epoch / 5),
            "val_loss": 2.2 * math.exp(-epoch / 7) + 0.05 + 0.03 * rng.random(),
            "val_accuracy": 0.985 - 0.88 * math.exp(-epoch / 5) + 0.01 * rng.random(),
            "seconds": 1.5 + 0.2 * rng.random(),
            "images_per_second": 1200 + 60 * rng.random(),
            "waiting": 0.03 + 0.01 * rng.random(),
            "gradient_norms": {
                name: (0.5 + rng.random()) * 0.4 * math.exp(-epoch / 15 - 0.1 * i)
                for i, name in enumerate(names)
            },
        }
        for epoch in range(1, epochs + 1)
    ]


def evaluation(classes=TEN, side: int = 8) -> dict:
    counts = confusion(len(classes))
    bins = [
        {"low": i / 10, "high": (i + 1) / 10, "n": 3**i // 50 + 1, "confidence": i / 10 + 0.06,
         "accuracy": min(1.0, i / 10 + 0.1 * (i % 3) / 2)}
        for i in range(10)
    ]  # fmt: skip
    mistakes = [
        {"name": f"test/{classes[i % len(classes)]}/{i:04}.png", "label": classes[i % len(classes)],
         "predicted": classes[(i + 1) % len(classes)], "score": 0.99 - 0.02 * i,
         "true_score": 0.005 * i, "image": png(side, i)}
        for i in range(24)
    ]  # fmt: skip
    total = int(np.sum(counts))
    return {"split": "test", "n": total, "classes": list(classes), "confusion": counts,
            "mistakes": mistakes, "calibration": bins}  # fmt: skip


def card(classes=TEN, model: str = "resnet20", **fields) -> Card:
    return Card(
        model=model,
        architecture=architecture(model, num_classes=len(classes), **fields),
        classes=classes,
        preprocess=Preprocess(size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3),
    )


def make_run(folder: Path, run=None, rows=None, evaluated=None, with_card=None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record() if run is None else run))
    if rows is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if evaluated is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluated))
    if with_card is not None:
        (folder / "card.json").write_text(with_card.to_json())
    return folder


def full_run(folder: Path, classes=TEN) -> Path:
    return make_run(folder, record(classes), metrics(), evaluation(classes), card(classes))


def read(run: Path) -> Page:
    return Page(write_report(run).read_text("utf-8"))


def poisoned(value):
    """The same JSON with every string but the images, keys too, replaced by a hostile one."""
    if isinstance(value, dict):
        return {
            f"{key}{HOSTILE}" if key in TEN else key: poisoned(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [poisoned(inner) for inner in value]
    if isinstance(value, str) and not value.startswith("data:"):
        return value + HOSTILE
    return value


def assert_self_contained(page: Page) -> None:
    for name, attributes in page.elements:
        assert name not in {"script", "iframe", "object", "embed", "form", "base"}
        for attribute, value in attributes.items():
            assert not attribute.startswith("on")
            assert attribute != "style"
            if attribute in ("src", "href", "xlink:href", "srcset", "action"):
                assert re.match(r"#[a-z]+$|data:,$|data:image/png;base64,[A-Za-z0-9+/=]+$", value)
    css = [data for tag, data in page.texts if tag == "style"]
    assert len(css) == len(page.all("style")) == 1
    assert not re.search(r"url\(|@import|expression", css[0])
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    digest = base64.b64encode(hashlib.sha256(css[0].encode()).digest()).decode()
    allowed = dict(part.split(" ", 1) for part in policy["content"].split("; "))
    assert allowed == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'",
                       "style-src": f"'sha256-{digest}'", "form-action": "'none'"}  # fmt: skip


def test_page_is_self_contained_and_navigable(tmp_path):
    page = read(full_run(tmp_path / "run"))
    assert_self_contained(page)
    assert not re.search(r"https?://", page.raw)
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(set(ids)) == len(ids)
    links = [link["href"][1:] for link in page.all("a")]
    assert links[0] == "results"  # the skip link is first
    assert set(links) == set(ids)
    assert page.all("html")[0]["lang"] == "en"
    for picture in page.all("svg"):
        assert picture.get("aria-label") or picture.get("aria-hidden") == "true"
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("details")) == len(page.all("summary")) > 0
    assert all("tabindex" in a for a in page.all("div", **{"class": "scroll"}))


def test_first_screen_answers_what_how_good_how_long_what_next(tmp_path):
    run = full_run(tmp_path / "a run")
    page = read(run)
    place = page.text.index("What was trained")
    for text in (
        "What was trained", "resnet20", "269,722", "40.6 million", "8 × 8 px",
        "How good", "98.9 %", "95 % interval: 97.2 % to 99.6 %",
        "How long", "1 min 1 s", "What next", "skipway eval", "How it went",
    ):  # fmt: skip
        place = page.text.index(text, place)
    commands = [shlex.split(data) for tag, data in page.texts if tag == "code"]
    assert ["skipway", "eval", str(run), "digits"] in commands
    assert ["skipway", "predict", str(run), "IMAGE…"] in commands
    assert f'skipway.load("{run}")' in page.text
    assert ["skipway", "train", "digits", "--seed", "1"] in commands
    counts = record()["data"]["splits"]["test"]["counts"].values()
    share = max(counts) / sum(counts)
    assert f"{100 * share:.1f} %, always the commonest class" in page.text


def test_every_string_from_outside_is_escaped_and_harmless(tmp_path):
    classes = tuple(name + HOSTILE for name in TEN)
    run = tmp_path / "run"
    rows = metrics()
    for row in rows:
        row["gradient_norms"] = {k + HOSTILE: v for k, v in row["gradient_norms"].items()}
    made = poisoned(record())
    assert HOSTILE in made["config"]["model"]["name"]
    make_run(run, made, rows, poisoned(evaluation()), card(classes))
    page = read(run)
    assert_self_contained(page)
    hidden = {c for c in page.raw if unicodedata.category(c)[0] in "CZ"} - {" ", "\n"}
    assert not hidden
    shown = "[/x]<script>alert(1)</script>\"'&\\x1b[31m\\n\\u202egnp.exe\\u2066"
    for name in ("3", "train/3/broken.png", "digits-1", "truncated PNG (31 bytes)", "AVX2",
                 "images are 8 px: CIFAR stem", "best.safetensors (EMA)",
                 "test/3/0003.png"):  # fmt: skip
        assert name + shown in page.text
    assert "&lt;script&gt;" in page.raw


@pytest.mark.parametrize("image", [
    "data:image/svg+xml;base64,PHN2Zy8+", "https://example.org/x.png", "javascript:alert(1)",
    "data:image/png;base64,PHN2Zy8+", png() + '" onerror="alert(1)', png() + "\n", None, 3,
])  # fmt: skip
def test_only_inline_pngs_become_pictures(tmp_path, image):
    evaluated = evaluation()
    evaluated["mistakes"] = [evaluated["mistakes"][0], evaluated["mistakes"][1] | {"image": image}]
    page = read(make_run(tmp_path, evaluated=evaluated))
    assert [picture["src"] for picture in page.all("img")] == [png(seed=0)]
    assert page.text.count("no picture") == 1
    assert_self_contained(page)


def test_small_pictures_are_enlarged_without_blur(tmp_path):
    evaluated = evaluation()
    evaluated["mistakes"][1]["image"] = png(128)
    page = read(make_run(tmp_path, evaluated=evaluated))
    assert [picture.get("class") for picture in page.all("img")[:3]] == ["small", None, "small"]
    assert len(page.all("img")) == 24


@pytest.mark.parametrize("classes", [2, 10, 30])
def test_confusion_matrix_holds_every_count(tmp_path, classes):
    names = tuple(f"class {i}" for i in range(classes))
    evaluated = evaluation(names)
    page = read(make_run(tmp_path, evaluated=evaluated))
    matrix = page.raw.split('<table class="confusion">')[1].split("</table>")[0]
    rows = matrix.split("<tbody>")[1].split("<tr>")[1:]
    cells = [[int(c or 0) for c in re.findall(r"<td[^>]*>(\d*)</td>", row)] for row in rows]
    assert cells == evaluated["confusion"]
    for truth, row in enumerate(rows):
        kinds = re.findall(r'<td class="(right|wrong)', row)
        assert kinds.count("right") == 1, truth
        assert len(kinds) == np.count_nonzero(cells[truth])


def test_many_classes_show_the_most_confused_pairs(tmp_path):
    names = tuple(f"class {i}" for i in range(100))
    evaluated = evaluation(names)
    evaluated["confusion"][71][17] = 50
    page = read(make_run(tmp_path, record(names), evaluated=evaluated))
    assert 'class="confusion"' not in page.raw
    share = 50 / sum(evaluated["confusion"][71])
    worst = "\n".join(("Images", "class 71", "class 17", f"{100 * share:.1f} %", "50"))
    assert worst in page.text.split("Most confused pairs")[1]
    closed = [found for found in page.all("details") if "open" not in found]
    assert len(closed) >= 2  # a hundred rows are not thrown at the reader


def test_recall_and_precision_by_class_worst_first(tmp_path):
    evaluated = evaluation()
    evaluated["confusion"][4] = [0] * 10  # no image of this class
    page = read(make_run(tmp_path, evaluated=evaluated))
    counts = np.array(evaluated["confusion"])
    pairs = np.argwhere(counts >= 0).repeat(counts.ravel(), axis=0)
    recall = recall_score(*pairs.T, labels=range(10), average=None, zero_division=np.nan)
    precision = precision_score(*pairs.T, labels=range(10), average=None, zero_division=np.nan)
    table = page.text.split("Class by class")[1].split("The data")[0]
    for i in range(10):
        cells = ["–" if math.isnan(v) else f"{100 * v:.1f} %" for v in (recall[i], precision[i])]
        assert "\n".join((str(i), *cells, str(counts[i].sum()))) in table
    first = table.split("Precision\nImages\n")[1].split("\n")[0]
    assert recall[int(first)] == np.nanmin(recall)


def test_run_json_alone_is_enough(tmp_path):
    page = read(make_run(tmp_path))
    assert "98.9 %" in page.text
    assert "How it went" not in page.text
    assert "Where it errs" not in page.text
    page = read(make_run(tmp_path, {"version": 1}))
    assert "not measured" in page.text
    assert page.all("h1")


@pytest.mark.parametrize("junk", [None, 7, "text", [], [1], {}, {"a": {"b": [None]}}, True])
def test_parts_of_another_shape_are_left_out(tmp_path, junk):
    for key in record():
        assert_self_contained(read(make_run(tmp_path / "run", record(**{key: junk}))))
    for key in evaluation():
        evaluated = evaluation() | {key: junk}
        assert_self_contained(read(make_run(tmp_path / "eval", evaluated=evaluated)))
    for key in metrics(1)[0]:
        rows = [row | {key: junk} for row in metrics(3)]
        assert_self_contained(read(make_run(tmp_path / "rows", rows=rows)))


def test_what_is_not_a_run_or_is_damaged_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"not a run: it holds no run\.json"):
        write_report(tmp_path)
    make_run(tmp_path)
    for name in ("run.json", "evaluation.json", "card.json"):
        whole = (tmp_path / name).read_text() if (tmp_path / name).exists() else None
        for text in ('{"version": 1', "[]", "\ud800".encode("utf-8", "surrogatepass")):
            data = text if isinstance(text, bytes) else text.encode()
            (tmp_path / name).write_bytes(data)
            with pytest.raises(InputError, match=re.escape(name)) as error:
                write_report(tmp_path)
            assert "\n" not in str(error.value)
        (tmp_path / name).unlink()
        if whole is not None:
            (tmp_path / name).write_text(whole)
    assert not (tmp_path / "report.html").exists()


def test_unfinished_run_says_so_and_how_to_go_on(tmp_path):
    unfinished = record(status="interrupted", result=None)
    page = read(make_run(tmp_path / "my run", unfinished, metrics(12)))
    assert "This run was interrupted after epoch 12." in page.text
    commands = [shlex.split(data) for tag, data in page.texts if tag == "code"]
    assert ["skipway", "train", "digits", "--resume", str(tmp_path / "my run")] in commands
    assert "validation accuracy after epoch 12" in page.text
    assert "interrupted" not in read(full_run(tmp_path / "whole")).text


def test_accuracy_on_the_validation_split_is_called_optimistic(tmp_path):
    result = record()["result"]
    page = read(make_run(tmp_path, record(result=result | {"split": "val"})))
    assert "expect a little less" in page.text
    assert "expect a little less" not in read(make_run(tmp_path)).text


def test_a_torn_line_is_skipped_and_the_last_row_of_an_epoch_counts(tmp_path):
    rows = metrics(5)
    again = rows[2] | {"train_loss": 0.7654321}
    run = make_run(tmp_path, rows=[*rows[:3], again, *rows[3:]])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 6, "train_l')
    table = read(run).text.split("The numbers by epoch")[1].split("The data")[0]
    assert "3\n0.7654\n" in table
    assert f"3\n{rows[2]['train_loss']:.4g}\n" not in table
    assert "\n5\n" in table
    assert "\n6\n" not in table


def test_a_loss_that_is_not_finite_is_named(tmp_path):
    rows = metrics(5)
    rows[3]["train_loss"] = math.nan
    rows[4]["train_loss"] = math.inf
    assert "not finite in 2 epochs" in read(make_run(tmp_path, rows=rows)).text


def test_long_runs_show_a_sample_of_epochs_with_the_last(tmp_path):
    page = read(make_run(tmp_path, rows=metrics(500)))
    table = page.raw.split("The numbers by epoch")[1].split("</details>")[0]
    epochs = [int(epoch) for epoch in re.findall(r'scope="row">(\d+)<', table)]
    assert epochs == list(range(5, 501, 9))
    assert "1 in 9 of 500 epochs" in table


@pytest.mark.parametrize(
    ("model", "fields", "family"),
    [
        ("resnet20", {}, "residual"),
        ("resnet20", {"shortcut": "none"}, "plain"),
        ("resnet20", {"order": "pre"}, "preactivation"),
    ],
)
def test_colour_follows_the_kind_of_network(tmp_path, model, fields, family):
    page = read(make_run(tmp_path, with_card=card(TEN, model, **fields)))
    assert page.all("html")[0]["class"] == family


def test_training_is_dashed_and_validation_solid(tmp_path):
    page = read(full_run(tmp_path))
    css = next(data for tag, data in page.texts if tag == "style")
    assert re.search(r"svg \.training \{[^}]*stroke-dasharray", css)
    assert not re.search(r"\.validation \{", css)
    styles = [path["class"] for path in page.all("path")]
    assert styles[:4] == ["line training", "line validation"] * 2
    assert styles.count("line early") == styles.count("line late") == 1
    assert "legend" not in page.text.lower()
    names = [data for tag, data in page.texts if tag == "text"]
    assert names.count("training") == names.count("validation") == 2


values = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1)
row = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("lr", "train_loss", "val_loss", "images_per_second"), values)
    | {"gradient_norms": st.dictionaries(st.text(max_size=9), values, max_size=9)},
)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(rows=st.lists(row, max_size=8), blocks=st.integers(1, 120))
def test_any_numbers_make_plots_that_stay_in_their_frame(tmp_path_factory, rows, blocks):
    rows = [
        {k: v if isinstance(v, dict) or math.isnan(v) else abs(v) for k, v in r.items()}
        | {"val_accuracy": 0.5}
        for r in rows
    ]
    rows.append({"gradient_norms": {f"layer1.{i}": 10.0 ** (i % 7 - 5) for i in range(blocks)}})
    for r in rows:
        r["gradient_norms"] = {
            k: abs(v) for k, v in r.get("gradient_norms", {}).items() if not math.isnan(v)
        }
    page = read(make_run(tmp_path_factory.mktemp("run"), rows=rows))
    for path in page.all("path"):
        numbers = [float(number) for number in re.split("[ML ]+", path["d"].strip("M "))]
        assert all(0 <= x <= 380 for x in numbers[::2])
        assert all(34 <= y <= 206 for y in numbers[1::2])
    for plot in page.raw.split('<svg class="plot"')[1:]:
        ends = re.findall(r'<text class="name" x="[\d.]+" y="([\d.-]+)"', plot)
        places = sorted(map(float, ends))
        assert all(b - a >= 14.8 for a, b in itertools.pairwise(places))
        assert all(0 <= place <= 211 for place in places)


def test_axis_labels_of_blocks_do_not_touch(tmp_path):
    for blocks in (9, 54, 150):
        page = read(make_run(tmp_path / str(blocks), rows=metrics(3, blocks)))
        plot = page.raw.split("Gradient by block. ")[1].split("</svg>")[0]
        found = re.findall(r'x="([\d.]+)" y="222" text-anchor="middle">([^<]+)<', plot)
        assert {"layer1", "layer2", "layer3"} <= {name for _, name in found}
        for (a, first), (b, second) in itertools.pairwise(found):
            assert float(b) - float(a) > 3.2 * (len(first) + len(second))


def test_a_failed_write_leaves_the_report_before_it_whole(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    before = write_report(run).read_bytes()
    names = set(os.listdir(run))

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match="No space left"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert set(os.listdir(run)) == names


def luminance(colour: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """WCAG 2.1, relative contrast of two sRGB colours of 0..1."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast_in_light_and_dark(tmp_path):
    page = read(full_run(tmp_path))
    css = next(data for tag, data in page.texts if tag == "style")
    light, dark = (dict(re.findall(r"--(\w+): ([^;]+);", part)) for part in
                   re.findall(r":root \{(.*?)\}", css, re.S))  # fmt: skip
    assert light["residual"].upper() == "#0072B2"
    assert light["plain"].upper() == "#D55E00"
    assert light["preactivation"].upper() == "#009E73"
    levels = re.findall(r"\.(right|wrong)\d \{ background: rgb\(var\(--\1\) / (\d+)%\)", css)
    assert len(levels) == 10
    for scheme in (light, dark):

        def rgb(name, scheme=scheme):
            value = scheme[name]
            if value.startswith("#"):
                return tuple(int(value[i : i + 2], 16) / 255 for i in (1, 3, 5))
            return tuple(int(part) / 255 for part in value.split())

        for text, ground in itertools.product(("ink", "quiet", "link"), ("ground", "panel")):
            assert contrast(rgb(text), rgb(ground)) >= 4.5, (text, ground)
        assert contrast(rgb("ink"), rgb("warn")) >= 4.5
        for family in ("residual", "plain", "preactivation"):  # lines, not text: WCAG asks for 3
            assert contrast(rgb(family), rgb("ground")) >= 3
        for kind, percent in levels:
            share = int(percent) / 100
            mixed = tuple(share * a + (1 - share) * b
                          for a, b in zip(rgb(kind), rgb("ground"), strict=True))  # fmt: skip
            assert contrast(rgb("ink"), mixed) >= 4.5, (kind, percent)


def test_report_needs_neither_torch_nor_matplotlib(tmp_path):
    full_run(tmp_path)
    code = (
        "import sys, pathlib, skipway.report as r; r.write_report(pathlib.Path(sys.argv[1]));"
        "assert not {'torch', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "report.html").stat().st_size > 10_000
