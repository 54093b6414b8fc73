"""What networks for vectors see: parts of a cosine by arithmetic and captum, and the command."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from commands import call
from skipway.architecture import architecture
from skipway.card import Card
from skipway.embedders import EmbeddingNet, build_embedder
from skipway.embedding import load_embedder
from skipway.errors import InputError
from skipway.explain import Method, open_explainer
from skipway.explain.vectors import (
    VectorCam,
    VectorExplainer,
    VectorOcclusion,
    cosine_parts,
    vectors_of,
)
from skipway.heads import EmbedderConfig
from skipway.images import Preprocess
from skipway.weights import save_weights

SQUARE = Preprocess(size=(64, 64), resize="squash", mean=(0.5,) * 3, std=(0.25,) * 3)
ROWS = ("resnet18", "resnet20", "preresnet50")
POOLINGS = ("average", "gem")


@functools.cache
def network(row: str = "resnet18", pooling: str = "average") -> EmbeddingNet:
    """Random weights, and batch norms with the statistics of noise."""
    torch.manual_seed(0)
    config = EmbedderConfig(loss="triplet", dim=6, pooling=pooling)
    net = build_embedder(architecture(row, num_classes=3, width=0.125), config, 3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            net.body.train().features(torch.randn(2, 3, 64, 64, generator=generator))
        net.embedding.bias.normal_(0, 0.1)
    return net.eval()


def noise(seed: int = 3, height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


def vector(net: EmbeddingNet, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = net(x[None])[0]
    return found


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("row", ROWS)
def test_parts_are_the_terms_of_the_cosine(row: str, pooling: str) -> None:
    """Written out: of a mean over cells each is a term, of the p-th root of one a share of it."""
    net, x = network(row, pooling), noise()
    last = [*net.body.strides][-1]
    with torch.no_grad():
        cells = net.body.features(x[None])[last][0].double()
        weight, bias = net.embedding.weight.double(), net.embedding.bias.double()
        if pooling == "average":
            shares = cells / cells[0].numel()
        else:
            powers = cells**3
            total = powers.sum((1, 2), keepdim=True)
            mean = (total / cells[0].numel()) ** (1 / 3)
            shares = torch.where(total > 0, mean * powers / total, 0.0)
        made = weight @ shares.sum((1, 2)) + bias
    for like in (vector(net, noise(4)), vector(net, x)):
        parts = cosine_parts(net, x, like, last)
        expected = torch.einsum("d,dc,chw->hw", like.double(), weight, shares) / made.norm()
        torch.testing.assert_close(parts.double(), expected.detach(), rtol=1e-4, atol=1e-6)
        by_bias = float(bias.detach() @ like.double() / made.norm())
        cosine = float(vector(net, x) @ like)
        assert float(parts.sum()) + by_bias == pytest.approx(cosine, abs=1e-5)
        assert parts.std() > 0
        assert not parts.requires_grad
    assert cosine == pytest.approx(1, abs=1e-5)  # the last was its own


@pytest.mark.parametrize("pooling", POOLINGS)
def test_parts_are_captums_gradient_times_activation(pooling: str) -> None:
    attr = pytest.importorskip("captum.attr")
    net, x, like = network(pooling=pooling), noise(), vector(network(pooling=pooling), noise(4))
    *_, last = net.body.features(x[None]).values()
    length = float(net.embedding(net.pool(last)).detach().norm())

    class Along(nn.Module):
        def forward(self, views: Tensor) -> Tensor:
            *_, cells = net.body.features(views).values()
            return net.embedding(net.pool(cells)) @ like / length

    for stage, units in zip(net.body.strides, net.body.stages(), strict=True):
        parts = cosine_parts(net, x, like, stage)
        oracle = attr.LayerGradientXActivation(Along(), units[-1])
        expected = oracle.attribute(x[None].clone()).sum(1)[0]
        torch.testing.assert_close(parts, expected.detach(), rtol=1e-4, atol=1e-6)
        stride = net.body.strides[stage]
        assert parts.shape == (64 // stride, 96 // stride)
        heat = VectorCam(net, stage)(x.numpy(), like.numpy())
        assert heat.shape == (64, 96)
        assert 0 <= heat.min() < heat.max() <= float(parts.max()) * 1.0001


def test_frozen_weights_and_inference_mode() -> None:
    net, x = network(), noise()
    like = vector(net, noise(4))
    expected = cosine_parts(net, x, like, "c4")
    net.requires_grad_(False)
    try:
        assert torch.equal(cosine_parts(net, x, like, "c4"), expected)
        with torch.inference_mode():
            inside = torch.from_numpy(x.numpy()), torch.from_numpy(like.numpy())
            assert torch.equal(cosine_parts(net, *inside, "c4"), expected)
    finally:
        net.requires_grad_(True)
    assert all(p.grad is None for p in net.parameters())


def test_occlusion_of_a_cosine_is_captums() -> None:
    attr = pytest.importorskip("captum.attr")
    net, x = network(), noise(3, 40, 56)
    like = vector(net, noise(4))
    with torch.no_grad():
        expected = attr.Occlusion(lambda views: net(views) @ like).attribute(
            x[None], (3, 16, 16), (3, 12, 12), baselines=0
        )[0, 0]  # fmt: skip
    look = VectorOcclusion(net, 16, 12)
    found = look(x.numpy(), like.numpy())
    assert np.abs(found).max() > 1e-3
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert "16 px squares every 12 px" in look.said(found)
    assert "the cosine falls by up to 0." in look.said(found)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("vectors")
    net = network(pooling="gem")
    card = Card(
        task="embed",
        model="custom",
        architecture=net.body.arch,
        classes=("a", "b", "c"),
        embedder=net.config,
        preprocess=SQUARE,
    )
    save_weights(place / "w.safetensors", net, card)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (60, 90, 3), np.uint8)).save(place / name)
    return place


@pytest.mark.parametrize("method", Method)
def test_the_command_explains_vectors(place: Path, tmp_path: Path, method: Method) -> None:
    flags = ["--method", method, "--out", tmp_path, "--threads=1"]
    steps = ""
    if method is Method.occlusion:
        flags += ["--window=32", "--stride=32"]
        steps = "-window-32-stride-32"
    given = ["explain", place / "w.safetensors", place / "a.png", *flags]
    one, two = load_embedder(place / "w.safetensors")([place / "a.png", place / "b.png"])
    for like, cosine in (([], 1), ([f"--like={place / 'b.png'}"], float(one @ two))):
        found = call(*given, *like, "--json")
        assert found.code == 0, found.err
        (row,) = found.value
        assert set(row) == {"path", "method", "error", "like", "cosine", "peak", "file"}
        assert row["cosine"] == pytest.approx(cosine, abs=1e-5)
        assert row["like"] == (str(place / "b.png") if like else None)
        asked = "-like-b" if like else ""
        assert row["file"] == str(tmp_path / f"a-{method}{asked}{steps}.png")
        assert Image.open(row["file"]).format == "PNG"
    told = call(*given, f"--like={place / 'b.png'}")
    said = f"what makes the cosine of {one @ two:.3f} to b.png, "
    assert told.out.startswith(f"{place / 'a.png'}: {said}")
    assert ": what its vector is made of, " in call(*given).out
    for like, cosines in (([], [1, 1]), ([f"--like={place / 'b.png'}"], [one @ two, 1])):
        both = call(*given, place / "b.png", *like, "--json")
        assert both.code == 0, both.err
        assert [row["cosine"] for row in both.value] == pytest.approx(cosines, abs=1e-5)


def test_what_is_shown_of_an_image(place: Path) -> None:
    made = open_explainer(place / "w.safetensors")
    assert isinstance(made, VectorExplainer)
    image = np.asarray(Image.open(place / "a.png"))
    x = SQUARE.normalise(SQUARE.frame(image)[0])
    own = vectors_of(made.net, x[None])[0]
    found = made(image)
    np.testing.assert_array_equal(found.heat, made.look(x, own))
    assert found.said == "Grad-CAM, each cell by its own gradient, stage c5 (2 x 2 cells)"
    assert found.over_image().shape == (60, 90)
    other = made(image, -own, "folder/opposite.png")
    assert other.title == "what makes the cosine of -1.000 to opposite.png"
    part = cosine_parts(made.net, torch.from_numpy(x), torch.from_numpy(own), "c5")
    assert (other.peak is None) == bool((part >= 0).all())


@pytest.mark.parametrize(
    ("model", "flags", "words"),
    [
        ("w", ["--class=a"], "--class: not of a model of this task"),
        ("w", ["--object=1"], "--object: not of a model of this task"),
        ("w", ["--method=occlusion", "--of=logit"], "--of: not of a model of this task"),
        ("w", ["--stage=c9"], "--stage c9: this network has c2, c3, c4, c5."),
        ("w", ["--method=occlusion", "--window=65"], "--window 65: larger than the model's input"),
        ("w", ["--like=none.png"], "none.png: "),
        ("cifar10-resnet20", ["--like=a.png"], "--like: not of a model of this task"),
    ],
)
def test_bad_input(place: Path, tmp_path: Path, model: str, flags: list[str], words: str) -> None:
    name = model if "-" in model else place / f"{model}.safetensors"
    told = call("explain", name, place / "a.png", *flags, "--out", tmp_path, "--threads=1")
    assert told.code == 2
    assert words in told.error[0]
    assert len(told.error) <= 3
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "skipway.weights", raising=False)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(InputError, match=r"'safetensors'(.|\n)*'\.\[train\]'"):
        open_explainer(place / "w.safetensors")
