"""Whose names a weight file has, those tensors under this package's names, and what they fit.

A dialect is found from the keys of a file, never from its name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skipway.architecture import ARCHITECTURES, Architecture
from skipway.errors import InputError, harmless
from skipway.resnet import ResNet

# What DistributedDataParallel, torch.compile, AveragedModel and users' modules put before names.
_PREFIXES = (
    "module.", "_orig_mod.", "model.", "net.", "backbone.", "ema.", "resnet.",
    "timm_model.",  # transformers' wrapper of timm's networks
)  # fmt: skip
_COUNTER = "num_batches_tracked"
_COUNTERS = (_COUNTER, "total_ops", "total_params")  # the latter two are thop's
_NET = re.compile(r"(conv1|bn1|norm|layer\d+)\.")


class State(dict[str, Tensor]):
    """Tensors by name as a file holds them, with the file's name and what was chosen in it."""

    origin = "weights"
    described_by = "card"
    """What says which architecture they are of."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Dialect:
    """How others name the tensors of the same networks."""

    name: str
    marker: str
    """Matches the beginning of names that only this dialect has."""
    rules: tuple[_Rule, ...] = ()
    """Applied in order to their names, and in reverse order to ours."""
    prefix: str = ""
    """Before every name of theirs but the classifier's."""
    conv_head: bool = False
    """The classifier is a 1x1 convolution."""


@dataclass(frozen=True)
class _Rule:
    """A part of a name in two spellings: at its beginning, or anywhere where it starts with a dot.

    `#` stands for a whole number, which is by `shift` larger in this package's names.
    """

    theirs: str
    ours: str
    shift: int = 0

    def to_ours(self, name: str) -> str:
        return _respelt(name, self.theirs, self.ours, self.shift)

    def to_theirs(self, name: str) -> str:
        return _respelt(name, self.ours, self.theirs, -self.shift)


def _respelt(name: str, before: str, after: str, shift: int) -> str:
    pattern = re.escape(before).replace(r"\#", r"(\d+)")
    if not before.startswith("."):
        pattern = "^" + pattern

    def replacement(found: re.Match[str]) -> str:
        return after.replace("#", str(int(found[1]) + shift)) if "#" in after else after

    return re.sub(pattern, replacement, name)


_DIALECTS = (
    _Dialect(
        "timm resnetv2",
        r"stages\.\d+\.blocks\.",
        (
            _Rule("stem.conv.", "conv1."),
            _Rule("stem.conv1.", "conv1.0."),
            _Rule("stem.norm1.", "conv1.1."),
            _Rule("stem.conv2.", "conv1.3."),
            _Rule("stem.norm2.", "conv1.4."),
            _Rule("stem.conv3.", "conv1.6."),
            _Rule("stages.#.blocks.", "layer#.", 1),
            _Rule(".norm#.", ".bn#."),
            _Rule(".downsample.conv.", ".downsample.0."),
            _Rule("head.fc.", "fc."),
        ),
        conv_head=True,
    ),
    _Dialect(
        "Hugging Face",
        r"encoder\.stages\.\d+\.layers\.",
        (
            _Rule("embedder.embedder.convolution.", "conv1."),
            _Rule("embedder.embedder.normalization.", "bn1."),
            _Rule("encoder.stages.#.layers.", "layer#.", 1),
            _Rule(".shortcut.convolution.", ".downsample.0."),
            _Rule(".shortcut.normalization.", ".downsample.1."),
            _Rule(".layer.#.convolution.", ".conv#.", 1),
            _Rule(".layer.#.normalization.", ".bn#.", 1),
            _Rule("classifier.1.", "fc."),
        ),
        prefix="resnet.",
    ),
    _Dialect(
        "kuangliu",
        r"linear\.|.*\.shortcut\.\d",
        (_Rule(".shortcut.", ".downsample."), _Rule("linear.", "fc.")),
    ),
    # The names of this package's own files and of timm's resnet too.
    _Dialect("torchvision", r"layer1\.0\.conv1\."),
)


@dataclass(frozen=True)
class Translated:
    """A file's tensors under this package's names, with the names that the file has for them."""

    dialect: str
    """Whose names the file has, or "unknown"."""
    tensors: dict[str, Tensor]
    """By this package's names."""
    names: dict[str, str]
    """The file's keys, by this package's names."""
    origin: str
    notes: tuple[str, ...]

    def unplaced(self, own: Mapping[str, Tensor]) -> list[str]:
        """The tensors, by this package's names, that a network's answers would lack: those without
        a place in its state dict, but for counters and what only training or measuring uses."""
        extra = Difference.between(own, self.tensors).extra
        left = [key for key in extra if not (key.endswith(_COUNTERS) or _TRAINING.match(key))]
        return [key for key in left if self.tensors[key].ndim]  # counters have no dimensions


_TRAINING = re.compile(r"(aux\w*|criterion|loss\w*)\.")
"""Heads and losses beside the classifier."""


def translate(state: Mapping[str, Tensor]) -> Translated:
    """A state dict in any known dialect under this package's names.

    Keys of no known dialect stay as they are, without shared prefixes. Raises InputError where two
    keys mean the same tensor.
    """
    if not isinstance(state, State):
        state = State(state)
    bare = _without_prefixes(state)
    known = (d for d in _DIALECTS if any(re.match(d.marker, name) for name in bare))
    dialect = next(known, _Dialect("unknown", ""))
    # timm's pre-activation nets with a deep stem also pool before the projection (shortcut D).
    pooled = "stem.conv3.weight" in bare
    names: dict[str, str] = {}
    for name, key in bare.items():
        for rule in dialect.rules:
            name = rule.to_ours(name)
        if pooled:
            name = name.replace(".downsample.0.", ".downsample.1.")
        if name in names:
            both = f"{harmless(names[name])[:60]} and {harmless(key)[:60]}"
            raise InputError(f"{state.origin}: {both} are the same tensor, {harmless(name)[:60]}")
        names[name] = key
    notes = state.notes
    head = _inner_classifier({name: state[key] for name, key in names.items()})
    if head is not None:
        names |= {f"fc.{part}": names.pop(f"{head}.{part}") for part in ("weight", "bias")}
        notes = (*notes, f"{head} taken for the classifier")
    tensors = {name: state[key] for name, key in names.items()}
    fc = tensors.get("fc.weight")
    if fc is not None and fc.ndim == 4 and fc.shape[2:] == (1, 1):  # a classifier as a convolution
        tensors["fc.weight"] = fc.flatten(1)
    found = dialect.name
    if (
        found == "kuangliu"
        and {"layer3.0.conv1.weight", "fc.weight"} <= tensors.keys()
        and not any(name.startswith("layer4.") or ".downsample." in name for name in tensors)
    ):
        found = "akamaster"  # the paper's CIFAR nets, half of shortcut A's zeros on each side
    return Translated(found, tensors, names, state.origin, notes)


def _inner_classifier(tensors: Mapping[str, Tensor]) -> str | None:
    """Where the classifier lies in a head such as ``Sequential(Dropout(), Linear(…))``: ``fc.1``.

    None where the head has other tensors too, which would be lost.
    """
    heads = {name: tensor for name, tensor in tensors.items() if name.startswith("fc.")}
    found = next(
        (m for m in (re.fullmatch(r"(fc\.\d+)\.weight", name) for name in heads) if m), None
    )
    if found is None or heads.keys() != {f"{found[1]}.weight", f"{found[1]}.bias"}:
        return None
    return found[1] if heads[found[0]].ndim == 2 else None


def spell(dialect: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of this package under the names of a dialect: the inverse of `translate`.

    `dialect` is one of "torchvision", "timm resnetv2", "Hugging Face" and "kuangliu". Whether it
    has such a network is for the caller to know.
    """
    rules = next(d for d in _DIALECTS if d.name == dialect)
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        head = name.startswith("fc.")
        if rules.conv_head:
            if name == "fc.weight":
                tensor = tensor[:, :, None, None]
            name = name.replace(".downsample.1.", ".downsample.0.")  # see `pooled` in translate
        for rule in reversed(rules.rules):
            name = rule.to_theirs(name)
        found[name if head else rules.prefix + name] = tensor
    return found


def _without_prefixes(state: Iterable[str]) -> dict[str, str]:
    """The state's keys by their bare names: prefixes that (nearly) all share are taken off."""
    names = {key: key for key in state}
    while True:
        for prefix in _PREFIXES:
            hits = sum(name.startswith(prefix) for name in names)
            shorter = {name.removeprefix(prefix): key for name, key in names.items()}
            if hits and hits >= 0.9 * len(names) and len(shorter) == len(names):
                names = shorter
                break
        else:
            return names


@dataclass(frozen=True)
class Difference:
    """Where a network and a file do not agree, by this package's names."""

    shapes: list[str]
    """Tensors of both, in different shapes."""
    missing: list[str]
    """The network's alone, apart from counters of batches."""
    extra: list[str]
    """The file's alone."""

    @classmethod
    def between(cls, own: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> Difference:
        """Of a network's state dict and a file's tensors."""
        return cls(
            [k for k in own if k in file and file[k].shape != own[k].shape],
            [k for k in own if k not in file and not k.endswith(_COUNTER)],
            [k for k in file if k not in own],
        )

    @property
    def strange(self) -> list[str]:
        """Extra tensors that can only be parts of another network."""
        return [k for k in self.extra if _NET.match(k) and not k.endswith(_COUNTERS)]


def guess_architecture(file: Translated) -> tuple[str, Architecture] | None:
    """The row of `ARCHITECTURES` that a file's tensors fit, and that row with the file's own
    classes, input channels and shortcut; "custom" and the network that they fit where no row does
    and the classifier is there. None where there is no such network.

    Keys and shapes cannot tell everything: a bottleneck is taken to stride in its 3x3 where both
    rows exist (v1.5), and a net without projections to have shortcut A, or A-split where the
    names are those of akamaster's CIFAR checkpoints.
    """
    try:
        fields, replaced = _fields(file)
        rows = [
            (name, dataclasses.replace(row, **replaced))
            for name, row in sorted(
                # stable: rows with the same shortcut first, else the table's order
                ARCHITECTURES.items(),
                key=lambda item: item[1].shortcut != replaced["shortcut"],
            )
            if all(getattr(row, field) == value for field, value in fields.items())
        ]
        if rows:
            name, arch = rows[0]
        elif "fc.weight" not in file.tensors:  # of a file that was cut, the first stages fit too
            return None
        else:
            size = 224 if fields["stem"] in ("imagenet", "deep") else 32
            name, arch = "custom", Architecture(**fields, **replaced, input_size=size)
        with torch.device("meta"):  # shapes without memory
            own = ResNet(arch).state_dict()
        difference = Difference.between(own, file.tensors)
    except (LookupError, ValueError, ZeroDivisionError, RuntimeError):
        return None  # tensors of these names with other ranks and sizes than a network's
    missing = [key for key in difference.missing if not key.startswith("fc.")]
    strange = difference.strange
    if not rows:  # what is no known network is this one only where it has nothing else
        strange = [key for key in file.unplaced(own) if not key.startswith("fc.")]
    return None if difference.shapes or missing or strange else (name, arch)


def _fields(file: Translated) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields that a row must have after keys and shapes, and those that are replaced in it."""
    shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    deep = "conv1.6.weight" in shapes
    stem = shapes["conv1.6.weight" if deep else "conv1.weight"]
    units = [m for m in (re.match(r"layer(\d+)\.(\d+)\.conv1\.weight$", k) for k in shapes) if m]
    stages = range(1, max(int(m[1]) for m in units) + 1)
    bottleneck = "layer1.0.conv3.weight" in shapes
    outputs = [shapes[f"layer{i}.0.conv{3 if bottleneck else 2}.weight"][0] for i in stages]
    widths = tuple(width // 4 for width in outputs) if bottleneck else tuple(outputs)
    inner, per_group = shapes["layer1.0.conv2.weight"][:2]
    squeezed = shapes.get("layer1.0.se.fc1.weight")
    fields = {
        "block": "bottleneck" if bottleneck else "basic",
        "depths": tuple(sum(int(m[1]) == i for m in units) for i in stages),
        "widths": widths,
        "stem": "deep" if deep else {2: "whitened", 3: "cifar"}.get(stem[2], "imagenet"),
        "stem_width": stem[0],
        "order": "pre" if "norm.weight" in shapes else "post",
        "groups": inner // per_group if bottleneck else 1,
        "base_width": per_group * 64 // widths[0] if bottleneck else 64,
        "squeeze": outputs[0] // squeezed[0] if squeezed else 0,
    }
    projections = {k: s for k, s in shapes.items() if ".downsample." in k and len(s) == 4}
    shortcut = "B"
    if not projections:
        shortcut = "A-split" if file.dialect == "akamaster" else "A"
    elif all(".downsample.1." in k for k in projections):
        shortcut = "D"
    elif len(projections) == len(units):
        shortcut = "C"
    replaced = {
        "shortcut": shortcut,
        "in_channels": shapes["conv1.0.weight" if deep else "conv1.weight"][1],
    }
    if "fc.weight" in shapes:
        replaced["num_classes"] = shapes["fc.weight"][0]
    return fields, replaced
