"""The report of a run, told by parsing the page that it writes. No training: runs are made up."""

from __future__ import annotations

import itertools
import math
import os
import re
import shlex
import subprocess
import sys
import unicodedata

import click
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import typer
from scipy import stats
from sklearn.metrics import precision_recall_fscore_support

from pages import (
    HOSTILE,
    TEN,
    assert_self_contained,
    card,
    evaluation,
    full_run,
    images,
    make_run,
    metrics,
    png,
    poisoned,
    read,
    record,
    samples,
)
from skipway import shares
from skipway.cli import app
from skipway.errors import InputError
from skipway.report import markup, write_report
from skipway.report.plot import linear
from skipway.report.signal import STATISTICS
from skipway.shares import hundredths


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
        for statistic, by_part in row["signal"].items():
            row["signal"][statistic] = {part + HOSTILE: v for part, v in by_part.items()}
    made = poisoned(record())
    assert HOSTILE in made["config"]["model"]["name"]
    made["config"]["loss"] = f"hinge{HOSTILE}"
    make_run(run, made, rows, poisoned(evaluation()), card(classes), poisoned(samples()))
    page = read(run)
    assert_self_contained(page)
    hidden = {c for c in page.raw if unicodedata.category(c)[0] in "CZ"} - {" ", "\n"}
    assert not hidden
    shown = "[/x]<script>alert(1)</script>\"'&\\x1b[31m\\n\\u202egnp.exe\\u2066"
    for name in ("3", "train/3/broken.png", "digits-1", "truncated PNG (31 bytes)", "AVX2",
                 "images are 8 px: CIFAR stem", "best.safetensors (EMA)",
                 "Training loss: hinge", "test/3/0003.png"):  # fmt: skip
        assert name + shown in page.text
    assert "&lt;script&gt;" in page.raw


@pytest.mark.parametrize("image", [
    "data:image/svg+xml;base64,PHN2Zy8+", "https://example.org/x.png", "javascript:alert(1)",
    "data:image/png;base64,PHN2Zy8+", png() + '" onerror="alert(1)', png() + "\n", None, 3,
])  # fmt: skip
def test_only_inline_pngs_become_pictures(tmp_path, image):
    evaluated = evaluation()
    first, second = evaluated["mistakes"][:2]
    evaluated |= {"mistakes": [first, second | {"image": image}], "doubtful": []}
    page = read(make_run(tmp_path, evaluated=evaluated))
    assert [picture["src"] for picture in page.all("img")] == [png(seed=0)]
    assert page.text.count("no picture") == 1
    assert_self_contained(page)


def test_small_pictures_are_enlarged_without_blur(tmp_path):
    evaluated = evaluation()
    evaluated["mistakes"][1]["image"] = png(128)
    page = read(make_run(tmp_path, evaluated=evaluated))
    assert [picture.get("class") for picture in page.all("img")[:3]] == ["small", None, "small"]
    assert len(page.all("img")) == 24 + 12


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


def test_scores_by_class_worst_recall_first(tmp_path):
    evaluated = evaluation()
    evaluated["confusion"][4] = [0] * 10  # no image of this class
    page = read(make_run(tmp_path, evaluated=evaluated))
    counts = np.array(evaluated["confusion"])
    pairs = np.argwhere(counts >= 0).repeat(counts.ravel(), axis=0)
    precision, recall, f1, n = precision_recall_fscore_support(
        *pairs.T, labels=range(10), zero_division=np.nan
    )
    table = page.text.split("Class by class")[1].split("The data")[0]
    for i in range(10):
        cells = ["–" if math.isnan(v) else f"{100 * v:.1f} %" for v in (recall[i], precision[i])]
        spread = "–"
        if n[i]:
            ends = stats.binomtest(int(counts[i, i]), int(n[i])).proportion_ci(method="wilson")
            spread = f"{100 * ends.low:.0f} % to {100 * ends.high:.0f} %"
        row = (str(i), cells[0], spread, cells[1], f"{f1[i]:.3f}", str(n[i]))
        assert "\n".join(row) in table
    first = table.split("F1\nImages\n")[1].split("\n")[0]
    assert recall[int(first)] == np.nanmin(recall)


def test_a_thousand_classes_are_told_from_the_outcomes_alone(tmp_path):
    names = tuple(f"class {i}" for i in range(1000))
    counts = np.diag(np.full(1000, 5))
    counts[71, 17] = 4
    evaluated = evaluation() | {
        "n": 5004, "classes": list(names), "images": images(counts.tolist()), "confusion": None
    }  # fmt: skip
    page = read(make_run(tmp_path, record(names), evaluated=evaluated))
    worst = "\n".join(("Images", "class 71", "class 17", "44.4 %", "4"))
    assert worst in page.text.split("Most confused pairs")[1]
    table = page.text.split("Class by class")[1]
    assert "The 200 worst of 1,000 classes." in table
    assert table.split("F1\nImages\n")[1].startswith("class 71\n55.6 %")
    assert len(page.raw) < 1_000_000


def test_the_first_batch_is_shown_as_the_network_saw_it(tmp_path):
    page = read(full_run(tmp_path))
    part = page.raw.split("What the network saw")[1].split("</ul>")[0]
    assert re.findall(r'<img src="([^"]+)"', part) == [row["image"] for row in samples()["images"]]
    assert re.findall(r"<b>(.)</b>", part) == [row["label"] for row in samples()["images"]]
    assert "What the network saw" not in read(make_run(tmp_path / "old")).text


def test_mixed_images_bear_the_share_of_both_classes(tmp_path):
    seen = samples()
    mixtures = (("7", 0.1), ("7", 0.996), ("0", 0.5), ("7", None), (None, 0.4), ("7", 40))
    for row, (other, share) in zip(seen["images"], mixtures, strict=False):
        row |= {"label": "0", "other": other, "share": share}
    seen["images"][6] |= {"label": "0" + HOSTILE, "other": "7" + HOSTILE, "share": 0.254}
    page = read(make_run(tmp_path, seen=seen))
    assert_self_contained(page)
    said = page.raw.split("What the network saw")[1].split("</ul>")[0]
    captions = re.findall(r"<b>(.*?)</b>", said)
    assert captions[:6] == ["0 10 %, 7 90 %", "0 100 %, 7 0 %", "0", "0", "0", "0"]
    assert re.fullmatch(r"0\[/x\].* 25 %, 7\[/x\].* 75 %", captions[6])
    assert captions[7:] == [row["label"] for row in seen["images"][7:]]


def test_likely_label_errors_are_listed_and_marked(tmp_path):
    page = read(make_run(tmp_path, evaluated=evaluation()))
    part = page.text.split("Likely label errors")[1].split("Most doubtful")[0]
    assert "5 labels look wrong on these images, which training did not see" in part
    for row in evaluation()["doubted_labels"]["rows"]:
        name = "\n".join((row["name"], row["label"], row["likelier"]))
        assert f"{name}\n{100 * row['true_score']:.1f} %" in part
    assert page.text.count("the label may be wrong") == 5
    marked = page.raw.split("The worst mistakes")[1].split("the label may be wrong")[0]
    assert marked.count("<li>") == 1  # the first mistake is the first doubted label

    wrong = evaluation()
    wrong["confusion"] = np.roll(np.array(wrong["confusion"]), 1, axis=1).tolist()
    page = read(make_run(tmp_path, evaluated=wrong))
    assert "a network must be mostly right before it may doubt labels" in page.text
    assert "the label may be wrong" not in page.text


def test_what_an_old_evaluation_lacks_is_left_out(tmp_path):
    """As runs of version 0.1.0 wrote it."""
    old = {k: evaluation()[k] for k in ("split", "n", "classes", "confusion", "mistakes")}
    page = read(make_run(tmp_path, evaluated=old))
    assert "The worst mistakes" in page.text
    assert not re.search("doubt|label error|What the network saw|Calibration\n", page.text)


def test_every_command_on_the_page_can_be_typed(tmp_path):
    page = read(full_run(tmp_path / "a run"))
    group = typer.main.get_command(app)
    context = click.Context(group)
    lines = [data for tag, data in page.texts if tag == "code" and data.startswith("skipway ")]
    assert len(lines) >= 8
    for line in lines:
        name, *arguments = shlex.split(line)[1:]
        command = group.get_command(context, name)
        assert command is not None, line
        command.make_context(name, arguments)  # raises where it does not know an option
    names = {shlex.split(line)[1] for line in lines}
    assert names == {"eval", "predict", "export", "train", "compare"}
    python = [data for tag, data in page.texts if tag == "code" and "skipway.load" in data]
    assert len(python) == 2
    for line in python:
        compile(line, "page", "exec")


def test_how_to_reproduce_it_is_exact(tmp_path):
    made = card().model_copy(update={"provenance": {"data": "ab12" * 16}})
    page = read(make_run(tmp_path, with_card=made))
    part = page.text.split("How to reproduce it")[-1]
    for text in ("skipway train digits --seed 1", "seed\n1\n", "ab12" * 16, "2.11.0", "AVX2"):
        assert text in part


def test_memory_and_odd_epochs(tmp_path):
    rows = metrics(20)
    rows[4]["images_per_second"], rows[0]["val_loss"] = 50_000.0, 400.0
    page = read(make_run(tmp_path, rows=rows))
    assert "980 MiB at most" in page.text
    assert "Peak memory\n980 MiB" in page.text
    assert page.text.count("1 value is off the scale.") == 2
    ticks = [float(text.replace(",", "")) for text in re.findall(r">([\d,.]+)</text>", page.raw)]
    assert max(ticks) < 10_000


@pytest.mark.parametrize(
    ("freeze", "views", "said"),
    [
        ("all", 8, "the classifier on cached features."),
        ("all", 0, "loading and augmentation included."),
        (2, 8, "loading and augmentation included."),
    ],
)
def test_what_the_speed_counts(tmp_path, freeze, views, said):
    config = record()["config"]
    config = config | {"model": config["model"] | {"freeze": freeze}, "data": {"views": views}}
    page = read(make_run(tmp_path, record(config=config), metrics(3)))
    assert re.search(rf"Median [\d,]+ a second, {said}", page.text)
    card = page.text.split("How long")[1].split("What next")[0]
    cached = freeze == "all" and views > 0
    assert ("1,234 a second, the classifier on cached features\n" in card) == cached
    assert ("Waiting for data" in card) != cached


@hypothesis.given(st.floats(1e-12, 1e12))
def test_ticks_fit_and_count_in_the_power_that_the_label_names(top):
    axis = linear("step size", top)
    label, _, power = axis.label.partition(", in 10")
    assert label == "step size"
    scale = 10.0 ** int(unicodedata.normalize("NFKC", power).replace("\u2212", "-") or 0)
    assert axis.high >= top * (1 - 1e-8)
    for value, text in axis.ticks:
        assert len(text) <= 5
        assert float(text.replace(",", "")) * scale == pytest.approx(value)


def test_run_json_alone_is_enough(tmp_path):
    page = read(make_run(tmp_path))
    assert "98.9 %" in page.text
    assert "How it went" not in page.text
    assert "Where it errs" not in page.text
    page = read(make_run(tmp_path, {"version": 1}))
    assert "not measured" in page.text
    assert page.all("h1")


@pytest.mark.parametrize(
    "junk",
    [
        None,
        [1],
        {"a": {"b": [None]}},
        *(pytest.param(junk, marks=pytest.mark.slow) for junk in (7, "text", [], {}, True)),
    ],
)
def test_parts_of_another_shape_are_left_out(tmp_path, junk):
    for key in record():
        assert_self_contained(read(make_run(tmp_path / "run", record(**{key: junk}))))
    for key in evaluation():
        evaluated = evaluation() | {key: junk}
        assert_self_contained(read(make_run(tmp_path / "eval", evaluated=evaluated)))
        row = [evaluation()["doubtful"][0] | {k: junk} for k in evaluation()["doubtful"][0]]
        for kind in ("doubtful", "mistakes"):
            assert_self_contained(
                read(make_run(tmp_path / "eval", evaluated=evaluation() | {kind: row}))
            )
    kept = evaluation()["images"]
    for key in kept:
        evaluated = evaluation() | {"images": kept | {key: junk}, "confusion": None}
        assert_self_contained(read(make_run(tmp_path / "eval", evaluated=evaluated)))
    for seen in (junk, {"images": junk}, {"images": [{"image": junk, "label": junk}]}):
        run = make_run(tmp_path / "seen", seen={"a": 1} if not isinstance(seen, dict) else seen)
        assert_self_contained(read(run))
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
    assert ["skipway", "train", "--resume", str(tmp_path / "my run")] in commands
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
        ("plain20", {}, "plain"),
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
    assert "legend" not in page.text.lower()
    names = [data for tag, data in page.texts if tag == "text"]
    assert names.count("training") == names.count("validation") == 2


def plots(page) -> dict[str, str]:
    """The figures by their title."""
    found = re.findall(r"<figure><h3>([^<]*)</h3>(.*?)</figure>", page.raw, re.S)
    return {title: figure for title, figure in found if 'class="plot"' in figure}


def lines(figure: str) -> list[str]:
    return re.findall(r'class="line (\w+)"', figure)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"loss": "bce"}, "BCE"),
        ({"loss": "focal", "focal_gamma": 1.5}, "focal loss, gamma 1.5"),
        ({"class_weights": "balanced", "focal_gamma": 2.0}, "cross-entropy, class weights"),
        ({"loss": "ce", "augment": {"mixup": 0.1}}, "cross-entropy, mixed images"),
        ({"loss": "bce", "augment": {"mixup": 0, "cutmix": 1.0}}, "BCE, mixed images"),
        ({"loss": "ce", "class_weights": "none", "augment": {"mixup": 0, "cutmix": 0}}, None),
        ({}, None),  # as runs before these settings
    ],
)
def test_a_training_loss_of_another_kind_has_its_own_axis(tmp_path, changes, kind):
    rows = metrics(20)
    for row in rows:
        row["train_loss"] /= 1000
    rows[4]["train_loss"] = math.nan
    rows[0]["val_loss"] = 400.0  # as averaged weights may begin with
    page = read(make_run(tmp_path, record(config=record()["config"] | changes), rows))
    found = plots(page)
    note = f"Training loss: {kind}. Validation loss: cross-entropy."
    if kind is None:
        assert lines(found["Loss"]) == ["training", "validation"]
        assert not [title for title in found if title.startswith("Training loss")]
        assert "Training loss was not finite in 1 epoch." in found["Loss"]
        assert "Validation loss: cross-entropy" not in page.text
        return
    own = found[f"Training loss: {kind}"]
    assert lines(found["Loss"]) == ["validation"]
    assert lines(own) == ["training"]
    assert "nats an image" in found["Loss"]
    assert "nats" not in own
    assert "Training loss was not finite in 1 epoch." in own
    assert "not finite" not in found["Loss"]
    lowest = min(row["train_loss"] for row in rows if not math.isnan(row["train_loss"]))
    assert f"Lowest training loss: {lowest:.3g}" in own
    assert "1 value is off the scale." in found["Loss"]  # as against the loss of guessing
    ticks = re.findall(r'text-anchor="end">([\d.]+)<', found["Loss"])
    assert 3 * math.log(10) <= max(map(float, ticks)) < 10
    assert ("Training accuracy is on mixed images, by the larger share." in found["Accuracy"]) == (
        "mixed" in kind
    )
    assert note in page.text


def test_a_training_loss_of_another_kind_without_validation(tmp_path):
    rows = [{"epoch": e, "train_loss": 0.1 / e} for e in (1, 2, 3)]
    config = record()["config"] | {"loss": "bce"}
    found = plots(read(make_run(tmp_path, record(config=config), rows)))
    assert list(found) == ["Training loss: BCE"]


values = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1)
parts = st.dictionaries(st.text(max_size=9), values, max_size=9)
row = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("lr", "train_loss", "val_loss", "images_per_second"), values)
    | {"signal": st.dictionaries(st.sampled_from(list(STATISTICS)), parts, max_size=4)},
)


@hypothesis.settings(max_examples=30)
@hypothesis.given(rows=st.lists(row, max_size=8), blocks=st.integers(1, 120))
def test_any_numbers_make_plots_that_stay_in_their_frame(tmp_path_factory, rows, blocks):
    rows = [
        {k: v if isinstance(v, dict) or math.isnan(v) else abs(v) for k, v in r.items()}
        | {"val_accuracy": 0.5}
        for r in rows
    ]
    steep = {f"layer1.{i}": 10.0 ** (i % 7 - 5) for i in range(blocks)}
    rows.append({"signal": dict.fromkeys(STATISTICS, steep)})
    for r in rows:
        r["signal"] = {
            statistic: {k: abs(v) for k, v in by_part.items() if not math.isnan(v)}
            for statistic, by_part in r.get("signal", {}).items()
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
        plot = page.raw.split('aria-label="Gradient')[1].split("</svg>")[0]
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


FAMILIES = ("residual", "plain", "preactivation")


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
        for ground in ("ground", "panel", "warn"):
            assert contrast(rgb("alert"), rgb(ground)) >= 4.5
        tones = re.findall(
            r"--tone: color-mix\(in srgb, var\(--series\) (\d+)%, var\(--(\w+)\)", css
        )
        assert len(tones) == 2
        for (share, other), family in itertools.product(tones, FAMILIES):
            part = int(share) / 100
            mixed = tuple(part * a + (1 - part) * b
                          for a, b in zip(rgb(family), rgb(other), strict=True))  # fmt: skip
            assert contrast(mixed, rgb("ground")) >= (3 if other == "ink" else 2), (family, other)
        for family in FAMILIES:  # lines, not text: WCAG asks for 3
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


@pytest.mark.parametrize("places", [0, 1, 2])
def test_only_all_is_told_as_all_and_only_nothing_as_nothing(places):
    step = 10**-places
    for share in (1e-4, 0.0004, 0.5, 0.9996, 0.99999, 1 - 1e-5):
        said = hundredths(share, places)
        assert said == f"{float(said):.{places}f}"
        assert step <= float(said) + 1e-9
        assert float(said) <= 100 - step + 1e-9
        if step < 100 * share < 100 - step:
            assert said == f"{100 * share:.{places}f}"
    assert float(hundredths(np.float32(1), places)) == 100
    assert float(hundredths(1 - 2e-16, places)) == 100  # pycocotools' precision without a mistake
    assert float(hundredths(0.0, places)) == 0
    assert hundredths(math.nan, places) == "nan"
    assert markup.shown(0.9997, f".{places}%") == markup.percent(0.9997, places)
    assert markup.percent(0.9997) == "99.9 %"
    assert shares.percent(0.99998) == "99.99%"
    assert markup.within(0.9998, [0.9991, 0.99999]) == "99.9 % (99.9 to 99.9 %)"
