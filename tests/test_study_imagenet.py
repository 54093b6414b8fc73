"""Weights scored for the study of tables: views against torchvision's, and what is published."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision import transforms
from torchvision.models._meta import _IMAGENET_CATEGORIES as NAMES

import writers
from skipway.architecture import ARCHITECTURES, architecture
from skipway.card import Card
from skipway.data.split import ArrayReader, Names, Split
from skipway.images import Preprocess
from skipway.metrics import wilson_interval
from skipway.predictor import Predictor
from skipway.study import STUDIES, imagenet, tables
from skipway.study.form import Cell, Done, Given, Weights
from skipway.study.running import Asked, outcomes, run_study
from skipway.weights import create_model, save_weights

(SCALE,) = tables.SCALES
NOTHING = Path()
WNIDS = tuple(timm.data.ImageNetInfo().label_names())
SOME = WNIDS[:12]
TINY: dict[str, Any] = {"depths": (1,), "widths": (8,), "stem_width": 8}


def photographs(place: Path, classes: tuple[str, ...] = SOME, n: int = 2) -> Path:
    """Patches of the class's colours under noise, wide and tall, in class folders of val."""
    rng = np.random.default_rng(0)
    for wnid in classes:
        patches = rng.integers(40, 216, (5, 6, 3))
        for i in range(n):
            noise = rng.integers(-40, 41, (5, 6, 3))
            image = Image.fromarray((patches + noise).astype(np.uint8)).resize((300, 270))
            path = place / "val" / wnid / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            (image if i else image.rotate(90, expand=True)).save(path)
    return place


SHOWN = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
TENSOR = transforms.Compose(
    [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
)


def opened(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("val/*/*.png"))]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of twelve classes, and a network that knows the first of each."""
    root = tmp_path_factory.mktemp("imagenet")
    images = opened(photographs(root / "data"))
    net = create_model("resnet18", num_classes=len(SOME), seed=0, **TINY).eval()
    with torch.no_grad():
        seen = net.embed(torch.stack([TENSOR(SHOWN(image)) for image in images[::2]]))
        seen = seen - seen.mean(0)
        net.fc.weight.copy_(seen)
        net.fc.bias.copy_(-(seen**2).sum(1) / 2)
    torch.save(net.state_dict(), root / "state.pth")
    card = Card(
        model="custom",
        architecture=net.arch,
        classes=SOME,
        # of another size and frame, which the papers' views replace
        preprocess=Preprocess(
            size=(64, 64),
            resize="squash",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
    )
    save_weights(root / "net.safetensors", net, card)
    numbers = tuple(str(i) for i in range(len(SOME)))  # as weights that came without names
    nameless = {"classes": numbers, "provenance": {"assumed": ["classes", "preprocess"]}}
    save_weights(root / "bare.safetensors", net, card.model_copy(update=nameless))
    return root


def asked(places: Path, weights: str = "net.safetensors", data: str = "data") -> Given:
    return Given(
        weights=(imagenet.identified(str(places / weights)),),
        imagenet=str(places / data),
        device="cpu",
        threads=1,
    )


def scored(given: Given, place: Path) -> list[Done]:
    found = []
    for i, cell in enumerate(tables.cells(SCALE, 1, given)[1:]):
        (place / str(i)).mkdir(parents=True, exist_ok=True)
        found.append(Done(cell, tables.compute(cell, place / str(i), given, print), 1.0))
    return found


def by_torchvision(places: Path, ten: bool) -> list[int]:
    """Images that are wrong by top-1 and by top-5, told with torchvision's transforms."""
    net = create_model("resnet18", num_classes=len(SOME), **TINY).eval()
    net.load_state_dict(torch.load(places / "state.pth"))
    wrong = [0, 0]
    crops = transforms.Compose([transforms.Resize(256), transforms.TenCrop(224)])
    for i, image in enumerate(opened(places / "data")):
        views = list(crops(image)) if ten else [SHOWN(image)]
        with torch.no_grad():
            logits = net(torch.stack([TENSOR(view) for view in views])).mean(0)
        best = logits.topk(5).indices.tolist()
        wrong[0] += best[0] != i // 2
        wrong[1] += i // 2 not in best
    return wrong


def test_weights_are_scored_as_torchvision_would(places: Path, tmp_path: Path) -> None:
    given = asked(places)
    assert len(tables.data(given)) == 64
    one, ten = scored(given, tmp_path)
    assert one.result["wrong"] == by_torchvision(places, ten=False)
    assert ten.result["wrong"] == by_torchvision(places, ten=True)
    assert one.result["n"] == 24
    assert 0 < one.result["wrong"][0] < 24
    assert one.result["seconds"] > 0
    told = tables.told([one, ten], SCALE)
    found = told.findings[0]
    assert found.name == f"{given.weights[0].path}, 1 crop, top-1 error"
    assert found.values == (100 * one.result["wrong"][0] / 24,)
    ends = wilson_interval(one.result["wrong"][0], 24)
    assert found.interval == pytest.approx([100 * end for end in ends])
    assert (found.expected, found.exact) == (None, False)
    assert found.note == "another set of 24 images than the 50,000 that what is published is of"
    head, rows = told.tables[-1][1:]
    assert len(rows) == 2
    assert {len(row) for row in rows} == {len(head)}


def test_the_flat_form_and_bare_weights_score_the_same(places: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    files = sorted((places / "data").glob("val/*/*.png"))
    rows, held = [], {}
    for i, path in enumerate(files, 1):
        name = f"ILSVRC2012_val_{i:08}"
        held |= {
            f"val/{name}.JPEG": path.read_bytes(),
            f"train/{path.parent.name}/{i}.JPEG": path.read_bytes(),
        }
        rows.append((name, f"{path.parent.name} 1 2 3 4"))
    writers.folder(flat, held)
    writers.table(flat / "LOC_val_solution.csv", rows, ("ImageId", "PredictionString"))
    given = dataclasses.replace(asked(places, "bare.safetensors"), imagenet=str(flat))
    tables.data(given)
    one, _ = scored(given, tmp_path / "work")
    assert one.result["wrong"] == by_torchvision(places, ten=False)
    assert "taken from the data in its order" in " ".join(one.result["notes"])


def test_a_score_that_was_stopped_goes_on(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = asked(places)
    cell = tables.cells(SCALE, 1, given)[1]
    monkeypatch.setattr(imagenet, "KEPT_EVERY", 0.0)
    monkeypatch.setattr(imagenet, "_BATCH", 5)
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tables.compute(cell, tmp_path, given, stop)
    kept = (tmp_path / "scored.json").read_text()
    assert json.loads(kept)["done"] == 10
    assert imagenet.reached(tmp_path) == "10 of 24 images"
    for damaged in (kept[:9], "[]", '{"done": 1}', '{"done": "x", "of": 3, "wrong": [0, 0]}'):
        (tmp_path / "scored.json").write_text(damaged)
        assert imagenet.reached(tmp_path) is None
    (tmp_path / "scored.json").write_text(kept)
    run, seen = Predictor.run, 0

    def counting(self: Predictor, x: np.ndarray) -> np.ndarray:
        nonlocal seen
        seen += len(x) if self.card.preprocess.size == (224, 224) else 0
        return run(self, x)

    monkeypatch.setattr(Predictor, "run", counting)
    said.clear()
    found = tables.compute(cell, tmp_path, given, lambda line: said.append(f"{line} "))
    assert seen == 14
    assert "going on after 10 of 24 images" in said[0]
    assert found["wrong"] == by_torchvision(places, ten=False)


def test_cells_know_weights_by_content(places: Path, tmp_path: Path) -> None:
    shutil.copy(places / "net.safetensors", tmp_path / "moved.safetensors")
    here, there = asked(places), asked(tmp_path, "moved.safetensors")
    own, moved = (tables.cells(SCALE, 1, given) for given in (here, there))
    assert [cell.settings for cell in own] == [cell.settings for cell in moved]
    twice = Given(weights=(*here.weights, *there.weights), imagenet="x")
    assert len(tables.cells(SCALE, 1, twice)) == 3
    (tmp_path / "moved.safetensors").unlink()
    gone = tables.cells(SCALE, 1, there)  # what it scored is still found
    assert [cell.settings for cell in gone] == [cell.settings for cell in own]
    shutil.copy(places / "bare.safetensors", tmp_path / "moved.safetensors")
    anew = asked(tmp_path, "moved.safetensors")
    both = Given(weights=(*there.weights, *anew.weights), imagenet="x")
    assert tables.cells(SCALE, 1, both) == tables.cells(SCALE, 1, anew)
    text = writers.error_of(lambda: tables.compute(own[1], NOTHING, there, print))
    assert "is no longer the file that was to be scored" in text
    hub = Given(weights=(imagenet.identified("torchvision:resnet50.IMAGENET1K_V1"),), imagenet="x")
    assert tables.cells(SCALE, 1, hub)[1].settings["weights"] == hub.weights[0].path


def test_a_report_keeps_the_scores_of_files_that_are_gone(places: Path, tmp_path: Path) -> None:
    shutil.copy(places / "net.safetensors", tmp_path / "moved.safetensors")
    given = dataclasses.replace(asked(tmp_path, "moved.safetensors"), imagenet=f"{places}/data")
    said: list[str] = []
    first = run_study(STUDIES["tables"], Asked(), given, tmp_path / "out", said.append)
    (tmp_path / "moved.safetensors").unlink()
    ((again,), _) = outcomes(tmp_path / "out")
    assert (again.done, again.cells) == (first.done, first.cells) == (3, 3)
    assert again.told.findings == first.told.findings


def test_how_long_a_cell_takes(places: Path) -> None:
    sizes, one, ten = tables.cells(SCALE, 1, asked(places))
    taken = [tables.seconds(cell, asked(places)) for cell in (sizes, one, ten)]
    assert taken[0] < 1
    assert all(second > 0 for second in taken)


# --- what is published ----------------------------------------------------------------------------


def result(name: str, views: str, wrong: tuple[int, int], **fields: Any) -> Done:
    arch = architecture(name, **fields)
    row = {
        "weights": "w.pth",
        "net": imagenet._net_of(arch),
        "views": views,
        "n": 50_000,
        "whole": True,
        "wrong": [*wrong],
        "stated": None,
        "told_by_card": False,
        "notes": [],
    }
    return Done(Cell("w", {"weights": "0", "views": views}), row, 1.0)


@pytest.mark.parametrize(
    ("name", "views", "shortcut", "errors"),
    [
        ("resnet50v1", "one", "B", (24.7, 7.8)),
        ("resnet152v1", "ten-crop", "B", (21.43, 5.71)),
        ("resnet34", "ten-crop", "A-split", (25.03, 7.76)),
        ("resnet34", "ten-crop", "B", (24.52, 7.46)),
        ("plain34", "ten-crop", "none", (28.54, 10.02)),
    ],
)
def test_weights_stand_beside_what_is_published(
    name: str, views: str, shortcut: str, errors: tuple[float, float]
) -> None:
    trained = {"shortcut": shortcut, "bn_momentum": 0.001, "dropout": 0.1}

    def verdicts(off: float) -> list[str | None]:
        wrong = [round((error + off) * 500) for error in errors]
        done = result(name, views, (wrong[0], wrong[1]), **trained)
        return [finding.verdict for finding in tables.told([done], SCALE).findings]

    # The interval of 50,000 images is about 0.4 points of top-1 to each side, 0.25 of top-5.
    assert verdicts(0.35) == verdicts(-0.35) == ["reproduced", "reproduced"]
    assert verdicts(0.7) == ["inconclusive", "inconclusive"]
    assert verdicts(1.3) == ["contradicted", "contradicted"]


def test_an_interval_of_the_images_decides() -> None:
    done = result("resnet50v1", "one", (12_350, 3_900))
    told = tables.told([done], SCALE)
    low, high = (100 * end for end in wilson_interval(12_350, 50_000))
    assert told.findings[0].interval == pytest.approx((low, high))
    assert 0.7 < high - low < 0.8
    assert imagenet.NOTE in told.notes
    # Half a point is the most that an interval takes of the tolerance, whatever is published.
    for published in imagenet.ERRORS.values():
        low, high = wilson_interval(round(500 * published.errors[0]), 50_000)
        assert 100 * (high - low) / 2 <= imagenet.TOLERANCE / 2


def test_nothing_is_expected_of_other_images() -> None:
    done = result("resnet50v1", "one", (2_470, 780))
    done = dataclasses.replace(done, result={**done.result, "n": 10_000, "whole": False})
    told = tables.told([done], SCALE)
    assert [finding.verdict for finding in told.findings] == [None, None]
    assert "another set of 10,000 images" in told.findings[0].note
    assert imagenet.NOTE not in told.notes
    _, _, ((*_, where),) = told.tables[-1]
    assert where is None


def test_imagenets_validation_images_are_known_by_their_numbers() -> None:
    def whole(labels: np.ndarray) -> bool:
        names = Names(map(str, range(len(labels))))
        return imagenet._is_whole(
            Split(ArrayReader(np.zeros((1, 1, 1, 3), np.uint8)), names, labels)
        )

    labels = np.repeat(np.arange(1000), 50)
    assert whole(labels)
    assert not whole(labels[1:])
    assert not whole(np.append(labels[1:], 999))
    assert not whole(np.repeat(np.arange(1000), 10))


def test_each_network_that_is_published_is_found() -> None:
    for row, shortcut, _ in imagenet.ERRORS:
        name = row.replace("resnet", "plain") if shortcut == "none" else row
        arch = architecture(name, shortcut=shortcut)
        only_trained = {
            "dropout": 0.2,
            "checkpointing": True,
            "bn_momentum": 0.01,
            "init": "xavier",
        }
        arch = dataclasses.replace(arch, num_classes=7, **only_trained)
        assert imagenet._net_of(arch) == [row, shortcut]
        assert row in ARCHITECTURES


def test_nothing_is_published_for_other_networks_and_views() -> None:
    first, _ = tables.told([result("resnet50", "one", (11_935, 3_569))], SCALE).findings
    assert first.expected is None
    assert first.mean == 23.87
    assert "strides in the 1x1: 24.7 %" in first.note
    assert "the file does not tell" in first.note
    for done in (result("resnet34", "one", (1, 1)), result("resnet18", "ten-crop", (1, 1))):
        assert all(f.expected is None for f in tables.told([done], SCALE).findings)
    top1, top5 = tables.told(
        [result("resnet18", "ten-crop", (13_940, 1), shortcut="A")], SCALE
    ).findings
    assert (top1.verdict, top5.expected) == ("reproduced", None)


def test_what_torchvision_states_of_its_own_weights() -> None:
    known = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
    name, top1, top5 = imagenet._stated("0676ba61" + "0" * 56) or [None, 0, 0]
    assert "0676ba61" in known.url
    assert name == "resnet50.IMAGENET1K_V1"
    assert (round(top1, 2), round(top5, 2)) == (23.87, 7.14)
    assert imagenet._stated("0" * 64) is None


# --- what cannot be used --------------------------------------------------------------------------


def error_of(given: Given) -> str:
    return writers.error_of(lambda: tables.data(given))


def test_flags_that_do_not_go_together() -> None:
    assert error_of(Given(weights=(Weights("w.pth", "0"),))).startswith("--imagenet: ")
    assert error_of(Given(imagenet="d")).startswith("--weights: ")
    assert error_of(Given(data="d")).startswith("--data: ")
    assert tables.data(Given()) == ""


def test_a_folder_that_lacks_classes(places: Path, tmp_path: Path) -> None:
    photographs(tmp_path / "data", SOME[:-2], n=1)
    named, bare = (
        error_of(dataclasses.replace(asked(places, w), imagenet=str(tmp_path / "data")))
        for w in ("net.safetensors", "bare.safetensors")
    )
    assert f"10 of the 12 classes that {places / 'net.safetensors'} tells apart" in named
    assert named.endswith(f"it lacks {SOME[-2]}, {SOME[-1]}")
    assert bare.endswith("it lacks 2 class folders")
    assert len(named.splitlines()) == len(bare.splitlines()) == 1
    photographs(tmp_path / "other", (*SOME[:-1], WNIDS[-1]), n=1)
    text = error_of(dataclasses.replace(asked(places), imagenet=str(tmp_path / "other")))
    assert text.endswith(f"it lacks {SOME[-1]}")
    (tmp_path / "train").mkdir()
    shutil.move(tmp_path / "other" / "val", tmp_path / "train" / "train")
    text = error_of(dataclasses.replace(asked(places), imagenet=str(tmp_path / "train")))
    assert "has train but no val" in text


def test_weights_that_do_not_fit(places: Path, tmp_path: Path) -> None:
    for name, fields in (("few", {"num_classes": 3}), ("lab", {"num_classes": 12})):
        net = create_model("resnet18", **TINY, **fields).eval()
        classes = tuple(f"class {i}" for i in range(net.arch.num_classes))
        plain = Preprocess(size=(224, 224), mean=(0.5,) * 3, std=(0.25,) * 3)
        card = Card(model="custom", architecture=net.arch, classes=classes, preprocess=plain)
        save_weights(tmp_path / f"{name}.safetensors", net, card)
        if name == "lab":
            mean = plain.at_size(32).with_pixel_mean(np.zeros((3, 32, 32), np.float32))
            small = card.model_copy(update={"preprocess": mean, "classes": SOME})
            save_weights(tmp_path / "mean.safetensors", net, small)
    data = str(places / "data")
    torch.save(nn.Conv2d(3, 64, 3).state_dict(), tmp_path / "other.pth")
    for name, words in (
        ("few.safetensors", "tells 3 classes apart, --imagenet"),
        ("lab.safetensors", "its classes, as 'class 0', are not those of --imagenet"),
        ("mean.safetensors", "its mean of each pixel is of 32 x 32 px"),
        ("other.pth", "fit no known network"),
        ("absent.pth", "no such file or run"),
    ):
        text = writers.error_of(
            lambda name=name: tables.data(  # type: ignore[misc]
                Given(weights=(imagenet.identified(str(tmp_path / name)),), imagenet=data)
            )
        )
        assert words in text
        assert text.startswith((f"--weights {tmp_path / name}: ", f"{tmp_path / name}: "))
    text = error_of(Given(weights=(imagenet.identified("cifar10-resnet20"),), imagenet=data))
    assert "the papers' tests take" in text or "tells 10 classes apart" in text


def thousand(names: tuple[str, ...]) -> Predictor:
    card = Card(
        model="resnet18",
        architecture=architecture("resnet18"),
        classes=names,
        preprocess=Preprocess(size=(224, 224), mean=(0.5,) * 3, std=(0.25,) * 3),
    )
    return Predictor(lambda x: x, card, "w", any_size=True)


def test_human_names_are_matched_by_position() -> None:
    human = tuple(dict.fromkeys(NAMES))
    human = (*human, *(f"again {i}" for i in range(1000 - len(human))))
    labels = np.arange(1000)
    split = Split(ArrayReader(np.zeros((1, 1, 1, 3), np.uint8)), Names(map(str, labels)), labels)
    imagenet._require(thousand(human), "w", split, WNIDS, "d")
    fewer = split.take(labels[3:])
    text = writers.error_of(lambda: imagenet._require(thousand(human), "w", fewer, WNIDS, "d"))
    assert text.endswith(
        f"997 of the 1,000 classes that w tells apart; it lacks {WNIDS[0]}, {WNIDS[1]}, {WNIDS[2]}"
    )
    odd = (*WNIDS[:-1], "n99999999")
    text = writers.error_of(lambda: imagenet._require(thousand(human), "w", split, odd, "d"))
    assert "are not those of --imagenet d" in text
