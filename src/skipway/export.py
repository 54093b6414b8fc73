"""Networks as ONNX files that carry their card and are proven equal to torch before they exist."""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from skipway.answers import softmax
from skipway.card import METADATA_KEY, Card, without_places
from skipway.data import open_split
from skipway.data.forms.folders import is_image, walk
from skipway.errors import GateNotMet, InputError, harmless, missing_part
from skipway.files import atomic_write, check_new, is_hub_name, weight_file
from skipway.images import DecodeError, ImageLike, Preprocess
from skipway.predictor import (
    INPUT,
    OUTPUT,
    NotFinite,
    Predictor,
    is_onnx,
    onnx_predictor,
    open_network,
    torch_predictor,
)
from skipway.resnet import ResNet
from skipway.version import __version__

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Store = Literal["float32", "float16"]

LIMIT = 1e-4
"""The largest difference of a score (a probability, 0..1) that an export may have; of a logit too,
as a share of the largest logit."""
BATCHES = (1, 3)
"""Sizes of the batches that are compared."""
IMAGES = 12
"""How many images are compared at most; a multiple of each of `BATCHES`."""
OPSET, IR = 20, 10
"""Versions of ONNX's operators and of its format, which ONNX Runtime reads from 1.20 on."""


@dataclass(frozen=True)
class Parity:
    """How far ONNX Runtime's answers are from torch's on the same images."""

    source: str
    """Whose images."""
    images: int
    score: float
    """Largest difference of a probability, as users are told it: calibrated."""
    logit: float
    """Largest difference of a logit."""
    relative: float
    """The same over torch's largest logit on these images, or over 1 where that is less."""
    changed: int
    """Images whose most probable class is another."""
    saturated: int
    """Images whose largest score, in torch, is within `LIMIT` of 1: there the scores hardly show
    what the logits do."""

    @property
    def met(self) -> bool:
        """Whether the file may be used in place of the network."""
        near = self.score <= LIMIT and self.relative <= LIMIT  # false for NaN
        return near and not self.changed


@dataclass(frozen=True)
class Exported:
    """A file that was written, and the proof."""

    path: Path
    size: int
    """Bytes."""
    parity: Parity


def export(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    on: Sequence[str] = (),
    threads: int | None = None,
    store: Store = "float32",
) -> Exported:
    """Write a model as one ONNX file, once it was run and gave torch's answers.

    The file holds weights and card (metadata key `card.METADATA_KEY`), batch norm folded into the
    convolutions where one comes right before. It takes `INPUT`, float32 [batch, C, H, W] as the
    card's preprocessing gives it, any number of images at a time, and gives `OUTPUT`, float32
    [batch, classes]. What was written is run by ONNX Runtime on real images (`real_images`) in
    batches of 1 and 3 before the file takes its name.

    model: a run, a weight file, or the name of a shipped model or of a hub's weights. out: the
    file; None is beside the weights, and the working folder for names. on: image files, folders or
    data sets. threads: of computation. store: float16 halves the file; what is computed is float32
    all the same, and equal where the weights came from float16. Raises InputError, also where the
    file exists, and GateNotMet past `LIMIT` or where a most probable class changes; then nothing is
    written.
    """
    try:
        for name in ("onnx", "onnxscript"):
            importlib.import_module(name)
    except ImportError as error:
        raise missing_part("export", "export", error) from None
    source, beside = _places(model)
    target = beside if out is None else Path(out)
    if target.suffix != ".onnx" or target == source:
        raise InputError(f"--out {harmless(target)}: give another name, ending in .onnx")
    check_new(target)
    net, card = open_network(source, threads)
    run = source.parent if isinstance(source, Path) else None
    inputs, whose = real_images(card, on, run)
    program = to_onnx(net, card, store)
    reference = torch_predictor(net, card, str(source))
    with atomic_write(target) as file:
        file.write(program.SerializeToString())
        file.flush()
        size = file.tell()
        parity = compare(reference, onnx_predictor(Path(file.name), threads), inputs, whose)
        if not parity.met:
            raise GateNotMet(
                f"{harmless(model)}: ONNX and torch differ: by {parity.score:.2g} in a score and "
                f"{parity.relative:.2g} of the largest logit (both at most {LIMIT:g}), in the best "
                f"class of {parity.changed} of {parity.images} images\n"
                f"{harmless(target)} was not written."
            )
    return Exported(target, size, parity)


def _places(model: str | os.PathLike[str]) -> tuple[str | Path, Path]:
    """What `open_network` takes for MODEL, and where its export goes if nothing else is said."""
    if is_hub_name(model):
        name = os.fspath(model)
        return name, Path(f"{Path(name.partition(':')[2]).name}.onnx")
    source = weight_file(model)
    if is_onnx(source):
        raise InputError(f"{harmless(source)}: already ONNX; give a run or a weight file")
    if Path(model).is_dir():
        return source, source.parent / "model.onnx"
    if Path(model).exists():
        return source, source.with_suffix(".onnx")
    return source, Path(f"{os.fspath(model)}.onnx")  # the name of a model that ships


def compare(reference: Predictor, exported: Predictor, inputs: Array, source: str = "") -> Parity:
    """Both on the same inputs [N, C, H, W], in batches of each size of `BATCHES`.

    The last batch is filled with the first images where N is no multiple. Outputs of `exported`
    that are not finite are no error, but differences of NaN, which no bound is met by.
    """
    score = logit = largest = 0.0
    changed: set[int] = set()
    saturated: set[int] = set()
    for size in BATCHES:
        for low in range(0, len(inputs), size):
            index = np.arange(low, low + size) % len(inputs)
            a = reference.run(inputs[index]).astype(np.float64)
            try:
                b = exported.run(inputs[index]).astype(np.float64)
            except NotFinite:
                b = np.full_like(a, np.nan)
            scores, others = (softmax(p.calibrated(x)) for p, x in ((reference, a), (exported, b)))
            largest = max(largest, float(np.abs(a).max()))
            logit = float(np.maximum(logit, np.abs(a - b).max()))  # of NaN and a number NaN
            score = float(np.maximum(score, np.abs(scores - others).max()))
            changed |= {int(i) for i in index[a.argmax(1) != b.argmax(1)]}
            saturated |= {int(i) for i in index[scores.max(axis=1) >= 1 - LIMIT]}
    relative = logit / max(largest, 1.0)
    return Parity(source, len(inputs), score, logit, relative, len(changed), len(saturated))


# --- the images of the proof --------------------------------------------------------------------


def real_images(card: Card, on: Sequence[str] = (), run: Path | None = None) -> tuple[Array, str]:
    """Up to `IMAGES` model inputs [N, C, H, W], and whose images they are.

    on: image files, folders of images, or data sets as training takes them. Without any: of a run
    what it was trained on, where that is still there; else the two photographs that come with
    scikit-learn, whole and in quarters. Damaged images of a folder or a data set are passed over.
    Raises InputError where there is none.
    """
    prepare = card.preprocess
    if on:
        found = [x for place in on for x in _inputs(place, prepare)]
        chosen = [found[i] for i in _spread(len(found))]
        return np.stack(chosen), ", ".join(on)
    data = card.recipe.get("data_path")
    if run is not None and (run / "run.json").exists() and isinstance(data, str):
        with contextlib.suppress(InputError):  # moved or changed since
            return np.stack(_inputs(data, prepare)), data
    return np.stack([prepare(x) for x in _photographs()]), "scikit-learn's photographs"


def _inputs(place: str, prepare: Preprocess) -> list[Array]:
    """Some images of a place, prepared; those that cannot be read are passed over."""
    folder = os.path.isdir(place)
    if not folder and is_image(place):
        return [prepare(place)]
    reads: list[Callable[[], ImageLike]]
    try:
        split = open_split(place, None, None, 0, "auto")[1]
        reads = [partial(split.image, i, prepare.channels) for i in _spread(len(split))]
    except InputError:  # no data set, but perhaps a folder of images
        names = walk(Path(place)) if folder else []
        if not names:
            raise
        reads = [partial(os.path.join, place, names[i]) for i in _spread(len(names))]
    found = []
    for read in reads:
        with contextlib.suppress(DecodeError):
            found.append(prepare(read()))
    if not found:
        raise InputError(f"{harmless(place)}: no image that can be read")
    return found


def _spread(n: int) -> list[int]:
    """Up to `IMAGES` positions in n, from the first to the last."""
    return [int(i) for i in np.unique(np.linspace(0, n - 1, min(n, IMAGES)).astype(int))]


def _photographs() -> Iterator[Array]:
    """Two photographs of 427 x 640 pixels, each followed by its quarters: uint8 [H, W, 3]."""
    try:
        from sklearn.datasets import load_sample_images

        found = load_sample_images().images
    except ImportError as error:
        raise missing_part("export without --on", "export", error) from None
    for image in found:
        y, x = image.shape[0] // 2, image.shape[1] // 2
        yield image
        yield from (image[:y, :x], image[:y, x:], image[y:, :x], image[y:, x:])


# --- the network as a graph ---------------------------------------------------------------------


def scales(net: ResNet) -> dict[str, tuple[str, Tensor, Tensor]]:
    """By convolution: the batch norm that alone takes its output, as scale and shift [K], float64.

    A blur in between changes nothing: its kernel sums to 1 for each channel by itself. The norms
    of a pre-activation unit's input, and the last one, follow sums and are not here; but for the
    first unit's, which takes what the CIFAR stem's convolution gives.
    """
    modules = dict(net.named_modules())
    pairs = []
    if isinstance(net.conv1, nn.Sequential):
        pairs = [("conv1.0", "conv1.1"), ("conv1.3", "conv1.4")]
        last = "conv1.6"
    else:
        last = "conv1"
    late = net.arch.order == "pre"  # a unit's first norm comes before its first convolution
    if not late:
        pairs.append((last, "bn1"))
    elif net.arch.stem == "cifar":  # no pool in between
        pairs.append((last, "layer1.0.bn1"))
    for unit, module in net.units().items():
        pools = isinstance(module.pool, nn.MaxPool2d)  # a negative scale does not pass a maximum
        pairs += [(f"{unit}.conv{i}", f"{unit}.bn{i + late}") for i in range(1 + pools, 4)]
        shortcut = modules.get(f"{unit}.downsample")
        n = len(shortcut) if isinstance(shortcut, nn.Sequential) else 0
        pairs.append((f"{unit}.downsample.{n - 2}", f"{unit}.downsample.{n - 1}"))
    found = {}
    for conv, norm in pairs:
        bn = modules.get(norm)
        if isinstance(modules.get(conv), nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
            mean, var = (bn.get_buffer(f"running_{name}").double() for name in ("mean", "var"))
            scale = bn.weight.detach().double() / torch.sqrt(var + bn.eps)
            found[conv] = norm, scale, bn.bias.detach().double() - mean * scale
    return found


def fold(net: ResNet) -> ResNet:
    """A copy for inference whose convolutions do the work of the batch norms right after them.

    The products are taken in float64 and rounded once, so that each weight is the float32 nearest
    to the true one. The state dict of the copy has fewer norms and more biases.
    """
    folded = copy.deepcopy(net).eval()
    for name, (norm, scale, shift) in scales(net).items():
        conv = folded.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        weight = conv.weight.detach().double() * scale[:, None, None, None]
        conv.weight = nn.Parameter(weight.float(), requires_grad=False)
        conv.bias = nn.Parameter(shift.float(), requires_grad=False)
        parent, _, child = norm.rpartition(".")
        setattr(folded.get_submodule(parent), child, nn.Identity())
    return folded


def to_onnx(net: ResNet, card: Card, store: Store = "float32") -> onnx.ModelProto:
    """The network as an ONNX model with the card in its metadata; see `export`.

    It is the same for the same network and versions, and names no folder of this computer: the card
    in it is `without_places`.
    """
    height, width = card.preprocess.size
    folded = fold(net)
    with _quiet("onnxscript", "onnx_ir"):  # they tell of each rewriting
        program = torch.onnx.export(
            folded,
            (torch.zeros(2, card.preprocess.channels, height, width),),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    if store == "float16":
        _halve(model, net, folded)
    model.ir_version = IR
    model.producer_name, model.producer_version = "skipway", __version__
    model.metadata_props.add(key=METADATA_KEY, value=without_places(card).to_json())
    return model


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Warnings only of these loggers."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip(model: onnx.ModelProto) -> None:
    """Take out what the exporter noted: lines of source and the places of files."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value in (*graph.input, *graph.output):
        value.ClearField("metadata_props")


def _halve(model: onnx.ModelProto, net: ResNet, folded: ResNet) -> None:
    """Store the weights [K, ...] in float16, to be made float32 again when the file is loaded.

    What a norm scales them by stays apart, in float32: a product rounded to float16 would be
    another weight, so the network of float16 weights would not be the one that is kept. What the
    exporter has made of a weight, where it has, stays as it is.
    """
    from onnx import TensorProto, helper, numpy_helper

    own, given, factors = net.state_dict(), folded.state_dict(), scales(net)
    first, tensors = [], []
    for tensor in model.graph.initializer:
        name = tensor.name
        as_given = name in given and np.array_equal(numpy_helper.to_array(tensor), given[name])
        if not as_given or len(tensor.dims) < 2:
            tensors.append(tensor)
            continue
        half = own[name].numpy().astype(np.float16)
        tensors.append(numpy_helper.from_array(half, f"{name}.half"))
        factor = factors.get(name.removesuffix(".weight"))
        whole = name if factor is None else f"{name}.whole"
        first.append(helper.make_node("Cast", [f"{name}.half"], [whole], to=TensorProto.FLOAT))
        if factor is not None:
            scale = factor[1].float().numpy().reshape(-1, *[1] * (half.ndim - 1))
            tensors.append(numpy_helper.from_array(scale, f"{name}.scale"))
            first.append(helper.make_node("Mul", [whole, f"{name}.scale"], [name]))
    nodes = [*first, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(tensors)
    model.graph.node.extend(nodes)
