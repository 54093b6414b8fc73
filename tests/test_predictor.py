"""Predictions from any kind of model file and image, and scores of a split."""

from __future__ import annotations

import functools
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.metrics import log_loss

from commands import draw, environment
from skipway import load, shipped
from skipway.answers import Prediction
from skipway.architecture import architecture
from skipway.card import METADATA_KEY, Card
from skipway.data import open_data
from skipway.errors import InputError
from skipway.evaluation import Views, score, views_of
from skipway.export import export
from skipway.images import DecodeError, Preprocess
from skipway.predictor import Predictor, weight_file
from skipway.resnet import ResNet
from skipway.weights import create_model, save_weights

CLASSES = ("ant", "bee", "caf\u00e9", "dog", "e", "f", "g")
PREPROCESS = Preprocess(size=(16, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


@functools.cache
def make_net(classes: int = len(CLASSES)) -> ResNet:
    """Random weights, statistics settled, so that images get different answers."""
    net = create_model("resnet20", num_classes=classes, seed=1)
    with torch.no_grad():
        x = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        for _ in range(30):
            net.train()(x)
        net.fc.weight.mul_(5)
    return net.eval()


def card(net: ResNet) -> Card:
    return Card(model="resnet20", architecture=net.arch, classes=CLASSES, preprocess=PREPROCESS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as training leaves it, as far as predicting goes."""
    place = tmp_path_factory.mktemp("run")
    net = make_net()
    save_weights(place / "best.safetensors", net, card(net))
    (place / "run.json").write_text("{}")
    return place


@pytest.fixture
def predictor(run: Path) -> Predictor:
    return load(run, threads=1)


def pixels(i: int, height: int = 20, width: int = 26) -> np.ndarray:
    rng = np.random.default_rng(i)
    coarse = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
    return coarse.repeat(4, 0).repeat(4, 1)[:height, :width]


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def scores(prediction: Prediction) -> dict[str, float]:
    return {s.label: s.score for s in prediction.predictions}


# --- models -----------------------------------------------------------------------------------


def test_a_run_and_its_weights_are_one_model(run: Path) -> None:
    image = pixels(0)
    here, there = load(run), load(str(run / "best.safetensors"))
    assert here(image) == there(image)
    assert here.classes == there.classes == CLASSES
    assert here.classes_known
    assert here.card == there.card
    assert here.origin == str(run / "best.safetensors")


def test_predictions_are_those_of_the_network(predictor: Predictor) -> None:
    """Written out by hand: the specification, the network, softmax, the best first."""
    for i in range(5):
        x = torch.from_numpy(PREPROCESS(pixels(i)))[None]
        with torch.inference_mode():
            expected = make_net()(x).double().softmax(1)[0]
        found = predictor(pixels(i), top=7).predictions
        assert [s.score for s in found] == sorted((s.score for s in found), reverse=True)
        assert {s.label for s in found} == set(CLASSES)
        for s in found:
            assert s.score == pytest.approx(expected[CLASSES.index(s.label)].item(), abs=1e-5)
    best = {predictor(pixels(i)).predictions[0].label for i in range(20)}
    assert len(best) > 1  # else the above says little


def test_weights_without_a_card(
    tmp_path: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "bare.pth"
    net = make_net(10)
    torch.save({"state_dict": net.state_dict()}, path)
    with caplog.at_level(logging.WARNING, "skipway"):
        bare = load(path)
    (told,) = [text for text in caplog.messages if "assumed, as the file does not say: " in text]
    assert "classes: 10, '0' to '9'; preprocess: short side to 32 px, the centre's 32 x 32" in told
    assert "mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225" in told
    assert not bare.classes_known
    assert bare.classes == tuple("0123456789")
    with torch.inference_mode():
        x = torch.from_numpy(bare.card.preprocess(pixels(0)))[None]
        expected = net(x).softmax(1)[0]
    found = scores(bare(pixels(0), top=10))
    assert [found[str(i)] for i in range(10)] == pytest.approx(expected.tolist(), abs=1e-5)
    assert bare.card.preprocess.size == (32, 32)  # native to the network


@pytest.mark.parametrize(("name", "known"), [("resnet18", True), ("resnet18_cifar", False)])
def test_a_thousand_outputs_of_a_network_for_imagenet_are_its_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, known: bool
) -> None:
    net = create_model(name, 1000, width=0.125)
    torch.save(net.state_dict(), tmp_path / "bare.pth")
    found = load(tmp_path / "bare.pth")
    assert found.classes[1] == ("goldfish" if known else "1")
    assert not found.classes_known
    assert ("'tench' to 'toilet tissue'" in caplog.text) == known


def test_a_model_that_states_all_is_loaded_in_silence(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(run)
    assert caplog.text == ""


def test_what_a_card_assumes_is_told_of_its_export_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once each: that an export was proven is no use of it."""
    net, path = make_net(), tmp_path / "net.safetensors"
    assumed = card(net).model_copy(update={"provenance": {"assumed": ["classes"]}})
    save_weights(path, net, assumed)
    exported = export(path, tmp_path / "net.onnx").path
    load(exported)
    said = "assumed, as the file does not say: classes: 7, 'ant' to 'g'"
    told = [text for text in caplog.messages if "assumed" in text]
    assert told == [f"{path}: {said}", f"{exported}: {said}"]


def test_what_is_no_model(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "run.json").write_text("{}")
    text = tmp_path / "x.safetensors"
    text.write_text("text")
    for path, said in {
        tmp_path / "missing\x1b": r"missing\x1b: no such file or run",
        empty: "not a run",
        begun: "no best.safetensors yet",
        text: "x.safetensors",
    }.items():
        with pytest.raises(InputError) as error:
            load(path)
        assert said in str(error.value)
        assert len(str(error.value).splitlines()) <= 3


def test_weight_file(run: Path) -> None:
    assert weight_file(run) == weight_file(run / "best.safetensors") == run / "best.safetensors"


# --- images -----------------------------------------------------------------------------------


def test_every_kind_of_image_gives_the_same(predictor: Predictor, tmp_path: Path) -> None:
    image = pixels(3)
    path = tmp_path / "3.png"
    path.write_bytes(png(image))
    kinds = [path, str(path), png(image), Image.fromarray(image), image, np.asfortranarray(image)]
    found = [predictor(kind) for kind in kinds]
    assert len({p.predictions for p in found}) == 1
    assert [p.path for p in found] == [str(path), str(path), "", "", "", ""]
    assert all(p.error is None for p in found)
    for p in predictor.stream(kinds):
        assert scores(p) == pytest.approx(scores(found[0]), abs=1e-5)


def test_grey_alpha_and_sixteen_bits(predictor: Predictor) -> None:
    grey = pixels(4)[..., 0]
    spread = np.repeat(grey[..., None], 3, axis=2)
    opaque = np.dstack([spread, np.full_like(grey, 255)])
    expected = predictor(spread)
    for kind in (grey, grey[..., None], opaque, Image.fromarray(grey)):
        assert predictor(kind).predictions == expected.predictions
    wide = scores(predictor(spread.astype(np.uint16) * 257, top=7))
    assert wide == pytest.approx(scores(predictor(spread, top=7)), abs=0.02)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 11, 64])
def test_the_size_of_batches_does_not_matter(predictor: Predictor, batch_size: int) -> None:
    images = [pixels(i, 16 + i, 30 - i) for i in range(11)]
    alone = [predictor(image, top=7) for image in images]
    found = list(predictor.stream(iter(images), top=7, batch_size=batch_size))
    assert len(found) == 11
    for a, b in zip(alone, found, strict=True):
        assert scores(a) == pytest.approx(scores(b), abs=1e-5)


def test_a_stream_is_lazy(predictor: Predictor) -> None:
    taken = []

    def images() -> Iterator[np.ndarray]:
        for i in range(100):
            taken.append(i)
            yield pixels(i)

    next(predictor.stream(images(), batch_size=4))
    assert len(taken) == 4
    assert list(predictor.stream([])) == []


def test_top(predictor: Predictor) -> None:
    whole = predictor(pixels(1), top=100).predictions
    assert len(whole) == 7
    assert sum(s.score for s in whole) == pytest.approx(1)
    assert len(predictor(pixels(1)).predictions) == 5
    assert predictor(pixels(1), top=2).predictions == whole[:2]


# --- images that cannot be read ---------------------------------------------------------------


def test_unreadable_images_are_entries_of_the_stream(predictor: Predictor, tmp_path: Path) -> None:
    good, cut, text = (tmp_path / n for n in ("good.png", "cut\x1b.png", "text.png"))
    good.write_bytes(png(pixels(0)))
    cut.write_bytes(png(pixels(1))[:60])
    text.write_text("no image")
    missing = tmp_path / "missing.png"
    given = [cut, good, missing, pixels(2), text, b"", np.zeros((2, 2)), good]
    for batch_size in (1, 3, 50):
        found = list(predictor.stream(given, batch_size=batch_size))
        assert [i for i, p in enumerate(found) if p.error is None] == [1, 3, 7]
        assert [p.path for p in found[:3]] == [str(cut), str(good), str(missing)]
        for p in found:
            assert (p.predictions == ()) == (p.error is not None)
        assert r"cut\x1b.png: truncated PNG" in str(found[0].error)
        assert "missing.png: No such file" in str(found[2].error)
        for p in (found[1], found[7]):
            assert scores(p) == pytest.approx(scores(predictor(good)), abs=1e-5)
    assert len(list(predictor.stream([cut, text]))) == 2  # none that can be read


def test_unreadable_images_raise_where_asked(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_text("no image")
    with pytest.raises(DecodeError, match=r"x\.png"):
        predictor(path)
    with pytest.raises(DecodeError, match=r"x\.png"):
        list(predictor.stream([pixels(0), path], skip=False))


# --- scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 128])
def test_score_is_what_single_predictions_say(
    predictor: Predictor, tmp_path: Path, batch_size: int
) -> None:
    for i in range(13):
        path = tmp_path / CLASSES[i % 3] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(pixels(i, 20 + i, 20)))
    data = open_data(str(tmp_path), "none")
    split = data.splits["train"]
    labels = np.array([CLASSES.index(data.classes[y]) for y in split.labels])
    split = type(split)(split.reader, split.names, labels)
    found, skipped = score(predictor, split, threads=2, batch_size=batch_size)
    assert skipped == []
    alone = [predictor(tmp_path / name, top=7) for name in split.names]
    table = np.array([[scores(p)[c] for c in CLASSES] for p in alone])
    assert found.index.tolist() == list(range(13))
    assert found.label.tolist() == labels.tolist()
    assert found.predicted.tolist() == table.argmax(1).tolist()
    assert np.allclose(found.confidence, table.max(1), atol=1e-5)
    metrics = found.metrics()
    assert metrics["accuracy"] == pytest.approx(np.mean(table.argmax(1) == labels))
    assert metrics["loss"] == pytest.approx(log_loss(labels, table, labels=range(7)), abs=1e-3)
    (tmp_path / split.names[5]).write_text("no image")
    with pytest.raises(DecodeError, match=split.names[5]):
        score(predictor, split, threads=2)
    fewer, skipped = score(predictor, split, 2, on_bad="skip", batch_size=batch_size)
    assert len(skipped) == 1
    assert split.names[5] in skipped[0]
    assert fewer.index.tolist() == [i for i in range(13) if i != 5]
    assert fewer.confidence.tolist() == pytest.approx(np.delete(found.confidence, 5), abs=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "float16", "bfloat16", ""])
def test_a_precision_that_is_none_is_refused(run: Path, precision: str) -> None:
    with pytest.raises(InputError, match=r"precision .*give float32 or bf16"):
        load(run, precision=precision)


def test_a_card_survives_in_the_predictor(run: Path) -> None:
    found = load(run).card
    assert found == card(make_net())
    assert found.architecture == architecture("resnet20", num_classes=7)
    assert json.loads(found.to_json())["classes"] == list(CLASSES)


# --- ONNX files -------------------------------------------------------------------------------

HIDE = """
import sys
HIDDEN = {"torch", "torchvision", "safetensors", "sklearn", "matplotlib", "onnx", "onnxscript"}
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError("hidden", name=name)
sys.meta_path.insert(0, Hide())
for name in HIDDEN:
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(name)
"""
"""What only the training install and the export install have is not there."""


def linear(classes: int = len(CLASSES), channels: int = 3) -> onnx.ModelProto:
    """A small graph by hand: the logits are the mean of each channel times fixed weights."""
    weights = np.random.default_rng(0).normal(size=(channels, classes)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
        onnx.helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "linear",
        [onnx.helper.make_tensor_value_info("images", 1, ["batch", channels, 16, 16])],
        [onnx.helper.make_tensor_value_info("logits", 1, ["batch", classes])],
        [
            onnx.numpy_helper.from_array(np.array([2, 3]), "axes"),
            onnx.numpy_helper.from_array(weights, "weights"),
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("strange", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    model.metadata_props.add(key=METADATA_KEY, value=card(make_net()).to_json())
    return model


def written(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_an_onnx_file_is_run_as_its_graph_says(tmp_path: Path) -> None:
    model = linear()
    path = written(model, tmp_path / "x.onnx")
    found = load(path, threads=1)
    assert found.origin == str(path)
    assert found.classes == CLASSES
    assert found.classes_known
    weights = onnx.numpy_helper.to_array(model.graph.initializer[1]).astype(np.float64)
    for n in (1, 3, 17):
        x = np.stack([PREPROCESS(pixels(i)) for i in range(n)])
        assert np.allclose(found.run(x), x.mean((2, 3), dtype=np.float64) @ weights, atol=1e-5)
    best = found(pixels(0)).predictions[0].label
    x = PREPROCESS(pixels(0)).mean((1, 2), dtype=np.float64) @ weights
    assert best == CLASSES[int(x.argmax())]


def test_models_are_told_by_their_content(run: Path, tmp_path: Path) -> None:
    odd = written(linear(), tmp_path / "graph.bin")
    assert load(odd).classes == CLASSES
    for name in ("weights.onnx", "weights.ONNX"):
        (tmp_path / name).write_bytes((run / "best.safetensors").read_bytes())
        assert load(tmp_path / name)(pixels(0)) == load(run)(pixels(0))
    torch.save({"state_dict": make_net(10).state_dict()}, tmp_path / "pickle.onnx")
    assert not load(tmp_path / "pickle.onnx").classes_known


def test_a_session_is_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(linear(), tmp_path / "x.onnx")
    options = []
    session = onnxruntime.InferenceSession

    def recorded(path: str, given: Any, **more: Any) -> Any:
        options.append(given)
        return session(path, given, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    monkeypatch.setattr("skipway.predictor.cores", lambda: 7)
    for threads in (1, 2, None):
        load(path, threads)
    assert [o.intra_op_num_threads for o in options] == [1, 2, 7]
    for given in options:
        assert given.get_session_config_entry("session.set_denormal_as_zero") == "1"
        assert given.inter_op_num_threads == 1


def test_what_an_onnx_file_cannot_do(tmp_path: Path) -> None:
    path = written(linear(), tmp_path / "x.onnx")
    for options, said in {
        ("cpu", "bf16"): "--precision bf16",
        ("mps", "float32"): "--device mps",
        ("cuda:x", "float32"): "--device cuda:x",
    }.items():
        with pytest.raises(InputError, match=said):
            load(path, 1, *options)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        for device in ("cuda", "cuda:1"):
            with pytest.raises(InputError, match=rf"--device {device}: this ONNX Runtime cannot"):
                load(path, 1, device)
    found = load(path, 1)
    for x in (
        np.zeros((1, 3, 16, 17), np.float32),
        np.zeros((1, 1, 16, 16), np.float32),
        np.zeros((3, 16, 16), np.float32),
        np.zeros((1, 3, 16, 16)),
    ):
        with pytest.raises(InputError, match=r"takes float32 \[batch, 3, 16, 16\], not"):
            found.run(x)


def broken(kind: str) -> bytes:
    """An ONNX file with which something is wrong."""
    model = linear()
    graph, text = model.graph, model.metadata_props[0]
    if kind == "no card":
        del model.metadata_props[:]
    elif kind == "no JSON":
        text.value = "{\x1b[31m"
    elif kind == "other classes":
        model = linear(classes=8)
    elif kind == "other channels":
        model = linear(channels=1)
    elif kind == "other name":
        graph.input[0].name = graph.node[0].input[0] = "pixels\x1b[31m"
    elif kind == "two inputs":
        graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info("more", 1, [1]))
    elif kind == "own operator":
        graph.node[1].op_type, graph.node[1].domain = "Run\x1b[31mMe", "strange"
    elif kind == "elsewhere":
        weights = graph.initializer[1]
        weights.ClearField("raw_data")
        weights.data_location = onnx.TensorProto.EXTERNAL
        weights.external_data.add(key="location", value="../../../../../../../../etc/passwd")
    elif kind == "lies about its output":
        graph.node[1].output[0] = "inner"
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "flat"))
        graph.node.append(onnx.helper.make_node("Reshape", ["inner", "flat"], ["logits"]))
        del graph.output[0].type.tensor_type.shape.dim[:]
    elif kind == "fails at work":
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([5, 7, 11]), "odd"))
        graph.node[1].output[0] = "inner"
        graph.node.append(onnx.helper.make_node("Reshape", ["inner", "odd"], ["odd shape"]))
        graph.node.append(onnx.helper.make_node("Mul", ["inner", "zero"], ["logits"]))
        graph.node.append(onnx.helper.make_node("ReduceMax", ["odd shape"], ["zero"], keepdims=0))
    whole = model.SerializeToString()
    cut = {"empty": 0, "cut": len(whole) // 2, "start": 9}
    return b"\x08\x0anot a model" if kind == "text" else whole[: cut.get(kind, len(whole))]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no card", "without Skipway's card"),
        ("no JSON", "the card is not valid"),
        ("other classes", "its card and its graph disagree"),
        ("other channels", "its card and its graph disagree"),
        ("other name", "its card and its graph disagree"),
        ("two inputs", "its card and its graph disagree"),
        ("own operator", "not an ONNX file that can be run"),
        ("elsewhere", "not an ONNX file that can be run"),
        ("lies about its output", "its card and its graph disagree"),
        ("fails at work", "cannot be run"),
        ("empty", "x.onnx"),
        ("cut", "not an ONNX file that can be run"),
        ("start", "x.onnx"),
        ("text", "not an ONNX file that can be run"),
    ],
)
def test_onnx_files_that_cannot_be_used(kind: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(broken(kind))
    with pytest.raises(InputError) as error:
        load(path, 1)(pixels(0))
    text = str(error.value)
    assert text.startswith(str(path))
    assert said in text
    assert len(text.splitlines()) <= 3
    assert text.isprintable() or set(text) - {"\n"} == {c for c in text if c.isprintable()}


def test_shipped_names(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in shipped.NAMES:
        found = load(name, 1)
        assert found.origin == str(shipped.file(name, ".onnx"))
        other = load(name, 1, precision="bf16")
        assert other.origin == str(shipped.file(name, ".safetensors"))
        assert other.card == found.card
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes((run / "best.safetensors").read_bytes())
    assert load(name, 1).classes == CLASSES  # what lies there goes first


def test_the_base_install_predicts_and_scores(tmp_path: Path) -> None:
    """Nothing of torch, safetensors, scikit-learn or onnx in the process, and nothing needed."""
    written(linear(), tmp_path / "x.onnx")
    classes = load("cifar10-resnet20").classes
    for split in ("train", "test"):
        draw(tmp_path / "data" / split, CLASSES, n=2)
        draw(tmp_path / "other" / split, classes, n=2)
    image = "data/test/ant/00.png"
    code = f"""
import contextlib, io, json, runpy, zipfile
import numpy
import skipway

def call(*arguments):
    sys.argv = ["skipway", *arguments]
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        try:
            runpy.run_module("skipway", run_name="__main__")
        except SystemExit as end:
            assert not end.code, (arguments, end.code)
    return json.loads(told.getvalue())

with zipfile.ZipFile("data.zip", "w") as archive:
    from pathlib import Path
    for path in Path("data").rglob("*.png"):
        archive.write(path)
loaded = skipway.load("x.onnx", threads=1)({image!r})
told = [
    [[s.label, s.score] for s in loaded.predictions],
    call("predict", "x.onnx", {image!r}, "--json"),
    call("eval", "x.onnx", "data", "--json"),
    call("eval", "x.onnx", "data.zip", "--json"),
    call("predict", "cifar10-resnet20", {image!r}, "--json"),
    call("eval", "cifar10-resnet20", "other", "--json"),
    call("models", "--json"),
]
denormal = numpy.full((1, 3, 16, 16), 1e-39, numpy.float32)
assert not skipway.load("x.onnx", threads=1).run(denormal).any()  # flushed to zero
assert not HIDDEN & {{name.split(".")[0] for name in sys.modules}}
print(json.dumps(told))
"""
    done = subprocess.run(
        [sys.executable, "-c", HIDE + code],
        capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loaded, predicted, folder, archive, named, scored, models = json.loads(done.stdout)
    here = load(tmp_path / "x.onnx")(tmp_path / image)
    assert [tuple(pair) for pair in loaded] == [(s.label, s.score) for s in here.predictions]
    assert [[s["label"], s["score"]] for s in predicted[0]["predictions"]] == loaded
    assert folder == archive
    assert (folder["n"], folder["split"]) == (14, "test")
    assert named[0]["error"] is None
    assert len(named[0]["predictions"]) == 5
    assert scored["n"] == 20
    assert {row["name"] for row in models["shipped"]} == set(shipped.NAMES)


def test_weight_files_name_what_the_base_install_lacks(run: Path) -> None:
    code = f"import skipway\nskipway.load({str(run)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", HIDE + code], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 1
    assert f"{run} needs the package 'torch'" in done.stderr
    assert "'.[train]'" in done.stderr


def test_a_shipped_model_says_what_for_torch_is_needed() -> None:
    code = "import skipway\nskipway.load('cifar10-resnet20', precision='bf16')\n"
    done = subprocess.run(
        [sys.executable, "-c", HIDE + code], capture_output=True, text=True, env=environment()
    )
    assert "cifar10-resnet20 with --device cpu and --precision bf16 needs" in done.stderr
    with pytest.raises(InputError, match="--device gpu: give cpu, cuda or cuda:N"):
        load("cifar10-resnet20", 1, "gpu")


@pytest.mark.parametrize("kind", Views)
def test_views_are_averaged(kind: Views) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 2, 6, 5)).astype(np.float32)
    tensor = torch.from_numpy(x)
    padded = torch.nn.functional.pad(tensor, (1, 1, 1, 1), mode="reflect")
    moved = [padded[:, :, :6, :5], padded[:, :, 2:, 2:]]

    def answer(t: torch.Tensor) -> np.ndarray:  # of where things are
        weights = torch.arange(2 * 6 * 5.0).reshape(2, 6, 5).sqrt()
        return np.asarray((t * weights).sum((1, 2, 3)).tanh())

    both = [answer(t) + answer(t.flip(3)) for t in (tensor, *moved)]
    expected = {
        Views.one: answer(tensor),
        Views.scales: answer(tensor),
        Views.flip: both[0] / 2,
        Views.ten_crop: both[0] / 2,
        Views.shift: both[0] / 4 + (both[1] + both[2]) / 8,
    }[kind]
    found = sum(weight * answer(torch.from_numpy(view)) for weight, view in views_of(x, kind))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert sum(weight for weight, _ in views_of(x, kind)) == 1
