"""The report of a run that finds objects. No training: runs are made up."""

from __future__ import annotations

import json
import math
import re
import shlex

import click
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import typer

from detected import (
    CELLS,
    OBJECTS,
    task_evaluation,
    task_record,
    task_rows,
    task_run,
)
from pages import HOSTILE, Page, assert_self_contained, full_run, make_run, png, poisoned, read
from skipway.cli import app
from skipway.data.objects import Objects
from skipway.data.split import ArrayReader, Split
from skipway.detections import Detections, runs_of
from skipway.errors import InputError
from skipway.report import compare, verdicts, write_comparison
from skipway.report.detection_findings import findings
from skipway.report.run import read_run
from skipway.tasks.detect import DetectionEvaluator


def part(page: Page, start: str, end: str) -> str:
    return page.text.split(start)[1].split(end)[0]


def test_the_first_screen_answers_what_how_good_how_long_what_next(tmp_path):
    page = read(task_run(tmp_path / "a run"))
    assert_self_contained(page)
    place = 0
    for text in (
        "What was trained", "resnet20", "Finds\nboxes", "faster-rcnn, fpn",
        "3,540 training, 514 validation, 999 test", "How good", "51.2 %",
        "average precision (AP) on 72 test images", "At IoU 0.5\n83.5 %", "At IoU 0.75\n55.6 %",
        "How long", "1 min 1 s", "2.1 a second", "What next", "--draw out/", "How it went",
    ):  # fmt: skip
        place = page.text.index(text, place)
    commands = [shlex.split(data) for tag, data in page.texts if tag == "code"]
    run = str(tmp_path / "a run")
    assert ["skipway", "predict", run, "IMAGE…", "--draw", "out/"] in commands
    # `train` takes the weights of classifiers alone
    assert not any("--weights" in command for command in commands)
    assert ["skipway", "train", "cells", "--task", "detect"] in commands
    assert "accuracy" not in page.text.lower()
    assert "guessing" not in page.text


def test_sections_and_links_fit_together(tmp_path):
    page = read(task_run(tmp_path, "instance"))
    assert_self_contained(page)
    links = {link["href"][1:] for link in page.all("a")}
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert links == set(ids)
    assert {"words", "course", "errors", "data", "use", "reproduce"} <= links
    assert "signal" not in links  # nothing of it was recorded
    assert all(image["alt"] for image in page.all("img"))


def test_every_command_on_the_page_can_be_typed(tmp_path):
    page = read(task_run(tmp_path / "a run", "instance"))
    group = typer.main.get_command(app)
    context = click.Context(group)
    lines = [data for tag, data in page.texts if tag == "code" and data.startswith("skipway ")]
    assert len(lines) >= 7
    for line in lines:
        name, *arguments = shlex.split(line)[1:]
        command = group.get_command(context, name)
        assert command is not None, line
        command.make_context(name, arguments)
    for data in (data for tag, data in page.texts if tag == "code" and "skipway.load" in data):
        compile(data, "page", "exec")


def test_truth_stands_beside_what_was_found_in_the_order_given(tmp_path):
    page = read(task_run(tmp_path))
    shown = page.raw.split("Truth and what was found")[1].split("</ul>")[0]
    wanted = [url for row in task_evaluation()["pictures"] for url in (row["truth"], row["image"])]
    assert re.findall(r'<img src="([^"]+)"', shown) == wanted
    assert shown.count("<span>truth</span>") == shown.count("<span>found</span>") == 6
    captions = re.findall(r"<b>(.*?)</b>", shown)
    assert captions[0] == "9 right, 6 missed, 1 too many"
    assert len(captions) == 6
    assert "true objects in test/cell-0.png" in shown


def test_a_picture_that_is_none_is_not_shown(tmp_path):
    evaluated = task_evaluation(pictures=2)
    evaluated["pictures"][0] |= {"truth": "https://example.org/x.png", "image": None}
    evaluated["pictures"][1] |= {"image": png() + '" onerror="alert(1)', "missed": None}
    page = read(make_run(tmp_path, task_record(), evaluated=evaluated))
    assert_self_contained(page)
    assert page.text.count("no picture") == 3
    assert "8 right, 1 too many" in page.text


def curve(page: Page, title: str) -> tuple[str, np.ndarray]:
    """A plot's caption and its line: [n, 2] in shares of the axes."""
    figure = page.raw.split(f"<figure><h3>{title}</h3>")[1].split("</figure>")[0]
    path = re.search(r'<path class="line [^"]*" d="M([^"]+)"', figure)
    points = np.array([pair.split(" ") for pair in path[1].split("L")], float)
    left, right, top, bottom = 48, 306, 34, 206
    points = (points - [left, bottom]) / [right - left, top - bottom]
    return re.search(r"<figcaption>(.*?)</figcaption>", figure)[1], points


def test_precision_over_recall_by_class(tmp_path):
    page = read(task_run(tmp_path))
    given = {row["label"]: row for row in task_evaluation()["curves"]}
    for name, row in given.items():
        said, points = curve(page, name)
        precision = np.array(row["precision"])
        n = np.count_nonzero(precision)
        assert np.allclose(points[:, 0], np.arange(n) / 100, atol=1e-3)
        assert np.allclose(points[:, 1], precision[:n], atol=1e-3)
        assert f"AP at IoU 0.5: {100 * precision.mean():.1f} %. Highest recall: {n - 1} %." in said
        at = max(i for i in range(n) if row["scores"][i] >= 0.5)
        assert f"At a score of 0.5 the recall is {at} %." in said
    said, points = curve(page, "Mean of all classes")
    ends = [np.count_nonzero(row["precision"]) - 1 for row in given.values()]
    assert f"Highest recall: {np.mean(ends):.0f} %." in said  # and not that of the best class
    mean = np.mean([row["precision"] for row in given.values()], axis=0)
    assert np.allclose(points[:, 1], mean[: len(points)], atol=1e-3)
    titles = re.findall(r"<h3>([^<]*)</h3>", page.raw.split("Precision and recall")[1])
    assert titles[:4] == ["Mean of all classes", "Platelets", "RBC", "WBC"]  # the worst first


def test_one_class_has_one_curve_and_many_have_a_few(tmp_path):
    one = task_evaluation(pictures=0)
    one["curves"] = one["curves"][:1]
    page = read(make_run(tmp_path / "one", task_record(), evaluated=one))
    assert "Mean of all classes" not in page.text
    base = one["curves"][0]
    many = one | {"curves": [base | {"label": f"class {i}"} for i in range(80)]}
    page = read(make_run(tmp_path / "many", task_record(), evaluated=many))
    assert page.raw.count('<svg class="plot"') == 13
    assert "The 12 worst of 80 classes." in page.text


@pytest.mark.parametrize("task", ["detect", "instance"])
def test_the_table_of_classes_the_worst_first(tmp_path, task):
    page = read(task_run(tmp_path, task))
    table = part(page, "Class by class", "By size")
    rows = {row["label"]: row for row in task_evaluation(task, 0)["per_class"]}
    keys = ["ap", "ap50", "recall"]
    if task == "instance":
        keys = ["mask_ap", "mask_ap50", *keys]
    for name, row in rows.items():
        cells = [f"{100 * row[key]:.1f} %" for key in keys]
        trained = f"{OBJECTS[name]:,}"
        assert "\n".join([name, *cells, str(row["n"]), trained]) in table
    assert table.index("Platelets\n") < table.index("RBC\n") < table.index("WBC\n")


def test_sizes_of_objects(tmp_path):
    page = read(task_run(tmp_path))
    assert "small, up to 32 × 32 px\n21.0 %\n60" in page.text
    assert "large\n57.0 %\n329" in page.text
    without = task_evaluation(pictures=0) | {"sizes": {"small": {"ap": 0.2}, "large": {"ap": None}}}
    page = read(make_run(tmp_path / "old", task_record(), evaluated=without))
    assert "small, up to 32 × 32 px\n20.0 %\n–" in page.text
    assert "large\n" not in part(page, "By size", "The data")


def test_objects_and_images_are_counted_apart(tmp_path):
    page = read(task_run(tmp_path))
    table = part(page, "Objects by class and split", "What was chosen")
    assert "All images\n255\n37\n72" in table
    assert "RBC\n3,000\n435\n847" in table
    assert "What the network saw" in page.text
    assert "1 object\n" in page.text
    assert "2 objects\n" in page.text


@pytest.mark.parametrize(
    ("task", "titles"),
    [
        ("detect", ["Validation AP"]),
        ("instance", ["Validation AP of masks", "Validation AP of boxes"]),
    ],
)
def test_the_course_shows_losses_and_average_precision(tmp_path, task, titles):
    page = read(task_run(tmp_path, task))
    section = page.raw.split('<section id="course">')[1].split("</section>")[0]
    found = re.findall(r"<figure><h3>([^<]*)</h3>", section)
    rest = ["Learning rate", "Speed", "Waiting for data", "Peak memory"]
    assert found == ["Training loss and its parts", *titles, *rest]
    losses = section.split("</figure>")[0]
    names = re.findall(r'<text class="name"[^>]*>([^<]+)<', losses)
    terms = {"classes", "boxes", "proposals", "their boxes"} | (
        {"masks"} if task == "instance" else set()
    )
    assert set(names) == {"in all", *terms}
    assert losses.count('class="line training') == len(names)  # dashed
    rows = task_rows(task)
    total = [sum(v for k, v in row.items() if k.startswith("train_loss")) for row in rows]
    assert f"Lowest, in all: {min(total):.3g}, at epoch 20." in losses
    head = part(page, "The numbers by epoch", "Where it errs")
    assert "Loss: proposals" in head
    last = rows[-1]
    before = "mask_" if task == "instance" else ""
    cells = (f"{100 * last[f'val_{before}{key}']:.2f} %" for key in ("ap", "ap50"))
    assert "\n".join(cells) in head


def test_a_loss_without_parts_is_shown_alone(tmp_path):
    rows = [{"epoch": e, "train_loss": 3 / e, "val_ap": 0.1 * e} for e in (1, 2, 3)]
    page = read(make_run(tmp_path, task_record(), rows))
    assert "Lowest, in all: 1, at epoch 3." in page.text
    assert "Highest AP: 30.0 %, at epoch 3." in page.text


def test_a_run_that_has_not_ended_shows_what_it_has(tmp_path):
    unfinished = task_record(status="interrupted", result=None)
    page = read(make_run(tmp_path, unfinished, task_rows(epochs=7)))
    assert "validation AP after epoch 7" in page.text
    assert "This run was interrupted after epoch 7." in page.text
    assert "How to use it" not in page.text
    page = read(make_run(tmp_path / "new", unfinished))
    assert "not measured" in page.text


def test_run_json_alone_is_enough(tmp_path):
    page = read(make_run(tmp_path, task_record()))
    assert "51.2 %" in page.text
    assert "Where it errs" not in page.text


@pytest.mark.parametrize("task", ["detect", "instance"])
def test_every_string_from_outside_is_escaped_and_harmless(tmp_path, task):
    made = poisoned(task_record(task))
    made["config"]["task"] = task
    rows = [{k + (HOSTILE if "loss" in k else ""): v for k, v in row.items()}
            for row in task_rows(task)]  # fmt: skip
    evaluated = poisoned(task_evaluation(task))
    evaluated["sizes"] = {k + HOSTILE: v for k, v in evaluated["sizes"].items()}
    page = read(make_run(tmp_path, made, rows, evaluated))
    assert_self_contained(page)
    assert "&lt;script&gt;" in page.raw
    assert "\x1b" not in page.raw
    assert "\u202e" not in page.raw


@pytest.mark.parametrize(
    "junk",
    [
        None,
        [1],
        {"a": {"b": [None]}},
        *(pytest.param(junk, marks=pytest.mark.slow) for junk in (7, "text", [], True, -2.5)),
    ],
)
def test_parts_of_another_shape_are_left_out(tmp_path, junk):
    for key in task_record():
        assert_self_contained(read(make_run(tmp_path / "run", task_record(**{key: junk}))))
    whole = task_evaluation("instance", pictures=1)
    for key in whole:
        run = make_run(tmp_path / "eval", task_record(), evaluated=whole | {key: junk})
        assert_self_contained(read(run))
    for key in ("pictures", "per_class", "curves"):
        rows = [whole[key][0] | {inner: junk} for inner in whole[key][0]]
        run = make_run(tmp_path / "eval", task_record(), evaluated=whole | {key: rows})
        assert_self_contained(read(run))
    run = make_run(tmp_path / "eval", task_record(), evaluated=whole | {"sizes": {"small": junk}})
    assert_self_contained(read(run))
    rows = [row | dict.fromkeys(list(row)[1:], junk) for row in task_rows(epochs=3)]
    assert_self_contained(read(make_run(tmp_path / "rows", task_record(), rows)))


values = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1)
KEYS = ("train_loss_classifier", "train_loss_x", "train_loss", "val_ap", "val_ap50", "lr")


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    rows=st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, values)), max_size=6),
    precision=st.lists(st.floats(0, 1), max_size=20),
    scores=st.lists(values, max_size=20),
)
def test_any_numbers_make_plots_that_stay_in_their_frame(tmp_path_factory, rows, precision, scores):
    rows = [{k: abs(v) if "loss" in k or k == "lr" else min(max(v, 0), 1) for k, v in row.items()}
            for row in rows]  # fmt: skip
    curves = [{"label": "a", "precision": precision, "scores": scores}]
    run = make_run(tmp_path_factory.mktemp("run"), task_record(), rows, {"curves": curves})
    page = read(run)
    for path in page.all("path"):
        numbers = [float(number) for number in re.split("[ML ]+", path["d"].strip("M "))]
        assert all(0 <= x <= 380 for x in numbers[::2])
        assert all(34 <= y <= 206 for y in numbers[1::2])


@pytest.mark.parametrize("task", ["detect", "instance"])
def test_made_up_runs_have_what_real_ones_have(tmp_path, task):
    """No figure is shown that a real evaluation does not write."""
    evaluator = DetectionEvaluator(3, ("mask", "box") if task == "instance" else ("box",))
    boxes = np.array([[0, 0, 20, 20], [30, 0, 80, 50], [0, 0, 110, 110]], np.float32)
    y, x = np.mgrid[:120, :120] + 0.5
    masks = tuple(runs_of((x > a) & (x < c) & (y > b) & (y < d)) for a, b, c, d in boxes)
    areas, each = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), np.arange(3)
    scores = np.array([0.9, 0.8, 0.3], np.float32)
    for i in range(6):
        truth = Objects(boxes, each, np.zeros(3, bool), areas, each, masks)
        evaluator.add(i, Detections(boxes, each, scores, masks), truth, (120, 120))
    pixels = np.zeros((6, 120, 120, 3), np.uint8)
    split = Split(ArrayReader(pixels), [f"{i}.png" for i in range(6)], np.zeros(6, int))
    real = json.loads(json.dumps({"split": "test", "n": 6} | evaluator.details(split, CELLS)))
    made = task_evaluation(task)
    assert made.keys() == real.keys()
    for key in ("per_class", "curves", "pictures"):
        assert {*map(frozenset, made[key])} == {frozenset(row) for row in real[key]}, key
    assert made["sizes"].keys() == real["sizes"].keys()
    assert {frozenset(row) for rows in (made, real) for row in rows["sizes"].values()} == {
        frozenset({"n", "ap"})
    }
    page = read(make_run(tmp_path, task_record(task), evaluated=real))
    assert_self_contained(page)
    for name in ("small, up to 32 × 32 px", "medium, up to 96 × 96 px", "large"):
        assert f"{name}\n100.0 %\n6" in page.text  # which six images do not make certain
    assert "At a score of 0.5 the recall is 100 %." in curve(page, "WBC")[0]
    assert "At a score of" not in curve(page, "Platelets")[0]  # found, and never so surely


def test_which_scores_count_is_said(tmp_path):
    """What the detector leaves out below its own threshold was not looked for."""
    config = task_record()["config"]
    config["detector"] |= {"score_threshold": 0.2}
    text = read(make_run(tmp_path, task_record(config=config), task_rows(), task_evaluation())).text
    assert "nothing more is found above a score of 0.2." in text
    assert "those found at IoU 0.5 above a score of 0.2." in text
    assert "any score" not in text


# --- in words -----------------------------------------------------------------------------------


def said(folder, rows=None, evaluated=None, metrics=None, **fields) -> list[tuple[str, str]]:
    made = task_record(**fields)
    if metrics:
        made["result"]["metrics"] = metrics
    run = make_run(folder, made, rows, evaluated or task_evaluation(pictures=0))
    return [(finding.kind, finding.text) for finding in findings(read_run(run))]


def told(found: list[tuple[str, str]], text: str) -> str | None:
    """The kind of the finding that has the text."""
    return next((kind for kind, sentence in found if text in sentence), None)


def test_a_sound_run_is_told_little(tmp_path):
    evaluated = task_evaluation(pictures=0)
    evaluated["sizes"]["small"]["ap"] = 0.45
    assert said(tmp_path, task_rows(), evaluated) == []


def test_what_stands_out_is_told(tmp_path):
    evaluated = task_evaluation(pictures=0)
    rows = evaluated["per_class"]
    found = said(tmp_path, None, evaluated, {"ap": 0.01, "ap50": 0.03})
    assert told(found, "It finds next to nothing: AP at IoU 0.5 is 3.0 %.") == "warn"
    assert told(found, "Small objects") is None  # where nothing is found, sizes tell nothing

    rows[2] |= {"ap50": 0.4}
    found = said(tmp_path, None, evaluated)
    assert told(found, "Platelets is found worst: AP at IoU 0.5 is 40.0 %") == "note"
    assert told(found, "Training had 260 objects of it, 3,000 of the commonest") == "note"
    assert told(found, "Small objects, up to 32 × 32 px") == "note"

    for row in rows:
        row |= {"recall": 0.6, "n": 20}
    found = said(tmp_path, None, evaluated, {"ap": 0.2, "ap50": 0.6})
    assert told(found, "40 % of the objects are not found at a score that is kept.") == "note"
    config = task_record()["config"]
    config["detector"] |= {"head": "fcos", "score_threshold": 0.2}
    known = said(tmp_path / "known", None, evaluated, {"ap": 0.2, "ap50": 0.6}, config=config)
    assert told(known, "40 % of the objects are not found above a score of 0.2.") == "note"
    beyond = {"objects": 9, "of_a_class": 2, "in_all": 3, "given": 100}
    for objects, advice in ((9, "note"), (15, None)):  # of 60, of which 40 % are not found
        evaluated["out_of_reach"] = beyond | {"objects": objects}
        capped = said(tmp_path / f"{objects}", None, evaluated, {"ap": 0.2, "ap50": 0.6})
        assert told(capped, f"{objects} objects are out of reach: of a class COCO's") == "note"
        assert told(capped, "in all, its detector.detections (images with more: 3).") == "note"
        assert told(capped, "are not found at a score that is kept") == advice
    for odd in (None, [], {"objects": "x", "given": None}):
        evaluated["out_of_reach"] = odd
        capped = said(tmp_path / f"odd-{odd!r:.3}", None, evaluated, {"ap": 0.2, "ap50": 0.6})
        assert told(capped, "out of reach") is None
    assert told(known, "a lower detector.score_threshold may find more") == "note"
    assert told(found, "Only 60 objects were scored") == "note"
    assert told(found, "their boxes are loose: 60.0 % at IoU 0.5") == "note"
    for row in rows:
        row["recall"] = 0.97
    found = said(tmp_path, None, evaluated)
    assert told(found, "97.0 % of the objects are found at IoU 0.5") == "good"


def test_what_the_course_tells(tmp_path):
    rows = task_rows()
    for row in rows:
        row["val_ap"] = 0.02 * row["epoch"]
        row["waiting"] = 0.4
    rows[8]["train_loss_classifier"] = math.nan
    rows[12]["train_loss_box_reg"] = 5.0
    found = said(tmp_path, rows)
    assert told(found, "validation AP rose by 4.0 points in the last 2 epochs") == "warn"
    assert told(found, "not a finite number in 1 epoch") == "warn"
    assert told(found, "The training loss is unsteady") == "warn"
    assert told(found, "waited for images 40 % of the training time") == "warn"


def test_leaks_touch_the_average_precision(tmp_path):
    data = task_record()["data"]
    data["notes"] = ["WARNING: 7 of 72 test images are in train too"]
    run = make_run(tmp_path, task_record(data=data), evaluated=task_evaluation(pictures=0))
    page = read(run)
    assert "so the average precision on test images is too good." in page.text
    assert "Too good: 7 of these images were trained on." in page.text
    assert "72 test images, 7 of which training saw too." in page.text


# --- comparisons --------------------------------------------------------------------------------


def test_runs_of_two_tasks_are_not_compared(tmp_path):
    with pytest.raises(InputError, match=r"trained for classify, .* for detect; compare runs of"):
        compare([full_run(tmp_path / "a"), task_run(tmp_path / "b")])


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ("detect", ["AP\n", "AP50\n", "51.2 %\n", "83.5 %\n"]),
        ("instance", ["Masks AP\n", "Masks AP50\n", "Boxes AP\n", "51.2 %\n", "54.8 %\n"]),
    ],
)
def test_detectors_are_compared_by_average_precision(tmp_path, task, columns):
    runs = [task_run(tmp_path / name, task) for name in "ab"]
    comparison = compare(runs)
    assert verdicts(comparison) == [
        (None, "Not tested: A and B: runs keep no matches of single images; skipway eval RUN DATA "
         "--against RUN compares average precision on the same ones."),
    ]  # fmt: skip
    page = Page(write_comparison(comparison, tmp_path / "compare.html").read_text("utf-8"))
    assert_self_contained(page)
    place = 0
    for text in columns:
        place = page.text.index(text, place)
    title = "Validation mask AP" if task == "instance" else "Validation AP"
    assert f'aria-label="{title}.' in page.raw
    assert "Accuracy" not in page.text
    assert [row["ap50"] for row in comparison.summary()["runs"]] == [0.8345, 0.8345]


def test_a_detector_without_a_score_is_named(tmp_path):
    first = task_run(tmp_path / "a")
    second = make_run(tmp_path / "b", task_record(status="interrupted", result=None), task_rows())
    (found,) = verdicts(compare([first, second]))
    assert "B has no score: its status is interrupted" in found[1]
