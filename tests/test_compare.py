"""`skipway compare`: runs are made up, the statistics are SciPy's."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import recall_score

from commands import call
from pages import (
    HOSTILE,
    TEN,
    Page,
    assert_self_contained,
    card,
    evaluation,
    make_run,
    metrics,
    png,
    poisoned,
    record,
)
from skipway.metrics import Outcomes, wilson_interval
from skipway.report import compare, verdicts, write_comparison, write_report

N = 1000
LABELS = np.random.default_rng(0).integers(0, 10, N)


def answers(accuracy: float, seed: int) -> np.ndarray:
    """Answers to LABELS of which about so many are right."""
    rng = np.random.default_rng(seed)
    wrong = (LABELS + rng.integers(1, 10, N)) % 10
    return np.where(rng.random(N) < accuracy, LABELS, wrong)


def scored_run(folder: Path, predicted: np.ndarray, digest: str = "d1", **fields: Any) -> Path:
    """A finished run that gave those answers, with pictures of its first mistakes."""
    right = predicted == LABELS
    wrong = np.flatnonzero(~right)
    confidence = np.random.default_rng(5).uniform(0.3, 1, N)
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (LABELS, predicted), 1)
    result = record()["result"] | {
        "metrics": {"accuracy": float(right.mean())},
        "interval": wilson_interval(int(right.sum()), N),
        "n": N,
    }
    kept = Outcomes(LABELS, predicted, confidence).packed(10)
    evaluated = evaluation() | {
        "n": N,
        "confusion": counts.tolist(),
        "mistakes": [
            {"index": int(i), "name": f"test/{i}.png", "label": str(LABELS[i]),
             "predicted": str(predicted[i]), "score": 0.9, "true_score": 0.01,
             "image": png(8, int(i))}
            for i in wrong[:24]
        ],
        "doubtful": [],
        "images": kept | {"digest": digest, "wrong": [f"test/{i}.png" for i in wrong]},
    }  # fmt: skip
    made = record(name=folder.name, result=result) | fields
    return make_run(folder, made, metrics(12), evaluated, card())


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return scored_run(tmp_path / "first", answers(0.9, 1)), scored_run(
        tmp_path / "second", answers(0.8, 2)
    )


def test_significance_against_scipy(two: tuple[Path, Path]) -> None:
    (pair,) = call("compare", *two, "--json").value["pairs"]
    right, other = answers(0.9, 1) == LABELS, answers(0.8, 2) == LABELS
    only_first, only_second = int((right & ~other).sum()), int((other & ~right).sum())
    assert (pair["n"], pair["both"]) == (N, int((right & other).sum()))
    assert (pair["only_first"], pair["only_second"]) == (only_first, only_second)
    assert pair["difference"] == pytest.approx(other.mean() - right.mean())
    expected = stats.binomtest(only_first, only_first + only_second).pvalue
    assert pair["p"] == pytest.approx(expected)
    drawn = stats.bootstrap(
        (other.astype(float) - right,), np.mean, method="percentile", n_resamples=3000,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert pair["interval"] == pytest.approx([drawn.low, drawn.high], abs=0.004)
    assert pair["reason"] is None
    assert pair["paired_by"] == "path"


UNVERIFIED = (
    "Images were taken for the same by their paths alone; that their content is the same was not "
    "checked."
)


def test_equal_paths_alone_are_said_to_be_no_proof(tmp_path: Path, two: tuple[Path, Path]) -> None:
    """MNIST and Fashion-MNIST have the same paths and labels in any order of classes."""
    path = tmp_path / "c.html"

    def told() -> tuple[dict[str, Any], list[bool]]:
        (pair,) = call("compare", *two, "--json", "--out", path).value["pairs"]
        said = (Page(path.read_text("utf-8")).text, call("compare", *two).out, str(pair["note"]))
        return pair, [UNVERIFIED in text for text in said]

    for known in ((False, False), (True, False), (False, True), (True, True)):
        for run, has in zip(two, known, strict=True):
            moved(run, "test/{}.png", content=contents() if has else None, digest="d1")
        pair, unverified = told()
        assert (pair["paired_by"], pair["verified"]) == ("path", all(known))
        assert unverified == [not all(known)] * 3
    assert pair["note"] is None


def test_a_clear_and_an_unclear_difference(tmp_path: Path, two: tuple[Path, Path]) -> None:
    first, second = two
    like = answers(0.9, 1)
    like[:4] = (LABELS[:4] + 1) % 10
    third = scored_run(tmp_path / "third", like)
    said = [text for _, text in verdicts(compare([first, second, third]))]
    assert [clear for clear, _ in verdicts(compare([first, second, third]))] == [True, False, True]
    assert said[0].startswith("A is better than B, and chance alone hardly explains it.")
    assert said[1].startswith("A and C do not differ clearly: chance alone may do this.")
    assert said[2].startswith("C is better than B")
    assert "only C on 0 images" in said[1]
    pairs = compare([first, second, third]).pairs
    assert pairs[1].p_adjusted == pairs[1].p  # Holm: the largest of three stays
    assert pairs[0].p_adjusted is not None
    assert pairs[0].p is not None
    assert pairs[0].p_adjusted > pairs[0].p
    holm = ", adjusted for 3 pairs by Holm's method)."
    assert all(holm in text for text in said)
    assert "adjusted" not in verdicts(compare([first, second]))[0][1]
    twin = scored_run(tmp_path / "twin", answers(0.9, 1))
    (same,) = verdicts(compare([first, twin]))
    assert same == (False, f"A and B are right on the same images. {UNVERIFIED}")


def unfinished(run: Path) -> None:
    made = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(made | {"status": "interrupted", "result": None}))


def changed(run: Path, file: str, **change: Any) -> None:
    (run / file).write_text(json.dumps(json.loads((run / file).read_text()) | change))


def of_validation(run: Path) -> None:
    made = json.loads((run / "run.json").read_text())
    changed(run, "run.json", result=made["result"] | {"split": "val"})


def of_other_images(run: Path) -> None:
    kept = json.loads((run / "evaluation.json").read_text())["images"]
    changed(run, "evaluation.json", images=kept | {"digest": "other"})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (unfinished, "B has no score: its status is interrupted"),
        (of_validation, "A was scored on test, B on validation images"),
        (of_other_images, "they were scored on other images, or with other labels"),
        (lambda run: changed(run, "evaluation.json", images=None), "B did not keep the outcome"),
        (lambda run: changed(run, "evaluation.json", images={"n": 3}), "B did not keep"),
        (lambda run: (run / "evaluation.json").unlink(), "B did not keep the outcome"),
    ],
)
def test_what_cannot_be_tested_is_said_and_not_tested(
    two: tuple[Path, Path], tmp_path: Path, spoil: Any, reason: str
) -> None:
    spoil(two[1])
    page = tmp_path / "c.html"
    found = call("compare", *two, "--json", "--out", page).value
    (pair,) = found["pairs"]
    assert pair["reason"].startswith(reason)
    assert {pair[key] for key in ("p", "p_adjusted", "difference", "interval", "n")} == {None}
    said = call("compare", *two)
    assert said.code == 0
    assert f"Not tested: A and B: {reason}" in said.out
    text = Page(page.read_text("utf-8")).text
    assert f"Not tested: A and B: {reason}" in text
    assert not re.search("better|p = |McNemar|differ clearly", text)


def contents(seed: int = 7) -> np.ndarray:
    """A digest of each image."""
    return np.random.default_rng(seed).integers(0, 2**64, N, np.uint64)


def moved(
    run: Path,
    name: str = "elsewhere/{}.png",
    order: np.ndarray | None = None,
    content: np.ndarray | None = None,
    digest: str = "moved",
) -> Path:
    """The same run, as if its images had those names, and digests of content, and came in that
    order."""
    kept = json.loads((run / "evaluation.json").read_text())
    order = np.arange(N) if order is None else order
    found = Outcomes.unpacked(kept["images"], 10)
    label, predicted = found.label[order], found.predicted[order]
    wrong = np.flatnonzero(label != predicted)
    images = Outcomes(label, predicted, found.confidence[order]).packed(10) | {
        "digest": digest,
        "wrong": [name.format(order[i]) for i in wrong],
    }
    if content is not None:
        images["content"] = base64.b64encode(content[order].astype("<u8").tobytes()).decode()
    mistakes = [
        {"index": int(i), "name": name.format(order[i]), "label": str(label[i]),
         "predicted": str(predicted[i]), "score": 0.9, "image": png(8, int(order[i]))}
        for i in wrong[:24]
    ]  # fmt: skip
    changed(run, "evaluation.json", images=images, mistakes=mistakes, doubtful=[])
    return run


NUMBERS = ("n", "both", "only_first", "only_second", "difference", "interval", "p")


def test_images_at_other_paths_are_paired_by_content(
    tmp_path: Path, two: tuple[Path, Path]
) -> None:
    (straight,) = call("compare", *two, "--json").value["pairs"]
    moved(two[0], "test/{}.png", content=contents(), digest="d1")
    shuffled = np.random.default_rng(3).permutation(N)
    moved(two[1], "a/{}.png", shuffled, contents())
    path = tmp_path / "c.html"
    (pair,) = call("compare", *two, "--json", "--out", path).value["pairs"]
    assert (pair["paired_by"], pair["verified"]) == ("content", True)
    assert {key: pair[key] for key in NUMBERS} == {key: straight[key] for key in NUMBERS}
    page = Page(path.read_text("utf-8"))
    said = "Images were paired by content: the runs have them at other paths."
    assert pair["note"] == said
    assert said in page.text
    assert said in call("compare", *two).out
    right, other = answers(0.9, 1) == LABELS, answers(0.8, 2) == LABELS
    for winner, folder, mask in (("A", "a", right & ~other), ("B", "test", other & ~right)):
        part = page.raw.split(f"Only {winner} is right, not")[1].split("Only B")[0]
        listed = [int(i) for i in re.findall(rf'scope="row">{folder}/(\d+)\.png', part)]
        assert len(listed) == min(int(mask.sum()), 100)
        assert set(listed) <= set(np.flatnonzero(mask).tolist())
        row = re.search(rf'scope="row">{folder}/(\d+)\.png</th><td>(\d)</td><td>(\d)', part)
        loser = answers(0.8, 2) if winner == "A" else answers(0.9, 1)
        assert (int(row[2]), int(row[3])) == (LABELS[int(row[1])], loser[int(row[1])])
        names = re.findall(rf'alt="class \d {folder}/(\d+)\.png"|src="([^"]+)" alt', part)
        assert all(png(8, int(i)) in part for i, _ in names if i)


def test_content_that_is_there_twice_and_content_that_differs(
    tmp_path: Path, two: tuple[Path, Path]
) -> None:
    order, twice = np.random.default_rng(4).permutation(N), contents()
    places = np.flatnonzero(LABELS == 3)[:2]
    twice[places[1]] = twice[places[0]]
    moved(two[0], content=twice)
    moved(two[1], "a/{}.png", order, twice, "other")
    (pair,) = compare(two).pairs
    assert (pair.paired_by, pair.n) == ("content", N)
    one_more = twice.copy()
    one_more[5] += np.uint64(1)
    moved(scored_run(two[1], answers(0.8, 2)), "a/{}.png", order, one_more, "other")
    (pair,) = compare(two).pairs
    assert pair.reason == (
        "999 of the 1,000 and 1,000 images have the same bytes; the same pictures in another "
        "format count as others"
    )
    moved(scored_run(two[1], answers(0.8, 2)), "elsewhere/{}.png", content=one_more)
    (pair,) = compare(two).pairs
    assert pair.reason == "under the same paths 1 of 1,000 images have other bytes"
    relabelled = contents()
    relabelled[places[0]], other = relabelled[np.flatnonzero(LABELS == 4)[0]], relabelled[places[0]]
    relabelled[np.flatnonzero(LABELS == 4)[0]] = other
    moved(scored_run(two[0], answers(0.9, 1)), content=contents())
    moved(scored_run(two[1], answers(0.8, 2)), "a/{}.png", content=relabelled, digest="other")
    (pair,) = compare(two).pairs
    assert pair.reason == "they were scored with other labels"


def test_without_digests_of_content_file_names_in_order_pair(
    tmp_path: Path, two: tuple[Path, Path]
) -> None:
    (straight,) = compare(two).pairs
    moved(two[0], "test/scan-{}.png")
    moved(two[1], "copy/of/scan-{}.png", digest="other")
    (pair,) = call("compare", *two, "--json", "--out", tmp_path / "c.html").value["pairs"]
    assert (pair["paired_by"], pair["verified"]) == ("file name", False)
    assert pair["p"] == straight.p
    said = "Images were paired by order, label and file name: the runs have them at other paths"
    page = Page((tmp_path / "c.html").read_text("utf-8")).text
    for text in (page, call("compare", *two).out, pair["note"]):
        assert said in text
        assert UNVERIFIED in text


@pytest.mark.parametrize(
    ("names", "paired"),
    [
        ("{label}/{k}.png", False),
        ("test/{label}/{k:05}.png", False),
        ("{i:05}_{label}.png", False),
        ("n0{label}/{k}.JPEG", False),
        ("{i}.png", False),
        ("{box}/{label}/{i}.png", False),  # boxes of a hundred, numbered
        ("{label}/shelf {box}/{i}.png", True),
        ("{label}/seen-{k}.png", True),
    ],
)
def test_numbers_for_names_show_nothing(two: tuple[Path, Path], names: str, paired: bool) -> None:
    """Any two data sets of as many images of each class are numbered alike."""
    for run, root in zip(two, ("raw", "other"), strict=True):
        moved(run, digest=root)
        kept = json.loads((run / "evaluation.json").read_text())
        per = 100 if "box" in names else N
        within = [int((LABELS[:i] == LABELS[i]).sum()) for i in range(N)]  # its class
        named = {
            i: f"{root}/{names.format(i=i % per, k=within[i], box=i // per, label=LABELS[i])}"
            for i in (int(Path(name).stem) for name in kept["images"]["wrong"])
        }
        rows = [row | {"name": named[row["index"]]} for row in kept["mistakes"]]
        images = kept["images"] | {"wrong": list(named.values())}
        changed(run, "evaluation.json", images=images, mistakes=rows)
    (pair,) = compare(two).pairs
    if paired:
        assert (pair.paired_by, pair.verified) == ("file name", False)
    else:
        assert pair.reason == (
            "nothing shows that their images are the same: their paths differ, their names are "
            "only numbers, and no digests of their content were kept"
        )
        assert (pair.paired_by, pair.verified, pair.p, pair.note) == (None, None, None, None)


@pytest.mark.parametrize(
    "ambiguous",
    [
        lambda run: moved(run, "copy/{}.jpg"),  # other files
        lambda run: moved(run, "copy/{}/image.png"),  # one name for all
        lambda run: moved(run, "test/{}.png"),  # the same paths, yet other ones among the rest
        lambda run: moved(run, "copy/{}.png", np.arange(N)[::-1]),
        lambda run: moved(run, "copy/{}.png", np.argsort(LABELS, kind="stable")),
        lambda run: changed(
            moved(run),
            "evaluation.json",
            images=json.loads((run / "evaluation.json").read_text())["images"] | {"wrong": []},
            mistakes=[],
        ),
    ],
)
def test_images_that_may_be_others_are_not_paired(two: tuple[Path, Path], ambiguous: Any) -> None:
    ambiguous(two[1])
    (pair,) = compare(two).pairs
    assert pair.reason == "they were scored on other images, or with other labels"
    assert (pair.paired_by, pair.p) == (None, None)


def test_the_speed_on_cached_features_stands_apart(tmp_path: Path, two: tuple[Path, Path]) -> None:
    config = record()["config"]
    cached = config | {"model": config["model"] | {"freeze": "all"}, "data": {"views": 8}}
    changed(two[1], "run.json", config=cached)
    path = tmp_path / "c.html"
    found = call("compare", *two, "--json", "--out", path).value
    assert [run["on_cached_features"] for run in found["runs"]] == [False, True]
    page = Page(path.read_text("utf-8"))
    assert "1,234 *" in page.text
    assert "Images/s with *: the classifier on cached features." in page.text
    for title in ("Speed", "Waiting for data"):
        figure = page.raw.split(f'aria-label="{title}')[1].split("</figure>")[0]
        assert re.findall(r'class="letter"[^>]*>(\w)<', figure) == ["A"]
        assert "B: the classifier on cached features, left out here." in figure
    assert "1,234 (the classifier on cached features)" in call("compare", *two).out
    changed(two[0], "run.json", config=cached)
    both = Page(write_comparison(compare(two), path).read_text("utf-8")).raw
    figure = both.split('aria-label="Speed')[1].split("</figure>")[0]
    assert re.findall(r'class="letter"[^>]*>(\w)<', figure) == ["A", "B"]
    assert "A, B: the classifier on cached features." in figure


def test_the_axis_of_speed_holds_the_fastest_run(tmp_path: Path, two: tuple[Path, Path]) -> None:
    fast = scored_run(tmp_path / "fast", answers(0.9, 3))
    rows = [row | {"images_per_second": 12_000.0 + row["epoch"]} for row in metrics(12)]
    rows[3]["images_per_second"] = 900_000.0  # an odd epoch
    (fast / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_comparison(compare([*two, fast]), tmp_path / "c.html").read_text("utf-8")
    figure = page.split('aria-label="Speed')[1].split("</figure>")[0]
    assert "1 value is off the scale." in figure
    assert "training images a second, in 10³" in figure


def with_config(run: Path, **settings: Any) -> None:
    changed(run, "run.json", config=record()["config"] | settings)


def figures(two: Sequence[Path], path: Path) -> tuple[str, dict[str, str]]:
    """The text of the page, and its plots by title."""
    page = Page(write_comparison(compare(two), path).read_text("utf-8"))
    found = re.findall(r"<figure><h3>([^<]*)</h3>(.*?)</figure>", page.raw, re.S)
    return page.text, dict(found)


def test_training_losses_of_several_kinds_are_not_compared(
    tmp_path: Path, two: tuple[Path, Path]
) -> None:
    path = tmp_path / "c.html"
    rows = [row | {"train_loss": row["train_loss"] / 1000} for row in metrics(12)]
    (two[1] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with_config(two[1], loss="bce", augment={"mixup": 0.1, "cutmix": 1.0})
    text, found = figures(two, path)
    assert not [title for title in found if title.startswith("Training loss")]
    said = (
        "Training loss is left out, as it is not the same quantity in all runs. A: cross-entropy; "
        "B: BCE, mixed images."
    )
    assert said in text
    assert "off the scale" not in found["Validation loss"]

    with_config(two[0], loss="bce", augment={"mixup": 0.2})
    (two[0] / "metrics.jsonl").write_text((two[1] / "metrics.jsonl").read_text())
    text, found = figures(two, path)
    assert "is left out" not in text
    figure = found["Training loss: BCE, mixed images"]
    assert re.findall(r'class="letter"[^>]*>(\w)<', figure) == ["A", "B"]
    assert "nats" not in figure
    assert "nats an image" in found["Validation loss"]
    assert "off the scale" not in found["Validation loss"]

    for gamma, run in zip((1.0, 2.0), two, strict=True):
        with_config(run, loss="focal", focal_gamma=gamma)
    assert "A: focal loss, gamma 1; B: focal loss, gamma 2." in figures(two, path)[0]
    for gamma, run in zip((1.0, 2.0), two, strict=True):
        with_config(run, loss="ce", focal_gamma=gamma, class_weights="none")
    assert "nats an image" in figures(two, path)[1]["Training loss"]
    (two[1] / "metrics.jsonl").unlink()  # has no loss that could be of another kind
    with_config(two[1], loss="bce")
    text, found = figures(two, path)
    assert "is left out" not in text
    assert re.findall(r'class="letter"[^>]*>(\w)<', found["Training loss"]) == ["A"]


def test_an_accuracy_that_is_too_good_is_named(two: tuple[Path, Path]) -> None:
    data = record()["data"]
    note = (
        "warning: 1,012 of 2,000 test images are in train too, so scores on test will be too good"
    )
    changed(two[1], "run.json", data=data | {"notes": [note]})
    said = verdicts(compare(two))
    text = "B was trained on 1,012 test images too: its accuracy is too good."
    assert said[1:] == [(None, text)]
    assert text in call("compare", *two).out
    found = call("compare", *two, "--json").value
    assert [run["leaked"] for run in found["runs"]] == [0, 1012]


def test_the_page_has_the_head_and_style_of_a_report(
    tmp_path: Path, two: tuple[Path, Path]
) -> None:
    heads = [
        re.sub("<title>.*?</title>", "", path.read_text("utf-8").split("</head>")[0])
        for path in (write_report(two[0]), write_comparison(compare(two), tmp_path / "c.html"))
    ]
    assert heads[0] == heads[1]


def test_pairs_with_one_reason_stand_together(tmp_path: Path, two: tuple[Path, Path]) -> None:
    other = scored_run(tmp_path / "other", answers(0.5, 3), digest="d2")
    said = verdicts(compare([*two, other]))
    assert len(said) == 2
    assert said[1][1].startswith("Not tested: A and C, B and C: they were scored on other images")


def test_the_page(tmp_path: Path, two: tuple[Path, Path]) -> None:
    config = record()["config"]
    changed(two[1], "run.json", config=config | {"seed": 2, "optim": {"lr": 0.3}})
    path = tmp_path / "c.html"
    done = call("compare", *two, "--out", path)
    assert done.code == 0
    assert "the page: " in done.out
    page = Page(path.read_text("utf-8"))
    assert_self_contained(page)
    assert not re.search(r"https?://", page.raw)
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert {a["href"] for a in page.all("a")} == {f"#{i}" for i in ids}
    differ = page.text.split("Settings that differ")[-1].split("Class by class")[0]
    assert "seed\n1\n2\n" in differ
    assert "optim.lr\n0.1\n0.3\n" in differ
    assert "precision" not in differ
    assert "optim.milestones" in differ  # absent in the second
    changed(two[1], "run.json", config=config | {"optim": {}})
    assert {key for key, _ in compare(two).settings} == {"optim.lr", "optim.milestones"}
    recalls = [
        recall_score(LABELS, answers(*which), average=None) for which in ((0.9, 1), (0.8, 2))
    ]
    table = page.text.split("Class by class")[-1].split("One right")[0]
    for k in range(10):
        a, b = recalls[0][k], recalls[1][k]
        row = f"{k}\n{100 * a:.1f} %\n{100 * b:.1f} %\n{100 * abs(a - b):.1f}"
        assert row in table
    apart = [float(v) for v in re.findall(r" %\n(\d+\.\d)\n", table)]
    assert apart == sorted(apart, reverse=True)
    assert len(apart) == 10
    turned = Page(write_comparison(compare(two[::-1]), path).read_text("utf-8")).text
    assert re.findall(r" %\n(\d+\.\d)\n", turned.split("Class by class")[-1]) == [
        f"{v:.1f}" for v in apart
    ]


def test_images_that_one_gets_right(tmp_path: Path, two: tuple[Path, Path]) -> None:
    page = Page(write_comparison(compare(two), tmp_path / "c.html").read_text("utf-8"))
    right, other = answers(0.9, 1), answers(0.8, 2)
    only = np.flatnonzero((right == LABELS) & (other != LABELS))
    part = page.raw.split("Only A is right, not B")[-1].split("Only B is right")[0]
    assert f": {len(only)} images" in part
    listed = re.findall(r'scope="row">test/(\d+)\.png', part)
    assert len(listed) == min(len(only), 100)
    assert {int(i) for i in listed} <= set(only.tolist())
    confidence = np.random.default_rng(5).uniform(0.3, 1, N)
    sure = [confidence[int(i)] for i in listed]
    assert sure == pytest.approx(sorted(sure, reverse=True), abs=1e-4)
    kept = set(np.flatnonzero(other != LABELS)[:24]) & set(only.tolist())
    shown = re.findall(r'src="([^"]+)"', part)
    assert len(shown) == min(len(kept), 12)
    assert set(shown) <= {png(8, int(i)) for i in kept}


def test_lines_bear_letters_and_the_colour_of_their_kind(tmp_path: Path) -> None:
    runs = [scored_run(tmp_path / name, answers(0.9, 1)) for name in ("one", "two", "plain")]
    plain = card(TEN, "plain20")
    (runs[2] / "card.json").write_text(plain.to_json())
    page = Page(write_comparison(compare(runs), tmp_path / "c.html").read_text("utf-8"))
    figure = page.raw.split('aria-label="Validation accuracy')[1].split("</svg>")[0]
    assert re.findall(r'class="line ([^"]+)"', figure) == [
        "residual tone0", "residual tone1", "plain tone0"
    ]  # fmt: skip
    assert re.findall(r'class="letter"[^>]*>(\w)<', figure) == ["A", "B", "C"]
    ends = set(re.findall(r'class="name"[^>]*>([^<]+)<', figure))
    assert ends == {"A one", "B two", "C plain"}
    training = page.raw.split('aria-label="Training loss')[1].split("</svg>")[0]
    assert "residual tone0 training" in training
    for path in page.all("path"):
        numbers = [float(number) for number in re.split("[ML ]+", path["d"].strip("M "))]
        assert all(0 <= x <= 380 for x in numbers[::2])
        assert all(34 <= y <= 206 for y in numbers[1::2])


def test_the_table_in_the_terminal(two: tuple[Path, Path]) -> None:
    done = call("compare", *two)
    lines = done.out.splitlines()
    right = (answers(0.9, 1) == LABELS).mean()
    assert re.match(rf"A  first +resnet20 +{100 * right:.2f} % .* 1,000 test +61 s +1,2", lines[1])
    assert all(len(line) <= 110 for line in lines[:3])
    assert "--out compare.html" in done.err


def test_no_string_from_outside_breaks_out(tmp_path: Path, two: tuple[Path, Path]) -> None:
    hostile = poisoned(json.loads((two[1] / "run.json").read_text()))
    hostile["result"] = record()["result"]
    hostile["config"] |= {f"key{HOSTILE}": HOSTILE, "loss": HOSTILE}
    (two[1] / "run.json").write_text(json.dumps(hostile))
    evaluated = json.loads((two[1] / "evaluation.json").read_text())
    names = [name + HOSTILE for name in evaluated["images"]["wrong"]]
    evaluated["images"]["wrong"] = names
    evaluated["classes"] = [name + HOSTILE for name in evaluated["classes"]]
    for run in two:
        changed(run, "evaluation.json", classes=evaluated["classes"])
    changed(two[1], "evaluation.json", images=evaluated["images"])
    done = call("compare", *two, "--out", tmp_path / "c.html")
    assert done.code == 0
    assert "\x1b" not in done.out
    page = Page((tmp_path / "c.html").read_text("utf-8"))
    assert_self_contained(page)
    assert "test/" in page.text.split("Only A is right, not B")[-1]
    assert "\x1b" not in page.raw
    assert "<script" not in page.raw


@pytest.mark.parametrize(
    "junk",
    [
        None,
        [1],
        {"a": {"b": [None]}},
        *(pytest.param(junk, marks=pytest.mark.slow) for junk in (7, "text", [], {}, True)),
    ],
)
def test_parts_of_another_shape_are_left_out(
    tmp_path: Path, two: tuple[Path, Path], junk: Any
) -> None:
    for file in ("run.json", "evaluation.json"):
        whole = json.loads((two[1] / file).read_text())
        for key in whole:
            (two[1] / file).write_text(json.dumps(whole | {key: junk}))
            comparison = compare(two)
            json.dumps(comparison.summary())
            assert_self_contained(
                Page(write_comparison(comparison, tmp_path / "c.html").read_text("utf-8"))
            )
        (two[1] / file).write_text(json.dumps(whole))


def test_wrong_use_is_one_clear_line(tmp_path: Path, two: tuple[Path, Path]) -> None:
    for arguments, said in (
        ([two[0]], "give two runs or more"),
        ([two[0], two[0]], "is given twice"),
        ([two[0], tmp_path / "none"], "not a run"),
        ([*two, "--out", tmp_path], "is a folder"),
        ([*two, "--out", tmp_path / "no" / "c.html"], "there is no folder"),
    ):
        done = call("compare", *arguments)
        assert done.code == 2
        assert done.out == ""
        assert len(done.error) <= 3
        assert said in done.error[0]


def test_comparing_needs_no_torch(tmp_path: Path, two: tuple[Path, Path]) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom skipway.report import compare\n"
        "print(compare([Path(p) for p in sys.argv[1:]]).pairs[0].n)\n"
        "assert not {'torch', 'matplotlib', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, two)], capture_output=True, text=True
    )
    assert done.stdout == f"{N}\n", done.stderr
