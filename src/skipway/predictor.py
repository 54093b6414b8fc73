"""Images in, predictions out, whatever the model is kept in."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from skipway import shipped
from skipway.answers import Prediction, best_classes
from skipway.architecture import Architecture, name_of
from skipway.card import METADATA_KEY, Card, parse_card, read_card, tell_assumed
from skipway.errors import InputError, harmless, missing_part
from skipway.files import is_hub_name, weight_file
from skipway.images import DecodeError, ImageLike, plain_preprocess
from skipway.machine import cores
from skipway.tensor_names import task_of_names, tensor_names

if TYPE_CHECKING:
    import torch
    from torch import nn

    from skipway.resnet import ResNet

log = logging.getLogger("skipway")

Array = npt.NDArray[Any]


class NotFinite(InputError):
    """A model whose outputs are no finite numbers."""


class Engine(Protocol):
    """Runs a model: float32 [B, C, H, W] to logits [B, K]."""

    def __call__(self, x: Array) -> Array: ...


class Predictor:
    """A model with its card; made by `load`.

    Takes paths, encoded bytes, PIL images and uint8 or uint16 arrays [H, W] or [H, W, C].
    """

    def __init__(self, engine: Engine, card: Card, origin: str, any_size: bool = False) -> None:
        self.card, self.origin, self.any_size = card, origin, any_size
        self._engine = engine

    def at_size(self, size: int) -> Predictor:
        """This model on square inputs of another size in pixels (1906.06423). Raises InputError
        where it has one size."""
        if not self.any_size:
            raise InputError(
                f"--size {size}: {harmless(self.origin)} is ONNX, which runs at one size\n"
                "Give the run or the weight file that it was made from."
            )
        try:
            preprocess = self.card.preprocess.at_size(size)
        except ValueError as error:
            raise InputError(f"--size {size}: {harmless(self.origin)}: {error}") from None
        card = self.card.model_copy(update={"preprocess": preprocess})
        return Predictor(self._engine, card, self.origin, self.any_size)

    @property
    def classes_known(self) -> bool:
        """As `Card.classes_known`."""
        return self.card.classes_known

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index of the output."""
        return self.card.classes

    def run(self, x: Array) -> Array:
        """Logits, float32 [B, K], from what the card's preprocessing gave: float32 [B, C, H, W].

        They are the network's own; `calibrated` makes them those that probabilities come from.
        Raises NotFinite.
        """
        logits = self._engine(x)
        if not np.isfinite(logits).all():
            raise NotFinite(f"{harmless(self.origin)}: its outputs are not finite numbers")
        return logits

    def calibrated(self, logits: Array) -> Array:
        """Logits [B, K] over the card's temperature, in float64, which keeps their order."""
        return np.asarray(logits, np.float64) / self.card.temperature

    def __call__(self, image: ImageLike, top: int = 5) -> Prediction:
        """The `top` most probable classes of one image. Raises DecodeError."""
        return next(self.stream([image], top, skip=False))

    def stream(
        self, images: Iterable[ImageLike], top: int = 5, batch_size: int = 32, skip: bool = True
    ) -> Iterator[Prediction]:
        """Predictions in the order of the images.

        An image that cannot be read gives a prediction with `error` where `skip`, else raises
        DecodeError.
        """
        batch: list[tuple[str, Array | DecodeError]] = []
        for image in images:
            name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else ""
            try:
                batch.append((name, self.card.preprocess(image)))
            except DecodeError as error:
                if not skip:
                    raise
                batch.append((name, error))
            if len(batch) == batch_size:
                yield from self._answers(batch, top)
                batch = []
        yield from self._answers(batch, top)

    def _answers(self, batch: list[tuple[str, Array | DecodeError]], top: int) -> list[Prediction]:
        inputs = [x for _, x in batch if not isinstance(x, DecodeError)]
        logits = self.run(np.stack(inputs)) if inputs else np.zeros((0, len(self.classes)))
        scores = iter(best_classes(self.calibrated(logits), self.classes, top))
        return [
            Prediction(name, (), str(x))
            if isinstance(x, DecodeError)
            else Prediction(name, next(scores))
            for name, x in batch
        ]


def load(
    model: str | os.PathLike[str],
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Predictor:
    """A predictor from a run, a weight file, an exported ONNX file, or a name: of a model that
    ships with Skipway, or of weights that a hub has.

    threads: of computation; None leaves torch's as they are, and ONNX Runtime takes the cores that
    this process may use. device: cpu, cuda or cuda:N. precision: float32 or bf16.
    ONNX files are told by content and run without torch. So do the models that ship, in float32 on
    the cpu; elsewhere they run in torch as weight files do.
    A weight file without a card gets ImageNet's normalisation and, with a thousand outputs of a
    network for such images, its class names, else numbers; see `Predictor.classes_known`. What is
    assumed so is logged. Raises InputError.
    """
    check_device_name(device)
    source = _source(model, plain=(device, precision) == ("cpu", "float32"))
    if isinstance(source, Path) and is_onnx(source):
        predictor = onnx_predictor(source, threads, device, precision)
        tell_assumed(predictor.card, predictor.origin)
        return predictor
    try:
        net, card = open_network(source, threads)
        return torch_predictor(net, card, str(source), device, precision)
    except ImportError as error:
        what = harmless(model)
        if os.fspath(model) in shipped.NAMES:
            what += f" with --device {device} and --precision {precision}"
        raise missing_part(what, "train", error) from None


def _source(model: str | os.PathLike[str], plain: bool) -> str | Path:
    """The file that MODEL stands for, or a hub's name as it is; `plain`: ONNX would serve."""
    if is_hub_name(model):
        return os.fspath(model)
    path = weight_file(model)
    name = os.fspath(model)
    if plain and name in shipped.NAMES and path == shipped.file(name, ".safetensors"):
        return shipped.file(name, ".onnx")
    return path


def is_onnx(path: Path) -> bool:
    """Whether a file is to be read as ONNX: its content says so, or its suffix and the content
    does not contradict. Raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise InputError(f"{harmless(path)}: {error.strerror}") from None
    if start[5:] == b"\0\0\0{" or start.startswith((b"PK\x03\x04", b"\x80")):
        return False  # safetensors, PyTorch's archive and its older pickle, whatever the name
    # A protocol buffer has no mark of its own; ONNX's first field is the number of its version.
    return path.suffix.lower() == ".onnx" or start.startswith(b"\x08")


def torch_source(model: str | os.PathLike[str], why: str) -> str | Path:
    """The weight file that MODEL stands for, or a hub's name as it is. Raises InputError, for an
    ONNX file too, of which `why` says what it lacks."""
    source = os.fspath(model) if is_hub_name(model) else weight_file(model)
    if not isinstance(source, str) and is_onnx(source):
        raise InputError(f"{harmless(source)}: {why}")
    return source


def task_of(model: str | os.PathLike[str]) -> str:
    """The task of MODEL, as far as its card tells, or the names of its tensors; that of all others
    is to classify."""
    if is_hub_name(model):
        return "classify"
    path = weight_file(model)
    if is_onnx(path):
        return "classify"
    card = None
    with contextlib.suppress(InputError):  # what reads the tensors says more of what is wrong
        card = read_card(path)
    return task_of_names(tensor_names(path)) if card is None else card.task


def onnx_predictor(
    path: Path, threads: int | None = None, device: str = "cpu", precision: str = "float32"
) -> Predictor:
    """A predictor from an exported file; see `load`."""
    name = harmless(path)
    if precision != "float32":
        raise InputError(
            f"--precision {harmless(precision)}: {name} is ONNX, which runs in float32\n"
            "Give the run or the weight file that it was made from."
        )
    session = _session(path, threads, device)
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise InputError(
            f"{name}: an ONNX file without Skipway's card, which names its classes and how images "
            "are prepared\nMake it from a run or a weight file with: skipway export MODEL"
        )
    card = parse_card(text, str(path))
    shape = (card.preprocess.channels, *card.preprocess.size)
    taken = [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()]
    given = [(o.name, o.type, o.shape[1:]) for o in session.get_outputs()]
    wanted = (INPUT, "tensor(float)", [*shape])
    if taken != [wanted] or given != [(OUTPUT, "tensor(float)", [len(card.classes)])]:
        raise InputError(
            f"{name}: its card and its graph disagree: the card says {INPUT} [batch, "
            f"{', '.join(map(str, shape))}] to {OUTPUT} [batch, {len(card.classes)}]\n"
            f"The graph takes {_shown(session.get_inputs())} and gives "
            f"{_shown(session.get_outputs())}"
        )

    def engine(x: Array) -> Array:
        if x.dtype != np.float32 or x.ndim != 4 or x.shape[1:] != shape:
            raise InputError(
                f"{name}: takes float32 [batch, {', '.join(map(str, shape))}], not {x.dtype} "
                f"{[*x.shape]}"
            )
        try:
            logits: Array = session.run([OUTPUT], {INPUT: x})[0]
        except MemoryError:
            raise
        except Exception as error:  # ONNX Runtime has a type of its own for each kind of failure
            raise InputError(f"{name}: cannot be run: {_reason(error)}") from None
        if logits.shape != (len(x), len(card.classes)):
            raise InputError(f"{name}: gives {[*logits.shape]} for {len(x)} images")
        return logits

    return Predictor(engine, card, str(path))


INPUT, OUTPUT = "images", "logits"
"""Of an exported classifier: float32 [batch, channels, height, width] as the card's preprocessing
gives them, and float32 [batch, classes]."""


def _session(path: Path, threads: int | None, device: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.log_severity_level = 4  # what goes wrong is told once, by the exception
    place = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if place is None:
        raise InputError(f"--device {harmless(device)}: an ONNX file runs on cpu, cuda or cuda:N")
    provider, settings = "CPUExecutionProvider", {}
    if device != "cpu":
        provider, settings = "CUDAExecutionProvider", {"device_id": place[1] or "0"}
    refusal = InputError(
        f"--device {harmless(device)}: this ONNX Runtime cannot use it; its package "
        "'onnxruntime-gpu' can\nOr give the run or the weight file, which run in torch."
    )
    if provider not in onnxruntime.get_available_providers():
        raise refusal
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=[(provider, settings)]
        )
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(
            f"{harmless(path)}: not an ONNX file that can be run: {_reason(error)}"
        ) from None
    if session.get_providers()[0] != provider:  # it goes on with the cpu where CUDA fails
        raise refusal
    return session


def _reason(error: Exception) -> str:
    """What ONNX Runtime says, without its code in front and the file's name."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return harmless(re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text))[:150]


def _shown(values: Iterable[Any]) -> str:
    few = [f"{harmless(v.name)[:40]} {harmless(v.shape)[:60]}" for v in list(values)[:3]]
    return ", ".join(few) or "nothing"


def open_network(source: str | os.PathLike[str], threads: int | None = None) -> tuple[ResNet, Card]:
    """A weight file, or a hub's name, as a network in evaluation mode, with its card.

    Where it came without one, the card says so in ``provenance["assumed"]``, and what was assumed
    is logged. threads: of torch, None leaves them as they are. Raises InputError.
    """
    ready_torch(threads)  # what is missing is torch, and not what needs it

    from skipway.weights import load_model

    net, card, report = load_model(source)
    if card is None:
        for line in report.lines():
            log.warning("%s", line)
        card = _bare_card(net.arch, report.dialect)
    tell_assumed(card, source)
    return net, card


def ready_torch(threads: int | None) -> None:
    """Torch as models are run in it: so many threads, None leaves them, and small numbers as 0."""
    import torch

    torch.set_flush_denormal(True)  # before the thread pools start: they inherit it
    if threads is not None:
        torch.set_num_threads(threads)


def torch_predictor(
    net: ResNet, card: Card, origin: str, device: str = "cpu", precision: str = "float32"
) -> Predictor:
    """A predictor that runs the network in torch; see `load`."""
    return Predictor(torch_engine(net, device, precision), card, origin, any_size=True)


def check_device_name(device: str) -> None:
    """Raise InputError for what is no name of a device; there it need not be."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise InputError(f"--device {harmless(device)}: give cpu, cuda or cuda:N")


def on_device(net: nn.Module, device: str) -> nn.Module:
    """The network there, channels last. Raises InputError for a device that is not there."""
    import torch

    check_device_name(device)
    try:
        return net.to(device).to(memory_format=torch.channels_last)
    except (RuntimeError, AssertionError) as error:
        reason = harmless(str(error).splitlines()[0])[:100]
        raise InputError(f"--device {harmless(device)}: {reason}") from None


def autocast(device: str | torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """bf16 as a context, nothing for float32. Raises InputError for any other precision."""
    import torch

    if precision == "float32":
        return contextlib.nullcontext()
    if precision != "bf16":
        raise InputError(f"precision {harmless(precision)}: give float32 or bf16")
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def torch_engine(net: nn.Module, device: str, precision: str) -> Engine:
    """What runs a module that takes one batch in torch; see `load`. Raises InputError for a device
    that is not there."""
    import torch

    net, half = on_device(net, device), autocast(device, precision)

    @torch.inference_mode()
    def engine(x: Array) -> Array:
        batch = torch.from_numpy(x).contiguous(memory_format=torch.channels_last).to(device)
        with half:
            outputs: Array = net(batch).float().cpu().numpy()
        return outputs

    return engine


def _bare_card(arch: Architecture, dialect: str) -> Card:
    """For weights that came without one."""
    from skipway.peers import imagenet_classes

    size, channels = arch.input_size, arch.in_channels
    classes = tuple(str(i) for i in range(arch.num_classes))
    usual = arch.stem in ("imagenet", "deep") and dialect in ("torchvision", "timm resnetv2")
    if usual and len(classes) == 1000:  # as many come from nothing else
        classes = imagenet_classes()
    return Card(
        model=name_of(arch),
        architecture=arch,
        classes=classes,
        preprocess=plain_preprocess(size, channels),
        provenance={"assumed": ["classes", "preprocess"]},
    )
