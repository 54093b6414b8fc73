"""Weights: reading files, a strict merge into a network that says what it did, and saving.

Nothing that a file holds is run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from skipway.architecture import UNSEEN, Architecture, architecture
from skipway.card import METADATA_KEY, Card, header_bytes, parse_card, read_header, tell_assumed
from skipway.dialects import Difference, State, Translated, guess_architecture, translate
from skipway.embedders import EmbeddingNet, build_embedder
from skipway.errors import InputError, harmless
from skipway.files import PEER_FILES, atomic_write, is_hub_name, weight_file
from skipway.heads import HEADS, STANDS_ON
from skipway.hub import fetch
from skipway.peer_heads import described
from skipway.peers import NOT_STATED, folder_card
from skipway.resnet import ResNet, backbone_of
from skipway.segmenters import Segmenter, build_segmenter
from skipway.tensor_names import opcodes

log = logging.getLogger("skipway")
_Net = TypeVar("_Net", bound=nn.Module)

# Where checkpoints keep their tensors. Averaged weights (EMA) come first: they are the ones that
# were meant for use.
_EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema", "shadow")
_WRAPPERS = (*_EMA, "state_dict", "model_state_dict", "model", "net")
# What checkpoints of torchvision's and timm's training scripts hold beside their tensors: settings,
# paths, NumPy's numbers.
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_BESIDE = (
    "argparse.Namespace",
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
)


def read_state(path: str | os.PathLike[str]) -> tuple[State, Card | None]:
    """The tensors of a weight file on the CPU, and its card where it has one.

    Takes a run (its best weights), safetensors and PyTorch's own files, told apart by content, a
    folder that transformers or timm saved, whose config.json becomes the card, and a hub's name
    (see `hub.fetch`). torchvision's detectors and segmenters get a card from their tensors (see
    `peer_heads.described`). In a checkpoint the state dict is found inside its usual wrappers, or
    in the one other that holds tensors; the averaged (EMA) one is preferred. Raises InputError for
    missing, damaged and other files, for a pickle that needs code to run, and for a config.json
    that means another kind of network.
    """
    if not is_hub_name(path):
        return _read_file(weight_file(path))
    name = os.fspath(path)
    fetched = fetch(name)
    state, card = _read_file(fetched.path)
    state.origin = harmless(name)
    if fetched.card is not None:
        state.described_by, card = name, fetched.card
    if card is not None:
        known: dict[str, Any] = {"provenance": fetched.provenance | card.provenance}
        if fetched.licence is not None and card.licence == NOT_STATED:
            known["licence"] = fetched.licence
        card = card.model_copy(update=known)
    return state, card


def _read_file(path: Path) -> tuple[State, Card | None]:
    name = harmless(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from None
    if not start:
        raise InputError(f"{name}: an empty file")
    card: Card | None = None
    if start[5:] == b"\0\0\0{":  # the header's length, then JSON
        text = read_header(path).get("__metadata__", {}).get(METADATA_KEY)
        try:
            state = State(safetensors.torch.load_file(path))
        except (safetensors.SafetensorError, OSError, KeyError, ValueError, RuntimeError):
            size = path.stat().st_size
            raise InputError(f"{name}: damaged or truncated safetensors ({size:,} bytes)") from None
        card = None if text is None else parse_card(text, str(path))
    elif start.startswith((b"PK\x03\x04", b"\x80")):
        state = _read_pickle(path, name)
    elif start == b"version h":
        raise InputError(f"{name}: a Git LFS pointer; fetch the file itself: git lfs pull")
    elif start.lstrip()[:5].lower() in (b"<html", b"<!doc"):
        raise InputError(f"{name}: a web page, and no weights; fetch the file anew")
    else:
        raise InputError(f"{name}: not a weight file; give safetensors or PyTorch's .pt, .pth, .th")
    if not state:
        raise InputError(f"{name}: holds no tensors")
    state.origin = name
    if card is None and path.name in PEER_FILES:
        card = folder_card(path.parent)
        state.described_by = "config.json"
    if card is None and (found := described(state)):
        state, card = found
        state.described_by = "names"
    return state, card


def _read_pickle(path: Path, name: str) -> State:
    try:
        unread = torch.serialization.safe_globals([(_Unread, each) for each in _BESIDE])
        # An open file: of a path, torch.load would look at the suffix.
        with warnings.catch_warnings(), unread, path.open("rb") as file:
            warnings.simplefilter("ignore")
            found = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        told = re.search(r"GLOBAL (\S+)", str(error))
        code = told[1] if told else next(_globals(path), "")
        if not code:
            raise InputError(f"{name}: not a weight file, or damaged") from None
        raise InputError(
            f"{name}: this pickle wants to run code ({harmless(code)[:80]}), which is refused.\n"
            "If you trust it, open it where it was made and save its tensors alone: "
            "torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as error:  # damaged archives raise all kinds of errors
        detail = str(error).split("\n")[0]
        if "central directory" in detail:  # which a zip has at its end
            raise InputError(f"{name}: not a weight file, or cut short; fetch it anew") from None
        raise InputError(
            f"{name}: not a weight file, or damaged: {harmless(detail)[:100]}"
        ) from None
    return _chosen(found, name)


class _Unread:
    """Stands for what a checkpoint holds beside its tensors: takes all that is said of it, keeps
    nothing and runs nothing."""

    def __new__(cls, *_: object) -> _Unread:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def _globals(path: Path) -> Iterator[str]:
    """What a pickle would import, apart from what tensors need and what is left unread."""
    strings: list[str] = []
    for opcode, argument in opcodes(path):
        if isinstance(argument, str) and opcode != "GLOBAL":
            strings.append(argument)
        if "GLOBAL" not in opcode:
            continue
        found = (argument or " ".join(strings[-2:])).replace(" ", ".")
        package = found.split(".")[0]
        if package not in ("torch", "collections", "_codecs") and found not in _BESIDE:
            yield found


def _chosen(found: object, name: str) -> State:
    """The weights in a checkpoint, averaged ones first, with notes on what was chosen. Raises
    InputError where it cannot be told which tensors are meant."""
    choices, notes = _candidates(found), []
    if isinstance(found, Mapping) and not any(where for where, _ in choices):
        inner = {key: _candidates(value) for key, value in found.items() if isinstance(key, str)}
        most = max(map(_most, [*inner.values(), choices]), default=0)
        others = [key for key in inner if most and _most(inner[key]) >= most / 2]
        if len(others) > 1:
            raise InputError(
                f"{name}: holds tensors in {_few(others)}; which of them are meant?\n"
                "Save those alone: torch.save(torch.load(FILE)[KEY], OTHER)"
            )
        for key in others:
            choices, notes = inner[key], [f"weights taken from {harmless(key)[:40]!r}"]
    # A wrapper may hold but a counter or two beside the weights.
    large = [(where, tensors) for where, tensors in choices if len(tensors) >= _most(choices) / 2]
    state = State()
    for where, tensors in large:
        state = State(tensors)
        if set(_EMA).isdisjoint(where.split(".")):
            break
        whole = max((tensors for _, tensors in large), key=_statistics)
        if _statistics(tensors) == _statistics(whole):
            notes.append(f"averaged (EMA) weights taken, from {where!r}")
            break
        overlaid = _overlaid(tensors, whole)
        if overlaid is not None:  # of parameters alone: used with the network's own statistics
            state = State(overlaid)
            notes.append(
                f"averaged (EMA) weights taken, from {where!r}; running statistics, which they "
                "lack, are those of the network beside them"
            )
            break
        notes.append(f"averaged (EMA) weights in {where!r} left: they have no running statistics")
    state.notes = tuple(notes)
    return state


def _candidates(
    found: object, where: str = "", depth: int = 0
) -> list[tuple[str, dict[str, Tensor]]]:
    """The dicts of tensors inside a checkpoint's usual wrappers, averaged ones first, each with the
    wrappers' names that lead to it."""
    if not isinstance(found, Mapping) or depth > 3:
        return []
    choices = []
    for key in _WRAPPERS:
        choices += _candidates(found.get(key), f"{where}.{key}".strip("."), depth + 1)
    tensors = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
    return [*choices, (where, tensors)] if tensors else choices


def _most(choices: list[tuple[str, dict[str, Tensor]]]) -> int:
    """Tensors in the largest."""
    return max((len(tensors) for _, tensors in choices), default=0)


def _statistics(tensors: Iterable[str]) -> int:
    """How many norms have running statistics."""
    return sum(key.endswith("running_mean") for key in tensors)


def _overlaid(
    averaged: Mapping[str, Tensor], whole: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """A network's tensors with the averaged ones in place of its own, whatever prefixes they have.
    None where they are not of this network."""
    try:
        mean, own = translate(averaged), translate(whole)
    except InputError:  # told with the file's name where it is loaded
        return None
    if any(
        k not in own.tensors or own.tensors[k].shape != t.shape for k, t in mean.tensors.items()
    ):
        return None
    return {**whole} | {own.names[key]: averaged[mean.names[key]] for key in mean.names}


def _disagreement(
    problem: str, difference: Difference, own: Mapping[str, Tensor], file: Translated
) -> InputError:
    """Both sides in three lines: the tensors at fault, else the ones left over."""
    if difference.shapes:
        where = "In"
        here = [f"{key} {list(own[key].shape)}" for key in difference.shapes]
        there = [f"{file.names[k]} {list(file.tensors[k].shape)}" for k in difference.shapes]
    else:
        where, here, strange = "Only in", difference.missing, difference.strange
        there = [file.names[k] for k in sorted(difference.extra, key=lambda k: k not in strange)]
    guess = guess_architecture(file)
    advice = f"; the file fits {guess[0]}" if guess and guess[0] != "custom" else ""
    return InputError(
        f"{file.origin}: {problem}{advice}.\n"
        f"{where} the file: {_few(there)}\n{where} the network: {_few(here)}"
    )


def _few(names: Iterable[str], most: int = 3) -> str:
    every = [harmless(name)[:80] for name in names]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return (", ".join(every[:most]) or "nothing") + more


def _build(arch: Architecture) -> ResNet:
    try:
        return ResNet(arch)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"this architecture cannot be built: {harmless(error)[:200]}") from None


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did; the text is for people."""

    origin: str
    """The file, or "weights"."""
    dialect: str
    """Whose names the file has."""
    share: float
    """Loaded part of the learnable parameters without the classifier, 0 to 1."""
    loaded: tuple[str, ...]
    """The network's tensors that came from the file."""
    made_anew: tuple[tuple[str, str], ...]
    """The network's tensors that did not and keep their initialisation, each with the reason."""
    ignored: tuple[str, ...]
    """The file's keys that have no place in the network."""
    notes: tuple[str, ...] = ()
    """What was adapted, chosen or assumed."""

    def lines(self) -> list[str]:
        """The report, one matter a line."""
        lines = [
            f"{self.origin}: {len(self.loaded)} tensors loaded, {self.share:.1%} of the parameters "
            f"before the classifier ({self.dialect} names)"
        ]
        for reason in dict.fromkeys(reason for _, reason in self.made_anew):
            keys = _few(key for key, why in self.made_anew if why == reason)
            lines.append(f"made anew: {keys} ({reason})")
        if self.ignored:
            lines.append(f"ignored: {_few(self.ignored)}")
        return lines + [f"note: {note}" for note in self.notes]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def load_weights(net: ResNet, state: Mapping[str, Tensor], *, minimum: float = 0.5) -> LoadReport:
    """Put the tensors of a state dict, in any known dialect, into a network and say what was done.

    Two adaptations are made, and reported: another number of input channels (`_fold`), and another
    number of classes, for which the classifier keeps its initialisation. Absent layers keep theirs
    too. Every other disagreement in shape, a part of another network, a norm without running
    statistics, a tensor that is not finite, and a share of the learnable parameters (without the
    classifier) below `minimum` raise InputError; the network is then as it was. Half and double
    precision become the network's own.
    """
    file = translate(state)
    _check_first_unit(file)
    own, tensors = net.state_dict(), dict(file.tensors)
    made_anew, notes = [], [*file.notes]
    classifier = own.get("fc.weight", torch.empty(()))  # what has other heads lacks it
    here, there = classifier.shape, tensors.get("fc.weight", classifier).shape
    if here and here != there and here[1:] == there[1:]:
        reason = f"the file has {there[0]} classes, this network {here[0]}"
        for key in ("fc.weight", "fc.bias"):
            tensors.pop(key, None)
            made_anew.append((key, reason))
    first = "conv1.0.weight" if net.arch.stem == "deep" else "conv1.weight"
    here, there = own[first].shape, tensors.get(first, own[first]).shape
    if here != there and there[1:2] > (0,) and here[:1] + here[2:] == there[:1] + there[2:]:
        tensors[first] = _fold(_usable(tensors[first], first, file), here[1])
        notes.append(f"{first} adapted from {there[1]} to {here[1]} input channels")
    difference = Difference.between(own, tensors)
    body = {k: p.numel() for k, p in net.named_parameters() if not k.startswith("fc.")}
    share = sum(n for k, n in body.items() if k in tensors) / sum(body.values())
    problem = ""
    if difference.shapes:
        problem = f"{len(difference.shapes)} tensors have other shapes in this network"
    elif share < minimum:
        problem = f"it holds {share:.1%} of this network's parameters, not the {minimum:.0%} needed"
    elif difference.strange:
        problem = f"{len(difference.strange)} of its tensors are parts of another network"
    if problem:
        raise _disagreement(problem, difference, own, file)
    for key in difference.missing:
        if ".running_" in key and key.rpartition(".")[0] + ".weight" in tensors:
            raise InputError(
                f"{file.origin}: has no {key}: its norms keep no running statistics, as group norm"
                " does, and this network's batch norms need them"
            )
    loaded = [key for key in own if key in tensors]
    _fill(own, {key: tensors[key] for key in loaded}, file)
    anew = {key for key, _ in made_anew}
    made_anew += [(key, "not in the file") for key in difference.missing if key not in anew]
    if file.dialect == "akamaster" and net.arch.shortcut != "A-split":
        notes.append("shortcut: these weights were trained with A-split, this network has another")
    ignored = tuple(file.names[key] for key in difference.extra)
    return LoadReport(
        file.origin, file.dialect, share, tuple(loaded), tuple(made_anew), ignored, tuple(notes)
    )


def _check_first_unit(file: Translated) -> None:
    """Raise InputError for timm's pre-activation in basic units, whose tensors fit: its first unit
    adds its input where the paper of 2016 adds it activated. With a projection both do the same."""
    parts = ("layer1.0.conv3.", "layer1.0.downsample.")
    if file.dialect == "timm resnetv2" and not any(k.startswith(parts) for k in file.tensors):
        raise InputError(
            f"{file.origin}: timm's pre-activation network of basic units (resnetv2_18, _34) adds "
            "its first unit's\ninput as it is, and Skipway's adds it activated, as the paper of "
            "2016 does: its answers would be wrong.\nUse it in timm. Of resnetv2, those of "
            "bottlenecks (resnetv2_50 and deeper) are taken."
        )


def load_start(net: nn.Module, state: State, card: Card | None) -> LoadReport:
    """Put what `read_state` gave into a network with or without heads, of any task, to be trained
    on, and say what was done.

    Its residual network is loaded as by `load_weights`; so the file may be of another task. Of the
    heads, each tensor that the file has under the same name in the same shape comes from it; the
    others keep their initialisation, as those do that count another number of classes.
    """
    body = backbone_of(net)
    name = next(name for name, module in net.named_modules() if module is body)
    at = name and f"{name}."
    on = "" if card is None or card.task == "classify" else STANDS_ON[HEADS[card.task]]
    inner = State({key.removeprefix(on): state[key] for key in state if key.startswith(on)})
    inner.origin, inner.described_by, inner.notes = state.origin, state.described_by, state.notes
    report = load_weights(body, inner)
    report = dataclasses.replace(report, notes=(*report.notes, *_unlike(card, body.arch)))
    heads = {key: tensor for key, tensor in state.items() if on and not key.startswith(on)}
    every = net.state_dict() if at else {}  # a network alone has all that it takes
    own = {key: tensor for key, tensor in every.items() if not key.startswith(at)}
    difference = Difference.between(own, heads)
    file = Translated(report.dialect, heads, {key: key for key in heads}, state.origin, ())
    loaded = [key for key in own if key in heads and key not in difference.shapes]
    _fill(own, {key: heads[key] for key in loaded}, file)
    anew = [(key, "of another shape in the file") for key in difference.shapes]
    anew += [(key, "not in the file") for key in difference.missing]
    return dataclasses.replace(
        report,
        loaded=report.loaded + tuple(loaded),
        made_anew=report.made_anew + tuple(anew),
        ignored=report.ignored + tuple(difference.extra),
    )


def _unlike(card: Card | None, arch: Architecture) -> list[str]:
    """What the tensors of a file do not show, and a network has otherwise than its card says."""
    if card is None:
        return []
    pairs = ((name, getattr(card.architecture, name), getattr(arch, name)) for name in UNSEEN)
    return [
        f"{name}: trained with {then!r}, this network has {now!r}"
        for name, then, now in pairs
        if then != now
    ]


def _fill(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], file: Translated) -> None:
    """Copy tensors of a file into a network's own, in place: all, or where one cannot be used
    none. Raises InputError."""
    usable = {
        # norms count their batches in whole numbers
        key: _usable(tensor, key, file) if own[key].is_floating_point() else tensor
        for key, tensor in tensors.items()
    }
    with torch.no_grad():
        for key, tensor in usable.items():
            own[key].copy_(tensor)


def _fold(weight: Tensor, channels: int) -> Tensor:
    """A first convolution [K, C, h, w] for another number of channels, [K, channels, h, w].

    Channels are dealt in turn: to fewer by adding up (three to one: the sum), to more by repeating,
    each repeat divided by their number. An image whose channels are equal gets the same response.
    timm adapts alike, but scales all repeats by C / channels, which keeps it only for multiples.
    """
    old, weight = weight.shape[1], weight.float()
    if channels < old:
        return torch.stack([weight[:, i::channels].sum(1) for i in range(channels)], 1)
    dealt = torch.arange(channels) % old
    repeats = torch.bincount(dealt)[dealt]
    return weight[:, dealt] / repeats[None, :, None, None]


def _usable(tensor: Tensor, name: str, file: Translated) -> Tensor:
    """The tensor, if it is a plain one of finite numbers."""
    where = f"{file.origin}: {harmless(file.names[name])[:80]}"
    dense = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta)
    if not (dense and tensor.is_floating_point()):
        raise InputError(f"{where} is no dense floating-point tensor ({tensor.dtype})")
    if not bool(torch.isfinite(tensor.float()).all()):
        raise InputError(f"{where} holds NaN or infinity; take an earlier checkpoint")
    return tensor


def create_model(
    name: str,
    num_classes: int | None = None,
    in_channels: int = 3,
    weights: str | os.PathLike[str] | None = None,
    *,
    seed: int | None = None,
    **fields: Any,
) -> ResNet:
    """The network of that row of `ARCHITECTURES`, fields replaced, in training mode.

    `num_classes`: None takes the weight file's number, and the row's where there is no file.
    `weights`: a run, a weight file or a hub's name, see `read_state`; what was loaded is logged to
    "skipway", as a warning where it was not all plain. It takes images, float32 [B, in_channels, H,
    W], normalised, and gives logits [B, num_classes]. `seed`: the initialisation depends on it
    alone and leaves the global generator as it was; None draws from the global generator. Raises
    InputError for unknown names, fields and values and for files that do not fit."""
    state, card = (None, None) if weights is None else read_state(weights)
    row = architecture(name, in_channels=in_channels, **fields)
    notes = []
    if state is not None:
        file = translate(state)
        if num_classes is None:
            num_classes = next(iter(file.tensors.get("fc.weight", torch.empty(())).shape), None)
        if file.dialect == "akamaster" and row.shortcut == "A" and "shortcut" not in fields:
            fields["shortcut"] = "A-split"
            notes.append("shortcut 'A-split' taken, as these weights were trained with it")
    if num_classes is not None:
        fields["num_classes"] = num_classes
    arch = architecture(name, in_channels=in_channels, **fields)
    with contextlib.nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        net = _build(arch)
    if state is None:
        return net
    report = load_weights(net, state)
    notes += _unlike(card, arch)
    report = dataclasses.replace(report, notes=report.notes + tuple(notes))
    plain = not (report.made_anew or report.ignored or report.notes)
    log.log(logging.INFO if plain else logging.WARNING, "%s", report)
    return net


def load_model(path: str | os.PathLike[str]) -> tuple[ResNet, Card | None, LoadReport]:
    """What `read_state` takes as a network ready to use (eval mode), its card if any, the report.

    The architecture is the card's, or without a card what `guess_architecture` finds; the report
    notes what was assumed. Raises InputError where card and tensors disagree, where no network
    fits, where a tensor is absent and where the file has parts beside the network
    (`Translated.unplaced`).
    """
    state, card = read_state(path)
    if card is not None and card.task != "classify":
        raise InputError(f"{state.origin}: its task is {card.task}, where a classifier is needed")
    file = translate(state)
    notes: list[str] = []
    if card:
        name, arch = card.model, card.architecture
        difference = Difference([], ["more units"], [])
        outline: dict[str, Tensor] = {}
        if sum(arch.depths) <= len(state):  # else not even worth outlining
            with torch.device("meta"):  # shapes without memory
                outline = _build(arch).state_dict()
            difference = Difference.between(outline, file.tensors)
        if difference.shapes or difference.missing or difference.strange:
            told = f"its {state.described_by}'s architecture ({harmless(name)[:40]})"
            problem = f"{told} and its tensors disagree"
            raise _disagreement(problem, difference, outline, file)
    else:
        guess = guess_architecture(file)
        if guess is None:
            raise InputError(
                f"{file.origin}: its tensors ({_few(state)}) fit no known network.\n"
                "See the known ones with: skipway models"
            )
        name, arch = guess
        taken = (
            f"{arch.block} units {arch.depths}, no row of the table," if name == "custom" else name
        )
        notes.append(f"no card: taken for {taken} after its tensors' names and shapes")
        notes += _assumed(arch)
    with torch.random.fork_rng(devices=[]):
        net = _build(arch)
    report = load_weights(net, state, minimum=1.0)
    if report.made_anew:
        absent = _few(key for key, _ in report.made_anew)
        heads = [file.names[key] for key in file.tensors if key.startswith("fc.")]
        there = f"; of a classifier it has {_few(heads)}" if heads else ""
        raise InputError(f"{file.origin}: lacks {absent}; predicting needs every tensor{there}")
    if parts := file.unplaced(net.state_dict()):
        raise InputError(
            f"{file.origin}: has trained parts that its network lacks, so its answers would not be "
            f"the file's own: {_few(file.names[key] for key in parts)}\n"
            "Use it where it was trained, or train on from it: skipway train DATA --weights FILE"
        )
    return net.eval(), card, dataclasses.replace(report, notes=report.notes + tuple(notes))


def _assumed(arch: Architecture) -> Iterator[str]:
    """What of a network was assumed, as names and shapes of tensors do not show it."""
    if arch.shortcut in ("A", "A-split"):
        yield f"shortcut {arch.shortcut} assumed: A, A-split and plain look alike"
    if arch.block == "bottleneck":
        yield f"stride in the {arch.stride_in} assumed: 3x3 and 1x1 look alike"
    if arch.stem_stride > 1:
        yield "no blur before sub-sampling assumed: nets with it look alike"
    elif arch.stem == "cifar":
        yield "no max-pool behind the 3x3 stem assumed: nets with it look alike"


def load_detector(path: str | os.PathLike[str]) -> tuple[nn.Module, Card]:
    """A detector that Skipway wrote, or torchvision's with FPN on a residual network, ready to use
    (eval mode), and its card. Raises InputError where it is none, or where card and tensors
    disagree."""
    from skipway.detectors import build_detector  # torchvision's detection takes a second

    state, card = read_state(path)
    if card is None or card.detector is None:
        raise InputError(
            f"{state.origin}: no detector; skipway train --task detect makes one\n"
            "Of torchvision's, those with FPN on residual networks are taken."
        )
    arch, config, classes = card.architecture, card.detector, len(card.classes)
    return _filled(lambda: build_detector(arch, config, classes), state, card), card


def load_segmenter(path: str | os.PathLike[str]) -> tuple[Segmenter, Card]:
    """A segmenter that Skipway wrote, or torchvision's FCN or DeepLabV3 on a residual network,
    ready to use (eval mode), and its card. Raises InputError where it is none, or where card and
    tensors disagree."""
    state, card = read_state(path)
    if card is None or card.segmenter is None:
        raise InputError(
            f"{state.origin}: no segmenter; skipway train --task segment makes one\n"
            "Of torchvision's, FCN and DeepLabV3 on residual networks are taken."
        )
    arch, config, classes = card.architecture, card.segmenter, len(card.classes)
    return _filled(lambda: build_segmenter(arch, config, classes), state, card), card


def load_embedding(path: str | os.PathLike[str]) -> tuple[EmbeddingNet, Card]:
    """A network for vectors that Skipway wrote, ready to use (eval mode), and its card. Raises
    InputError where it is none, or where card and tensors disagree."""
    state, card = read_state(path)
    if card is None or card.embedder is None:
        raise InputError(
            f"{state.origin}: no network for vectors; skipway train --task embed makes one"
        )
    arch, config, classes = card.architecture, card.embedder, len(card.classes)
    return _filled(lambda: build_embedder(arch, config, classes), state, card), card


def _filled(build: Callable[[], _Net], state: State, card: Card) -> _Net:
    """A network with heads, with all tensors of a file; what its card assumes is logged."""
    with torch.device("meta"):  # shapes without memory
        difference = Difference.between(build().state_dict(), state)
    wrong = difference.shapes + difference.missing + difference.extra
    if wrong and state.described_by == "names":  # no one said that it is one of ours
        kind, taken = "detectors", "Faster R-CNN, Mask R-CNN, RetinaNet and FCOS with FPN"
        if card.task == "segment":
            kind, taken = "segmenters", "FCN and DeepLabV3"
        told = f"has parts that Skipway's {kind} lack" if difference.extra else "has other parts"
        raise InputError(
            f"{state.origin}: {told}: {_few(difference.extra or wrong)}\n"
            f"Of torchvision's {kind}, {taken} on residual networks are taken."
        )
    if wrong:
        raise InputError(
            f"{state.origin}: its {state.described_by} and its tensors disagree: "
            f"{harmless(min(wrong))[:80]}\n"
            "One of them was changed after the training: take the file as it was saved then."
        )
    for key, tensor in state.items():
        if not bool(torch.isfinite(tensor.float()).all()):
            raise InputError(
                f"{state.origin}: {harmless(key)[:80]} holds NaN or infinity; take an earlier "
                "checkpoint"
            )
    with torch.random.fork_rng(devices=[]):
        net = build()
    net.load_state_dict(net.state_dict() | state)
    tell_assumed(card, state.origin)
    return net.eval()


def save_weights(
    path: str | os.PathLike[str],
    net_or_state: nn.Module | Mapping[str, Tensor],
    card: Card | None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write safetensors with the card in the metadata, whole or not at all (`atomic_write`).

    The metadata has ``format: pt`` too, which transformers asks for.

    `dtype` converts the floating-point tensors. The same tensors and card give the same bytes.
    """
    state = net_or_state.state_dict() if isinstance(net_or_state, nn.Module) else net_or_state
    tensors = {}
    for name, tensor in state.items():
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        # The format knows neither strides (channels last) nor shared memory.
        tensors[name] = torch.empty(tensor.shape, dtype=kind).copy_(tensor.detach())
    metadata = {"format": "pt"}
    if card is not None:
        metadata[METADATA_KEY] = card.to_json()
    data = safetensors.torch.save(tensors)
    end = 8 + int.from_bytes(data[:8], "little")
    # Written here, as their writer puts several entries in an order of chance.
    header = header_bytes({"__metadata__": metadata} | json.loads(data[8:end]))
    with atomic_write(path) as file:
        file.write(header)
        file.write(memoryview(data)[end:])
