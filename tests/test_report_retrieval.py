"""The report of a run that makes vectors. No training: runs are made up."""

from __future__ import annotations

import itertools
import re
import shlex

import click
import pytest
import typer

from pages import HOSTILE, assert_self_contained, make_run, metrics, png, poisoned, read, record
from skipway.cli import app
from skipway.report import compare, verdicts, write_comparison
from skipway.report.retrieval_findings import by_chance, findings
from skipway.report.run import read_run

TRAINED, NEW = ("robin", "wren", "finch"), ("owl", "heron")
SCORES = {
    "recall_at_1": 0.8125, "recall_at_2": 0.875, "recall_at_4": 0.9375, "recall_at_8": 1.0,
    "map_at_r": 0.55,
}  # fmt: skip


def task_record(scores=SCORES, **fields):
    """20 images of each class that is trained on, 24 and 8 of those that are scored."""
    made = record()
    made["config"] |= {
        "task": "embed",
        "embedder": {"loss": "arcface", "dim": 64, "pooling": "gem", "per_class": 0},
    }
    counts = {
        "train": dict.fromkeys(TRAINED, 20) | dict.fromkeys(NEW, 0),
        "val": dict.fromkeys(TRAINED, 0) | {"owl": 24, "heron": 8},
    }
    made["data"] |= {
        "path": "birds",
        "classes": [*TRAINED, *NEW],
        "splits": {n: {"n": sum(c.values()), "counts": c} for n, c in counts.items()},
        "notes": ["3 classes are trained on, 2 others are only measured on"],
    }
    made["result"] |= {
        "metrics": scores, "interval": [0.75, 0.84], "split": "val", "n": 32, "best_epoch": 9
    }  # fmt: skip
    return made | fields


def task_rows(epochs=10):
    kept = ("epoch", "step", "lr", "train_loss", "seconds", "images_per_second", "waiting",
            "memory_mib")  # fmt: skip
    return [
        {key: row[key] for key in kept}
        | {f"val_{name}": value * min(1, 0.5 + 0.06 * row["epoch"])
           for name, value in SCORES.items()}
        for row in metrics(epochs)
    ]  # fmt: skip


def task_evaluation(queries=3):
    seeds = itertools.count(1)

    def named(label, i):
        return {"name": f"val/{label}/{i}.png", "label": label, "image": png(8, next(seeds))}

    worst = [
        named("heron", i)
        | {"first": 9 - i, "map_at_r": 0.05 * i}
        | {
            "neighbours": [
                named(label, 10 * i + j) | {"similarity": 0.9 - 0.1 * j, "right": label == "heron"}
                for j, label in enumerate(("owl", "owl", "heron", "owl"))
            ]
        }
        for i in range(queries)
    ]
    per_class = [
        {"label": "owl", "n": 24, "recall_at_1": 0.875, "map_at_r": 0.6},
        {"label": "heron", "n": 8, "recall_at_1": 0.625, "map_at_r": 0.4},
    ]
    return {
        "split": "val", "n": 32, "queries": 32, "classes": [*TRAINED, *NEW],
        "per_class": per_class, "worst": worst,
    }  # fmt: skip


def task_run(folder):
    return make_run(folder, task_record(), task_rows(), task_evaluation())


def told(folder, **parts):
    made = {"run": task_record(), "rows": task_rows(), "evaluated": task_evaluation()} | parts
    return [(f.kind, f.text) for f in findings(read_run(make_run(folder, **made)))]


def test_the_first_screen_answers_what_how_good_how_long_what_next(tmp_path):
    page = read(task_run(tmp_path / "a run"))
    assert_self_contained(page)
    place = 0
    for text in (
        "What was trained", "resnet20", "Makes\nvectors: 64 numbers of length 1",
        "Loss\nArcFace", "Pooling\nGeM", "How good", "81.2 %",
        "recall@1, the share whose nearest other is of their class, on 32 validation images",
        "95 % interval over classes: 75.0 % to 84.0 %", "By guessing\n61.3 %", "Recall@2\n87.5 %",
        "Recall@8\n100.0 %", "mAP@R\n55.0 %", "expect a little less on new ones", "How long",
        "What next", "--out vectors.parquet", "How it went", "Validation scores",
        "Each of the 32 validation images", "The worst queries", "Class by class",
    ):  # fmt: skip
        place = page.text.index(text, place)
    commands = [shlex.split(data) for tag, data in page.texts if tag == "code"]
    run = str(tmp_path / "a run")
    assert ["skipway", "search", run, "vectors.parquet", "IMAGE…"] in commands
    assert "skipway predict" not in page.text
    assert "accuracy" not in page.text


def test_every_command_on_the_page_can_be_typed(tmp_path):
    page = read(task_run(tmp_path / "a run"))
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


def test_queries_stand_before_what_they_found_in_the_order_given(tmp_path):
    page = read(task_run(tmp_path))
    shown = page.raw.split("The worst queries")[1].split("Class by class")[0]
    rows = task_evaluation()["worst"]
    wanted = [
        url for row in rows for url in (row["image"], *(n["image"] for n in row["neighbours"]))
    ]
    assert re.findall(r'<img src="([^"]+)"', shown) == wanted
    assert shown.count("<b>query</b>") == 3
    assert shown.count("same class") == 3
    assert shown.count('class="flag">another class') == 9
    assert "cosine 0.700" in shown
    assert "the first of its class comes at place 9; average precision 0.0 %" in shown


def test_classes_are_listed_with_the_worst_first(tmp_path):
    page = read(task_run(tmp_path))
    rows = page.text.split("Queries\nIn training\n")[1]
    assert rows.startswith("heron\n62.5 %\n40.0 %\n8\n0\nowl\n87.5 %\n60.0 %\n24\n0\n")


def test_guessing_is_a_neighbour_drawn_by_lot(tmp_path):
    run = read_run(task_run(tmp_path))
    pairs = [a == b for a, b in itertools.permutations("o" * 24 + "h" * 8, 2)]
    assert by_chance(run) == pytest.approx(sum(pairs) / len(pairs))
    made = task_record()
    made["data"]["splits"]["val"]["counts"] |= {"owl": 3, "heron": 1}  # no query
    asked = [b == "o" for a, b in itertools.permutations("oooh", 2) if a == "o"]
    found = by_chance(read_run(make_run(tmp_path / "alone", made)))
    assert found == pytest.approx(sum(asked) / len(asked))
    made["data"]["splits"]["val"]["counts"] = {}
    assert by_chance(read_run(make_run(tmp_path / "none", made))) is None


def test_images_that_are_alone_are_told(tmp_path):
    page = read(make_run(tmp_path, task_record(), evaluated=task_evaluation() | {"queries": 30}))
    assert "2 are alone of their class" in page.text


def test_what_stands_out_is_told(tmp_path):
    plain = told(tmp_path / "plain")
    assert [kind for kind, _ in plain] == ["note"]
    assert plain[0][1].startswith("None of the 2 classes that were scored was trained on")
    rising = [row | {"val_recall_at_1": 0.08 * row["epoch"]} for row in task_rows()]
    assert any("still improving" in text for _, text in told(tmp_path / "up", rows=rising))
    low = SCORES | {"recall_at_1": 0.65}
    said = " ".join(text for _, text in told(tmp_path / "low", run=task_record(low)))
    assert "It learned little: the nearest image is of the same class for 65.0 %" in said
    assert "drawn by lot it is for 61.3 %" in said
    loose = SCORES | {"map_at_r": 0.3}
    said = " ".join(text for _, text in told(tmp_path / "loose", run=task_record(loose)))
    assert "does not lie together: mAP@R is 30.0 %" in said
    made = task_record()
    made["result"]["interval"] = [0.6, 0.9]
    said = " ".join(text for _, text in told(tmp_path / "few", run=made))
    assert "Only 32 images of 2 classes were scored: recall@1 on as many others may be" in said
    made = task_record()
    made["result"]["interval"] = None
    said = " ".join(text for _, text in told(tmp_path / "fewer", run=made))
    assert "Only 2 classes were scored" in said
    assert "5 could tell at least" in said
    made = task_record()
    made["data"]["splits"]["train"]["counts"]["owl"] = 5
    said = " ".join(text for _, text in told(tmp_path / "seen", run=made))
    assert "None of the" not in said
    rows = [{"label": f"class {i}", "n": 50, "recall_at_1": 0.9, "map_at_r": 0.5} for i in range(3)]
    rows[1] |= {"label": "owl", "recall_at_1": 0.3}
    said = " ".join(
        text
        for _, text in told(tmp_path / "weak", evaluated=task_evaluation() | {"per_class": rows})
    )
    assert "owl is clearly found less often than others: for 30.0 % of its images" in said
    assert "(70.0 % over all classes)" in said
    rows = [{"label": f"class {i}", "n": 20, "recall_at_1": 0.9, "map_at_r": 0.5} for i in range(9)]
    rows[1] |= {"recall_at_1": 0.6}  # the lowest of nine: alone it would be clear
    made = task_evaluation() | {"per_class": rows}
    said = " ".join(text for _, text in told(tmp_path / "chance", evaluated=made))
    assert "clearly found less" not in said


def test_runs_are_compared_by_class(tmp_path):
    one = make_run(tmp_path / "one", task_record(), task_rows(), task_evaluation())
    better = task_evaluation()
    better["per_class"][1] |= {"recall_at_1": 0.75}
    scores = SCORES | {"recall_at_1": 0.84}
    other = make_run(tmp_path / "other", task_record(scores), task_rows(), better)
    found = compare([one, other])
    assert verdicts(found)
    page = write_comparison(found, tmp_path / "c.html").read_text()
    assert "Recall@1" in page
    assert "75.0 %" in page


def test_every_string_from_outside_is_escaped_and_harmless(tmp_path):
    made = poisoned(task_record())
    made["config"]["task"] = "embed"
    rows = [{k + (HOSTILE if "loss" in k else ""): v for k, v in row.items()}
            for row in task_rows()]  # fmt: skip
    page = read(make_run(tmp_path, made, rows, poisoned(task_evaluation())))
    assert_self_contained(page)
    assert "&lt;script&gt;" in page.raw
    assert "\x1b" not in page.raw
    assert "\u202e" not in page.raw


@pytest.mark.parametrize("junk", [None, 7, "text", [], [1], {"a": {"b": [None]}}, True, -2.5])
def test_parts_of_another_shape_are_left_out(tmp_path, junk):
    for key in task_record():
        assert_self_contained(read(make_run(tmp_path / "run", task_record(**{key: junk}))))
    made = task_record()
    for key in ("task", "embedder"):
        made["config"] = task_record()["config"] | {key: junk}
        assert_self_contained(read(make_run(tmp_path / "run", made)))
    for split in ("train", "val"):
        for key in ("n", "counts"):
            made = task_record()
            made["data"]["splits"][split] |= {key: junk}
            assert_self_contained(read(make_run(tmp_path / "run", made, task_rows())))
    whole = task_evaluation(1)
    for key in whole:
        run = make_run(tmp_path / "eval", task_record(), evaluated=whole | {key: junk})
        assert_self_contained(read(run))
    for key in ("worst", "per_class"):
        rows = [whole[key][0] | {inner: junk} for inner in whole[key][0]]
        run = make_run(tmp_path / "eval", task_record(), evaluated=whole | {key: rows})
        assert_self_contained(read(run))
    near = whole["worst"][0]["neighbours"][0]
    rows = [whole["worst"][0] | {"neighbours": [near | {key: junk} for key in near]}]
    assert_self_contained(
        read(make_run(tmp_path / "eval", task_record(), evaluated=whole | {"worst": rows}))
    )
