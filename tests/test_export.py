"""Export: folded norms, ONNX graphs equal to torch, files that exist only when proven."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from commands import QUICK, call, draw, environment, spawn
from skipway import export as exporting
from skipway import shipped
from skipway.architecture import ARCHITECTURES, Architecture, architecture
from skipway.card import METADATA_KEY, Card, parse_card, read_card, without_places
from skipway.errors import GateNotMet, InputError
from skipway.export import BATCHES, LIMIT, export, fold, real_images, scales, to_onnx
from skipway.images import plain_preprocess
from skipway.metrics import softmax
from skipway.predictor import load, open_network, torch_predictor
from skipway.resnet import ResNet
from skipway.weights import save_weights

SCRIPT = Path(__file__).parents[1] / "scripts" / "ship.py"


def lively(arch: Architecture, seed: int = 0) -> ResNet:
    """A network whose norms have statistics, scales (some negative) and shifts of their own, and
    whose signal neither dies nor explodes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ResNet(arch).train()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean of what was seen
                n = module.num_features
                sign = torch.where(torch.rand(n, generator=generator) < 0.2, -1.0, 1.0)
                module.weight.copy_((0.5 + torch.rand(n, generator=generator)) * sign)
                module.bias.copy_(torch.randn(n, generator=generator) * 0.3)
            elif isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.3)
        size = arch.input_size
        for _ in range(3):
            net(torch.randn(8, arch.in_channels, size, size, generator=generator) + 0.5)
        net.fc.weight.mul_(5)
    return net.eval()


def card_of(net: ResNet, **fields: Any) -> Card:
    classes = tuple(f"class {i}" for i in range(net.arch.num_classes))
    prepare = plain_preprocess(net.arch.input_size, net.arch.in_channels)
    whole = {"model": "test", "architecture": net.arch, "classes": classes, "preprocess": prepare}
    return Card(**(whole | fields))


def noise(net: ResNet, n: int) -> np.ndarray:
    size = net.arch.input_size
    rng = np.random.default_rng(n)
    return rng.normal(size=(n, net.arch.in_channels, size, size)).astype(np.float32)


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


SMALL: dict[str, Any] = {
    "width": 0.125, "num_classes": 5, "input_size": 32, "depths": (1, 2)
}  # fmt: skip


def small(name: str, **fields: Any) -> Architecture:
    return architecture(name, **(SMALL | fields))


FAMILIES: dict[str, Architecture] = {
    "basic": small("resnet18"),
    "bottleneck": small("resnet50"),
    "v1": small("resnet50v1"),
    "option A": small("resnet20", width=0.5),
    "A-split": small("resnet20", width=0.5, shortcut="A-split", input_size=33),
    "plain": small("plain20", width=0.5),
    "option C": small("resnet18", shortcut="C", in_channels=1),
    "resnet50d": small("resnet50d", input_size=41),
    "antialias": small("resnet50", antialias=True),
    "squeeze": small("seresnet50"),
    "groups": small("resnext50_32x4d", width=1.0, widths=(8, 16), groups=4, base_width=32),
    "pre basic": small("wrn16_4"),
    "pre bottleneck": small("preresnet50"),
    "pre deep": small("preresnet50", stem="deep", shortcut="D", antialias=True, squeeze=4),
}


# --- folding ----------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    name=st.sampled_from(list(FAMILIES)),
    stem=st.sampled_from(["imagenet", "deep", "cifar"]),
    antialias=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_a_folded_network_is_the_same(name: str, stem: str, antialias: bool, seed: int) -> None:
    fields = {"stem": stem, "antialias": antialias}
    net = lively(Architecture(**(vars(FAMILIES[name]) | fields)), seed)
    x = torch.from_numpy(noise(net, 3)).double()
    with torch.no_grad():  # in float64, so that only the rounding of the weights is left
        folded, expected = fold(net).double()(x), net.double()(x)
    assert expected.std() > 0
    assert (folded - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_no_norm_is_left_but_those_after_sums(name: str) -> None:
    net = lively(FAMILIES[name])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    folded = fold(net)
    units = len(net.units())
    after_stem = net.arch.stem == "cifar"  # there the first unit's norm takes a convolution
    assert norms(folded) == (units + 1 - after_stem if net.arch.order == "pre" else 0)
    assert norms(net) - norms(folded) == len(scales(net)) > 0
    x = torch.from_numpy(noise(net, 3))
    with torch.no_grad():
        expected = net(x)
        assert (folded(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_weights_are_rounded_once() -> None:
    """Each folded weight is the float32 nearest to the product in float64, written out here."""
    net = lively(FAMILIES["basic"])
    bn = net.bn1
    assert isinstance(bn, nn.BatchNorm2d)
    gamma, beta, mean, var = (
        t.detach().numpy().astype(np.float64)
        for t in (bn.weight, bn.bias, bn.running_mean, bn.running_var)
    )
    weight = net.conv1.get_parameter("weight").detach().numpy().astype(np.float64)
    factor = gamma / np.sqrt(var + bn.eps)
    folded = fold(net).conv1
    expected = (weight * factor[:, None, None, None]).astype(np.float32)
    assert np.array_equal(folded.get_parameter("weight").numpy(), expected)
    assert np.array_equal(
        folded.get_parameter("bias").numpy(), (beta - mean * factor).astype(np.float32)
    )


# --- graphs -----------------------------------------------------------------------------------


def check_graph(net: ResNet, path: Path, store: Any = "float32") -> onnx.ModelProto:
    """Export, and compare with torch at several sizes of batch."""
    card = card_of(net)
    model = to_onnx(net, card, store)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    found = load(path, threads=1)
    assert found.card == card
    exact = copy.deepcopy(net).double()
    with torch.inference_mode():
        for n in (1, 3, 17):
            x = noise(net, n)
            truth = exact(torch.from_numpy(x).double()).numpy()
            assert found.run(x).shape == (n, net.arch.num_classes)
            # some of these networks multiply the rounding of their sums, torch's as much as ours
            own = np.abs(net(torch.from_numpy(x)).numpy() - truth).max()
            bound = 2e-5 * np.abs(truth).max() + 4 * own
            assert np.abs(found.run(x) - truth).max() <= bound
            assert bound < 1e-2 * np.abs(truth).max()
    return model


@pytest.mark.parametrize(
    "name",
    [
        *("A-split", "plain", "resnet50d", "antialias", "pre basic"),
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("option C", "squeeze", "groups", "pre deep")
        ),
    ],
)
def test_every_family_is_exported(name: str, tmp_path: Path) -> None:
    net = lively(FAMILIES[name])
    model = check_graph(net, tmp_path / "x.onnx")
    shape = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    size = net.arch.input_size
    assert [i.name for i in model.graph.input] == ["images"]
    assert [o.name for o in model.graph.output] == ["logits"]
    assert shape == ["batch", net.arch.in_channels, size, size]
    kinds = [node.op_type for node in model.graph.node]
    # a blur at the end of the stem is a convolution too, which the exporter folds a norm into
    after_stem = net.arch.stem == "cifar" or net.arch.antialias
    late = len(net.units()) + 1 - after_stem if net.arch.order == "pre" else 0
    assert kinds.count("BatchNormalization") == late
    convolutions = sum(isinstance(m, nn.Conv2d) for m in net.modules())
    blurs = sum(type(m).__name__ == "Blur" for m in net.modules())
    assert kinds.count("Conv") == convolutions + blurs


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_row_is_exported(name: str, tmp_path: Path) -> None:
    depths = tuple(min(depth, 6) for depth in ARCHITECTURES[name].depths)
    arch = architecture(name, width=0.125, num_classes=5, input_size=32, depths=depths)
    check_graph(lively(arch), tmp_path / "x.onnx")


def test_float16_keeps_the_weights_and_computes_in_float32(tmp_path: Path) -> None:
    """The file holds half the bytes and gives what torch gives with the same rounded weights."""
    net = lively(small("wrn16_4", squeeze=4, depths=(1, 1)))
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
    model = check_graph(net, tmp_path / "half.onnx", "float16")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for key, tensor in net.state_dict().items():
        if tensor.ndim >= 2:
            half = stored[f"{key}.half"]
            assert half.dtype == np.float16
            assert np.array_equal(half.astype(np.float32), tensor.numpy())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(tmp_path / "half.onnx"), options)
    run = onnx.load(tmp_path / "optimised.onnx")
    halves = [t.name for t in run.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    assert halves == []
    assert "Cast" not in {node.op_type for node in run.graph.node}


def test_a_file_tells_nothing_of_this_computer(tmp_path: Path) -> None:
    net = lively(small("resnet20", depths=(1,)))
    texts = [to_onnx(net, card_of(net)).SerializeToString(deterministic=True) for _ in range(2)]
    assert texts[0] == texts[1]
    for part in (str(Path(exporting.__file__).parent), "site-packages", "stack_trace", ".py"):
        assert part.encode() not in texts[0]
    assert onnx.load_from_string(texts[0]).producer_name == "skipway"


def test_the_card_in_a_file_tells_nothing_of_it_either(run: Path, data: Path) -> None:
    kept = read_card(run / "best.safetensors")
    assert kept is not None
    home = str(data.parent)
    assert home in kept.to_json()  # of the run, which stays here
    made = export(run, run / "told.onnx", threads=1).path
    assert home.encode() not in made.read_bytes()
    assert load(made, 1).card.recipe["data_path"] == data.name


# --- the images of the proof ------------------------------------------------------------------


def test_the_images_that_are_asked_for(tmp_path: Path) -> None:
    card = card_of(lively(FAMILIES["option A"]))
    folder = draw(tmp_path / "data", ["a", "b"], n=40)
    first, last = folder / "a/00.png", folder / "b/39.png"
    found, whose = real_images(card, [str(first)])
    assert found.shape == (1, 3, 32, 32)
    assert np.array_equal(found[0], card.preprocess(first))
    assert whose == str(first)
    found, _ = real_images(card, [str(folder)])
    assert len(found) == 12
    assert np.array_equal(found[0], card.preprocess(first))
    assert np.array_equal(found[-1], card.preprocess(last))
    assert len({x.tobytes() for x in found}) == 12
    archive = shutil.make_archive(str(tmp_path / "data"), "zip", folder)
    assert len(real_images(card, [archive])[0]) == 12
    found, whose = real_images(card, [str(last), str(folder), str(first)])
    assert len(found) == 12
    assert np.array_equal(found[0], card.preprocess(last))
    (folder / "a/00.png").write_text("damaged")
    assert len(real_images(card, [str(folder)])[0]) == 11
    with pytest.raises(InputError, match=r"00\.png"):
        real_images(card, [str(first)])
    for bad in (tmp_path / "absent", tmp_path / "absent.png", tmp_path):
        (tmp_path / "data.zip").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        with pytest.raises(InputError, match=bad.name):
            real_images(card, [str(bad)])


def test_photographs_where_there_are_no_others(tmp_path: Path) -> None:
    card = card_of(lively(FAMILIES["option A"]), recipe={"data_path": str(tmp_path / "moved")})
    found, whose = real_images(card)
    assert found.shape == (10, 3, 32, 32)
    assert len({x.tobytes() for x in found}) == 10
    assert "scikit-learn" in whose
    (tmp_path / "run.json").write_text("{}")
    assert real_images(card, run=tmp_path)[1] == whose  # the data is no longer there
    draw(tmp_path / "moved", ["a", "b"])
    assert real_images(card, run=tmp_path)[1] == str(tmp_path / "moved")
    assert real_images(card, run=tmp_path / "moved")[1] == whose  # no run: a stranger's card


# --- files ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for i, split in enumerate(("train", "val", "test")):
        draw(root / split, ["red", "green"], n=8 if split == "train" else 4, seed=i)
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    assert call("train", data, *QUICK, "--out", run, "--json").code == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def graph(trained: Path) -> bytes:
    net, card = open_network(trained / "best.safetensors", 1)
    return to_onnx(net, card).SerializeToString()


@pytest.fixture
def ready(graph: bytes, monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    """The graph of the run, given in place of being made: that takes seconds."""
    model = onnx.load_from_string(graph)
    monkeypatch.setattr(exporting, "to_onnx", lambda *_: model)
    return model


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_is_exported_beside_its_weights(run: Path, data: Path) -> None:
    before = files(run)
    told = call("export", run, "--threads", "1", "--json")
    assert (told.code, told.err) == (0, "")
    target = run / "model.onnx"
    after = files(run)
    assert after.pop("model.onnx")
    assert before == after
    value = told.value
    assert value["file"] == str(target)
    assert value["bytes"] == target.stat().st_size
    parity = value["parity"]
    assert parity["source"] == str(data)
    assert parity["images"] == 8
    assert parity["batches"] == list(BATCHES) == [1, 3]
    assert 0 < parity["relative"] <= parity["logit"] < 1e-3
    assert 0 <= parity["saturated"] <= 8
    assert 0 <= parity["score"] <= parity["limit"] == LIMIT == 1e-4
    assert parity["changed"] == 0
    # the proof, anew: what the two engines say of all images
    torch_scores = call("predict", run, data, "--json", "--threads", "1").value
    onnx_scores = call("predict", target, data, "--json", "--threads", "1").value
    assert len(onnx_scores) == 32
    for a, b in zip(torch_scores, onnx_scores, strict=True):
        assert a["path"] == b["path"]
        assert [s["label"] for s in a["predictions"]] == [s["label"] for s in b["predictions"]]
        for s, t in zip(a["predictions"], b["predictions"], strict=True):
            assert s["score"] == pytest.approx(t["score"], abs=1e-4)
    for split in ([], ["--split", "train"]):  # the card tells both which split was held out
        scored = [
            call("eval", m, data, *split, "--json", "--threads", "1").value for m in (run, target)
        ]
        assert scored[0]["n"] == scored[1]["n"]
        assert scored[0]["split"] == scored[1]["split"]
        assert scored[0]["metrics"] == pytest.approx(scored[1]["metrics"], abs=1e-4)
    kept = read_card(run / "best.safetensors")
    assert kept is not None
    assert load(target).card == without_places(kept)


@pytest.mark.usefixtures("ready")
def test_what_is_printed(run: Path, data: Path) -> None:
    target = run.parent / "named.onnx"
    told = call("export", run / "best.safetensors", "--out", target, "--on", data / "test/red")
    assert (told.code, told.err) == (0, "")  # a network of one epoch is sure of nothing
    lines = told.out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("4 images of ")
    assert "batches of 1 and 3" in lines[0]
    assert "of a score" in lines[1]
    assert "of a logit" in lines[1]
    assert "same top-1" in lines[1]
    assert lines[2] == f"{target} ({target.stat().st_size:,} bytes)"
    again = export(run / "best.safetensors", threads=1)
    assert again.path == run / "best.onnx"
    assert again.path.read_bytes() == target.read_bytes()


@pytest.mark.parametrize("wrong", ["scores", "top-1", "nan"])
def test_a_file_past_the_gate_is_not_written(run: Path, wrong: str, ready: onnx.ModelProto) -> None:
    """The graph is right but for the classifier's bias."""
    assert export(run, run / "right.onnx", threads=1).parity.met
    bias = next(t for t in ready.graph.initializer if t.name == "fc.bias")
    values = onnx.numpy_helper.to_array(bias).copy()
    values += {"scores": [0, 1e-2], "top-1": [-1e3, 1e3], "nan": [0, np.nan]}[wrong]
    bias.CopyFrom(onnx.numpy_helper.from_array(values, "fc.bias"))
    before = files(run)
    told = call("export", run, "--threads", "1")
    assert told.code == 1
    assert told.out == ""
    assert len(told.error) <= 3
    assert str(run) in told.err
    assert files(run) == before
    assert "at most 0.0001" in told.err
    with pytest.raises(GateNotMet, match="was not written"):
        export(run, threads=1)


def test_scores_logits_and_top_1_are_gates_each() -> None:
    def met(score: float = 0.0, relative: float = 0.0, changed: int = 0) -> bool:
        return exporting.Parity("x", 3, score, 5.0, relative, changed, 0).met

    assert met(1e-4, 1e-4)
    assert not met(changed=1)
    assert not met(score=1.01e-4)
    assert not met(relative=1.01e-4)
    assert not met(score=float("nan"))
    assert not met(relative=float("nan"))


def test_logits_tell_where_scores_are_saturated() -> None:
    """Scores of a sure network hide an error of a tenth in each logit, which its logits show."""
    net = lively(FAMILIES["option A"])
    right, wrong = (torch_predictor(net, card_of(net), name) for name in ("right", "wrong"))
    logits = np.full((4, 5), -20.0)
    logits[np.arange(4), [0, 1, 2, 3]] = [40.0, 30.0, 20.0, -19.5]  # the last is not sure
    right._engine = lambda batch: logits[batch[:, 0, 0, 0].astype(int)]
    wrong._engine = lambda batch: logits[batch[:, 0, 0, 0].astype(int)] * 1.1
    x = np.broadcast_to(np.arange(3, dtype=np.float32)[:, None, None, None], (3, 3, 32, 32)).copy()
    found = exporting.compare(right, wrong, x)
    assert (found.images, found.changed, found.saturated) == (3, 0, 3)
    assert found.score < 1e-12
    assert found.logit == pytest.approx(4.0)
    assert found.relative == pytest.approx(0.1)
    assert not found.met
    x = np.concatenate([x, np.full((1, 3, 32, 32), 3, np.float32)])
    assert exporting.compare(right, right, x).saturated == 3
    logits /= 100  # below 1 the difference itself counts, as that of scores does
    assert exporting.compare(right, wrong, x).relative == pytest.approx(0.04)


def test_scores_are_compared_as_users_are_told_them() -> None:
    """A low temperature makes much of little."""
    net = lively(FAMILIES["option A"])
    card = card_of(net, temperature=0.05)
    right, wrong = (torch_predictor(net, card, name) for name in ("right", "wrong"))
    logits = np.array([[10.0, 9.99, -5.0, -5.0, -5.0]])
    right._engine = lambda batch: np.repeat(logits, len(batch), 0)
    little = np.array([[0, 1e-4, 0, 0, 0]])
    wrong._engine = lambda batch: np.repeat(logits + little, len(batch), 0)
    found = exporting.compare(right, wrong, noise(net, 1))
    first, second = (softmax(p.calibrated(p.run(noise(net, 1)))) for p in (right, wrong))
    assert found.score == pytest.approx(np.abs(first - second).max())
    assert found.score > exporting.LIMIT
    assert not found.met


def test_a_file_that_is_there_stays(run: Path, data: Path) -> None:
    """The rule of convert: nothing is written over, and nothing is computed in vain."""
    target = run / "model.onnx"
    target.write_text("of an hour's work")
    before = files(run)
    for out in ([], ["--out", target]):
        told = call("export", run, *out, "--on", data)
        assert (told.code, told.out) == (2, "")
        assert "model.onnx: exists already; give another --out or remove it" in told.err
    assert files(run) == before
    target.unlink()
    target.symlink_to(run / "nowhere")
    with pytest.raises(InputError, match="exists already"):
        export(run, threads=1)
    assert not (run / "nowhere").exists()


@pytest.mark.usefixtures("ready")
def test_saturated_scores_are_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = exporting.compare

    def sure(*arguments: Any) -> exporting.Parity:
        return dataclasses.replace(compare(*arguments), saturated=5)

    monkeypatch.setattr(exporting, "compare", sure)
    told = call("export", run, "--threads", "1")
    assert told.code == 0
    assert told.err.startswith("note: the best score of 5 of 8 images is within 0.0001 of 1")
    assert len(told.err.splitlines()) == 1
    told = call("export", run, "--out", run / "other.onnx", "--json")
    assert (told.err, told.value["parity"]["saturated"]) == ("", 5)


def test_both_sizes_of_batch_are_compared() -> None:
    """An engine that errs in batches of three alone, or in the last image alone, is found."""
    net = lively(FAMILIES["option A"])
    right = torch_predictor(net, card_of(net), "right")
    wrong = torch_predictor(net, card_of(net), "wrong")
    x = noise(net, 4)
    assert exporting.compare(right, right, x) == exporting.Parity("", 4, 0.0, 0.0, 0.0, 0, 0)
    engine = right._engine
    for size, index in ((1, 0), (3, 0), (3, 2)):

        def err(batch: np.ndarray, size: int = size, index: int = index) -> np.ndarray:
            logits = engine(batch).copy()
            if len(batch) == size:
                logits[index] = np.roll(logits[index], 1)
            return logits

        wrong._engine = err
        found = exporting.compare(right, wrong, x)
        assert found.score > 0.01
        assert found.changed == (4 if size == 1 else 2)


@pytest.mark.usefixtures("ready")
def test_what_cannot_be_exported(run: Path, tmp_path: Path) -> None:
    target = export(run, threads=1).path
    kept = target.read_bytes()
    for arguments, said in {
        (target,): "already ONNX",
        (run, "--out", tmp_path / "x.pt"): "ending in .onnx",
        (run, "--out", tmp_path / "no" / "x.onnx"): "there is no folder",
        (run, "--out", run / "y.onnx", "--on", tmp_path / "absent.jpg"): "absent.jpg",
        (tmp_path / "absent",): "no such file or run",
        (run, "--to", "coreml"): "coreml",
    }.items():
        told = call("export", *arguments)
        assert (told.code, told.out) == (2, "")
        assert said in told.err
        assert len(told.error) <= 3
    assert target.read_bytes() == kept
    odd = tmp_path / "weights.onnx"  # safetensors for all its name: its place is not taken
    shutil.copyfile(run / "best.safetensors", odd)
    with pytest.raises(InputError, match="another name"):
        export(odd, threads=1)
    assert load(odd, threads=1).classes == load(target).classes
    assert sorted(p.name for p in tmp_path.rglob("*.tmp")) == []


def test_weights_without_a_card_stay_without_class_names(tmp_path: Path) -> None:
    net = lively(architecture("resnet20"))
    save_weights(tmp_path / "bare.safetensors", net, None)
    target = export(tmp_path / "bare.safetensors", threads=1).path
    assert target == tmp_path / "bare.onnx"
    found = load(target)
    assert not found.classes_known
    assert found.classes == tuple("0123456789")


def test_a_part_that_is_not_installed_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "onnxscript.py").write_text("raise ModuleNotFoundError('', name='onnxscript')\n")
    told = spawn("export", run, env=environment(PYTHONPATH=str(tmp_path)))
    assert told.code == 2
    assert "onnxscript" in told.err
    assert "'.[export]'" in told.err
    assert not (run / "model.onnx").exists()


# --- models that ship -------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped.NAMES)
def test_a_shipped_model_is_one_in_both_forms(name: str) -> None:
    paths = [shipped.file(name, suffix) for suffix in (".safetensors", ".onnx", ".jsonl")]
    net, card = open_network(paths[0], 1)
    assert load(paths[1], 1).card == card
    stored = {t.data_type for t in onnx.load(paths[1]).graph.initializer if len(t.dims) >= 2}
    assert onnx.TensorProto.FLOAT16 in stored
    assert paths[1].stat().st_size < 1.1 * paths[0].stat().st_size
    inputs, _ = real_images(card)
    parity = exporting.compare(torch_predictor(net, card, name), load(paths[1], 1), inputs)
    assert parity.met
    assert card.licence != "not stated"
    assert card.metrics[0].name == "accuracy"
    assert "skipway train" in str(card.provenance["command"])
    log = paths[2].read_text()
    rows = [json.loads(line) for line in log.splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert not re.search(r'["\s=]/', card.to_json() + log)  # no place of a computer


def test_what_ships_is_small() -> None:
    folder = Path(shipped.__file__).parent
    assert sum(p.stat().st_size for p in folder.iterdir() if p.is_file()) <= 4_000_000
    held = {p.stem for p in folder.iterdir() if p.suffix in (".safetensors", ".onnx", ".jsonl")}
    assert held == set(shipped.NAMES)


def test_a_run_is_made_a_model_that_ships(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    ship = runpy.run_path(str(SCRIPT))["ship"]
    ship(run, "small", "colours", "weights: Apache-2.0", out)
    assert "'small' to skipway.shipped.NAMES" in capsys.readouterr().out
    assert sorted(os.listdir(out)) == ["small.jsonl", "small.onnx", "small.safetensors"]
    before, card = read_card(run / "best.safetensors"), read_card(out / "small.safetensors")
    assert before is not None
    assert card is not None
    assert card.licence == "weights: Apache-2.0"
    assert card.recipe["data_path"] == "colours"
    assert {m.data for m in card.metrics} == {"colours"}
    assert card.classes == before.classes
    assert str(card.provenance["command"]).startswith("skipway train colours ")
    for path in out.iterdir():
        assert str(data).encode() not in path.read_bytes()
        assert str(run.parent).encode() not in path.read_bytes()
    text = onnx.load(out / "small.onnx").metadata_props
    assert parse_card({p.key: p.value for p in text}[METADATA_KEY], "onnx") == card
    kept = files(out)
    (out / "large.bin").write_bytes(bytes(4_000_000))
    with pytest.raises(SystemExit, match="more than 4,000,000"):
        ship(run, "small", "colours", "other", out)
    assert {k: v for k, v in files(out).items() if k != "large.bin"} == kept
