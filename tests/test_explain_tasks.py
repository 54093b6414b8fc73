"""What detectors and segmenters see: maps against captum, by the definition, and the command."""

from __future__ import annotations

import functools
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_iou

from commands import call
from skipway import heatmap
from skipway.architecture import architecture
from skipway.card import Card
from skipway.detectors import build_detector
from skipway.detectors.tracing import Trace, stage_strides, traced
from skipway.errors import InputError
from skipway.explain import Method, add_maps, open_explainer
from skipway.explain.covering import Squares
from skipway.explain.objects import (
    ObjectCam,
    ObjectExplainer,
    ObjectOcclusion,
    object_cam,
    run,
    similarity,
)
from skipway.explain.pixels import (
    PixelCam,
    PixelExplainer,
    PixelOcclusion,
    kept_stages,
    segmenter_cam,
)
from skipway.heads import DetectorConfig, SegmenterConfig
from skipway.images import Preprocess
from skipway.pixel_predictor import PixelPredictor
from skipway.report.gallery import truth_and_found
from skipway.segmenters import build_segmenter
from skipway.weights import save_weights

CLASSES = ("cat", "dog", "bird")
FIT = Preprocess(size=(64, 64), resize="fit", mean=(0.5,) * 3, std=(0.25,) * 3)

HEADS: dict[str, dict[str, Any]] = {
    "faster-rcnn": {},
    "mask-rcnn": {},
    "retinanet": {},
    "fcos": {"score_threshold": 0.0},
    "c4": {"head": "faster-rcnn", "neck": "c4"},
}
ROW: dict[str, Any] = {"num_classes": 3, "width": 0.125}


@functools.cache
def detector(kind: str, row: str = "resnet18") -> Any:
    """Random weights, and batch norms with the statistics of noise."""
    torch.manual_seed(0)
    given = {"head": kind, "score_threshold": 0.01, "detections": 20} | HEADS[kind]
    usual = DetectorConfig(**given)
    small = {name: 16 for name in ("channels", "box_width") if usual.reads(name)}
    config = DetectorConfig(**given, **small)
    net = build_detector(architecture(row, **ROW), config, 3)
    with torch.no_grad():
        settle(net.body, 64)
        for name, parameter in net.named_parameters():  # else all scores are nearly the same
            if "cls" in name and name.endswith("weight"):
                parameter.normal_(0, 0.3)
    return net.eval()


def settle(body: Any, side: int) -> None:
    """Give batch norms the statistics of noise, so that no activation dies away."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        body.train().features(torch.randn(2, 3, side, side, generator=generator))


def noise(height: int = 40, width: int = 70, seed: int = 3) -> Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


def found_in(net: Any, x: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        found: dict[str, Tensor] = net([x])[0]
    return found


class Logit(nn.Module):
    """A detector as captum wants it: the logit that made one detection, told by its score alone."""

    def __init__(self, net: Any, found: dict[str, Tensor], i: int) -> None:
        super().__init__()
        self.net, self.two_stage = net, hasattr(net, "roi_heads")
        self.k, self.score = int(found["labels"][i]), float(found["scores"][i])

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Any] = []
        part = self.net.roi_heads.box_predictor if self.two_stage else self.net.head
        handle = part.register_forward_hook(lambda _, __, outputs: kept.append(outputs))
        self.net([x[0].detach()])
        handle.remove()
        if self.two_stage:
            logits = kept[0][0]
            scores = logits.softmax(1)[:, 1 + self.k]
            return logits[(scores - self.score).abs().argmin(), 1 + self.k][None]
        logits = kept[0]["cls_logits"][0, :, self.k]
        scores = logits.sigmoid()
        if "bbox_ctrness" in kept[0]:
            scores = (scores * kept[0]["bbox_ctrness"][0, :, 0].sigmoid()).sqrt()
        return logits[(scores - self.score).abs().argmin()][None]


# --- detectors: gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
def test_object_maps_are_captums_gradient_times_activation(kind: str) -> None:
    attr = pytest.importorskip("captum.attr")
    net, x = detector(kind), noise()
    found = found_in(net, x)
    chosen = [0, len(found["scores"]) // 2]
    assert kind == "c4" or len({*found["labels"].tolist()}) > 1
    for stage in stage_strides(net):
        stages = dict(zip(net.body.strides, net.body.stages(), strict=True))
        maps = object_cam(net, x, found, chosen, stage)
        assert not maps.requires_grad
        stride = net.body.strides[stage]
        lit: list[float] = []
        assert maps.shape == (2, -(-64 // stride), -(-96 // stride))  # of the padded image
        for i, cells in zip(chosen, maps, strict=True):
            oracle = attr.LayerGradientXActivation(Logit(net, found, i), stages[stage][-1])
            expected = oracle.attribute(x[None].clone()).sum(1)[0].relu()
            lit.append(float(expected.detach().max()))
            torch.testing.assert_close(cells, expected.detach(), rtol=1e-4, atol=1e-6)
        assert max(lit) > 0
    names = ["c4"] if kind == "c4" else [*net.body.strides][int(net.config.one_stage) :]
    assert list(stage_strides(net)) == names


@pytest.mark.parametrize("kind", HEADS)
def test_every_detection_is_traced_to_its_logit(kind: str) -> None:
    """Of the many boxes that a detector tells, to the one that became this detection."""
    net, x = detector(kind), noise()
    found = found_in(net, x)
    with torch.no_grad(), traced(net) as trace:
        net([x])
        for i in range(0, len(found["scores"]), 4):
            label, score = int(found["labels"][i]), float(found["scores"][i])
            logit = trace.logit(found["boxes"][i], label, score, (40, 70))
            expected = Logit(net, found, i)(x[None])
            torch.testing.assert_close(logit, expected[0])
    assert not any(module._forward_hooks for module in net.modules() if module is net.backbone)


def test_of_equal_scores_the_box_decides() -> None:
    """As where scores are saturated; one box reaches over the edge, at which detections are cut."""
    logits = torch.tensor([[0.0, 1, 2, 3]]) + torch.tensor([[0.0], [5], [9]])  # one softmax
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 4, 40, 40], [30, 5, 80, 25]])
    outputs = {"box": (logits, torch.zeros(3, 16)), "proposals": ([boxes], {})}
    net: Any = detector("faster-rcnn")
    trace = Trace(net, outputs=outputs)
    score = float(logits.softmax(1)[0, 2])
    found = [trace.logit(box, 1, score, (50, 60)) for box in boxes.clamp_max(60)]
    assert [float(logit) for logit in found] == [2, 7, 11]


@pytest.mark.parametrize("kind", ["retinanet", "faster-rcnn"])
@pytest.mark.parametrize("row", ["preresnet50", "resnet20"])
def test_object_maps_of_other_networks(kind: str, row: str) -> None:
    net, x = detector(kind, row), noise(32, 40)
    found = found_in(net, x)
    for stage, stride in stage_strides(net).items():
        (cells,) = object_cam(net, x, found, [0], stage)
        assert cells.shape == (-(-32 // stride), -(-64 // stride))
        assert torch.isfinite(cells).all()
        assert cells.min() >= 0


def test_cells_lie_where_their_pixels_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network pads at the right and below: cells there are none of the image."""
    cells = torch.zeros(1, 2, 3)  # of 64 x 96 pixels
    cells[0, 1, 0] = 1
    monkeypatch.setattr("skipway.explain.objects.object_cam", lambda *_: cells)
    (heat,) = ObjectCam(detector("faster-rcnn"), "c5")(noise(50, 70).numpy(), {}, [0])
    assert heat.shape == (50, 70)
    assert np.unravel_index(heat.argmax(), heat.shape)[0] > 46
    assert (heat[:, 49:] == 0).all()
    assert heat[48, 15] == pytest.approx(1, abs=0.05)


def test_cells_that_a_detection_did_not_use_are_dark() -> None:
    """What the mean of a channel's gradient would light up all over the image."""
    net, x = detector("retinanet"), noise(64, 1024)
    found = found_in(net, x)
    left = found["boxes"][:, 2] < 128
    i = int(torch.nonzero(left)[0])
    (cells,) = object_cam(net, x, found, [i], "c5")
    assert cells[:, :8].max() > 0
    assert cells[:, 20:].max() == 0


def test_gradients_with_frozen_weights_and_in_inference_mode() -> None:
    net, x = detector("faster-rcnn"), noise()
    found = found_in(net, x)
    expected = object_cam(net, x, found, [0, 2], "c4")
    net.requires_grad_(False)
    try:
        assert torch.equal(object_cam(net, x, found, [0, 2], "c4"), expected)
        with torch.inference_mode():
            maps = object_cam(net, torch.from_numpy(x.numpy()), found, [0, 2], "c4")
        assert torch.equal(maps, expected)
    finally:
        net.requires_grad_(True)
    assert all(p.grad is None for p in net.parameters())


# --- detectors: occlusion -------------------------------------------------------------------------


@st.composite
def some_found(draw: st.DrawFn) -> dict[str, np.ndarray]:
    n = draw(st.integers(0, 6))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    corners = rng.uniform(0, 20, (n, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 20, (n, 2))], axis=1)
    scores = -np.sort(-rng.random(n))
    return {"boxes": boxes.astype(np.float32), "scores": scores.astype(np.float32),
            "labels": rng.integers(0, 2, n)}  # fmt: skip


@given(some_found(), some_found())
def test_the_best_match_by_torchvisions_iou(
    seen: dict[str, np.ndarray], found: dict[str, np.ndarray]
) -> None:
    chosen = list(range(len(found["scores"])))
    result = similarity(seen, found, chosen)
    ious = box_iou(*(torch.from_numpy(f["boxes"]).double() for f in (found, seen))).numpy()
    same = found["labels"][:, None] == seen["labels"]
    expected = np.where(same, ious * seen["scores"], 0).max(axis=1, initial=0)
    np.testing.assert_allclose(result, expected, atol=1e-6)
    itself = similarity(found, found, chosen)
    assert (itself >= found["scores"] - 1e-6).all()


@pytest.mark.parametrize("kind", ["faster-rcnn", "mask-rcnn"])
def test_object_occlusion_is_captums(kind: str) -> None:
    attr = pytest.importorskip("captum.attr")
    net, x = detector(kind), noise(40, 60)
    found = {name: value.numpy() for name, value in found_in(net, x).items()}
    chosen = [0, 3]

    def score(views: Tensor) -> Tensor:
        rows = []
        for view in views:
            seen = found_in(net, view)
            boxes = torch.from_numpy(found["boxes"][3:4]).double()
            iou = box_iou(boxes, seen["boxes"].double())[0] * seen["scores"]
            same = seen["labels"] == int(found["labels"][3])
            rows.append(
                iou[same].max() if bool(same.any()) else torch.zeros((), dtype=torch.double)
            )
        return torch.stack(rows)

    with torch.no_grad():
        expected = attr.Occlusion(score).attribute(
            x[None], (3, 24, 24), (3, 16, 16), baselines=0
        )[0, 0]  # fmt: skip
    look = ObjectOcclusion(net, 24, 16)
    maps = look(x.numpy(), found, chosen)
    assert maps.shape == (2, 40, 60)
    assert np.abs(maps[1]).max() > 1e-3
    np.testing.assert_allclose(maps[1], expected.numpy(), atol=1e-5)
    assert look.said(maps[1]).startswith(
        "occlusion, 24 px squares every 16 px of the model's input"
    )


# --- segmenters -----------------------------------------------------------------------------------

SEGMENTERS = {
    "fcn": {}, "deeplabv3": {"channels": 16}, "deeplabv3plus": {"channels": 16}, "unet": {},
}  # fmt: skip


@functools.cache
def segmenter(head: str, row: str = "resnet18") -> Any:
    torch.manual_seed(0)
    net = build_segmenter(
        architecture(row, **ROW), SegmenterConfig(head=head, **SEGMENTERS[head]), 3
    )
    with torch.no_grad():
        for _ in range(3):
            net.train()(torch.randn(2, 3, 64, 64))
        mean = net.eval()(torch.randn(2, 3, 64, 64))["out"].mean((0, 2, 3))
        bias_of(net).sub_(mean)  # so that pixels are of several classes
    return net


def bias_of(net: Any) -> Tensor:
    """Of the convolution that gives the logits."""
    bias: Tensor = [m for m in net.classifier.modules() if isinstance(m, nn.Conv2d)][-1].bias.data
    return bias


@pytest.mark.parametrize("head", SEGMENTERS)
def test_segmenter_maps_are_captums_grad_cam(head: str) -> None:
    attr = pytest.importorskip("captum.attr")
    net, x = segmenter(head), noise(64, 96)
    with torch.no_grad():
        labels = net(x[None])["out"][0].argmax(0)
    k = int(labels.flatten().mode().values)
    pixels = labels == k

    class Summed(nn.Module):
        def forward(self, views: Tensor) -> Tensor:
            return (net(views)["out"][:, k] * pixels).sum((1, 2))

    for stage, units in zip(net.body.strides, net.body.stages(), strict=True):
        cells = segmenter_cam(net, x, k, pixels, stage)
        oracle = attr.LayerGradCam(Summed(), units[-1])
        expected = oracle.attribute(x[None].clone(), relu_attributions=True)[0, 0]
        torch.testing.assert_close(cells, expected.detach(), rtol=1e-4, atol=1e-5)
        stride = net.body.strides[stage]
        assert cells.shape == (64 // stride, 96 // stride)
        assert not cells.requires_grad
        if stage == [*net.body.strides][-1] and head != "unet":
            assert cells.max() > 0
    assert "after" not in vars(net.body)


def test_stages_are_kept_only_while_asked() -> None:
    net = segmenter("fcn")
    with pytest.raises(ZeroDivisionError), kept_stages(net.body):
        raise ZeroDivisionError
    assert "after" not in vars(net.body)
    with torch.no_grad(), kept_stages(net.body) as stages:
        features = net.body.features(noise(64, 64)[None])
    assert list(stages) == list(features)
    pre = segmenter("fcn", "preresnet50")
    x = noise(64, 64)
    cells = segmenter_cam(pre, x, 0, torch.ones(64, 64, dtype=torch.bool), "c5")
    assert torch.isfinite(cells).all()


def test_segmenter_occlusion_is_captums() -> None:
    attr = pytest.importorskip("captum.attr")
    net, x = segmenter("fcn"), noise(40, 56)
    pixels = np.zeros((40, 56), bool)
    pixels[10:30, 5:40] = True

    def mean(views: Tensor) -> Tensor:
        chosen = net(views)["out"].softmax(1)[:, 2, 10:30, 5:40]
        return chosen.double().mean((1, 2))

    with torch.no_grad():
        expected = attr.Occlusion(mean).attribute(
            x[None], (3, 16, 16), (3, 12, 12), baselines=0
        )[0, 0]  # fmt: skip
    found = PixelOcclusion(net, 16, 12)(x.numpy(), 2, pixels)
    assert np.abs(found).max() > 1e-4
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


# --- squares by the size of the input -------------------------------------------------------------

SHORT = FIT.model_copy(update={"size": (128, 128), "short_side": 32})
"""As of torchvision's files, where the size bounds long images alone."""
SHORT_SAID = "occlusion, 8 px squares every 4 px of the model's input"


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_squares_are_sized_by_the_input_not_by_its_bound(task: str, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    net = segmenter("fcn") if task == "segment" else detector("retinanet")
    file = tmp_path / "w.safetensors"
    save_weights(file, net, card(task, net.config, net).model_copy(update={"preprocess": SHORT}))
    with torch.inference_mode():
        made: Any = open_explainer(file, Method.occlusion)
        (found,) = made(image, number=1) if task == "detect" else [made(image)]
        given: Any = open_explainer(file, Method.occlusion, window=8, stride=4)
        (expected,) = given(image, number=1) if task == "detect" else [given(image)]
    assert found.heat.shape == (32, 43)
    assert found.said.startswith(SHORT_SAID)
    np.testing.assert_array_equal(found.heat, expected.heat)
    fits = open_explainer(file, Method.occlusion, window=32)
    assert isinstance(fits, (ObjectExplainer, PixelExplainer))
    with pytest.raises(InputError, match="--window 33: larger than the model's input, 32 x 43"):
        open_explainer(file, Method.occlusion, window=33)(image)
    with pytest.raises(InputError, match="--stride 9: larger than the window of 8 pixels"):
        open_explainer(file, Method.occlusion, stride=9)(image)


def test_an_image_too_small_for_the_window_leaves_the_others(place: Path, tmp_path: Path) -> None:
    for name, size in (("flat.png", (64, 8)), ("whole.png", (64, 60))):
        Image.new("RGB", size, "gray").save(tmp_path / name)
    flags = ["--method=occlusion", "--window=30", "--stride=30", "--out", tmp_path / "maps"]
    told = call("explain", place / "segment.safetensors", tmp_path, *flags, "--threads=1")
    assert told.code == 2
    said = "--window 30: larger than the model's input, 8 x 64 pixels"
    assert told.error == [f"skipway: {tmp_path / 'flat.png'}: {said}"]
    assert [p.name for p in (tmp_path / "maps").iterdir()] == [
        "whole-occlusion-window-30-stride-30.png"
    ]


# --- one image ------------------------------------------------------------------------------------


def card(task: str, head: DetectorConfig | SegmenterConfig, net: Any) -> Card:
    field = "segmenter" if task == "segment" else "detector"
    return Card(
        task=task,  # type: ignore[arg-type]
        model="custom",
        architecture=net.body.arch,
        classes=CLASSES,
        preprocess=FIT,
        **{field: head},
    )


def explainer(kind: str = "faster-rcnn") -> ObjectExplainer:
    net: Any = detector(kind)
    return ObjectExplainer(net, card("detect", net.config, net), "it", ObjectCam(net, None))


def test_objects_are_chosen_by_score_class_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (80, 128, 3), np.uint8)
    made = explainer()
    x = FIT.normalise(FIT.frame(image)[0])
    (found,) = run(made.net, x[None])
    assert len(found["scores"]) > 5
    labels, scores = found["labels"], found["scores"]

    def told(**asked: Any) -> list[tuple[str, float, int]]:
        return [(e.asked.label, e.asked.score, e.facts["object"]) for e in made(image, **asked)]

    first = (CLASSES[labels[0]], pytest.approx(float(scores[0])), 1)
    assert told() == [first]  # none is sure
    fifth = (CLASSES[labels[4]], pytest.approx(float(scores[4])), 5)
    assert told(number=5) == [fifth]
    assert told(number=len(labels) + 1) == []
    k = int(labels[1])
    those = np.flatnonzero(labels == k)
    assert told(k=k, number=2) == [(CLASSES[k], pytest.approx(float(scores[those[1]])), 2)]
    monkeypatch.setattr("skipway.explain.objects.SURE", float(scores[1]))
    assert [n for *_, n in told()] == [1, 2]
    monkeypatch.setattr("skipway.explain.objects.SURE", 0.0)
    assert [n for *_, n in told()] == [1, 2, 3]
    (one,) = made(image, number=5)
    assert one.facts["objects"] == len(labels)
    np.testing.assert_allclose(one.facts["box"], found["boxes"][4] * 2, rtol=1e-4)  # 64 of 128 px
    assert one.heat.shape == (40, 64)
    assert one.over_image().shape == (80, 128)


def test_the_box_is_on_both_panels() -> None:
    image = np.full((448, 640, 3), 90, np.uint8)
    (found,) = explainer()(image)
    x1, y1, x2, y2 = (round(v) for v in found.facts["box"])
    page = np.asarray(Image.open(io.BytesIO(found.picture())).convert("RGB")).astype(int)
    plain = page[20:60, 20:60].reshape(-1, 3)[0]
    assert (plain == 90).all()
    left = page[:, : page.shape[1] // 2]
    rows, columns = np.nonzero((left[:460] != 90).any(axis=2) & (left[:460] != 255).any(axis=2))
    assert len(rows) > 0
    assert abs((columns.max() - columns.min()) - (x2 - x1)) < 24
    assert abs((rows.max() - rows.min()) - (y2 - y1)) < 24
    assert found.mark is not None
    marked = found.mark(image[::2, ::2])
    assert marked.shape == (224, 320, 3)
    assert (marked != 90).any()


class Scenes:
    """As much of a split as `add_maps` asks."""

    def __init__(self, images: list[np.ndarray]) -> None:
        self.images = images

    def image(self, i: int, channels: int) -> np.ndarray:
        return self.images[i]


@pytest.mark.parametrize("kind", ["faster-rcnn", "fcos", "segment"])
def test_maps_beside_the_pictures_of_a_report(kind: str) -> None:
    """Those of `explain` itself, of the answer that is named."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (60, 90, 3), dtype=np.uint8) for _ in range(2)]
    if kind == "segment":
        net = segmenter("unet")
        one = PixelExplainer(net, card("segment", net.config, net), "", PixelCam(net, None))
        wanted = one(images[1])
    else:
        several = explainer(kind)
        net, one = several.net, several
        wanted = several(images[1], number=1)[0]
    shown = {"pictures": [{"index": 1, "name": "b.png", "image": "", "truth": ""}]}
    add_maps(shown, net, one.card, Scenes(images))  # type: ignore[arg-type]
    (row,) = shown["pictures"]
    assert row["heat_of"] == f"{wanted.asked.label} {wanted.asked.score:.0%}"
    mine = heatmap.thumbnail(wanted.image, wanted.heat, wanted.geometry, 320, wanted.mark)
    assert row["heat"] == mine
    page = truth_and_found([row], "The worst.", lambda row: "", ("true of", "found in"))
    assert page is not None
    assert f"what spoke for {row['heat_of']}" in page
    assert 'class="pair three"' in page


def load_pixels(net: Any) -> PixelPredictor:
    """As `predict` has it."""

    @torch.no_grad()
    def run(x: np.ndarray) -> Tensor:
        logits: Tensor = net(torch.from_numpy(x))["out"]
        return logits

    return PixelPredictor(run, card("segment", net.config, net), "it")


def test_a_class_that_no_pixel_has_is_of_all_pixels() -> None:
    net = segmenter("unet")
    look = PixelCam(net, "c3")
    made = PixelExplainer(net, card("segment", net.config, net), "it", look)
    image = np.random.default_rng(0).integers(0, 256, (80, 128, 3), np.uint8)
    x = torch.from_numpy(FIT.normalise(FIT.frame(image)[0]))
    with torch.no_grad():
        labels = net(x[None])["out"][0].argmax(0).numpy()
    whole = load_pixels(net)(image)
    shares = np.array([{s.label: s.share for s in whole.shares}.get(c, 0) for c in CLASSES])
    best, least = int(shares.argmax()), int(shares.argmin())
    found = made(image)
    assert (found.asked.label, found.asked.score) == (CLASSES[best], pytest.approx(shares[best]))
    np.testing.assert_array_equal(found.heat, look(x.numpy(), best, labels == best))
    assert found.mark is not None
    assert (found.mark(image) != image).any()
    bias_of(net)[least] -= 100
    none = made(image, least)
    bias_of(net)[least] += 100
    assert (none.asked.score, none.mark) == (0, None)
    assert "the map is of all of them" in none.what
    np.testing.assert_allclose(
        none.heat, look(x.numpy(), least, np.ones_like(labels, bool)), atol=1e-4
    )


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tasks")
    for kind in ("faster-rcnn", "mask-rcnn"):
        net: Any = detector(kind)
        task = "instance" if kind == "mask-rcnn" else "detect"
        save_weights(place / f"{task}.safetensors", net, card(task, net.config, net))
    config = DetectorConfig(head="faster-rcnn", channels=16, box_width=16, score_threshold=1.0)
    save_weights(place / "blind.safetensors", detector("faster-rcnn"),
                 card("detect", config, detector("faster-rcnn")))  # fmt: skip
    pixels = segmenter("unet")
    save_weights(place / "segment.safetensors", pixels, card("segment", pixels.config, pixels))
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 90, 3), np.uint8)).save(place / "a.png")
    return place


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("task", ["detect", "instance"])
def test_the_command_explains_objects(
    place: Path, tmp_path: Path, task: str, method: Method
) -> None:
    flags = ["--method", method, "--out", tmp_path, "--threads=1"]
    flags += ["--window=32", "--stride=32"] if method is Method.occlusion else ["--stage=c4"]
    asked = "window-32-stride-32" if method is Method.occlusion else "c4"
    given = ["explain", place / f"{task}.safetensors", place / "a.png", *flags]
    found = call(*given, "--object=2", "--json")
    assert found.code == 0, found.err
    (row,) = found.value
    assert set(row) == {
        "path", "class", "score", "answer", "method", "peak", "file", "error", "object",
        "objects", "box",
    }  # fmt: skip
    predicted = call("predict", given[1], given[2], "--threshold=0", "--json", "--threads=1").value
    second = predicted[0]["objects"][1]
    assert (row["object"], row["objects"]) == (2, len(predicted[0]["objects"]))
    assert row["class"] == second["label"]
    assert row["score"] == pytest.approx(second["score"], abs=1e-5)
    assert row["box"] == pytest.approx(second["box"], abs=1e-2)
    assert row["file"] == str(tmp_path / f"a-{method}-{asked}-object-2.png")
    assert Image.open(row["file"]).format == "PNG"
    told = call(*given, "--class", second["label"])
    assert told.code == 0, told.err
    assert told.out.startswith(f"{place / 'a.png'}: {second['label']} ")
    assert "object 1" in told.out
    absent = call(*given, "--object=5000")
    assert absent.code == 2
    assert "a.png: has no object 5000" in absent.err


@pytest.mark.parametrize("method", Method)
def test_the_command_explains_pixels(place: Path, tmp_path: Path, method: Method) -> None:
    given = ["explain", place / "segment.safetensors", place / "a.png", "--method", method,
             "--out", tmp_path, "--threads=1"]  # fmt: skip
    found = call(*given, "--json")
    assert found.code == 0, found.err
    (row,) = found.value
    predicted = call("predict", given[1], given[2], "--json", "--threads=1").value[0]["classes"][0]
    assert row["class"] == row["answer"] == predicted["label"]
    assert row["share"] == pytest.approx(predicted["share"], abs=1e-6)
    assert row["file"] == str(tmp_path / f"a-{method}.png")
    told = call(*given, "--class", "bird")
    assert told.code == 0, told.err
    assert " of the pixels" in told.out


def test_where_nothing_is_found(place: Path, tmp_path: Path) -> None:
    given = ["explain", place / "blind.safetensors", place / "a.png", "--out", tmp_path]
    told = call(*given, "--threads=1")
    assert (told.code, told.out) == (0, f"{place / 'a.png'}: nothing is found\n")
    (row,) = call(*given, "--threads=1", "--json").value
    assert row == {"path": str(place / "a.png"), "method": "grad-cam", "error": None}


@pytest.mark.parametrize(
    ("model", "flags", "words"),
    [
        ("detect", ["--stage=c9"], "--stage c9: this network has c2, c3, c4, c5."),
        ("detect", ["--class=horse"], "--class horse: "),
        ("detect", ["--method=occlusion", "--of=logit"], "--of: not of a model of this task"),
        ("detect", ["--method=occlusion", "--window=65"], "--window 65: larger"),
        ("segment", ["--object=1"], "--object: not of a model of this task"),
        ("segment", ["--stage=stem"], "--stage stem: this network has"),
        ("cifar10-resnet20", ["--object=1"], "--object: not of a model of this task"),
    ],
)
def test_bad_input(place: Path, tmp_path: Path, model: str, flags: list[str], words: str) -> None:
    name = model if "-" in model else place / f"{model}.safetensors"
    told = call("explain", name, place / "a.png", *flags, "--out", tmp_path, "--threads=1")
    assert told.code == 2
    assert words in told.error[0]
    assert len(told.error) <= 3


def test_what_is_missing_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "skipway.weights", raising=False)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for task in ("detect", "segment"):
        with pytest.raises(InputError, match=r"'safetensors'(.|\n)*'\.\[train\]'"):
            open_explainer(place / f"{task}.safetensors")


def test_squares_of_several_measures_are_those_of_each() -> None:
    x = np.random.default_rng(0).normal(size=(3, 20, 30)).astype(np.float32)

    def measure(views: np.ndarray) -> np.ndarray:
        return np.stack([views.mean((1, 2, 3)), (views**2).sum((1, 2, 3))], axis=1)

    squares = Squares.of((20, 30), 7, 4)
    both = squares.falls(x, measure, batch_size=5)
    for m in range(2):
        alone = squares.falls(x, lambda views, m=m: measure(views)[:, [m]])
        np.testing.assert_allclose(both[m], alone[0], atol=1e-6)
    assert (both[1] >= 0).all()
