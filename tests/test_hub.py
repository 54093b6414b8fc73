"""Weights by name, from a hub on this machine: what is fetched, and everything that goes wrong."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from commands import call, draw
from loopback import COMMIT, Hub, serving
from skipway.card import Card
from skipway.hub import _licence
from skipway.peers import torchvision_names
from skipway.publish import convert
from skipway.weights import create_model, load_model, read_state
from test_publish import CLASSES, ours, pushable, small, without_card
from test_weights import lively, refusal, same


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(monkeypatch, tmp_path / "cache") as found:
        yield found


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def halves(folder: Path) -> list[str]:
    """What looks like weights or a part of them in a cache."""
    names = [p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"]
    return [name for name in names if name.endswith((".incomplete", ".partial", "safetensors"))]


@pytest.mark.parametrize("form", ["timm", "huggingface"])
def test_a_repository_as_its_peer_wrote_it(tmp_path: Path, hub: Hub, form: Any) -> None:
    net = ours(tmp_path / "w.safetensors", small())
    convert(tmp_path / "w.safetensors", form, tmp_path / "m")
    without_card(tmp_path / "m")
    hub.repositories["some/net"] = held(tmp_path / "m") | {
        "README.md": b"---\ntags:\n- x\nlicense: apache-2.0\n---\n# net\n",
        "pytorch_model.bin": b"not asked for",
    }
    digest = hashlib.sha256(hub.repositories["some/net"]["model.safetensors"]).hexdigest()
    for name in ("hf:some/net", "hf:some/net@main"):
        again, card, report = load_model(name)
        assert same(again, net, 64)
        assert report.origin == name
        assert isinstance(card, Card)
        assert (card.classes, card.licence) == (CLASSES, "apache-2.0")
        assert card.provenance == {"weights": f"hf:some/net@{COMMIT}", "sha256": digest}
    assert ("GET", f"/some/net/resolve/{COMMIT}/pytorch_model.bin") not in hub.requests


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ("license: 'mit'  # as the data", "mit"),
        ("license:\n- apache-2.0", "apache-2.0"),
        ("license:  # both\n  - mit\n  - bsd # too\nlanguage:\n- en", "mit AND bsd"),
        ("license: [mit, 'apache-2.0']", "mit AND apache-2.0"),
        ("license:\nlanguage: en", None),
        ("license:\ntags:\n- x", None),
        ("license: null", None),
        ("license: []", None),
        ("license: |\n  mine", None),
        ("license: [mit,\n  apache-2.0]", None),
        ("tags:\n- license", None),
    ],
)
def test_the_licence_of_a_model_card(tmp_path: Path, entry: str, expected: str | None) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"---\ntags:\n- x\n{entry}\n---\nlicense: not here\n")
    assert _licence(readme) == expected


def test_an_earlier_download_serves_where_no_hub_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    net = ours(tmp_path / "w.safetensors", small())
    convert(tmp_path / "w.safetensors", "timm", tmp_path / "m")
    with serving(monkeypatch, tmp_path / "cache") as hub:
        hub.repositories["some/net"] = held(tmp_path / "m")
        load_model("hf:some/net@main")
        load_model("hf:some/net")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for name in (f"hf:some/net@{COMMIT}", "hf:some/net"):
        again, card, _ = load_model(name)
        assert same(again, net, 64)
        assert card is not None
        assert card.provenance["weights"] == f"hf:some/net@{COMMIT}"
    assert "cannot be reached" in refusal(lambda: load_model("hf:some/net@v2"))
    assert "an earlier download is used" in caplog.text
    text = refusal(lambda: load_model("hf:some/other"))
    assert text.startswith("hf:some/other: 127.0.0.1:9 cannot be reached")
    assert "hf download some/other --local-dir other" in text
    assert "skipway predict other IMAGE" in text


def test_a_cache_that_cannot_be_written_is_not_called_a_dead_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    text = refusal(lambda: load_model("torchvision:resnet18"))
    assert f"the cache {tmp_path / 'file'}" in text
    assert "cannot be written: Not a directory" in text
    assert "reached" not in text


@pytest.mark.parametrize(
    ("fault", "status", "expected"),
    [
        ("half", 0, "the download broke off"),
        ("altered", 0, "sha256 is not the published one"),
        ("deaf", 503, "answers 503"),
        ("deaf", 401, "no such repository, or it is private"),
    ],
)
def test_what_goes_wrong_leaves_nothing_behind(
    tmp_path: Path, hub: Hub, fault: str, status: int, expected: str
) -> None:
    net = ours(tmp_path / "w.safetensors", small())
    convert(tmp_path / "w.safetensors", "timm", tmp_path / "m")
    hub.repositories["some/net"] = held(tmp_path / "m")
    hub.fault, hub.status = fault, status
    text = refusal(lambda: load_model("hf:some/net"))
    assert expected in text
    assert "in the name's place" in text or "in its place" in text
    assert halves(tmp_path / "cache") == []
    hub.fault = ""
    assert same(load_model("hf:some/net")[0], net, 64)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_in_trouble_does_not_hide_an_earlier_download(
    tmp_path: Path, hub: Hub, status: int
) -> None:
    net = ours(tmp_path / "w.safetensors", small())
    convert(tmp_path / "w.safetensors", "timm", tmp_path / "m")
    hub.repositories["some/net"] = held(tmp_path / "m")
    load_model("hf:some/net")
    hub.fault, hub.status = "deaf", status
    assert same(load_model("hf:some/net")[0], net, 64)
    hub.status = 404
    assert "no such repository" in refusal(lambda: load_model("hf:some/net"))


def test_names_that_lead_nowhere(tmp_path: Path, hub: Hub) -> None:
    hub.repositories["some/empty"] = {"config.json": b"{}"}
    hub.repositories["some/vit"] = {
        "config.json": b'{"model_type": "vit"}',
        "model.safetensors": pushable(tmp_path).read_bytes(),
    }
    without = tmp_path / "x.safetensors"
    without.write_bytes(hub.repositories["some/vit"]["model.safetensors"])
    without_card(without)
    hub.repositories["some/vit"]["model.safetensors"] = without.read_bytes()
    for name, expected in (
        ("hf:some/nothing", "no such repository"),
        ("hf:some/empty@v2", "not this revision"),
        ("hf:some/empty", "has no model.safetensors"),
        ("hf:some/vit", "'vit' is not a network that Skipway has"),
        ("hf:net", "not a name of the form hf:USER/NAME"),
        ("hf:../../x", "not a name of the form"),
        ("torchvision:resnet51", "Did you mean 'resnet50'"),
        ("torchvision:vit_b_16", "not a residual network of torchvision"),
        ("torchvision:resnet50.V3", "IMAGENET1K_V1, IMAGENET1K_V2"),
    ):
        assert expected in refusal(lambda name=name: read_state(name))


def test_without_the_hubs_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    text = refusal(lambda: read_state("hf:some/net"))
    assert "pip install '.[hub]'" in text


# --- torchvision ---------------------------------------------------------------------------------


@pytest.fixture
def published(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.nn.Module, str]:
    """torchvision's ResNet-18 with weights of ours, where its enumeration says; and the file."""
    torch.manual_seed(0)
    oracle = lively(torchvision.models.resnet18())
    buffer = io.BytesIO()
    torch.save(oracle.state_dict(), buffer)
    name = f"resnet18-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth"
    hub.plain[name] = buffer.getvalue()
    member = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(member.value, "url", f"{hub.url}/{name}")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    return oracle, name


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:resnet18.IMAGENET1K_V1"])
def test_torchvisions_weights(
    published: tuple[torch.nn.Module, str], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    net, card, report = load_model(name)
    assert same(net, published[0], 64)
    assert card is not None
    assert card.model == "resnet18"
    assert card.classes[:2] == ("tench", "goldfish")
    assert (card.preprocess.short_side, card.preprocess.size) == (256, (224, 224))
    assert card.provenance["weights"] == "torchvision:resnet18.IMAGENET1K_V1"
    assert report.notes == ()
    assert capsys.readouterr().out == ""  # stdout is for what was asked


@pytest.mark.parametrize("fault", ["half", "altered"])
def test_a_wrong_hash_leaves_nothing_behind(
    tmp_path: Path, hub: Hub, published: tuple[torch.nn.Module, str], fault: str
) -> None:
    hub.fault = fault
    text = refusal(lambda: load_model("torchvision:resnet18"))
    assert "incomplete or not what was published" in text
    assert f"{hub.url}/{published[1]}" in text
    checkpoints = tmp_path / "torch" / "checkpoints"
    assert f"put it into {checkpoints}/: then torchvision:resnet18 is read from there" in text
    assert os.listdir(checkpoints) == []
    hub.fault = ""
    path = tmp_path / "torch" / "checkpoints" / published[1]
    load_model("torchvision:resnet18")
    path.write_bytes(path.read_bytes()[:-9])  # damaged since
    assert "taken out of the cache" in refusal(lambda: load_model("torchvision:resnet18"))
    assert not path.exists()


def test_where_torchvisions_host_does_not_answer(
    hub: Hub, published: tuple[torch.nn.Module, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.plain.clear()
    assert "answers 404" in refusal(lambda: load_model("torchvision:resnet18"))
    member = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(member.value, "url", f"http://127.0.0.1:9/{published[1]}")
    text = refusal(lambda: load_model("torchvision:resnet18"))
    assert "127.0.0.1:9 cannot be reached" in text
    assert "Where there is a network, download http://127.0.0.1:9/" in text


def test_torchvisions_file_put_where_the_advice_says_is_read_with_its_classes(
    tmp_path: Path, hub: Hub, published: tuple[torch.nn.Module, str]
) -> None:
    content = hub.plain.pop(published[1])
    text = refusal(lambda: load_model("torchvision:resnet18"))
    found = re.search(r"put it into (.*)/: then", text)
    assert found is not None
    (Path(found[1]) / published[1]).write_bytes(content)
    _, card, _ = load_model("torchvision:resnet18")
    assert card is not None
    assert card.classes[0] == "tench"


def test_all_of_torchvisions_names_have_weights_that_we_know() -> None:
    assert "resnext101_64x4d" in torchvision_names()
    assert len(torchvision_names()) == 10
    for name in torchvision_names():
        for member in torchvision.models.get_model_weights(name):
            assert len(set(member.meta["categories"])) == 1000


# --- every command takes a name ------------------------------------------------------------------


def test_commands_take_a_hubs_name(tmp_path: Path, hub: Hub) -> None:
    ours(tmp_path / "w.safetensors", small())
    convert(tmp_path / "w.safetensors", "timm", tmp_path / "m")
    hub.repositories["some/net"] = held(tmp_path / "m")
    data = draw(tmp_path / "data", CLASSES, n=4, size=32)
    image = str(data / CLASSES[0] / "00.png")
    found = call("predict", "hf:some/net", image, "--json")
    assert found.code == 0, found.err
    assert {p["label"] for p in found.value[0]["predictions"]} == set(CLASSES)
    scored = call("eval", "hf:some/net", data, "--json")
    assert scored.code == 0, scored.err
    assert scored.value["n"] == 12
    made = call("convert", "hf:some/net", "--to", "skipway", "--out", tmp_path / "o.safetensors")
    assert made.code == 0, made.err
    run = tmp_path / "run"
    trained = call(
        "train", data, "--weights", "hf:some/net", "--epochs", "1", "--out", run, "--workers", "0",
        "--threads", "1", "--set", "data.size=32", "--val", "0.25", "--json",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    assert json.loads((run / "card.json").read_text())["classes"] == sorted(CLASSES)
    assert create_model("resnet18", weights="hf:some/net", depths=(1,) * 4, widths=(32,) * 4)
