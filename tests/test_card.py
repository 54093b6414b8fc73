"""The card: whole round trips, strict reading, hostile files, and no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from skipway.architecture import ARCHITECTURES, architecture
from skipway.card import (
    METADATA_KEY,
    Card,
    Measured,
    copy_with_card,
    parse_card,
    read_card,
    read_header,
)
from skipway.errors import InputError
from skipway.images import Preprocess


def card(**fields: Any) -> Card:
    return Card.model_validate(
        {
            "model": "resnet20",
            "architecture": architecture("resnet20", num_classes=3, drop_path=0.1),
            "classes": ("Käfer", "蟻", "<b>\n"),
            "preprocess": Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3),
            "metrics": (
                Measured(
                    name="accuracy", value=0.9, low=0.88, high=0.92, split="test", n=500, data="x"
                ),
            ),
            "recipe": {"lr": 0.1, "steps": [1, 2], "nested": {"none": None, "yes": True}},
            "provenance": {"torch": "2.11"},
            "licence": "CC0",
        }
        | fields
    )


def test_json_round_trip() -> None:
    for indent in (None, 2):
        assert parse_card(card().to_json(indent), "x") == card()
    assert "蟻" in card().to_json()  # readable, not escaped


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_survives_the_round_trip(name: str) -> None:
    row = architecture(name, num_classes=2)
    before = card(model=name, architecture=row, classes=("a", "b"))
    assert parse_card(before.to_json(), "x").architecture == row


def test_pixel_mean_survives_the_round_trip() -> None:
    mean = np.random.default_rng(0).random((3, 32, 32)).astype(np.float32)
    before = card(preprocess=card().preprocess.with_pixel_mean(mean))
    image = np.zeros((32, 32, 3), np.uint8)
    after = parse_card(before.to_json(), "x").preprocess(image)
    np.testing.assert_array_equal(after, before.preprocess(image))
    np.testing.assert_allclose(after, -mean / 0.25, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"colour": "red"}, "colour"),
        ({"architecture": {"depth": 3}}, "architecture"),
        ({"architecture": {"block": "other"}}, "architecture"),
        ({"architecture": {"depths": []}}, "architecture"),
        ({"preprocess": {"crop": 1}}, "preprocess.crop"),
        ({"preprocess": {"channels": 1}}, "preprocess"),
        ({"version": 2}, "version"),
        ({"task": "dance"}, "task"),
        ({"classes": ["a", "b"]}, "2 class names for 3 outputs"),
        ({"classes": ["a", "b", "a"]}, "twice"),
        ({"classes": None}, "classes"),
        ({"metrics": [{"name": "accuracy"}]}, "metrics.0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], names: str) -> None:
    fields = json.loads(card().to_json())
    for key, value in change.items():
        fields[key] = fields[key] | value if isinstance(value, dict) else value
    with pytest.raises(InputError) as caught:
        parse_card(json.dumps(fields), "run\n1/card.json")
    assert str(caught.value).startswith(r"run\n1/card.json: the card is not valid: ")
    assert names in str(caught.value)
    assert "Value error" not in str(caught.value)  # pydantic's words
    assert len(str(caught.value).splitlines()) <= 3


def test_a_name_that_is_another_networks_is_refused() -> None:
    row = architecture("resnet18", num_classes=3)
    fields = json.loads(card(model="resnet18", architecture=row).to_json())
    with pytest.raises(InputError) as caught:
        parse_card(json.dumps(fields | {"model": "resnet50"}), "x")
    assert str(caught.value) == (
        "x: the card is not valid: model is resnet50, but the architecture is that of resnet18; "
        "write resnet18, or custom"
    )


@pytest.mark.parametrize(
    ("model", "fields", "recipe"),
    [
        ("resnet18", {}, {}),
        ("custom", {}, {}),
        ("my own", {}, {}),
        ("resnet50", {"width": 0.5}, {}),  # no row: what it began as is not known
        # the run made resnet34 a resnet18, or a resnet18 was made so before
        ("resnet34", {}, {"model": {"architecture": {"depths": [2, 2, 2, 2]}, "weights": None}}),
        ("resnet34", {}, {"model": {"architecture": {}, "weights": "before/best.safetensors"}}),
    ],
)
def test_other_names_are_kept(model: str, fields: dict[str, Any], recipe: dict[str, Any]) -> None:
    row = architecture("resnet18", num_classes=3, **fields)
    before = card(model=model, architecture=row, recipe=recipe)
    assert parse_card(before.to_json(), "x") == before


def test_channels_must_agree() -> None:
    with pytest.raises(ValidationError, match="3 channels, the network takes 1"):
        card(architecture=architecture("resnet20", num_classes=3, in_channels=1))


def test_a_class_name_that_no_file_could_hold_is_refused_at_once() -> None:
    """A folder whose name is not UTF-8: found when the card is made, not when it is saved."""
    with pytest.raises(ValidationError, match="not valid Unicode"):
        card(classes=("a", "b", "caf\udce9"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"', "[" * 10_000, '{"version":1}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^x: the card is not valid"):
        parse_card(text, "x")


# --- files ------------------------------------------------------------------------------------


def test_a_card_travels_in_a_weight_file(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_file({"w": torch.zeros(2, 3)}, path, metadata={METADATA_KEY: card().to_json()})
    assert read_card(path) == card()
    assert read_card(str(path)) == card()
    assert read_header(path)["w"]["shape"] == [2, 3]


def test_a_weight_file_without_a_card(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    assert read_card(path) is None
    save_file({"w": torch.zeros(2)}, path, metadata={"format": "pt"})
    assert read_card(path) is None


def test_a_card_beside_a_run(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text(card().to_json(indent=2), "utf-8")
    assert read_card(path) == card()


@pytest.mark.parametrize("name", ["card.json", "best.safetensors"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for make in (lambda: None, lambda: path.write_bytes(b"\xff\xfe\xfd" * 9), path.mkdir):
        path.unlink(missing_ok=True)
        make()
        with pytest.raises(InputError) as caught:
            read_card(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert len(str(caught.value).splitlines()) <= 3
    with pytest.raises(InputError):
        read_card(tmp_path / f"null\0{name}")


def refuses_or_reads(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for read in (read_header, read_card):
        try:
            text, result = "", read(path)
        except InputError as error:
            text, result = str(error), None
        if text:
            assert text.startswith(f"{path}: ")
            assert len(text.splitlines()) <= 3
        else:
            assert result is None or isinstance(result, (dict, Card))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "x.safetensors"


@given(data=st.binary(max_size=200))
def test_random_bytes_never_surprise(hostile: Path, data: bytes) -> None:
    refuses_or_reads(hostile, data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    header=JSON
    | st.fixed_dictionaries({"__metadata__": JSON | st.fixed_dictionaries({"skipway": JSON})}),
    lie=st.sampled_from([0, 0, 0, 1, -1, 2**62]),
)
def test_headers_of_any_json_never_surprise(hostile: Path, header: Any, lie: int) -> None:
    text = json.dumps(header).encode()
    length = max(len(text) + lie, 0)
    refuses_or_reads(hostile, length.to_bytes(8, "little") + text)


@given(where=st.floats(0, 1), byte=st.integers(0, 255), cut=st.floats(0, 1))
def test_a_damaged_card_never_surprises(hostile: Path, where: float, byte: int, cut: float) -> None:
    text = json.dumps({"__metadata__": {METADATA_KEY: card().to_json()}}).encode()
    data = bytearray(len(text).to_bytes(8, "little") + text)
    data[int(where * (len(data) - 1))] = byte
    refuses_or_reads(hostile, bytes(data))
    refuses_or_reads(hostile, bytes(data[: int(cut * len(data))]))


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"__metadata__": 3}',
        b'{"__metadata__": null}',
        b'{"n": ' + b"9" * 10_000 + b"}",
        b'"text"',
        b"\xff\xff",
    ],
)
def test_headers_made_to_break_readers(hostile: Path, header: bytes) -> None:
    hostile.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match="not a safetensors file, or damaged"):
        read_header(hostile)


def test_reading_a_card_takes_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_file({"w": torch.zeros(2)}, path, metadata={METADATA_KEY: card().to_json()})
    code = (
        "import sys, skipway.card\n"
        f"assert skipway.card.read_card({str(path)!r}).classes[1] == '\\u87fb'\n"
        "assert not {'torch', 'torchvision', 'safetensors', 'sklearn'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_setting_of_the_run_by_its_dotted_key() -> None:
    found = card(recipe={"seed": 3, "data": {"val": 0.2}, "odd": 1})
    assert found.setting("seed", 0) == 3
    assert found.setting("data.val", "auto") == 0.2
    assert found.setting("data.on_bad", "error") == "error"
    assert found.setting("odd.val", "auto") == "auto"
    assert card(recipe={"data": 7}).setting("data.val", "auto") == "auto"


# --- a file again, with another card ------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0, -1, float("inf"), float("nan"), "warm"])
def test_temperatures_that_are_none(temperature: Any) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        card(temperature=temperature)
    assert card().temperature == 1


@pytest.mark.parametrize("carded", [True, False])
def test_safetensors_with_another_card(tmp_path: Path, carded: bool) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.arange(7).half(), "c": torch.zeros(())}
    own = {METADATA_KEY: card().to_json()} if carded else {}
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(tensors, source, {"format": "pt", "more": "kept"} | own)
    before = source.read_bytes()
    copy_with_card(source, target, card(temperature=1.7, licence="Käse" * 99))
    assert source.read_bytes() == before
    assert read_card(target) == card(temperature=1.7, licence="Käse" * 99)
    assert read_header(target)["__metadata__"]["more"] == "kept"
    found = load_file(target)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("licence", ["x", "x" * 100, "ü" * 20_000])
def test_onnx_with_another_card(tmp_path: Path, licence: str) -> None:
    """As the onnx package would write it."""
    value = onnx.helper.make_tensor_value_info("x", 1, ["batch", 3])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    given = onnx.helper.make_tensor_value_info("y", 1, ["batch", 3])
    graph = onnx.helper.make_graph([node], "g", [value], [given])
    weights = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    model = onnx.helper.make_model(graph, producer_name="me")
    for key, text in (("first", "1"), (METADATA_KEY, card().to_json()), ("last", "2")):
        model.metadata_props.add(key=key, value=text)
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(model, source)
    copy_with_card(source, target, card(temperature=0.5, licence=licence))
    found = onnx.load(target)
    onnx.checker.check_model(found)
    props = {entry.key: entry.value for entry in found.metadata_props}
    assert len(found.metadata_props) == 3
    assert props.pop(METADATA_KEY) == card(temperature=0.5, licence=licence).to_json()
    assert props == {"first": "1", "last": "2"}
    del found.metadata_props[:], model.metadata_props[:]
    assert found == model


@pytest.mark.parametrize("data", [b"\x08", b"\x0a\xff", b"\x0f\x01", b"\x72\x05abc", b"\xff" * 40])
def test_what_is_no_onnx_is_not_copied(tmp_path: Path, data: bytes) -> None:
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    source.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.onnx: not an ONNX file, or damaged"):
        copy_with_card(source, target, card())
    with pytest.raises(InputError, match=r"none\.onnx: No such file"):
        copy_with_card(tmp_path / "none.onnx", target, card())
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
