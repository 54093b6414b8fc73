"""What the report says in words: each illness is planted in a healthy run, and named."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pages import HOSTILE, TEN, assert_self_contained, evaluation, make_run, read, record
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
    planted(found, "good", "confidence can be read as it is: 93.0 % sure")


def test_overfitting(tmp_path):
    rows = healthy_rows()
    for row in rows:
        row["train_accuracy"] = min(1.0, row["val_accuracy"] + 0.07)
    planted(told(tmp_path, rows=rows), "warn", "It overfits", "100.0 %", "93.0 %", "7.0 points")
    few = healthy_record()
    few["data"]["splits"]["val"]["n"] = 40  # with so few images the gap may be chance
    assert not [f for f in told(tmp_path, few, rows) if "overfits" in f.text]


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
    planted(told(tmp_path, run), "note", "15 times", "found about as often (93.0 %")
    for k in (3, 8):
        evaluated["confusion"][k][k], evaluated["confusion"][k][(k + 1) % 10] = 60, 40
    found = told(tmp_path, run, evaluated=evaluated)
    planted(found, "warn", "15 times", "rare classes suffer: 60.0 %", "93.0 %", "3, 8, ")


def test_the_weakest_class_and_what_it_is_taken_for(tmp_path):
    evaluated = healthy_evaluation()
    evaluated["confusion"][3] = [0, 0, 6, 70, 0, 24, 0, 0, 0, 0]
    found = told(tmp_path, evaluated=evaluated)
    planted(
        found, "note", "3 is found least often: 70.0 %", "24 of the 30 that are missed", "for 5"
    )


@pytest.mark.parametrize(
    ("sure", "kind", "text"),
    [(0.975, "warn", "over-confident: 97.5 % sure on average, right in 93.0 %"),
     (0.85, "note", "more often right (93.0 %) than it says (85.0 % sure")],
)  # fmt: skip
def test_confidence_that_is_off(tmp_path, sure, kind, text):
    evaluated = healthy_evaluation()
    evaluated["calibration"] = [
        {"n": 400, "confidence": sure - 0.005, "accuracy": 0.93},
        {"n": 600, "confidence": sure + 0.005 / 1.5, "accuracy": 0.93},
    ]
    planted(told(tmp_path, evaluated=evaluated), kind, text)
    for row in evaluated["calibration"]:
        row["n"] /= 100  # four and six images prove nothing
    assert not [f for f in told(tmp_path, evaluated=evaluated) if text in f.text]


def test_waiting_for_images(tmp_path):
    rows = [row | {"waiting": 0.45} for row in healthy_rows()]
    planted(told(tmp_path, rows=rows), "warn", "waited for images 45 % of the training time",
            "--workers")  # fmt: skip


def test_no_better_than_guessing_and_one_answer_for_all(tmp_path):
    evaluated = healthy_evaluation()
    evaluated["confusion"] = [[0, 100] + [0] * 8 for _ in range(10)]
    run = healthy_record(metrics={"accuracy": 0.1}, interval=[0.083, 0.120])
    found = told(tmp_path, run, evaluated=evaluated)
    planted(found, "warn", "10.0 % is not clearly above always naming the commonest class (10.0 %)")
    planted(found, "warn", "Almost every answer is 1, whatever is shown")


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
        "3[/x]<script>alert(1)</script>\"'&\\x1b[31m\\n\\u202egnp.exe\\u2066 is found" in page.text
    )
