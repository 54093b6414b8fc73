"""The report of a run that tells the class of every pixel. No training: runs are made up."""

from __future__ import annotations

import json
import re
import shlex

import click
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import typer

from pages import HOSTILE, Page, assert_self_contained, full_run, make_run, png, poisoned, read
from segmented import (
    NAMES,
    STREET,
    TRAINED,
    task_evaluation,
    task_record,
    task_rows,
    task_run,
)
from skipway.cli import app
from skipway.errors import InputError
from skipway.report import compare, verdicts, write_comparison
from skipway.report.run import read_run
from skipway.report.segmentation_findings import findings


def part(page: Page, start: str, end: str) -> str:
    return page.text.split(start)[1].split(end)[0]


def percent(share: float, places: int = 1) -> str:
    return f"{100 * share:.{places}f} %"


def test_the_first_screen_answers_what_how_good_how_long_what_next(tmp_path):
    page = read(task_run(tmp_path / "a run"))
    assert_self_contained(page)
    result = task_record()["result"]
    scores, (low, high) = result["metrics"], result["interval"]
    place = 0
    for text in (
        "What was trained", "resnet20", "Finds\nthe class of every pixel",
        "deeplabv3plus, output stride 16", "41.8 million training, 8.35 million validation",
        "How good", percent(scores["miou"]),
        "mean intersection over union (mean IoU) on 6 validation images",
        f"95 % interval: {percent(low)} to {percent(high)}",
        f"Pixel accuracy\n{percent(scores['pixel_accuracy'])}",
        f"Mean accuracy\n{percent(scores['mean_accuracy'])}",
        f"IoU, weighted by pixels\n{percent(scores['weighted_iou'])}",
        f"Boundary F1\n{percent(scores['boundary_f1'])}", "expect a little less on new ones",
        "How long", "1 min 1 s", "3.1 a second", "What next", "--draw out/", "How it went",
    ):  # fmt: skip
        place = page.text.index(text, place)
    commands = [shlex.split(data) for tag, data in page.texts if tag == "code"]
    run = str(tmp_path / "a run")
    assert ["skipway", "predict", run, "IMAGE…", "--draw", "out/"] in commands
    # `train` takes the weights of classifiers alone
    assert not any("--weights" in command for command in commands)
    assert "objects" not in page.text
    assert "guessing" not in page.text


def test_a_unet_has_no_output_stride_to_be_told(tmp_path):
    made = task_record()
    made["config"]["segmenter"] = {"head": "unet", "output_stride": 32}
    assert "Head\nunet\n" in read(make_run(tmp_path, made)).text


def test_sections_and_links_fit_together(tmp_path):
    page = read(task_run(tmp_path))
    links = {link["href"][1:] for link in page.all("a")}
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert links == set(ids)
    assert {"words", "course", "errors", "data", "use", "reproduce"} <= links
    assert "signal" not in links  # nothing of it was recorded
    assert all(image["alt"] for image in page.all("img"))


def test_every_command_on_the_page_can_be_typed(tmp_path):
    page = read(task_run(tmp_path / "a run"))
    group = typer.main.get_command(app)
    context = click.Context(group)
    lines = [data for tag, data in page.texts if tag == "code" and data.startswith("skipway ")]
    assert len(lines) >= 8
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
    rows = task_evaluation()["pictures"]
    assert len(rows) == len(NAMES)
    wanted = [url for row in rows for url in (row["truth"], row["image"])]
    assert re.findall(r'<img src="([^"]+)"', shown) == wanted
    assert shown.count("<span>truth</span>") == shown.count("<span>found</span>") == len(rows)
    captions = re.findall(r"<b>(.*?)</b>", shown)
    assert captions == [
        f"{percent(row['wrong'])} wrong, mean IoU {percent(row['miou'])}" for row in rows
    ]
    assert f"classes found in {rows[0]['name']}" in shown


def test_a_picture_that_is_none_is_not_shown(tmp_path):
    evaluated = task_evaluation(2)
    evaluated["pictures"][0] |= {"truth": "https://example.org/x.png", "image": None}
    evaluated["pictures"][1] |= {"image": png() + '" onerror="alert(1)', "miou": float("nan")}
    page = read(make_run(tmp_path, task_record(), evaluated=evaluated))
    assert_self_contained(page)
    assert page.text.count("no picture") == 3
    assert f"{percent(evaluated['pictures'][1]['wrong'])} wrong\n" in page.text


def test_the_table_of_classes_the_worst_first(tmp_path):
    page = read(task_run(tmp_path))
    table = part(page, "Class by class", "Confusion matrix")
    rows = sorted(task_evaluation(0)["per_class"], key=lambda row: row["iou"])
    place = 0
    for row in rows:
        keys = ("iou", "accuracy", "precision", "boundary_f1", "share")
        trained = percent(TRAINED[row["label"]] / sum(TRAINED.values()))
        low, high = (100 * end for end in row["iou_interval"])
        figures = [percent(row[key]) for key in keys]
        figures[0] += f" ({low:.1f} to {high:.1f} %)"
        text = "\n".join([row["label"], *figures, trained])
        place = table.index(text, place)
    assert rows[0]["label"] == "pole"
    assert f"Measured on {sum(row['n'] for row in rows):,} pixels of 6 validation" in page.text


def test_a_class_that_is_not_there_has_no_figures(tmp_path):
    evaluated = task_evaluation(0)
    evaluated["per_class"][0] |= {"iou": None, "accuracy": None, "boundary_f1": float("nan")}
    page = read(make_run(tmp_path, task_record(), evaluated=evaluated))
    row = evaluated["per_class"][0]
    assert f"sky\n–\n–\n{percent(row['precision'])}\n–\n" in page.text


def test_what_is_taken_for_what(tmp_path):
    page = read(task_run(tmp_path))
    counts = np.array(task_evaluation(0)["confusion"])
    shares = counts / counts.sum(axis=1, keepdims=True)
    grid = page.raw.split('<table class="confusion">')[1].split("</table>")[0]
    cells = re.findall(r"<td[^>]*>(\d*)</td>", grid)
    expected = [f"{100 * v:.0f}" if v >= 0.005 else "" for v in shares.ravel()]
    assert cells == expected
    pairs = part(page, "Most confused pairs", "The data")
    np.fill_diagonal(shares, 0)
    worst = np.argsort(-shares, axis=None)[:3]
    place = 0
    for truth, answer in zip(*np.unravel_index(worst, shares.shape), strict=True):
        share, count = percent(shares[truth, answer]), f"{counts[truth, answer]:,}"
        text = f"{STREET[truth]}\n{STREET[answer]}\n{share}\n{count}"
        place = pairs.index(text, place)


def test_many_classes_have_pairs_alone(tmp_path):
    names = [f"class {i}" for i in range(40)]
    counts = np.random.default_rng(0).integers(0, 1000, (40, 40)).tolist()
    evaluated = {"classes": names, "confusion": counts}
    page = read(make_run(tmp_path, task_record(), evaluated=evaluated))
    assert "Most confused pairs" in page.text
    assert "Confusion matrix" not in page.text


def test_pixels_and_images_are_counted_apart(tmp_path):
    page = read(task_run(tmp_path))
    table = part(page, "Pixels by class and split", "What was chosen")
    assert "All images\n100\n20" in table
    assert "road\n16,000,000\n3,200,000" in table
    assert "What the network saw" in page.text


def test_the_course_shows_losses_and_mean_iou(tmp_path):
    page = read(task_run(tmp_path))
    section = page.raw.split('<section id="course">')[1].split("</section>")[0]
    found = re.findall(r"<figure><h3>([^<]*)</h3>", section)
    rest = ["Learning rate", "Speed", "Waiting for data", "Peak memory"]
    assert found == ["Training loss and its parts", "Validation scores", *rest]
    losses, scores = section.split("</figure>")[:2]
    names = re.findall(r'<text class="name"[^>]*>([^<]+)<', losses)
    assert set(names) == {"in all", "CE", "Dice", "auxiliary"}
    assert set(re.findall(r'<text class="name"[^>]*>([^<]+)<', scores)) == {
        "mean IoU", "pixel acc.", "boundary F1"
    }  # fmt: skip
    rows = task_rows()
    best = max(rows, key=lambda row: row["val_miou"])
    said = f"Highest mean IoU: {percent(best['val_miou'])}, at epoch {best['epoch']}."
    assert said in scores
    table = part(page, "The numbers by epoch", "Where it errs")
    last = [percent(rows[-1][f"val_{k}"], 2) for k in ("miou", "pixel_accuracy", "boundary_f1")]
    assert "\n".join(last) in table
    assert "IoU, weighted" not in table  # not recorded


def test_a_run_that_has_not_ended_shows_what_it_has(tmp_path):
    unfinished = task_record(status="interrupted", result=None)
    page = read(make_run(tmp_path, unfinished, task_rows(epochs=7)))
    assert "validation mean IoU after epoch 7" in page.text
    assert "This run was interrupted after epoch 7." in page.text
    assert "How to use it" not in page.text
    assert "not measured" in read(make_run(tmp_path / "new", unfinished)).text
    alone = read(make_run(tmp_path / "alone", task_record()))
    assert percent(task_record()["result"]["metrics"]["miou"]) in alone.text
    assert "Where it errs" not in alone.text


def test_every_string_from_outside_is_escaped_and_harmless(tmp_path):
    made = poisoned(task_record())
    made["config"]["task"] = "segment"
    rows = [{k + (HOSTILE if "loss" in k else ""): v for k, v in row.items()}
            for row in task_rows()]  # fmt: skip
    page = read(make_run(tmp_path, made, rows, poisoned(task_evaluation())))
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
    made = task_record()
    for key in ("task", "segmenter"):
        made["config"] = task_record()["config"] | {key: junk}
        assert_self_contained(read(make_run(tmp_path / "run", made)))
    whole = task_evaluation(1)
    for key in whole:
        run = make_run(tmp_path / "eval", task_record(), evaluated=whole | {key: junk})
        assert_self_contained(read(run))
    for key in ("pictures", "per_class"):
        rows = [whole[key][0] | {inner: junk} for inner in whole[key][0]]
        run = make_run(tmp_path / "eval", task_record(), evaluated=whole | {key: rows})
        assert_self_contained(read(run))
    rows = [row | dict.fromkeys(list(row)[1:], junk) for row in task_rows(epochs=3)]
    assert_self_contained(read(make_run(tmp_path / "rows", task_record(), rows)))


values = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1)
KEYS = ("train_loss_ce", "train_loss_x", "train_loss", "val_miou", "val_pixel_accuracy", "lr")


@hypothesis.settings(max_examples=20)
@hypothesis.given(
    rows=st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, values)), max_size=6),
    scores=st.lists(values, min_size=5, max_size=5),
)
def test_any_numbers_make_plots_that_stay_in_their_frame(tmp_path_factory, rows, scores):
    rows = [{k: abs(v) if "loss" in k or k == "lr" else min(max(v, 0), 1) for k, v in row.items()}
            for row in rows]  # fmt: skip
    keys = ("iou", "accuracy", "precision", "share", "n")
    classes = [{"label": "a"} | dict(zip(keys, scores, strict=True))]
    evaluated = {"per_class": classes, "classes": ["a"], "confusion": [[scores[0]]]}
    page = read(make_run(tmp_path_factory.mktemp("run"), task_record(), rows, evaluated))
    for path in page.all("path"):
        numbers = [float(number) for number in re.split("[ML ]+", path["d"].strip("M "))]
        assert all(0 <= x <= 380 for x in numbers[::2])
        assert all(34 <= y <= 206 for y in numbers[1::2])
    for bar in page.all("rect", **{"class": "dot"}):
        assert 0 <= float(bar["width"]) <= 100


# --- in words -----------------------------------------------------------------------------------


def said(folder, rows=None, evaluated=None, metrics=None, **fields) -> list[tuple[str, str]]:
    made = task_record(**fields)
    made["result"] |= {"interval": None} | ({"metrics": metrics} if metrics else {})
    run = make_run(folder, made, rows, evaluated or sound())
    return [(finding.kind, finding.text) for finding in findings(read_run(run))]


def sound() -> dict:
    """An evaluation in which nothing stands out."""
    evaluated = task_evaluation(0)
    for row in evaluated["per_class"]:
        row["iou"] = 0.7
    n = [row["n"] for row in evaluated["per_class"]]
    evaluated["confusion"] = np.diag(n).tolist()
    return evaluated


SOUND = {"miou": 0.7, "pixel_accuracy": 0.85, "boundary_f1": 0.7}


def told(found: list[tuple[str, str]], text: str) -> str | None:
    """The kind of the finding that has the text."""
    return next((kind for kind, sentence in found if text in sentence), None)


def test_a_sound_run_is_told_nothing(tmp_path):
    assert said(tmp_path, task_rows(), sound(), SOUND) == []


def test_what_stands_out_is_told(tmp_path):
    evaluated = sound()
    rows = {row["label"]: row for row in evaluated["per_class"]}
    rows["pole"]["iou"] = 0.02
    found = said(tmp_path, None, evaluated, SOUND)
    assert told(found, "pole: as good as never found") == "warn"
    assert told(found, "Training saw little of it: class_weights=balanced") == "warn"
    rows["car"]["iou"] = 0.0
    found = said(tmp_path, None, evaluated, SOUND)
    assert told(found, "pole, car: as good as never found") == "warn"
    rows["pole"]["iou"], rows["car"]["iou"] = 0.3, 0.6
    found = said(tmp_path, None, evaluated, SOUND)
    assert told(found, "pole is found worst: IoU 30.0 %, 60.0 % on average") == "note"
    assert told(found, "It has 0.60 % of the training pixels") == "note"

    evaluated = sound()
    counts = np.array(evaluated["confusion"])
    counts[3] = [400, 0, 0, 90, 0]
    evaluated["confusion"] = counts.tolist()
    found = said(tmp_path, None, evaluated, SOUND)
    assert told(found, "82 % of the pixels of pole are taken for sky.") == "note"
    found = said(tmp_path, None, sound(), SOUND | {"boundary_f1": 0.4})
    assert told(found, "Regions are mostly right (85.0 % of the pixels)") == "note"
    assert told(found, "boundary F1 is 40.0 %, 45.0 points lower") == "note"


def test_little_learned_is_held_against_the_commonest_class(tmp_path):
    evaluated = sound()
    shares = [0.8, 0.05, 0.05, 0.05, 0.05]
    for row, share in zip(evaluated["per_class"], shares, strict=True):
        row |= {"n": round(10_000 * share), "iou": 0.2}
    found = said(tmp_path, None, evaluated, {"miou": 0.2})
    assert told(found, "giving every pixel the commonest class gets 16.0 %") == "warn"
    found = said(tmp_path, None, evaluated, {"miou": 0.3})
    assert told(found, "It learned little") is None


def test_few_images_leave_a_wide_interval(tmp_path):
    made = task_record()
    made["result"]["interval"] = [0.42, 0.61]
    run = read_run(make_run(tmp_path, made, evaluated=sound()))
    text = "Only 6 images were scored: the mean IoU on many more may be anything from 42 % to 61 %."
    assert text in [finding.text for finding in findings(run)]


def test_what_the_course_tells(tmp_path):
    rows = task_rows()
    for row in rows:
        row["val_miou"] = 0.02 * row["epoch"]
        row["waiting"] = 0.4
    rows[8]["train_loss_ce"] = float("nan")
    rows[12]["train_loss_dice"] = 5.0
    found = said(tmp_path, rows, sound(), SOUND)
    assert told(found, "validation mean IoU rose by 4.0 points in the last 2 epochs") == "warn"
    assert told(found, "not a finite number in 1 epoch") == "warn"
    assert told(found, "The training loss is unsteady") == "warn"
    assert told(found, "waited for images 40 % of the training time") == "warn"


def test_leaks_touch_the_mean_iou(tmp_path):
    data = task_record()["data"]
    data["notes"] = ["WARNING: 2 of 6 val images are in train too"]
    page = read(make_run(tmp_path, task_record(data=data), evaluated=task_evaluation(0)))
    assert "so the mean IoU on validation images is too good. skipway check-data" in page.text
    assert "Too good: 2 of these images were trained on." in page.text
    assert "6 validation images, 2 of which training saw too." in page.text


# --- comparisons --------------------------------------------------------------------------------


def test_runs_of_two_tasks_are_not_compared(tmp_path):
    with pytest.raises(InputError, match=r"trained for classify, .* for segment; compare runs of"):
        compare([full_run(tmp_path / "a"), task_run(tmp_path / "b")])


def test_segmenters_are_compared_by_mean_iou(tmp_path):
    first = task_run(tmp_path / "a")
    evaluated = task_evaluation(0)
    evaluated["per_class"][3] |= {"iou": 0.5}
    made = task_record()
    made["result"] |= {"interval": [0.55, 0.75]}
    made["result"]["metrics"] |= {"miou": 0.65}
    second = make_run(tmp_path / "b", made, task_rows(), evaluated)
    comparison = compare([first, second])
    assert verdicts(comparison) == [
        (None, "Not tested: A and B: runs keep no counts of single images; skipway eval RUN DATA "
         "--against RUN compares mean IoU on the same ones."),
    ]  # fmt: skip
    page = Page(write_comparison(comparison, tmp_path / "compare.html").read_text("utf-8"))
    assert_self_contained(page)
    scores = task_record()["result"]["metrics"]
    place = 0
    for text in (
        "Mean IoU\n", "95 % interval\n", "Pixel accuracy\n", "Boundary F1\n",
        percent(scores["miou"]), "65.0 %\n", "55.0 % to 75.0 %\n",
        "Mean IoU on validation images with its 95 % interval.",
    ):  # fmt: skip
        place = page.text.index(text, place)
    assert 'aria-label="Validation mean IoU.' in page.raw
    worst = task_evaluation(0)["per_class"][3]["iou"]
    table = page.text.split("Class by class")[-1]
    assert f"pole\n{percent(worst)}\n50.0 %\n{100 * (0.5 - worst):.1f}\nsky" in table
    assert "IoU: of the pixels that are of the class" in table
    assert "Accuracy" not in page.text
    assert "Recall" not in page.text
    summary = json.loads(json.dumps(comparison.summary()))
    assert [row["miou"] for row in summary["runs"]] == [scores["miou"], 0.65]
    values = [comparison.page.value(run) for run in comparison.runs.values()]
    assert values == [scores["miou"], 0.65]
    assert summary["classes"][0] == {"class": "pole", "iou": {"A": worst, "B": 0.5}}
