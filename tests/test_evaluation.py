"""What a training leaves for its report: outcomes, pictures of mistakes, the first batch."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy import special
from sklearn.metrics import confusion_matrix

from commands import SMALL, call, draw
from skipway.data import Key, Split
from skipway.data.feed import Batch
from skipway.images import Preprocess
from skipway.metrics import Outcomes
from skipway.tasks.classify import ClassificationEvaluator
from skipway.training import trainer as training
from skipway.training.plan import make_plan
from skipway.training.prepare import prepare
from skipway.training.samples import write_samples


class Grey:
    """Images of one level each, told by their name."""

    def read(self, name: str) -> np.ndarray:
        return np.full((8, 8, 3), int(Path(name).stem) % 256, np.uint8)


def evaluated(classes: int, n: int = 300, seed: int = 0, parts: int = 3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) * 2
    logits[np.arange(n), labels] += rng.exponential(3, n)
    split = Split(Grey(), [f"test/{i}.png" for i in range(n)], labels)
    evaluator = ClassificationEvaluator()
    for part in np.array_split(rng.permutation(n), parts):
        evaluator.update(logits[part], Batch(None, torch.from_numpy(labels[part]), part))
    names = [f"c{k}" for k in range(classes)]
    details = evaluator.details(split, names)
    json.dumps(details, allow_nan=False)
    return details, special.softmax(logits, axis=1), labels


def level(picture: str) -> int:
    raw = base64.b64decode(picture.removeprefix("data:image/png;base64,"))
    return int(np.asarray(Image.open(io.BytesIO(raw)))[0, 0, 0])


@pytest.mark.parametrize("classes", [2, 10, 120])
def test_details_of_an_evaluation(classes: int) -> None:
    found, p, labels = evaluated(classes)
    predicted = p.argmax(1)
    kept = Outcomes.unpacked(found["images"], classes)
    assert kept is not None
    assert np.array_equal(kept.label, labels)
    assert np.array_equal(kept.predicted, predicted)
    assert np.allclose(kept.confidence, p.max(axis=1), atol=1e-4)
    expected = confusion_matrix(labels, predicted, labels=range(classes)).tolist()
    assert found.get("confusion") == (expected if classes <= 100 else None)

    wrong = np.flatnonzero(predicted != labels)
    assert found["images"]["wrong"] == [f"test/{i}.png" for i in wrong]
    worst = sorted(wrong, key=lambda i: p[i, labels[i]])[:24]
    assert [row["index"] for row in found["mistakes"]] == worst
    for row in found["mistakes"]:
        i = row["index"]
        assert row["name"] == f"test/{i}.png"
        assert (row["label"], row["predicted"]) == (f"c{labels[i]}", f"c{predicted[i]}")
        assert row["true_score"] == pytest.approx(p[i, labels[i]])
        assert level(row["image"]) == i % 256

    ordered = np.sort(p, axis=1)
    lead = ordered[:, -1] - ordered[:, -2]
    assert [row["index"] for row in found["doubtful"]] == np.argsort(lead)[:12].tolist()
    for row in found["doubtful"]:
        i = row["index"]
        assert row["second"] == f"c{np.argsort(p[i])[-2]}"
        assert row["second_score"] == pytest.approx(ordered[i, -2])

    threshold = [p[labels == k, k].mean() if (labels == k).any() else 2 for k in range(classes)]
    named = {"c" + str(k): k for k in range(classes)}
    doubted = found["doubted_labels"]
    assert 0 < min(doubted["n"], 200) == len(doubted["rows"]) <= len(labels)
    shown = {row["index"] for row in found["mistakes"]}
    for place, row in enumerate(doubted["rows"]):
        k = named[row["likelier"]]
        assert p[row["index"], k] >= threshold[k]
        assert row["likelier"] != row["label"]
        if place < 12:
            assert ("image" in row) or row["index"] in shown
        if row["index"] in shown:
            assert "image" not in row


def test_the_digest_is_that_of_names_labels_and_classes() -> None:
    def digest(names: list[str], labels: list[int], classes: list[str]) -> str:
        evaluator = ClassificationEvaluator()
        order = np.random.default_rng(len(names)).permutation(len(labels))
        logits = np.random.default_rng(0).normal(size=(len(labels), len(classes)))
        evaluator.update(logits[order], Batch(None, torch.tensor(labels)[order], order))
        found = evaluator.details(Split(Grey(), names, np.array(labels)), classes)
        return found["images"]["digest"]

    names, labels, classes = ["1.png", "2.png", "3.png"], [0, 1, 1], ["a", "b"]
    expected = hashlib.sha256(b"('a', 'b')")
    expected.update(b"".join(n.to_bytes(8, "little") for n in labels))
    expected.update(b"1.png\x002.png\x003.png\x00")
    assert digest(names, labels, classes) == expected.hexdigest()
    others = [
        digest(names[::-1], labels, classes), digest(names, [0, 1, 0], classes),
        digest(names, labels, ["a", "c"]), digest(names[:2], labels[:2], classes),
    ]  # fmt: skip
    assert len({expected.hexdigest(), *others}) == 5


COLOURS = ("blue", "green", "red")


def pictures(run: Path) -> np.ndarray:
    rows = json.loads((run / "samples.json").read_text())["images"]
    raw = [base64.b64decode(row["image"].split(",")[1]) for row in rows]
    return np.stack([np.asarray(Image.open(io.BytesIO(r)).convert("RGB")) for r in raw])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"data.resident": False, "augment.pad_crop": 0, "augment.area": (0.2, 0.5)},
        {"data.channels": 1, "batch_size": 8},
        {"augment.repeats": 3, "batch_size": 8},
        {"task": "embed", "embedder.per_class": 2, "batch_size": 6},
    ],
)
def test_samples_are_what_the_feed_gives_first(tmp_path: Path, settings: dict) -> None:
    data = draw(tmp_path / "data", COLOURS, n=20)
    plan = make_plan(str(data), {"threads": 1, "data.workers": 0, "seed": 3} | settings)
    prepared = prepare(plan)
    write_samples(tmp_path, prepared, plan.config)
    batch = next(iter(prepared.feeds["train"].epoch(0)))
    seen = prepared.task.to_input(batch, Key(3, 0, batch.index, batch.repeat))
    n = min(24, plan.config.batch_size)
    expected = prepared.task.preprocess.pixels(seen.images.numpy())[:n]
    found = pictures(tmp_path)
    assert found.shape[0] == n
    assert np.array_equal(found, expected)
    rows = json.loads((tmp_path / "samples.json").read_text())["images"]
    assert [row["label"] for row in rows] == [COLOURS[k] for k in batch.targets[:n].tolist()]
    assert all(f"/{row['label']}/" in f"/{row['name']}" for row in rows)
    whole = prepared.task.to_input(batch, None)  # augmented: not as it is
    assert not np.array_equal(prepared.task.preprocess.pixels(whole.images.numpy())[:n], found)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_undo_the_normalisation(channels: int) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 6, 6, channels), dtype=np.uint8)
    mean, std = rng.uniform(0.2, 0.8, channels), rng.uniform(0.1, 0.4, channels)
    plain = Preprocess(size=(6, 6), channels=channels, mean=tuple(mean), std=tuple(std))
    by_pixel = plain.with_pixel_mean(rng.random((channels, 6, 6), dtype=np.float32))
    colour = np.repeat(frames, 3, axis=3) if channels == 1 else frames[..., :3]
    for preprocess in (plain, by_pixel):
        assert np.array_equal(preprocess.pixels(preprocess.normalise(frames)), colour)


def test_a_damaged_image_is_left_out_of_the_samples(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", COLOURS)
    for damaged in sorted((data / "red").iterdir())[:3]:
        damaged.write_bytes(damaged.read_bytes()[:60])
    given = {"threads": 1, "data.workers": 0, "data.resident": False, "data.preflight": False}
    plan = make_plan(str(data), given)
    write_samples(tmp_path, prepare(plan), plan.config)
    n = min(24, len(plan.data.splits["train"]))
    assert 0 < len(pictures(tmp_path)) < n


def test_samples_change_no_bit_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw(tmp_path / "data", COLOURS, n=10)
    quick = [*SMALL, "--epochs=2", "--workers=0", "--batch-size=8"]
    assert call("train", data, *quick, "--out", tmp_path / "with").code == 0
    assert (tmp_path / "with" / "samples.json").exists()
    monkeypatch.setattr(training, "write_samples", lambda *_: None)
    assert call("train", data, *quick, "--out", tmp_path / "without").code == 0
    assert not (tmp_path / "without" / "samples.json").exists()
    ours, bare = (load_file(tmp_path / run / "last.safetensors") for run in ("with", "without"))
    assert ours.keys() == bare.keys()
    assert all(torch.equal(ours[key], bare[key]) for key in ours)
    rows = map(json.loads, (tmp_path / "with" / "metrics.jsonl").read_text().splitlines())
    memory = [row["memory_mib"] for row in rows]
    assert 20 < memory[0] <= memory[1] < 100_000
    assert "What the network saw" in (tmp_path / "with" / "report.html").read_text()
