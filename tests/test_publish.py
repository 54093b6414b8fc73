"""What peers load of ours and we of theirs, for every row that they have; pushing to a hub."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models._api import WeightsEnum

from commands import Answer, call
from loopback import Hub, serving
from skipway.architecture import ARCHITECTURES, Architecture, architecture
from skipway.card import Card, Measured, read_card
from skipway.dialects import spell, translate
from skipway.files import atomic_folder
from skipway.images import Preprocess
from skipway.peers import PEERS, TIMM_NAMES, canonical, timm_row, unlike
from skipway.publish import convert
from skipway.resnet import ResNet
from skipway.weights import load_model, load_weights, save_weights
from test_weights import lively, refusal, same

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

V15 = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
MORE = ["resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"]
PRE = ["preresnet50", "preresnet101", "preresnet152", "preresnet200"]
HAVE = {
    "torchvision": {*V15, *MORE},
    "timm": {*V15, *MORE, *PRE, "resnet50d", "seresnet50"},
    "huggingface": {*V15, "resnet50v1", "resnet101v1", "resnet152v1"},
}
QUICK = {("resnet18", peer) for peer in PEERS} | {("resnet50v1", "huggingface")}
"""The others differ from these in size, and from the small networks below in nothing."""
ROWS = [
    pytest.param(row, peer, marks=[] if (row, peer) in QUICK else [pytest.mark.slow])
    for peer, rows in HAVE.items()
    for row in ARCHITECTURES
    if row in rows
]
CLASSES = ("a cat", "dog ✓", "horse")


def card_of(arch: Architecture, model: str = "custom", **fields: Any) -> Card:
    size = arch.input_size
    preprocess = {"size": (size, size), "channels": arch.in_channels, "short_side": size + 32}
    preprocess |= {"mean": (0.4, 0.5, 0.6)[: arch.in_channels]}
    preprocess |= {"std": (0.2, 0.25, 0.3)[: arch.in_channels]} | fields.pop("preprocess", {})
    return Card(
        model=model,
        architecture=arch,
        classes=CLASSES[: arch.num_classes],
        preprocess=Preprocess.model_validate(preprocess),
        **fields,
    )


def ours(path: Path, arch: Architecture, **fields: Any) -> ResNet:
    """A network of ours with lively norms, kept at `path`."""
    torch.manual_seed(2)
    net = lively(ResNet(arch))
    save_weights(path, net, card_of(arch, **fields))
    return net


def small(**fields: Any) -> Architecture:
    fields = {"depths": (1,) * 4, "num_classes": 3, "input_size": 64, "widths": (32,) * 4} | fields
    return architecture("resnet18", **fields)


def theirs(peer: str, path: Path, row: str = "") -> nn.Module:
    """What a peer loads of a converted model, by its documented call."""
    if peer == "torchvision":
        net: nn.Module = getattr(torchvision.models, row)(num_classes=3)
        net.load_state_dict(torch.load(path, weights_only=True))
        return net.eval()
    if peer == "timm":
        return timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    return Logits(transformers.AutoModelForImageClassification.from_pretrained(path).eval())


USUAL: dict[str, Any] = {"widths": (64, 128, 256, 512)}
"""What torchvision has no others than."""


class Logits(nn.Module):
    """A model of transformers that answers as others do."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).logits


def without_card(path: Path) -> None:
    """What is left is what the peer itself would have written."""
    weights = path / "model.safetensors" if path.is_dir() else path
    save_file(load_file(weights), weights, {"format": "pt"})


# --- both ways -----------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", PEERS)
def test_what_each_peer_has(peer: str) -> None:
    assert {row for row, arch in ARCHITECTURES.items() if not unlike(arch, peer)} == HAVE[peer]


@pytest.mark.parametrize(("row", "peer"), ROWS)
def test_a_peer_loads_ours_and_we_load_it_back(tmp_path: Path, row: str, peer: str) -> None:
    arch = architecture(row, num_classes=3)
    net = ours(tmp_path / "w.safetensors", arch, model=row)
    made = convert(
        tmp_path / "w.safetensors", peer, tmp_path / ("m.pth" if peer[2] == "r" else "m")
    )
    assert same(theirs(peer, made.path, row), net, 64)
    if peer == "torchvision":
        return  # their names are ours
    without_card(made.path)
    back, card, report = load_model(made.path)
    assert card is not None
    assert (card.model, card.classes) == (row, CLASSES)
    assert card.architecture == arch  # the stride's place among it, which no tensor tells
    assert bare(card.preprocess) == bare(card_of(arch).preprocess)
    assert "assumed" not in card.provenance
    assert report.notes == ()
    assert all(torch.equal(back.state_dict()[k], v) for k, v in net.state_dict().items())


SMALL = {
    "huggingface": [
        {},
        {"block": "bottleneck"},
        {"block": "bottleneck", "stride_in": "1x1"},
        {"widths": (8, 24, 40), "depths": (1, 2, 1), "stem_width": 12},
        {"in_channels": 1, "width": 0.5, "depths": (1, 1)},
    ],
    "timm": [
        {"antialias": True},
        {"block": "bottleneck", "antialias": True, "depths": (1, 2, 1, 1)},
        {"stem": "deep", "shortcut": "D", "depths": (2, 1, 1, 1)},
        {"stem": "deep", "block": "bottleneck", "stem_width": 32},
        {"shortcut": "D", "widths": (8, 16, 24, 32)},
        {"block": "bottleneck", "groups": 4, "base_width": 8, "squeeze": 16, "widths": (32,) * 4},
        {"order": "pre", "block": "bottleneck", "widths": (16, 32, 48), "stem_width": 24},
        {
            "order": "pre",
            "block": "bottleneck",
            "stem": "deep",
            "shortcut": "D",
            "in_channels": 1,
            "widths": (32, 48),
        },
    ],
}


@pytest.mark.parametrize(
    ("peer", "fields"), [(peer, fields) for peer, sets in SMALL.items() for fields in sets]
)
def test_networks_that_are_no_row_go_both_ways(
    tmp_path: Path, peer: str, fields: dict[str, Any]
) -> None:
    fields = {"widths": (16, 32, 48, 64)} | fields
    fields = {"depths": (1,) * len(fields["widths"])} | fields
    arch = architecture("resnet18", num_classes=3, input_size=64, **fields)
    arch = canonical(arch) if "width" not in fields else arch
    net = ours(tmp_path / "w.safetensors", arch)
    made = convert(tmp_path / "w.safetensors", peer, tmp_path / "m")
    assert same(theirs(peer, made.path), net, 64, arch.in_channels)
    without_card(made.path)
    back, card, _ = load_model(made.path)
    assert card is not None
    assert canonical(card.architecture) == canonical(arch)
    assert same(back, net, 64, arch.in_channels)


@pytest.mark.parametrize(
    "arch",
    [
        {"layer_type": "basic"},
        {"layer_type": "bottleneck", "hidden_sizes": [32, 64, 96, 128]},
        {"layer_type": "bottleneck", "downsample_in_bottleneck": True},
        {"layer_type": "basic", "num_channels": 1, "hidden_sizes": [8, 16], "depths": [2, 1]},
    ],
)
def test_what_transformers_saves(tmp_path: Path, arch: dict[str, Any]) -> None:
    fields = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]} | arch
    labels = dict(enumerate(("crane", "crane", "dog")))
    config = transformers.ResNetConfig(**fields, id2label=labels)
    oracle = Logits(lively(transformers.ResNetForImageClassification(config)))
    oracle.net.save_pretrained(tmp_path)
    of_each = {"image_mean": [0.5], "image_std": [0.5]}
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, **of_each)
    processor.save_pretrained(tmp_path)
    net, card, _ = load_model(tmp_path)
    assert card is not None
    assert card.classes == ("crane (0)", "crane (1)", "dog")
    wanted = "1x1" if fields.get("downsample_in_bottleneck") else "3x3"
    assert net.arch.stride_in == wanted
    assert same(net, oracle, 64, fields.get("num_channels", 3))


def test_what_timm_saves(tmp_path: Path) -> None:
    oracle = lively(timm.create_model("resnet18d", num_classes=3))
    names = {"label_names": ["n01", "n02", "n03"], "label_descriptions": {"n01": "one"}}
    timm.models.save_for_hf(oracle, tmp_path, names, safe_serialization=True)
    net, card, _ = load_model(tmp_path)
    assert card is not None
    assert card.classes == ("n01", "n02", "n03")
    assert same(net, oracle, 64)


def deep(name: str) -> bool:
    """Whether building it takes long."""
    return any(depth in name for depth in ("101", "152", "200", "269", "1202", "164", "110"))


def slow_where(name: str, *values: str) -> Any:
    marks = [pytest.mark.slow] if deep(name) else []
    return pytest.param(*values, name, marks=marks)


@pytest.mark.parametrize("name", [slow_where(n) for n in TIMM_NAMES])
def test_timms_names_mean_what_we_take_them_for(name: str) -> None:
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in timm.create_model(name).state_dict().items()}
        net = ResNet(timm_row(name)).state_dict()
    dialect = "timm resnetv2" if "v2" in name else "torchvision"
    assert {k: v.shape for k, v in spell(dialect, net).items()} == shapes


DIALECTS = {
    "torchvision": lambda a: a.order == "post",
    "timm resnetv2": lambda a: a.order == "pre" and a.shortcut == "B",
    "Hugging Face": lambda a: a.order == "post" and a.stem != "deep" and not a.squeeze,
    "kuangliu": lambda a: a.order == "post" and a.stem == "cifar",
}


@pytest.mark.parametrize(
    ("dialect", "row"),
    [slow_where(r, d) for d, has in DIALECTS.items() for r, a in ARCHITECTURES.items() if has(a)],
)
def test_spelling_is_the_inverse_of_translating(dialect: str, row: str) -> None:
    with torch.device("meta"):
        state = ResNet(ARCHITECTURES[row]).state_dict()
    spelt = spell(dialect, state)
    assert (spelt.keys() != state.keys()) == (dialect != "torchvision")
    back = translate(spelt)
    assert {k: v.shape for k, v in back.tensors.items()} == {k: v.shape for k, v in state.items()}
    assert back.dialect in (dialect, "akamaster")


# --- preprocessing -------------------------------------------------------------------------------


def photograph(width: int, height: int) -> Image.Image:
    """Random, and as smooth as photographs are: noise of several scales."""
    rng = np.random.default_rng(width)
    total = np.zeros((height, width, 3))
    for cell in (2, 8, 32, 128):
        coarse = rng.integers(0, 256, (height // cell + 2, width // cell + 2, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(coarse).resize((width, height), 3), float) / 4
    return Image.fromarray(total.round().astype(np.uint8))


SIZES = [(500, 375), (333, 500), (224, 224), (640, 427), (100, 90)]


def levels(x: Any, preprocess: Preprocess) -> Any:
    """Model input as pixels of 0 to 255."""
    mean, std = (np.array(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
    return (np.asarray(x) * std + mean) * 255


def bare(preprocess: Preprocess) -> Preprocess:
    """Without what peers write in a form of their own."""
    return preprocess.model_copy(update={"short_side": None, "odd_border": "even"})


def agree(mine: Preprocess, other: Any, image: Image.Image, most: float) -> None:
    a, b = levels(mine(image), mine), levels(other, mine)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= most + 1e-3


PROCESSORS = [
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}, "resample": 2}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 160}, "crop_pct": 0.95}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 64}, "rescale_factor": 1 / 127.5}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 64}, "do_normalize": False}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 64}, "do_rescale": False}),
    ("ViTImageProcessor", {"size": {"height": 96, "width": 128}}),
    (
        "BitImageProcessor",
        {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 200}},
    ),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 224}}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "fields"), PROCESSORS)
def test_images_are_prepared_as_transformers_does(
    tmp_path: Path, kind: str, fields: dict[str, Any]
) -> None:
    processor = getattr(transformers, kind)(**fields)
    config = transformers.ResNetConfig(depths=[1], hidden_sizes=[8], layer_type="basic")
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with_pillow, processor = (
        transformers.AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        for backend in ("pil", "torchvision")
    )
    card = load_model(tmp_path)[1]
    assert card is not None
    for size in SIZES:
        image = photograph(*size)
        other = with_pillow(image, return_tensors="np")["pixel_values"][0]
        agree(card.preprocess, other, image, 0.0)
        other = processor(image, return_tensors="np")["pixel_values"][0]
        # torchvision resizes tensors, and rounds otherwise than Pillow after each direction
        agree(card.preprocess, other, image, 2.0)


def test_the_old_form_of_microsofts_file(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(depths=[1], hidden_sizes=[8], layer_type="basic")
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    old = {
        "crop_pct": 0.875, "do_normalize": True, "do_resize": True, "size": 224, "resample": 3,
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    card = load_model(tmp_path)[1]
    assert card is not None
    assert card.preprocess == Preprocess(
        size=(224, 224), short_side=256, odd_border="down", interpolation="bicubic",
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    image = photograph(500, 375)
    other = transformers.AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="np")
    agree(card.preprocess, other["pixel_values"][0], image, 2.0)


@pytest.mark.parametrize("stated", [False, True])
def test_timms_network_in_transformers_wrapper(tmp_path: Path, stated: bool) -> None:
    given: dict[str, Any] = {"pretrained_cfg": {"input_size": [3, 160, 160]}} if stated else {}
    config = transformers.TimmWrapperConfig(architecture="resnet18", num_labels=3, **given)
    oracle = transformers.TimmWrapperForImageClassification(config).eval()
    oracle.save_pretrained(tmp_path)
    assert '"model_args": null' in (tmp_path / "config.json").read_text()
    net, card, report = load_model(tmp_path)
    assert card is not None
    assert card.provenance["assumed"] == ["classes"]
    assert card.preprocess.size == ((160, 160) if stated else (224, 224))
    assert report.ignored == ()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(net(x), oracle(x).logits, rtol=1e-4, atol=1e-4)


def test_nulls_of_transformers_fast_processors(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(depths=[1], hidden_sizes=[8], layer_type="basic")
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    theirs = {
        "crop_pct": 0.875, "crop_size": None, "data_format": "channels_first", "device": None,
        "default_to_square": False, "do_center_crop": None, "do_convert_rgb": None,
        "do_normalize": None, "do_rescale": True, "do_resize": True, "image_mean": None,
        "image_processor_type": "ConvNextImageProcessorFast", "image_std": None,
        "input_data_format": None, "resample": 3, "rescale_factor": 0.00392156862745098,
        "return_tensors": None, "size": {"shortest_edge": 224},
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(theirs))
    card = load_model(tmp_path)[1]
    assert card is not None
    assert card.preprocess == Preprocess(
        size=(224, 224), short_side=256, odd_border="down", interpolation="bicubic",
        mean=(0.0,) * 3, std=(1.0,) * 3,
    )  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(theirs | {"do_resize": None}))
    assert "preprocessor_config.json: do_resize" in refusal(lambda: load_model(tmp_path))


@pytest.mark.parametrize(
    "cfg",
    [
        {"input_size": (3, 224, 224), "crop_pct": 0.95, "interpolation": "bicubic"},
        {"input_size": (3, 160, 160), "crop_pct": 0.875, "interpolation": "bilinear"},
        {"input_size": (3, 96, 128), "crop_pct": 1.0, "crop_mode": "squash"},
    ],
)
def test_images_are_prepared_as_timm_does(tmp_path: Path, cfg: dict[str, Any]) -> None:
    oracle = timm.create_model("resnet18", num_classes=3, pretrained_cfg_overlay=cfg)
    timm.models.save_for_hf(oracle, tmp_path, safe_serialization=True)
    card = load_model(tmp_path)[1]
    assert card is not None
    assert card.provenance["assumed"] == ["classes"]
    loaded = timm.create_model(f"local-dir:{tmp_path}")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))
    for size in SIZES:
        image = photograph(*size)
        agree(card.preprocess, transform(image), image, 0.0)


def test_images_are_prepared_as_torchvision_does() -> None:
    from skipway.hub import torchvision_preset

    weights: list[WeightsEnum] = [
        torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
        torchvision.models.ResNet50_Weights.IMAGENET1K_V2,
    ]
    for member in weights:
        preset = member.transforms()
        for size in SIZES:
            image = photograph(*size)
            agree(torchvision_preset(preset), preset(image), image, 0.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"size": (64, 64), "short_side": 73},
        {"size": (64, 64), "short_side": None, "interpolation": "bicubic"},
        {"size": (64, 96), "resize": "squash", "short_side": None},
    ],
)
def test_peers_prepare_images_as_the_card_says(tmp_path: Path, fields: dict[str, Any]) -> None:
    ours(tmp_path / "w.safetensors", small(), preprocess=fields)
    card = read_card(tmp_path / "w.safetensors")
    assert card is not None
    convert(tmp_path / "w.safetensors", "huggingface", tmp_path / "hf")
    convert(tmp_path / "w.safetensors", "timm", tmp_path / "timm")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    net = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    assert net.pretrained_cfg["label_names"] == [*CLASSES]
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    for size in SIZES:
        image = photograph(*size)
        agree(card.preprocess, transform(image), image, 0.0)
        other = processor(image, return_tensors="np")["pixel_values"][0]
        as_there = card.preprocess.model_copy(update={"odd_border": "down"})
        agree(as_there, other, image, 2.0)
    for folder in ("hf", "timm"):
        without_card(tmp_path / folder)
        again = load_model(tmp_path / folder)[1]
        assert again is not None
        crop = fields.get("resize") != "squash"
        assert again.preprocess.odd_border == ("down" if crop and folder == "hf" else "even")
        assert bare(again.preprocess) == bare(card.preprocess)


# --- what a peer has not -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "peer", "named", "able"),
    [
        ({"stem": "cifar"}, "torchvision", "stem = 'cifar'", "no peer can"),
        ({"shortcut": "A"}, "timm", "shortcut = 'A'", "no peer can"),
        ({"shortcut": "none"}, "huggingface", "shortcut = 'none'", "no peer can"),
        ({"squeeze": 16}, "huggingface", "squeeze = 16", "no peer can"),
        ({"widths": (128,) * 4, "squeeze": 16}, "huggingface", "squeeze = 16", "timm can"),
        ({"order": "pre"}, "timm", "block = 'basic'", "no peer can"),
        ({"order": "pre", "block": "bottleneck"}, "torchvision", "order = 'pre'", "timm can"),
        ({"widths": (64, 128, 256), "depths": (1, 1, 1)}, "timm", "depths", "huggingface can"),
        ({"block": "bottleneck", "stride_in": "1x1"}, "timm", "stride_in", "huggingface can"),
        ({"antialias": True}, "torchvision", "antialias = True", "timm can"),
        ({"bn_eps": 1e-3}, "huggingface", "bn_eps = 0.001", "no peer can"),
        ({"in_channels": 1}, "torchvision", "in_channels = 1", "timm and huggingface can"),
        ({"block": "bottleneck", "groups": 32, "base_width": 4}, "huggingface", "groups = 32",
         "torchvision and timm can"),
    ],
)  # fmt: skip
def test_what_a_peer_cannot_express(
    tmp_path: Path, fields: dict[str, Any], peer: Any, named: str, able: str
) -> None:
    ours(tmp_path / "w.safetensors", small(**(USUAL | fields)))
    text = refusal(lambda: convert(tmp_path / "w.safetensors", peer, tmp_path / "m.pth"))
    assert text.startswith(named)
    assert peer in text
    assert able in text
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("peer", ["timm", "huggingface"])
@pytest.mark.parametrize(
    ("fields", "named"),
    [({"resize": "letterbox", "short_side": None}, "letterbox"), ({"size": (64, 256)}, "size")],
)
def test_preprocessing_that_a_peer_has_not(
    tmp_path: Path, peer: Any, fields: dict[str, Any], named: str
) -> None:
    ours(tmp_path / "w.safetensors", small(), preprocess={"short_side": 96} | fields)
    text = refusal(lambda: convert(tmp_path / "w.safetensors", peer, tmp_path / "m"))
    assert text.startswith(f"preprocess: {peer} has no ")
    assert named in text.splitlines()[0]
    assert "--to torchvision" in text
    assert not (tmp_path / "m").exists()


def test_a_pixel_mean_has_no_equal(tmp_path: Path) -> None:
    net = ours(tmp_path / "w.safetensors", small())
    card = card_of(net.arch)
    mean = np.zeros((3, 64, 64), np.float32)
    card = card.model_copy(update={"preprocess": card.preprocess.with_pixel_mean(mean)})
    save_weights(tmp_path / "w.safetensors", net, card)
    text = refusal(lambda: convert(tmp_path / "w.safetensors", "timm", tmp_path / "m"))
    assert "pixel_mean" in text


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "peer",
    [
        "timm",
        *(
            pytest.param(p, marks=pytest.mark.slow)
            for p in ("torchvision", "huggingface", "skipway")
        ),
    ],
)
def test_convert_as_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer: str) -> None:
    monkeypatch.chdir(tmp_path)
    net = ours(tmp_path / "my net.safetensors", small(**USUAL, depths=(2, 2, 2, 2)), licence="MIT")
    answer = call("convert", "my net.safetensors", "--to", peer, "--json")
    assert answer.code == 0, answer.err
    made = tmp_path / answer.value["path"]
    suffix = {"torchvision": "-torchvision.pth", "skipway": ".safetensors"}.get(peer, f"-{peer}")
    assert made.name == f"my-net{suffix}"
    # what it says to do works, in a process of its own
    needs = {"torchvision": "torch, torchvision", "huggingface": "transformers"}.get(peer, peer)
    answered = subprocess.run(
        [sys.executable, "-c", f"import {needs}\n{answer.value['load']}"],
        capture_output=True,
        text=True,
    )
    assert answered.returncode == 0, answered.stderr
    again, card, _ = load_model(made)
    assert same(again, net, 64)
    if peer != "torchvision":
        assert card is not None
        assert card.licence == "MIT"
    text = call("convert", "my net.safetensors", "--to", peer)
    assert text.code == 2
    assert "exists already" in text.error[0]
    assert sorted(tmp_path.iterdir()) == sorted([made, tmp_path / "my net.safetensors"])


def test_convert_says_what_it_wrote(tmp_path: Path) -> None:
    ours(tmp_path / "w.safetensors", small())
    out = tmp_path / "m"
    answer = call("convert", tmp_path / "w.safetensors", "--to", "timm", "--out", out)
    assert answer.code == 0
    assert f"{out / 'config.json'} (" in answer.out
    assert f"timm.create_model('local-dir:{out}', pretrained=True)" in answer.out
    text = call("convert", tmp_path / "w.safetensors", "--to", "torchvision", "--out", "m.bin")
    assert (text.code, "writes .pth or .safetensors" in text.error[0]) == (2, True)


@pytest.mark.parametrize("form", [*PEERS, "skipway"])
def test_no_form_tells_the_folders_of_who_trained(tmp_path: Path, form: Any) -> None:
    net = pushable(tmp_path, USUAL)
    suffix = ".safetensors" if form in ("torchvision", "skipway") else ""
    made = convert(net, form, tmp_path / f"made{suffix}")
    for file in made.files:
        assert b"home/me" not in file.read_bytes()
    again = read_card(next(file for file in made.files if file.suffix == ".safetensors"))
    assert again is not None
    assert again.recipe["data_path"] == "pets"


def test_torchvisions_form_is_printed_with_what_it_does_not_hold(tmp_path: Path) -> None:
    net = ours(tmp_path / "w.safetensors", small(**USUAL, depths=(2, 2, 2, 2)))
    made = convert(tmp_path / "w.safetensors", "torchvision", tmp_path / "net.pth")
    names: dict[str, Any] = {"torch": torch, "torchvision": torchvision}
    exec(made.load, names)
    assert not names["net"].training
    assert same(names["net"], net, 64)
    told = made.load.splitlines()[2:]
    assert told == [
        "# images: short side to 96 px, the centre's 64 x 64 (bilinear), pixels of 0 to 1, "
        "mean 0.4, 0.5, 0.6, std 0.2, 0.25, 0.3",
        "# classes in order: 'a cat', 'dog ✓', 'horse'",
    ]


@pytest.mark.parametrize("form", ["timm", "huggingface"])
def test_what_was_assumed_is_published_as_such(tmp_path: Path, hub: Hub, form: str) -> None:
    net = lively(ResNet(small(widths=(64, 32, 32, 32))))
    torch.save(net.state_dict(), tmp_path / "bare.pth")
    answer = call("push", tmp_path / "bare.pth", "hf:me/bare", "--to", form)
    assert answer.code == 0, answer.err
    assert "assumed, as the file does not say: classes: 3, '0' to '2'; preprocess: " in answer.err
    config = json.loads(hub.committed["config.json"])
    assert not {"label_names", "id2label", "label2id"} & config.keys()
    text = hub.committed["README.md"].decode()
    assert "Assumed, as the file did not say: classes: 3, '0' to '2'; preprocess: short" in text
    folder = tmp_path / "net"
    folder.mkdir()
    for name, content in hub.committed.items():
        (folder / name).write_bytes(content)
    assert same(theirs(form, folder), net, 64)
    assert read_card(folder / "model.safetensors").assumed == ["classes", "preprocess"]
    without_card(folder)
    again = load_model(folder)[1]
    assert again is not None
    assert "classes" in again.assumed


def test_what_is_cheap_to_refuse_is_refused_before_the_model_is_opened(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skipway.publish.open_network", lambda _: pytest.fail("opened"))
    net = tmp_path / "w.safetensors"
    net.touch()
    assert "exists already" in refusal(lambda: convert("hf:me/net", "timm", net))
    assert "no folder" in refusal(lambda: convert(net, "timm", tmp_path / "no" / "m"))
    for form in ("skipway", "torchvision"):
        text = refusal(lambda form=form: convert(net, form, tmp_path / "m.bin"))
        assert f"--to {form} writes" in text
    monkeypatch.delenv("HF_TOKEN")
    assert "no token" in failed(call("push", net, "hf:me/pets"))


def test_a_state_dict_as_safetensors_keeps_the_card(tmp_path: Path) -> None:
    ours(tmp_path / "w.safetensors", small(**USUAL))
    convert(tmp_path / "w.safetensors", "torchvision", tmp_path / "tv.safetensors")
    assert read_card(tmp_path / "tv.safetensors") == read_card(tmp_path / "w.safetensors")


@pytest.mark.parametrize("peer", PEERS)
def test_peers_give_probabilities_at_the_cards_temperature(tmp_path: Path, peer: str) -> None:
    arch = architecture("resnet18", num_classes=3)
    net = ours(tmp_path / "w.safetensors", arch, temperature=2.5)
    made = convert(
        tmp_path / "w.safetensors", peer, tmp_path / ("m.pth" if peer == "torchvision" else "m")
    ).path
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        wanted = (net(x) / 2.5).softmax(1)
        torch.testing.assert_close(theirs(peer, made, "resnet18")(x).softmax(1), wanted)
        if peer != "torchvision":
            back, card, _ = load_model(made)
            assert card is not None
            torch.testing.assert_close((back.eval()(x) / card.temperature).softmax(1), wanted)


def test_converting_to_our_own_form_keeps_the_temperature(tmp_path: Path) -> None:
    net = ours(tmp_path / "w.safetensors", small(), temperature=2.5)
    convert(tmp_path / "w.safetensors", "skipway", tmp_path / "m.safetensors")
    assert read_card(tmp_path / "m.safetensors").temperature == 2.5
    assert torch.equal(load_file(tmp_path / "m.safetensors")["fc.weight"], net.fc.weight)


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    def broken() -> None:
        with atomic_folder(tmp_path / "m") as folder:
            (folder / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "m").touch()
    assert "exists already" in refusal(broken)

    def nowhere() -> None:
        with atomic_folder(tmp_path / "no" / "m"):
            pass

    assert "there is no folder" in refusal(nowhere)


def test_another_network_than_the_weights_is_refused_by_its_peers_file(tmp_path: Path) -> None:
    """A config.json that lies is no reason to build another network and drop half of the file."""
    ours(tmp_path / "w.safetensors", small())
    for peer, key, value in (
        ("huggingface", "depths", [1, 1, 1, 2]),
        ("huggingface", "hidden_sizes", [64, 128, 256, 500]),
        ("huggingface", "layer_type", "bottleneck"),
        ("huggingface", "num_channels", 1),
        ("timm", "architecture", "resnet50"),
        ("timm", "architecture", "resnet18"),
        ("timm", "num_classes", 4),
    ):
        folder = tmp_path / f"{peer}-{key}-{value if isinstance(value, str) else ''}"
        convert(tmp_path / "w.safetensors", peer, folder)  # type: ignore[arg-type]
        without_card(folder)
        config = json.loads((folder / "config.json").read_text())
        config[key] = value
        if key == "architecture":
            config.pop("model_args", None)
        if key == "num_classes":
            config["label_names"] = ["a", "b", "c", "d"]
        if key == "num_channels":
            (folder / "preprocessor_config.json").unlink()
        (folder / "config.json").write_text(json.dumps(config))
        text = refusal(lambda folder=folder: load_model(folder))
        assert "config.json's architecture" in text, text
        assert "disagree" in text
        if key != "num_classes":
            net = ResNet(small())
            load_weights(net, load_file(folder / "model.safetensors"))


# --- push ----------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(monkeypatch, tmp_path / "cache") as found:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield found


def pushable(tmp_path: Path, arch: Mapping[str, Any] = MappingProxyType({}), **fields: Any) -> Path:
    path = tmp_path / "w.safetensors"
    metrics = (
        Measured(name="accuracy", value=0.91, low=0.9, high=0.92, split="test", n=1000,
                 data="/home/me/my | pets"),
        Measured(name="loss", value=0.3, split="test", n=1000, data="/home/me/my | pets"),
    )  # fmt: skip
    recipe = {
        "data_path": "/home/me/pets",
        "model": {"weights": "/home/me/w.pth"},
        "distill": {"model": "/home/me/teacher", "weight": 0.5},
    }
    card = {"metrics": metrics, "licence": "CC-BY-4.0", "recipe": recipe} | fields
    command = (
        "skipway train /home/me/pets --out '/home/me/my run' --set model.weights=/home/me/w.pth "
        "--recipe a1 --set distill.model=home/me/teacher --data /home/me/v=2/pets "
        "--set=model.weights=/home/me/lr=0.1/w.pth /home/me/a=b/c"
    )
    provenance = {"command": command, "calibrated": {"data": "/home/me/pets", "n": 5}}
    ours(path, small(**arch), provenance=provenance, **card)
    return path


@pytest.mark.parametrize("form", ["skipway", "timm", "huggingface"])
def test_push_sends_weights_and_a_model_card(tmp_path: Path, hub: Hub, form: str) -> None:
    path = pushable(tmp_path)
    answer = call("push", path, "hf:me/pets", "--to", form, "--private", "--json")
    assert answer.code == 0, answer.err
    assert hub.created[0]["name"] == "pets"
    assert hub.created[0]["visibility"] == "private"
    assert "Bearer hf_secret" in hub.tokens
    files = {"README.md", "model.safetensors"}
    files |= {"config.json"} if form != "skipway" else set()
    files |= {"preprocessor_config.json"} if form == "huggingface" else set()
    assert set(hub.committed) == files == set(answer.value["files"])
    text = hub.committed["README.md"].decode()
    _, front, body = text.split("---\n", 2)
    said = yaml.safe_load(front)
    assert said["license"] == "cc-by-4.0"
    assert said["library_name"] == ("transformers" if form == "huggingface" else form)
    assert said["pipeline_tag"] == "image-classification"
    (model,) = said["model-index"]
    result = model["results"][0]
    assert result["metrics"][0]["value"] == 0.91
    assert result["dataset"]["name"] == "my | pets"
    assert "| Accuracy | 91.00% | 90.00% to 92.00% | 1,000 | test | my \\| pets |" in body
    assert "skipway train pets --out 'my run' --set model.weights=w.pth --recipe a1" in body
    assert "skipway predict hf:me/pets image.jpg" in body
    assert '["a cat", "dog ✓", "horse"]' in body
    assert not any(b"home/me" in sent for sent in hub.committed.values())
    # and what was sent is what every command takes
    hub.repositories["me/pets"] = hub.committed
    net, card, _ = load_model("hf:me/pets")
    assert card is not None
    assert card.classes == CLASSES
    assert same(net, load_model(path)[0], 64)
    # a second push is a second commit, and a README that is there stays
    again = call("push", path, "hf:me/pets", "--to", form)
    assert (again.code, len(hub.messages)) == (0, 2)
    assert "README.md was there before" in again.out


@pytest.mark.parametrize("form", ["skipway", "timm"])
def test_push_leaves_nothing_of_another_form(tmp_path: Path, hub: Hub, form: str) -> None:
    """It would say how a peer is to read weights that are not there any more."""
    path = pushable(tmp_path)
    own = {"train.py": b"", "old/config.json": b"{}"}
    before = {"config.json": b"{}", "preprocessor_config.json": b"{}", "README.md": b"mine"}
    hub.repositories["me/pets"] = own | before
    told = call("push", path, "hf:me/pets", "--to", form)
    assert told.code == 0
    assert "preprocessor_config.json of another form was there" in told.out
    there = hub.repositories["me/pets"] | hub.committed
    peers = {"config.json"} if form == "timm" else set()
    assert set(there) == {*own, "README.md", "model.safetensors", *peers}
    assert there["README.md"] == b"mine"


def failed(answer: Answer) -> str:
    assert answer.code == 2
    assert 1 <= len(answer.error) <= 3
    return "\n".join(answer.error)


def test_what_can_go_wrong_with_push(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pushable(tmp_path)
    hub.fault = "deaf"
    for status, expected in (
        (401, "does not know this token"),
        (403, "may not write to me/pets"),
        (500, "answers 500"),
    ):
        hub.status = status
        assert expected in failed(call("push", path, "hf:me/pets"))
    for name in ("me/pets", "hf:pets", "hf:me/pets@main", "hf:me/../pets"):
        failed(call("push", path, name))
    monkeypatch.delenv("HF_TOKEN")
    assert "no token" in failed(call("push", path, "hf:me/pets"))
    assert hub.committed == {}


def test_push_where_no_hub_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(monkeypatch, tmp_path / "cache"):
        pass
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "cannot be reached" in failed(call("push", pushable(tmp_path), "hf:me/pets"))


def test_a_model_card_tells_no_top_five_of_three_classes(tmp_path: Path, hub: Hub) -> None:
    one, five = (Measured(name=name, value=value, split="test", n=1000, data="pets")
                 for name, value in (("accuracy", 0.9996), ("top5", 1.0)))  # fmt: skip
    answer = call("push", pushable(tmp_path, metrics=(one, five)), "hf:me/pets", "--to", "timm")
    assert answer.code == 0, answer.err
    text = hub.committed["README.md"].decode()
    assert "| Accuracy | 99.96% | not measured | 1,000 | test | pets |" in text
    assert "Top-5" not in text
    assert "top5" not in text


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("not stated", {"license": "unknown"}),
        ("MIT", {"license": "mit"}),
        ("unclear: the photographs' owners", {"license": "other"}),
    ],
)
def test_hostile_text_stays_text_in_the_model_card(
    tmp_path: Path, hub: Hub, licence: str, expected: dict[str, str]
) -> None:
    ours(
        tmp_path / "w.safetensors",
        small(),
        licence=licence,
        metrics=(Measured(name="accuracy", value=1, split="x|y", n=1, data="<script>\x1b[31m"),),
        provenance={"command": "a\n```\n# not a title\n---"},
    )
    assert call("push", tmp_path / "w.safetensors", "hf:me/pets").code == 0
    text = hub.committed["README.md"].decode()
    _, front, body = text.split("---\n", 2)
    said = yaml.safe_load(front)
    assert expected.items() <= said.items()
    assert "\x1b" not in text
    assert "<script>" not in body
    assert "\n    # not a title\n" in body
