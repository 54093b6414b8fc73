"""Images as vectors, kept in an index, and what is found in it, against independent oracles."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from torch import nn

from commands import Answer, call, draw, environment
from skipway import shipped
from skipway.card import Card, read_card
from skipway.embedders import generalised_mean
from skipway.embedding import Embedder, load_embedder, sheet
from skipway.embedding import index as indexing
from skipway.embedding.embedder import unit_vectors
from skipway.embedding.index import Index, differences
from skipway.embedding.search import find_similar, nearest_rows
from skipway.errors import InputError
from skipway.images import DecodeError, Preprocess
from skipway.resnet import ResNet
from skipway.weights import create_model, load_model, save_weights

PREPROCESS = Preprocess(size=(16, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def settled(net: nn.Module, side: int = 32) -> nn.Module:
    """With statistics of batch norm that are not those of the start."""
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            net.train()(torch.randn(4, 3, side, side))
    return net.eval()


@functools.cache
def net_of(name: str, seed: int = 1) -> ResNet:
    net = create_model(name, num_classes=3, seed=seed, depths=[1, 1, 1])
    settled(net)
    return net


def write(place: Path, name: str = "resnet20", seed: int = 1, **changes: Any) -> Path:
    """A weight file with its card."""
    net = net_of(name, seed)
    card = Card(
        model="custom",
        architecture=net.arch,
        classes=("a", "b", "c"),
        preprocess=Preprocess.model_validate(PREPROCESS.model_dump() | changes),
    )
    save_weights(place, net, card)
    return place


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "net.safetensors")


@pytest.fixture
def embedder(model: Path) -> Embedder:
    return load_embedder(model)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Thirty images in two splits of three classes."""
    draw(tmp_path / "data" / "train", ("ant", "bee", "café"), n=6)
    draw(tmp_path / "data" / "val", ("ant", "bee", "café"), n=4, seed=1)
    return tmp_path / "data"


def refused(answer: Answer, *words: str) -> None:
    assert answer.code == 2, answer
    assert 1 <= len(answer.error) <= 3, answer.err
    assert all(word in " ".join(answer.error) for word in words), answer.err
    assert "internal" not in answer.err


# --- the embedder ---------------------------------------------------------------------------------


def hooked(net: nn.Module, layers: list[str], x: torch.Tensor) -> list[np.ndarray]:
    """What modules of another's network give, in float64."""
    seen: list[np.ndarray] = []
    handles = [
        net.get_submodule(name).register_forward_hook(
            lambda _, __, y: seen.append(y.detach().numpy().astype(np.float64))
        )
        for name in layers
    ]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return seen


def test_every_stage_equals_torchvisions(tmp_path: Path) -> None:
    oracle = settled(torchvision.models.resnet18(num_classes=5))
    torch.save(oracle.state_dict(), tmp_path / "net.pth")
    x = torch.randn(2, 3, 64, 64)
    stages = hooked(oracle, ["layer1", "layer2", "layer3", "layer4"], x)
    for stage, feature in zip(("c2", "c3", "c4", "c5"), stages, strict=True):
        made = load_embedder(tmp_path / "net.pth", stage=stage, normalised=False)
        mean = feature.mean((2, 3))
        assert made.dimensions == mean.shape[1]
        np.testing.assert_allclose(made.run(x.numpy()), mean, rtol=1e-4, atol=1e-5)
    last = load_embedder(tmp_path / "net.pth").run(x.numpy())
    expected = mean / np.sqrt((mean**2).sum(1, keepdims=True))
    np.testing.assert_allclose(last, expected, rtol=1e-4, atol=1e-6)
    assert last.dtype == np.float32


def test_gem_equals_the_formula_on_timms_features(tmp_path: Path) -> None:
    oracle = settled(timm.create_model("resnet18", num_classes=5, pretrained=False))
    torch.save(oracle.state_dict(), tmp_path / "net.pth")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        feature = oracle.forward_features(x).numpy().astype(np.float64)
    for p in (1, 2.5, 9):
        expected = (feature**p).mean((2, 3)) ** (1 / p)
        made = load_embedder(tmp_path / "net.pth", pooling="gem", gem_p=p, normalised=False)
        np.testing.assert_allclose(made.run(x.numpy()), expected, rtol=1e-4, atol=1e-5)


def test_the_last_stage_of_a_pre_activation_net_is_what_its_classifier_sees(tmp_path: Path) -> None:
    file = write(tmp_path / "pre.safetensors", "preresnet110")
    net = net_of("preresnet110")
    x = torch.randn(2, 3, 16, 16)
    (normed,) = hooked(net, ["norm"], x)
    seen = np.maximum(normed, 0).mean((2, 3))
    made = load_embedder(file, normalised=False)
    np.testing.assert_allclose(made.run(x.numpy()), seen, rtol=1e-4, atol=1e-5)
    (inner,) = hooked(net, ["layer2.0"], x)
    assert inner.min() < 0  # the sums, not activated
    made = load_embedder(file, stage="c3", normalised=False)
    np.testing.assert_allclose(made.run(x.numpy()), inner.mean((2, 3)), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="pre-activation"):
        load_embedder(file, stage="c3", pooling="gem")
    assert load_embedder(file, stage="c4", pooling="gem").run(x.numpy()).shape == (2, 64)


@given(
    st.lists(st.floats(0, 2.0**60, width=32), min_size=1, max_size=9),
    st.floats(1, 50),
    st.floats(1, 50),
)
def test_the_generalised_mean_lies_between_mean_and_maximum(
    values: list[float], p: float, q: float
) -> None:
    x = torch.tensor(values).reshape(1, 1, 1, -1)
    low, high = (float(generalised_mean(x, power)) for power in sorted((p, q)))
    eps = 1e-5 * max(values) + 1e-37
    assert float(x.double().mean()) - eps <= low <= high + eps
    assert high <= max(values) + eps


def test_the_generalised_mean_neither_overflows_nor_vanishes() -> None:
    x = torch.tensor([[[[1e30, 0.0]], [[1e-30, 1e-30]], [[0.0, 0.0]]]])
    pooled = generalised_mean(x, 20.0).numpy()[0]
    np.testing.assert_allclose(pooled, [1e30 * 0.5 ** (1 / 20), 1e-30, 0], rtol=1e-5)


def test_unit_vectors() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 7)).astype(np.float32) * np.float32(
        [[1e-30], [1], [1e30], [3], [0]]
    )
    lengths = np.linalg.norm(unit_vectors(vectors).astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 1, 1, 0], atol=1e-6)


def test_images_are_prepared_as_the_card_says_and_keep_their_order(
    embedder: Embedder, data: Path
) -> None:
    paths = sorted(map(str, data.glob("train/*/*.png")))
    bad = data / "bad.png"
    bad.write_bytes(b"no image")
    expected = embedder.run(np.stack([PREPROCESS(path) for path in paths]))
    np.testing.assert_allclose(embedder(paths), expected, atol=1e-6)
    assert len(np.unique(expected.round(4), axis=0)) == len(paths)
    mixed: list[Any] = [*paths[:3], bad, *paths[3:5], b"", *paths[5:]]
    found = list(embedder.stream(iter(mixed), batch_size=4))
    assert [i for i, v in enumerate(found) if isinstance(v, DecodeError)] == [3, 6]
    assert "bad.png" in str(found[3])
    whole = np.stack([v for v in found if not isinstance(v, DecodeError)])
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    with pytest.raises(DecodeError, match=r"bad\.png"):
        embedder(mixed)
    assert embedder([]).shape == (0, embedder.dimensions)


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    net = create_model("resnet20", num_classes=3, seed=1)
    with torch.no_grad():
        net.layer3[-1].bn2.weight.fill_(3e38)
        net.layer3[-1].bn2.bias.fill_(3e38)
    save_weights(tmp_path / "net.safetensors", net, None)
    with pytest.raises(InputError, match="not finite"):
        load_embedder(tmp_path / "net.safetensors").run(np.ones((1, 3, 32, 32), np.float32))


def test_what_made_a_vector_is_of_the_network_not_of_its_file(model: Path, tmp_path: Path) -> None:
    made = load_embedder(model).made
    assert load_embedder(write(tmp_path / "copy.safetensors")).made == made
    assert (
        load_embedder(write(tmp_path / "o.safetensors", seed=2)).made["weights"] != made["weights"]
    )
    other_head = tmp_path / "head.safetensors"
    net, _, _ = load_model(model)
    nn.init.zeros_(net.fc.weight)
    save_weights(other_head, net, read_card(model))
    assert load_embedder(other_head).made["weights"] == made["weights"]
    early, late = (load_embedder(model, stage=stage).made for stage in ("c3", "c4"))
    weights, stage = differences(early, late)
    assert weights == "other weights"
    assert stage == 'stage "c3" there, "c4" here'


def test_what_an_embedder_refuses(model: Path) -> None:
    for options, words in (
        ({"stage": "c5"}, "c2, c3, c4"),
        ({"stage": "c33"}, "Did you mean 'c3'"),
        ({"pooling": "max"}, "average or gem"),
        ({"gem_p": 0.5}, "1 or more"),
        ({"gem_p": float("nan")}, "1 or more"),
        ({"device": "cuda:77"}, "--device"),
    ):
        with pytest.raises(InputError, match=words):
            load_embedder(model, **options)
    with pytest.raises(InputError, match="ONNX"):
        load_embedder(shipped.file(shipped.NAMES[0], ".onnx"))
    assert load_embedder(shipped.NAMES[0]).dimensions == 64


# --- the index ------------------------------------------------------------------------------------


def vectors_of(table: pa.Table) -> np.ndarray:
    return np.array(table.column("vector").to_pylist(), np.float32)


def test_class_folders_become_a_table(model: Path, embedder: Embedder, data: Path) -> None:
    out = data.parent / "v.parquet"
    answer = call("embed", model, data, "--out", out, "--json", "--batch-size=7", "--threads=1")
    assert answer.code == 0, answer.err
    assert answer.value["images"] == 30
    assert answer.value["dimensions"] == 64
    table = pq.read_table(out)
    paths = table.column("path").to_pylist()
    assert sorted(paths) == sorted(str(p.relative_to(data)) for p in data.glob("*/*/*.png"))
    assert table.column("label").to_pylist() == [p.split("/")[1] for p in paths]
    assert table.column("split").to_pylist() == [p.split("/")[0] for p in paths]
    np.testing.assert_allclose(vectors_of(table), embedder([data / p for p in paths]), atol=1e-6)
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 64)
    made = json.loads(table.schema.metadata[b"skipway"])
    assert made["stage"] == "c4"
    assert made["normalised"] is True
    assert made["pooling"] == "average"
    assert made["preprocess"]["size"] == [16, 16]
    assert made["model"] == str(model)
    assert made["folder"] == str(data)
    assert {p.name for p in out.parent.iterdir()} == {"data", "v.parquet"}
    refused(call("embed", model, data, "--out", out), "exists already")


def test_options_reach_the_embedder(model: Path, data: Path) -> None:
    out = data.parent / "v.parquet"
    flags = ("--stage=c3", "--pooling=gem", "--gem-p=4", "--no-normalise")
    answer = call("embed", model, data, "--out", out, *flags)
    assert answer.code == 0, answer.err
    table = pq.read_table(out)
    expected = load_embedder(model, stage="c3", pooling="gem", gem_p=4.0, normalised=False)
    files = [data / p for p in table.column("path").to_pylist()]
    np.testing.assert_allclose(vectors_of(table), expected(files), rtol=1e-5)


@pytest.mark.parametrize("form", ["folder", "image", "nested", "zip", "csv"])
def test_other_forms_of_data(form: str, embedder: Embedder, data: Path) -> None:
    source = data / "train" / "ant"
    given, labels = source, [None] * 6
    if form == "image":
        given, labels = source / "00.png", [None]
    elif form == "nested":
        given, labels = data / "train", [None] * 19
        Image.new("RGB", (16, 16)).save(given / "loose.png")
    elif form == "zip":
        given, labels = data / "d.zip", ["ant"] * 6 + ["bee"] * 6
        with zipfile.ZipFile(given, "w") as file:
            for path in sorted(data.glob("train/[ab]*/*.png")):
                file.write(path, path.relative_to(data / "train"))
    elif form == "csv":
        given, labels = data / "d.csv", ["x", "y"]
        given.write_text("path,label\ntrain/ant/00.png,x\ntrain/bee/01.png,y\n")
    images = indexing.Images.of(str(given))
    assert bool(images.notes) == (form == "nested")
    written = indexing.write_index(embedder, images, data / "v.parquet", {})
    table = pq.read_table(written.path)
    assert table.column("label").to_pylist() == labels
    assert table.column("split").to_pylist() == [None] * len(labels)
    index = Index(written.path)
    entries = index.entries(range(len(index)))
    pixels = [index.image(entries[row]) for row in range(len(index))]
    np.testing.assert_allclose(embedder(pixels), vectors_of(table), atol=1e-6)


KILLED = """
import os, signal, sys
from skipway.embedding import embedder, index
index.PART = 8
left = {left}
def one(*arguments, then=getattr({owner}, {name!r})):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return then(*arguments)
setattr({owner}, {name!r}, one)
from skipway import cli
cli.main()
"""


def test_folders_that_are_no_classes_have_vectors_without_labels(tmp_path: Path) -> None:
    """As of data for detectors: train/ and val/ of images."""
    draw(tmp_path, ["train", "val"], 3)
    images = indexing.Images.of(str(tmp_path))
    assert (len(images), images.classes) == (6, None)
    (note,) = images.notes
    assert note == "train/, val/ hold images without class folders: none is given a label"
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no images in class folders"):
        indexing.Images.of(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("owner", "name", "left", "kept"),
    [
        # in the middle of the third part; when the parts are there and the file is about to be
        ("embedder.Embedder", "batch", 5, 16),
        pytest.param("index.os", "replace", 5, 30, marks=pytest.mark.slow),
    ],
)
def test_a_killed_embedding_goes_on(
    model: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: str,
    name: str,
    left: int,
    kept: int,
) -> None:
    monkeypatch.setattr(indexing, "PART", 8)
    (data / "train" / "ant" / "02.png").write_bytes(b"damaged")
    flags = ("--batch-size=4", "--on-bad=skip", "--threads=1")
    whole, out = data.parent / "whole.parquet", data.parent / "v.parquet"
    assert call("embed", model, data, "--out", whole, *flags).code == 0
    code = KILLED.format(owner=owner, name=name, left=left)
    command = [sys.executable, "-c", code, "embed", model, data, "--out", out, *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, env=environment())
    assert done.returncode == -signal.SIGKILL, done.stderr
    parts = data.parent / "v.parquet.parts"
    assert parts.is_dir()
    assert not out.exists()
    # With other arguments, or other images, it is refused and what is there stays.
    refused(call("embed", model, data, "--out", out, *flags, "--stage=c3"), "stage", "c4", "c3")
    refused(call("embed", model, data, "--out", out, *flags[1:]), "batch_size 4 there, 32 here")
    picture, late = data / "val" / "bee" / "00.png", data / "val" / "bee" / "99.png"
    late.write_bytes(picture.read_bytes())
    refused(call("embed", model, data, "--out", out, *flags), "other images", "images 30 there, 31")
    late.unlink()
    answer = call("embed", model, data, "--out", out, *flags, "--json")
    assert answer.code == 0, answer.err
    assert answer.value["kept"] == kept
    assert answer.value["skipped"] == 1
    assert f"going on after {kept} of 30 images" in answer.err
    assert out.read_bytes() == whole.read_bytes()
    assert {p.name for p in data.parent.iterdir()} == {"data", "whole.parquet", "v.parquet"}


def test_changed_pixels_are_seen(
    embedder: Embedder, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "PART", 8)
    out = data.parent / "v.parquet"

    def stop(done: int) -> None:
        if done > 16:
            raise KeyboardInterrupt

    images = indexing.Images.of(str(data))
    with pytest.raises(KeyboardInterrupt):
        indexing.write_index(embedder, images, out, {}, batch_size=8, tell=stop)
    picture = data / "train" / "bee" / "00.png"
    held = picture.read_bytes()
    picture.write_bytes(held)  # the same bytes, at another time: it may have changed
    with pytest.raises(InputError, match="changed ones"):
        indexing.write_index(embedder, images, out, {}, batch_size=8)


def test_one_process_at_a_time(model: Path, data: Path) -> None:
    out, parts = data.parent / "v.parquet", data.parent / "v.parquet.parts"
    parts.mkdir()
    (parts / "made.json").write_text("{}")
    handle = os.open(parts, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        refused(call("embed", model, data, "--out", out), "another process")
        assert (parts / "made.json").exists()
    finally:
        os.close(handle)
    assert call("embed", model, data, "--out", out).code == 0  # no part was there: begun afresh


def test_a_folder_of_something_else_is_left_alone(model: Path, data: Path) -> None:
    out, other = data.parent / "v.parquet", data.parent / "v.parquet.parts"
    other.mkdir()
    (other / "notes.txt").write_text("precious")
    refused(call("embed", model, data, "--out", out), "holds something else")
    assert (other / "notes.txt").read_text() == "precious"


def test_damaged_images(model: Path, embedder: Embedder, data: Path) -> None:
    out, bad = data.parent / "v.parquet", data / "train" / "bee" / "03.png"
    bad.write_bytes(bad.read_bytes()[:60])
    refused(call("embed", model, data, "--out", out), "train/bee/03.png", "--on-bad skip")
    assert [p.name for p in data.parent.iterdir()] == ["data"]
    answer = call("embed", model, data, "--out", out, "--on-bad=skip")
    assert answer.code == 0
    assert "29 vectors" in answer.out
    assert "1 skipped" in answer.out
    assert "skipped: train/bee/03.png" in answer.err
    table = pq.read_table(out)
    paths = table.column("path").to_pylist()
    assert len(paths) == 29
    assert "train/bee/03.png" not in paths
    np.testing.assert_allclose(vectors_of(table), embedder([data / p for p in paths]), atol=1e-6)
    for path in data.rglob("*.png"):
        path.write_bytes(b"")
    again = call("embed", model, data, "--out", data.parent / "w.parquet", "--on-bad=skip")
    refused(again, "none of its 30 images")
    assert not (data.parent / "w.parquet.parts").exists()


def test_what_embed_refuses(model: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = data.parent / "v.parquet"
    (data / "empty").mkdir()
    refused(call("embed", model, data / "empty", "--out", out), "no images")
    refused(call("embed", model, data / "absent", "--out", out), "no such folder")
    refused(call("embed", data / "absent", data, "--out", out), "no such file")
    refused(call("embed", model, data, "--out", data / "no" / "v.parquet"), "there is no folder")
    refused(call("embed", model, data), "out")
    refused(call("embed", model, data, "--out", out, "--stage=c9"), "c2, c3, c4")
    refused(call("embed", model, data, "--out", out, "--pooling=max"), "average or gem")
    refused(call("embed", model, data, "--out", out, "--gem-p=0"), "1 or more")
    onnx = shipped.file(shipped.NAMES[0], ".onnx")
    refused(call("embed", onnx, data, "--out", out), "ONNX", "Give the run")
    os.rename(data / "train" / "ant" / "00.png", os.fsencode(data) + b"/train/ant/\xff.png")
    refused(call("embed", model, data, "--out", out), "not UTF-8")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    refused(call("embed", model, data, "--out", out), "'.[tables]'")
    refused(call("search", model, out, data), "'.[tables]'")
    assert [p.name for p in data.parent.iterdir()] == ["data"]


# --- the nearest ----------------------------------------------------------------------------------


def in_blocks(vectors: np.ndarray, size: int) -> list[tuple[int, np.ndarray]]:
    return [(low, vectors[low : low + size]) for low in range(0, len(vectors), size)]


@given(st.data(), st.sampled_from([False, True]))
def test_the_nearest_are_those_of_a_whole_sort(drawn: st.DataObject, faiss: bool) -> None:
    if faiss:
        pytest.importorskip("faiss")
    n, dimensions = drawn.draw(st.integers(1, 300)), drawn.draw(st.integers(1, 5))
    rng = np.random.default_rng(drawn.draw(st.integers(0, 99)))
    # Few whole numbers make many ties, and their products are exact in any order.
    vectors = rng.integers(-2, 3, (n, dimensions)).astype(np.float32)
    queries = rng.integers(-2, 3, (drawn.draw(st.integers(1, 4)), dimensions)).astype(np.float32)
    top = drawn.draw(st.integers(1, 12))
    blocks = in_blocks(vectors, drawn.draw(st.integers(1, 300)))
    scores, rows = nearest_rows(blocks, queries, top, faiss)
    products = queries.astype(np.int64) @ vectors.astype(np.int64).T
    expected = np.argsort(-products, axis=1, kind="stable")[:, :top]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(products, expected, axis=1))


@pytest.mark.parametrize("faiss", [False, True])
def test_what_float32_cannot_tell_apart_is_told_apart(faiss: bool) -> None:
    if faiss:
        pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    centre = rng.normal(size=512)
    vectors = unit_vectors((centre + 1e-4 * rng.normal(size=(3000, 512))).astype(np.float32))
    query = unit_vectors(centre[None].astype(np.float32))
    products = (vectors.astype(np.float64) * query.astype(np.float64)).sum(axis=1)
    expected = np.argsort(-products, kind="stable")[:10]
    in_float32 = np.argsort(-(vectors @ query[0]), kind="stable")[:10]
    assert not np.array_equal(in_float32, expected)  # else this would show nothing
    for size in (3000, 700, 64):
        scores, rows = nearest_rows(in_blocks(vectors, size), query, 10, faiss)
        np.testing.assert_array_equal(rows[0], expected)
        np.testing.assert_array_equal(scores[0], products[expected])


@pytest.mark.parametrize("faiss", [False, True])
def test_products_beyond_float32_are_compared_too(faiss: bool) -> None:
    if faiss:
        pytest.importorskip("faiss")
    vectors = (np.random.default_rng(0).normal(size=(500, 8)) * 1e30).astype(np.float32)
    products = vectors.astype(np.float64) @ vectors[7].astype(np.float64)
    scores, rows = nearest_rows(in_blocks(vectors, 300), vectors[7:8], 5, faiss)
    np.testing.assert_array_equal(rows[0], np.argsort(-products)[:5])
    np.testing.assert_allclose(scores[0], np.sort(-products)[:5] * -1)


def test_an_index_of_faiss_is_made_once_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = pytest.importorskip("faiss")
    made, plain = [], faiss.IndexFlatIP
    monkeypatch.setattr(faiss, "IndexFlatIP", lambda d: made.append(d) or plain(d))
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(n, 4)).astype(np.float32) for n in (500, 150))
    scores, rows = nearest_rows(in_blocks(vectors, 200), queries, 3, True)
    assert made == [4, 4, 4]
    products = queries.astype(np.float64) @ vectors.astype(np.float64).T
    np.testing.assert_array_equal(rows, np.argsort(-products, axis=1)[:, :3])
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :3])


def test_scikit_learn_finds_the_same(model: Path, data: Path) -> None:
    out = data.parent / "v.parquet"
    assert call("embed", model, data, "--out", out).code == 0
    table = pq.read_table(out)
    known = NearestNeighbors(n_neighbors=5, metric="cosine").fit(vectors_of(table))
    paths = sorted(data.glob("val/*/*.png"))
    distances, rows = known.kneighbors(load_embedder(model)(paths))
    answer = call("search", model, out, data / "val", "--top=5", "--json")
    assert answer.code == 0, answer.err
    names = table.column("path").to_pylist()
    for one, path, distance, row in zip(answer.value, paths, distances, rows, strict=True):
        assert one["path"] == str(path)
        assert one["error"] is None
        assert [hit["row"] for hit in one["hits"]] == row.tolist()
        assert [hit["path"] for hit in one["hits"]] == [names[r] for r in row]
        np.testing.assert_allclose([hit["score"] for hit in one["hits"]], 1 - distance, atol=1e-6)
        assert one["hits"][0]["file"] == str(path)
        assert one["hits"][0]["label"] == path.parent.name
        assert one["hits"][0]["split"] == "val"


def test_search_takes_the_settings_of_the_index(model: Path, data: Path) -> None:
    out = data.parent / "v.parquet"
    flags = ("--stage=c2", "--pooling=gem", "--gem-p=5", "--no-normalise")
    assert call("embed", model, data, "--out", out, *flags).code == 0
    query = data / "val" / "bee" / "01.png"
    answer = call("search", model, out, query, "--top=100")
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    assert lines[0] == str(query)
    assert len(lines) == 31
    embedder = load_embedder(model, stage="c2", pooling="gem", gem_p=5.0, normalised=False)
    vectors = vectors_of(pq.read_table(out))
    best = np.argsort(-(vectors @ embedder([query])[0]), kind="stable")
    assert lines[1].split()[3] == pq.read_table(out).column("path").to_pylist()[best[0]]


def test_a_query_that_cannot_be_read_does_not_stop_the_others(model: Path, data: Path) -> None:
    out, bad = data.parent / "v.parquet", data / "bad.png"
    assert call("embed", model, data, "--out", out).code == 0
    bad.write_bytes(b"")
    queries = (data / "val/ant/00.png", bad, data / "val/bee/00.png")
    answer = call("search", model, out, *queries, "--json", "--top=1")
    assert answer.code == 2
    assert "bad.png: an empty file" in answer.err
    assert [len(one["hits"]) for one in answer.value] == [1, 0, 1]
    assert "empty" in answer.value[1]["error"]
    assert answer.value[2]["hits"][0]["path"] == "val/bee/00.png"
    alone = call("search", model, out, bad, "--sheet", data / "s.png")
    assert alone.code == 2
    assert not (data / "s.png").exists()


def test_an_index_of_another_model_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    out, query = data.parent / "v.parquet", data / "val" / "ant" / "00.png"
    assert call("embed", model, data, "--out", out).code == 0
    other = write(tmp_path / "other.safetensors", seed=2)
    refused(call("search", other, out, query), "other weights", "net.safetensors")
    cropped = write(tmp_path / "cropped.safetensors", short_side=20)
    refused(call("search", cropped, out, query), "preprocess.short_side null there, 20 here")
    with pytest.raises(InputError, match='stage "c4" there, "c3" here'):
        Index(out).refuse_other(load_embedder(model, stage="c3"))


def test_queries_are_embedded_in_the_precision_of_the_index(model: Path, data: Path) -> None:
    out, query = data.parent / "v.parquet", data / "val" / "ant" / "00.png"
    assert call("embed", model, data, "--out", out, "--precision=bf16").code == 0
    (found,) = call("search", model, out, query, "--top=1", "--json").value
    assert found["hits"][0]["path"] == "val/ant/00.png"
    assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-6)
    (other,) = call("search", model, out, query, "--top=1", "--json", "--precision=float32").value
    assert other["hits"][0]["score"] < found["hits"][0]["score"]


def test_what_is_no_index_is_refused(model: Path, data: Path) -> None:
    out, query = data.parent / "v.parquet", data / "val" / "ant" / "00.png"
    assert call("embed", model, data, "--out", out).code == 0
    table, broken = pq.read_table(out), data.parent / "broken.parquet"
    made = json.loads(table.schema.metadata[b"skipway"])

    def with_metadata(**changes: Any) -> pa.Table:
        return table.replace_schema_metadata({"skipway": json.dumps(made | changes)})

    nan = pa.FixedSizeListArray.from_arrays(pa.array(np.full(30 * 64, np.nan, np.float32)), 64)
    for content, words in (
        (table.replace_schema_metadata(None), "what made it"),
        (table.replace_schema_metadata({"skipway": "[1]"}), "damaged"),
        (table.replace_schema_metadata({"skipway": "{"}), "damaged"),
        (with_metadata(stage=["c4"]), "damaged"),
        (with_metadata(stage="c9"), "c9"),
        (with_metadata(dimensions=63), "columns"),
        (with_metadata().drop_columns(["vector"]), "columns"),
        (with_metadata().set_column(3, "vector", nan), "not whole"),
    ):
        pq.write_table(content, broken)
        refused(call("search", model, broken, query), words)
    broken.write_bytes(out.read_bytes()[:-200])
    refused(call("search", model, broken, query), "damaged parquet")
    vector = np.stack(table.column("vector").to_numpy())[3].tobytes()
    whole = out.read_bytes()
    assert whole.count(vector) == 1  # as it is, without compression
    place = whole.index(vector) + 9
    broken.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    refused(call("search", model, broken, query), "damaged parquet")
    broken.write_text("path,label\n")
    refused(call("search", model, broken, query), "not a parquet")
    refused(call("search", model, data, query), "data")
    refused(call("search", model, data / "absent.parquet", query), "No such file")


def test_blocks_hold_every_row_once(embedder: Embedder, data: Path) -> None:
    images = indexing.Images.of(str(data))
    index = Index(indexing.write_index(embedder, images, data.parent / "v.parquet", {}).path)
    whole = vectors_of(pq.read_table(index.path))
    blocks = list(index.blocks(7))
    assert [start for start, _ in blocks] == [0, 7, 14, 21, 28]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), whole)


# --- the sheet ------------------------------------------------------------------------------------


def test_a_sheet_shows_query_and_hits_and_what_is_gone(model: Path, data: Path) -> None:
    out, png = data.parent / "v.parquet", data.parent / "sheet.png"
    colours = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}
    for name, colour in colours.items():
        (data / "train" / name).mkdir()
        Image.new("RGB", (40, 20), colour).save(data / "train" / name / "one.png")
    assert call("embed", model, data / "train", "--out", out).code == 0
    index = Index(out)
    query = data / "query.png"
    query.write_bytes((data / "train" / "red" / "one.png").read_bytes())
    (data / "train" / "green" / "one.png").unlink()
    (data / "train" / "blue" / "one.png").write_bytes(b"damaged")
    found = find_similar(load_embedder(model), index, [str(query)], len(index))
    answer = call("search", model, out, query, query, f"--top={len(index)}", "--sheet", png)
    assert answer.code == 0, answer.err
    picture = np.asarray(Image.open(png).convert("RGB")).astype(int)
    assert f"{picture.shape[1]:,} x {picture.shape[0]:,}" in answer.err
    gap = sheet._GAP
    lines = -(-len(index) // 5)
    across = -(-len(index) // lines)
    middle = sheet.SIDE // 2
    own = picture[sheet._MARGIN + middle, sheet._MARGIN + middle]
    np.testing.assert_allclose(own, colours["red"], atol=3)
    for i, hit in enumerate(found[0].hits):
        x = 3 * sheet._MARGIN + sheet.SIDE + i % across * (sheet.SIDE + gap)
        y = sheet._MARGIN + i // across * (sheet.SIDE + 2 * sheet._LINE + gap)
        at = picture[y + sheet.SIDE // 2 - 20, x + middle]
        if hit.entry.label == "red":
            np.testing.assert_allclose(at, colours["red"], atol=3)
        if hit.entry.label in ("green", "blue"):
            inner = picture[y : y + sheet.SIDE, x : x + sheet.SIDE]
            assert np.ptp(inner, axis=2).max() == 0  # grey, with words on it
            assert inner.min() < 150 < 230 < np.median(inner)
        words = picture[y + sheet.SIDE + 4 : y + sheet.SIDE + 40, x : x + sheet.SIDE]
        assert words.min() < 100
    refused(call("search", model, out, query, "--sheet", png), "exists already")


@pytest.mark.parametrize("shape", [(1, 1, 3), (3000, 2, 3), (2, 900, 3), (400, 300, 3)])
def test_a_sheet_of_any_images(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    image = np.full(shape, 40000, np.uint16)
    name = "\u202eطويل/" * 80 + "名" * 90 + "\n.png"
    tile = sheet.Tile(sheet.fitted(image), name, "0.123", name)
    for n in (0, 1, 6):
        path = tmp_path / f"{n}.png"
        size = sheet.write_sheet(path, [(tile, [tile] * n)] * 2)
        assert Image.open(path).size == size
    with pytest.raises(InputError, match="smaller --top"):
        sheet.write_sheet(tmp_path / "tall.png", [(tile, [tile] * 2000)])
    assert not (tmp_path / "tall.png").exists()


def test_text_below_a_picture_has_room() -> None:
    font = sheet._font()
    for text in ("a/b/c.png", "x" * 500, "W" * 40 + "/short.png", "", "…"):
        for cut in (sheet._cut(text, sheet.SIDE), sheet._named(text)):
            assert font.getlength(cut) <= sheet.SIDE
    assert sheet._named("a/b/c.png") == "a/b/c.png"
    assert sheet._named("W" * 40 + "/short.png") == "short.png"
    long = sheet._cut("start" + "x" * 500 + "end", sheet.SIDE)
    assert long.startswith("start")
    assert long.endswith("end")


def test_help_names_both() -> None:
    shown = call("--help").out
    assert "embed" in shown
    assert "search" in shown
