"""What the report says in words: each illness is planted in a healthy run, and named."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from scipy import stats

from pages import HOSTILE, TEN, assert_self_contained, evaluation, make_run, read, record
from skipway.data.preflight import remarks, scan
from skipway.data.split import DataSet, Split
from skipway.report.findings import Finding, findings
from skipway.report.run import read_run


def healthy_rows(epochs: int = 40) -> list[dict[str, Any]]:
    """Curves that rise and settle, training a little above validation."""
    return [
        {
            "epoch": e,
            "train_loss": 0.1 + 2.2 * math.exp(-e / 5),
            "val_loss": 0.15 + 2.2 * math.exp(-e / 5),
            "train_accuracy": 0.95 - 0.85 * math.exp(-e / 4),
            "val_accuracy": 0.93 - 0.85 * math.exp(-e / 4),
            "waiting": 0.02,
        }
        for e in range(1, epochs + 1)
    ]


def healthy_evaluation() -> dict[str, Any]:
    """Ten classes of 100 images, 93 of each right, the confidence as it should be."""
    counts = np.full((10, 10), 0) + np.diag(np.full(10, 93))
    for k in range(10):
        counts[k, (k + 1) % 10] = 7
    rows = [{"n": 1000, "confidence": 0.93, "accuracy": 0.93}]
    return evaluation() | {"n": 1000, "confusion": counts.tolist(), "calibration": rows}


def healthy_record(**result: Any) -> dict[str, Any]:
    made = record()
    splits = {
        split: {"n": 10 * n, "counts": dict.fromkeys(TEN, n)}
        for split, n in (("train", 900), ("val", 100), ("test", 100))
    }
    found = made["result"] | {
        "metrics": {"accuracy": 0.93}, "interval": [0.9125, 0.9443], "n": 1000
    } | result  # fmt: skip
    return made | {"data": made["data"] | {"splits": splits}, "result": found}


def told(folder: Path, run=None, rows=None, evaluated=None) -> list[Finding]:
    place = make_run(folder, run or healthy_record(), rows or healthy_rows(),
                     evaluated or healthy_evaluation())  # fmt: skip
    return findings(read_run(place))


def planted(found: list[Finding], kind: str, *texts: str) -> None:
    """Exactly one finding says all of it, and it has that kind."""
    saying = [finding for finding in found if all(text in finding.text for text in texts)]
    assert len(saying) == 1, found
    assert saying[0].kind == kind


def test_a_healthy_run_is_told_so(tmp_path):
    found = told(tmp_path)
    assert [finding.kind for finding in found] == ["good", "good"]
    planted(found, "good", "It generalises: 95.0 % right in training", "93.0 % in validation")
    planted(found, "good", "confidence can be read as it is: 93.0 % sure",
            "right in 93.0 % of 1,000 images; calibration error 0.0 %")  # fmt: skip


def test_overfitting(tmp_path):
    rows = healthy_rows()
    for row in rows:
        row["train_accuracy"] = min(1.0, row["val_accuracy"] + 0.07)
    planted(told(tmp_path, rows=rows), "warn", "It overfits", "99.9 %", "93.0 %", "7.0 points")
    few = healthy_record()
    few["data"]["splits"]["val"]["n"] = 40  # with so few images the gap may be chance
    assert not [f for f in told(tmp_path, few, rows) if "overfits" in f.text]


@pytest.mark.parametrize("how", ["mixup", "cutmix"])
@pytest.mark.parametrize("ahead", [-0.4, 0, 0.07])
def test_the_accuracy_on_mixed_images_is_not_held_against_validation(tmp_path, how, ahead):
    rows = healthy_rows()
    for row in rows:
        row["train_accuracy"] = min(1.0, max(row["val_accuracy"] + ahead, 0))
    run = healthy_record()
    run["config"]["augment"] = {how: 0.2}
    assert not [f for f in told(tmp_path, run, rows) if re.search("overfits|generalises", f.text)]
    run["config"]["augment"] = {how: 0}
    found = [f.text for f in told(tmp_path, run, rows) if re.search("overfits|generalise", f.text)]
    assert len(found) == 1


@pytest.mark.parametrize(("n", "kind"), [(6, "note"), (60, "note"), (200, "good")])
def test_few_validation_images_cannot_tell_whether_it_generalises(tmp_path, n, kind):
    run = healthy_record()
    run["data"]["splits"]["val"]["n"] = n
    (found,) = [f for f in told(tmp_path, run) if "generalises" in f.text]
    assert found.kind == kind
    if kind == "note":
        assert found.text.startswith(f"Whether it generalises, {n} validation images are too few ")
        assert "93.0 % are right at the end, 95.0 % in training" in found.text


def test_what_may_be_guessing_is_not_praised(tmp_path):
    run = healthy_record(metrics={"accuracy": 0.93}, interval=[0.6, 0.99])
    run["data"]["splits"]["test"]["counts"] = dict.fromkeys(TEN, 10) | {"7": 200}
    found = told(tmp_path, run)
    planted(found, "warn", "It is not clearly better than guessing")
    assert not [f for f in found if "generalises" in f.text]


def test_a_validation_loss_that_rises_again(tmp_path):
    rows = healthy_rows()
    for row in rows[12:]:
        row["val_loss"] = rows[11]["val_loss"] + 0.02 * (row["epoch"] - 12)
    planted(told(tmp_path, rows=rows), "note", "lowest at epoch 12", f"{rows[-1]['val_loss']:.3g}")


def test_training_that_ended_too_soon(tmp_path):
    planted(told(tmp_path, rows=healthy_rows(6)), "warn", "still improving when it ended",
            "in the last epoch")  # fmt: skip
    rows = healthy_rows()
    for row in rows:
        row["val_accuracy"] = 0.4 + 0.005 * row["epoch"]
    planted(told(tmp_path, rows=rows), "warn", "rose by 2.0 points in the last 4 epochs")


@pytest.mark.parametrize("n", [-30, 0, 0.5, "many"])
def test_a_number_of_validation_images_that_there_cannot_be(tmp_path, n):
    made = healthy_record()
    made["data"]["splits"]["val"]["n"] = n
    planted(told(tmp_path, made, healthy_rows(6)), "warn", "still improving when it ended")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number(tmp_path, value):
    rows = healthy_rows()
    rows[7]["train_loss"] = rows[8]["train_loss"] = value
    planted(told(tmp_path, rows=rows), "warn", "not a finite number in 2 epochs", "optim.clip")


def test_an_unsteady_loss(tmp_path):
    rows = healthy_rows()
    rows[20]["train_loss"], rows[30]["train_loss"] = 1.5, 0.9
    planted(told(tmp_path, rows=rows), "warn", "jumped up 2 times, most at epoch 21", "to 1.5")


def test_rare_classes_that_suffer(tmp_path):
    run, evaluated = healthy_record(), healthy_evaluation()
    counts = run["data"]["splits"]["train"]["counts"]
    counts |= {"3": 60, "8": 90}
    planted(told(tmp_path, run), "note", "15 times", "found as often (93.0 %")
    for k in (3, 8):
        evaluated["confusion"][k][k], evaluated["confusion"][k][(k + 1) % 10] = 60, 40
    found = told(tmp_path, run, evaluated=evaluated)
    planted(found, "warn", "15 times", "rare classes suffer: 60.0 %", "93.0 %", ": 3, 8.")
    evaluated["confusion"] = (np.array(evaluated["confusion"]) / 50).round().tolist()
    planted(told(tmp_path, run, evaluated=evaluated), "note", "too few images were scored to tell")


def test_the_weakest_class_and_what_it_is_taken_for(tmp_path):
    evaluated = healthy_evaluation()
    evaluated["confusion"][3] = [0, 0, 6, 70, 0, 24, 0, 0, 0, 0]
    found = told(tmp_path, evaluated=evaluated)
    planted(
        found,
        "note",
        "3 is clearly found less often than others: 70.0 %",
        "24 of the 30 that are missed",
        "for 5",
    )


@pytest.mark.parametrize("hits", [84, 79, 76, 72])
def test_the_weakest_of_ten_classes_is_named_where_ten_chances_do_not_explain_it(tmp_path, hits):
    evaluated = healthy_evaluation()
    evaluated["confusion"][3][3:5] = [hits, 100 - hits]
    ends = stats.binomtest(hits, 100).proportion_ci(1 - 0.05 / 10, "wilson")
    named = any("clearly found less" in f.text for f in told(tmp_path, evaluated=evaluated))
    assert named == (ends.high <= (9 * 93 + hits) / 1000 - 0.05) == (hits < 77)


@pytest.mark.parametrize(
    ("sure", "kind", "text"),
    [(0.975, "warn", "too confident by about 4.5 points: 97.5 % sure on average, right in 93.0 %"),
     (0.85, "note", "too modest by about 8.0 points: 85.0 % sure on average, right in 93.0 %")],
)  # fmt: skip
def test_confidence_that_is_off(tmp_path, sure, kind, text):
    evaluated = healthy_evaluation()
    evaluated["calibration"] = [
        {"n": 400, "confidence": sure - 0.005, "accuracy": 0.93},
        {"n": 600, "confidence": sure + 0.005 / 1.5, "accuracy": 0.93},
    ]
    planted(told(tmp_path, evaluated=evaluated), kind, text)
    for row in evaluated["calibration"]:
        row["n"] /= 100  # four and six images prove nothing, neither this nor that it is well
    found = told(tmp_path, evaluated=evaluated)
    assert not [f for f in found if text in f.text or "can be read as it is:" in f.text]
    planted(found, "note", "10 images cannot tell", "chance alone would make about")


def test_confidence_that_is_off_both_ways(tmp_path):
    evaluated = healthy_evaluation()
    evaluated["calibration"] = [
        {"n": 500, "confidence": 0.95, "accuracy": 0.85},
        {"n": 500, "confidence": 0.75, "accuracy": 0.85},
    ]
    planted(told(tmp_path, evaluated=evaluated), "warn", "off by about 10.0 points",
            "too high for some answers and too low for others: 85.0 % sure")  # fmt: skip


def test_an_error_of_one_sign_is_not_called_one_of_both(tmp_path):
    """As a run on 11 images had it: 94.8 % sure in every bin, right in 81.8 %."""
    evaluated = healthy_evaluation()
    evaluated["calibration"] = [{"n": 11, "confidence": 0.948, "accuracy": 9 / 11}]
    found = told(tmp_path, evaluated=evaluated)
    planted(found, "note", "11 images cannot tell", "the calibration error is 13.0 %")
    assert not [f for f in found if "too high for some" in f.text]


def test_a_calibration_error_of_ten_per_cent_on_few_images_is_not_praised(tmp_path):
    """As a run on 153 images had it: within chance, and no more than that."""
    evaluated = healthy_evaluation()
    evaluated["calibration"] = [
        {"n": 15, "confidence": 0.5 + 0.04 * i, "accuracy": 0.5 + 0.04 * i + 0.1 * (-1) ** i}
        for i in range(10)
    ]
    planted(told(tmp_path, evaluated=evaluated), "note", "150 images cannot tell",
            "the calibration error is 10.0 %, and chance alone would make about")  # fmt: skip


shares = st.floats(0, 1)


@hypothesis.settings(max_examples=50)
@hypothesis.given(st.lists(st.tuples(st.integers(1, 10_000), shares, shares), min_size=1))
def test_what_is_said_of_confidence_follows_its_error(tmp_path_factory, bins):
    evaluated = healthy_evaluation()
    evaluated["calibration"] = [
        dict(zip(("n", "confidence", "accuracy"), row, strict=True)) for row in bins
    ]
    found = told(tmp_path_factory.mktemp("run"), evaluated=evaluated)
    n, sure, right = np.array(bins).T
    error = np.average(abs(sure - right), weights=n)
    gap = np.average(sure, weights=n) - np.average(right, weights=n)
    (text,) = [f.text for f in found if re.search(r"onfiden|modest", f.text)]
    if "can be read as it is:" in text:
        assert error <= 0.03
        assert n.sum() > 50
    elif "too confident" in text:
        assert gap > error / 2 > 0.015
    elif "too modest" in text:
        assert -gap > error / 2 > 0.015
    elif "off by about" in text:
        assert error > 0.03
        assert abs(gap) <= error / 2 + 1e-12  # so that both signs are there
    else:
        assert "cannot tell" in text
        assert n.sum() < 10_000


def test_waiting_for_images(tmp_path):
    rows = [row | {"waiting": 0.45} for row in healthy_rows()]
    planted(told(tmp_path, rows=rows), "warn", "waited for images 45 % of the training time",
            "--workers")  # fmt: skip


def test_no_better_than_guessing_and_one_answer_for_all(tmp_path):
    evaluated = healthy_evaluation()
    evaluated["confusion"] = [[0, 100] + [0] * 8 for _ in range(10)]
    run = healthy_record(metrics={"accuracy": 0.1}, interval=[0.083, 0.120])
    found = told(tmp_path, run, evaluated=evaluated)
    planted(
        found, "warn", "not clearly better than guessing: 10.0 % of the test images are right",
        "interval 8.3 % to 12.0 %", "always naming their commonest class gets 10.0 %",
    )  # fmt: skip
    planted(found, "warn", "Almost every answer is 1, whatever is shown")


@pytest.mark.parametrize(
    ("accuracy", "interval", "said"),
    [
        (0.40, [0.37, 0.43], "worse than guessing: 40.0 % of the test images"),
        (0.52, [0.489, 0.551], "not clearly better than guessing: 52.0 %"),
        (0.57, [0.539, 0.600], "learned little: 57.0 %"),
        (0.75, [0.722, 0.776], None),
    ],
)
def test_accuracy_is_held_against_the_largest_class(tmp_path, accuracy, interval, said):
    run = healthy_record(metrics={"accuracy": accuracy}, interval=interval)
    run["data"]["splits"]["test"]["counts"] = dict.fromkeys(TEN, 50) | {"7": 450}
    guess = 450 / 900
    rows = [row | {"val_accuracy": accuracy, "train_accuracy": accuracy} for row in healthy_rows()]
    found = told(tmp_path, run, rows)
    texts = [f.text for f in found if f.kind == "warn"]
    if said is None:
        assert not texts
        planted(found, "good", "It generalises")
        return
    (text,) = texts
    assert said in text
    assert f"always naming their commonest class gets {100 * guess:.1f} %" in text
    assert ("7.0 points less" in text) == ("little" in said)
    assert not [f for f in found if "generalises" in f.text]


class Levels:
    """Images told apart by their level, which is their name."""

    def read(self, name: str) -> np.ndarray:
        return np.full((4, 4, 3), int(name), np.uint8)


def preflight(**splits: range) -> list[str]:
    """What `train` notes of splits that hold the images of those numbers."""
    data = DataSet(
        "digits",
        TEN,
        {
            name: Split(Levels(), [str(i) for i in images], np.array(images) % 10)
            for name, images in splits.items()
        },
    )
    scans = {name: scan(split, 1, lambda *_: None) for name, split in data.splits.items()}
    return list(remarks(data, scans))


def with_notes(notes: list[str], **result: Any) -> dict[str, Any]:
    made = healthy_record(**result)
    return made | {"data": made["data"] | {"notes": notes}}


def test_images_that_are_scored_and_trained_on(tmp_path):
    notes = preflight(train=range(100), val=range(60, 160))
    run = with_notes(notes, split="val")
    found = told(tmp_path, run)
    least = 100 * (930 - 40) / (1000 - 40)
    planted(found, "warn", "40 validation images are among the training images too",
            "is too good. On the other 960 it may be as low as", f"{least:.1f} %")  # fmt: skip
    assert found[0].text.startswith("40 validation images")
    assert not [f for f in found if f.kind == "good"]
    page = read(tmp_path)
    card = page.text.split("How good")[1].split("How long")[0]
    warned = "Too good: 40 of these images were trained on."
    assert card.index("93.00 %") < card.index(warned) < card.index("95 % interval")
    assert "40 of which training saw too" in page.text
    assert "did not see" not in page.text


def test_a_leak_that_does_not_touch_the_accuracy_is_told_apart(tmp_path):
    found = told(tmp_path, with_notes(preflight(train=range(100), val=range(99, 160))))
    planted(found, "warn", "1 validation image is among the training images too",
            "by epoch is too good; the test accuracy is not touched")  # fmt: skip
    assert not [f for f in found if "generalises" in f.text]
    planted(found, "good", "confidence can be read as it is")
    assert "Too good" not in read(tmp_path).text
    splits = {"train": range(50), "val": range(60, 90), "test": range(85, 100)}
    found = told(tmp_path, with_notes(preflight(**splits)))
    planted(found, "warn", "5 test images are among the validation images too",
            "what was chosen on the one looks too good on the other")  # fmt: skip
    planted(found, "good", "It generalises")
    assert not read_run(tmp_path).leaked
    clean = with_notes(preflight(train=range(50), val=range(60, 90)), split="val")
    assert [f.kind for f in told(tmp_path, clean)] == ["good", "good"]


def test_a_leak_of_all_that_was_scored_leaves_nothing_to_tell(tmp_path):
    run = with_notes(preflight(train=range(100), val=range(100)), split="val", n=100)
    planted(told(tmp_path, run), "warn", "100 validation images", "is too good. skipway")


def test_few_images(tmp_path):
    run = healthy_record(n=50, interval=[0.81, 0.978])
    planted(told(tmp_path, run), "note", "Only 50 images were scored", "from 81 % to 98 %")


def test_what_asks_for_an_action_comes_first_and_is_on_the_page(tmp_path):
    rows = [row | {"waiting": 0.45} for row in healthy_rows(6)]
    run = make_run(tmp_path, healthy_record(), rows, healthy_evaluation())
    page = read(run)
    kinds = re.findall(r'<li class="(\w+)">', page.raw)
    assert kinds == ["warn", "warn", "good", "good"]
    for finding in findings(read_run(run)):
        assert finding.text in page.text


def test_class_names_in_sentences_are_harmless(tmp_path):
    evaluated = healthy_evaluation()
    evaluated["classes"] = [name + HOSTILE for name in TEN]
    evaluated["confusion"][3] = [0, 0, 6, 70, 0, 24, 0, 0, 0, 0]
    page = read(make_run(tmp_path, healthy_record(), healthy_rows(), evaluated))
    assert_self_contained(page)
    assert (
        "3[/x]<script>alert(1)</script>\"'&\\x1b[31m\\n\\u202egnp.exe\\u2066 is clearly found"
        in page.text
    )
