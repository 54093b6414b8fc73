"""The card: all that it takes to use a weight file. Reading one needs no torch.

It travels in the metadata of the safetensors file under the key ``skipway`` and beside a run as
``card.json``.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from skipway.architecture import ARCHITECTURES, Architecture, name_of
from skipway.errors import InputError, harmless, plain_words
from skipway.files import atomic_write, is_hub_name
from skipway.heads import HEADS, DetectorConfig, EmbedderConfig, SegmenterConfig
from skipway.images import Preprocess

log = logging.getLogger("skipway")

METADATA_KEY = "skipway"


class Measured(BaseModel):
    """One metric with what it was measured on."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    value: float
    low: float | None = None
    """Lower end of the 95 % interval."""
    high: float | None = None
    split: str
    n: int
    """Images."""
    data: str
    """The data set as the user named it."""


class Card(BaseModel):
    """Architecture, task, class names, preprocessing, metrics, recipe, provenance, licence."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: Literal[1] = 1
    """Of this schema."""
    task: Literal["classify", "detect", "instance", "segment", "embed"] = "classify"
    model: str
    """The row of `ARCHITECTURES` that the architecture started from; any other text, as "custom",
    where that is not known."""
    architecture: Architecture
    classes: tuple[str, ...]
    """By index of the output."""
    detector: DetectorConfig | None = None
    """What stands on the network, of detect and instance."""
    segmenter: SegmenterConfig | None = None
    """The same, of segment."""
    embedder: EmbedderConfig | None = None
    """The same, of embed."""
    preprocess: Preprocess
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Divides the logits before they become probabilities (1706.04599, section 4.2)."""
    metrics: tuple[Measured, ...] = ()
    recipe: dict[str, JsonValue] = {}
    """The resolved configuration of the run."""
    provenance: dict[str, JsonValue] = {}
    """When, with which versions, from which weights and data."""
    licence: str = "not stated"

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        if len(self.classes) != self.architecture.num_classes:
            raise ValueError(
                f"{len(self.classes)} class names for {self.architecture.num_classes} outputs"
            )
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class name appears twice")
        for name in self.classes:
            if any("\ud800" <= char <= "\udfff" for char in name):
                raise ValueError(f"the class name {harmless(name)} is not valid Unicode")
        if self.preprocess.channels != self.architecture.in_channels:
            raise ValueError(
                f"preprocessing gives {self.preprocess.channels} channels, "
                f"the network takes {self.architecture.in_channels}"
            )
        for name in dict.fromkeys(HEADS.values()):
            own = HEADS.get(self.task) == name
            if (getattr(self, name) is not None) != own:
                lacks = f"the task {self.task} needs one" if own else f"not of the task {self.task}"
                raise ValueError(f"{name}: {lacks}")
        row = name_of(self.architecture)
        if self.model in ARCHITECTURES and row not in (self.model, "custom") and not self._changed:
            raise ValueError(
                f"model is {self.model}, but the architecture is that of {row}; write {row}, or "
                "custom"
            )
        return self

    @property
    def _changed(self) -> bool:
        """Whether the run replaced fields of the row, or began with weights that may have had."""
        return bool(self.setting("model.architecture", None) or self.setting("model.weights", None))

    @property
    def classes_known(self) -> bool:
        """Whether the class names came with the model; without, they are numbers, or where the
        outputs are as many as those of a usual data set its names."""
        return "classes" not in self.assumed

    @property
    def assumed(self) -> list[str]:
        """What the file that the model came in does not say, as classes and preprocess are."""
        found = self.provenance.get("assumed")
        return [str(name) for name in found] if isinstance(found, list) else []

    @property
    def assumptions(self) -> str:
        """What was taken for it, in words; empty where nothing was assumed."""
        first, last = (harmless(self.classes[i])[:40] for i in (0, -1))
        taken: dict[str, object] = {
            "classes": f"{len(self.classes):,}, {first!r} to {last!r}",
            "preprocess": self.preprocess.said,
        }
        if self.detector is not None:
            own = self.detector.frozen_eps
            taken["frozen_eps"] = self.architecture.bn_eps if own is None else own
        if self.segmenter is not None:
            taken["rates"] = ", ".join(map(str, self.segmenter.rates))
        return "; ".join(f"{name}: {taken[name]}" for name in self.assumed if name in taken)

    def setting(self, key: str, default: Any) -> Any:
        """A setting of the run by its dotted key; `default` where the card has none."""
        value: Any = self.recipe
        for part in key.split("."):
            value = value.get(part, default) if isinstance(value, dict) else default
        return value

    def to_json(self, indent: int | None = None) -> str:
        """The card as JSON text."""
        return json.dumps(self.model_dump(mode="json"), indent=indent, ensure_ascii=False)


def tell_assumed(card: Card, origin: str | os.PathLike[str]) -> None:
    """Log what was assumed of a model that is to be used, as its scores hang on it."""
    if card.assumptions:
        log.warning("%s: assumed, as the file does not say: %s", harmless(origin), card.assumptions)


def parse_card(text: str, origin: str) -> Card:
    """A card from its JSON text. Raises InputError naming `origin` and the field at fault."""
    try:
        return Card.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}." for part in first["loc"])[:-1]
        said = plain_words(first["msg"])
        message = harmless(f"{where}: {said}" if where else said)[:200]
        raise InputError(f"{harmless(origin)}: the card is not valid: {message}") from None


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON header of a safetensors file: tensors by name, and ``__metadata__``.

    Raises InputError where the file is not a whole safetensors file.
    """
    path = Path(path)
    bad = InputError(f"{harmless(path)}: not a safetensors file, or damaged")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, 100_000_000):
                raise bad
            header = json.loads(file.read(length))
    except OSError as error:
        raise InputError(f"{harmless(path)}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise bad from None
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise bad
    return header


def read_card(path: str | os.PathLike[str]) -> Card | None:
    """The card of a safetensors file or a ``card.json``; None where a weight file has none."""
    path = Path(path)
    if path.suffix == ".json":
        try:
            return parse_card(path.read_text("utf-8"), str(path))
        except (OSError, ValueError) as error:
            raise InputError(f"{harmless(path)}: cannot be read: {harmless(error)}") from None
    text = read_header(path).get("__metadata__", {}).get(METADATA_KEY)
    return None if text is None else parse_card(text, str(path))


def without_places(card: Card) -> Card:
    """The card with the last part of each path in place of the whole: what is published tells
    nothing of the folders of who trained."""
    recipe, provenance = card.recipe, dict(card.provenance)
    update: dict[str, Any] = {
        "metrics": tuple(
            m.model_copy(update={"data": last_part(m.data) or "data"}) for m in card.metrics
        )
    }
    if recipe:
        update["recipe"] = recipe | {"data_path": last_part(str(recipe.get("data_path", "")))}
        for group, key in (("model", "weights"), ("distill", "model")):
            settings = recipe.get(group)
            if isinstance(settings, dict) and isinstance(settings.get(key), str):
                update["recipe"][group] = settings | {key: last_part(str(settings[key]))}
    if isinstance(command := provenance.get("command"), str):
        provenance["command"] = _without_folders(command)
    calibrated = provenance.get("calibrated")
    if isinstance(calibrated, dict) and isinstance(calibrated.get("data"), str):
        provenance["calibrated"] = calibrated | {"data": last_part(str(calibrated["data"]))}
    return card.model_copy(update=update | {"provenance": provenance})


def _without_folders(command: str) -> str:
    """A command with the last part of each path in place of the whole."""
    before = ""

    def told(found: re.Match[str]) -> str:
        nonlocal before
        word = found[0]
        quote = word[0] if word[0] in "'\"" else ""
        bare = word.strip(quote or None)
        sets = before == "--set" or bare.startswith("--set=")
        before = bare
        names = re.match(r"(--[\w-]+=)?([a-z_.]+=)?" if sets else r"(--[\w-]+=)?", bare)
        start = names[0] if names else ""
        value = bare[len(start) :]
        inner = value[0] if value[:1] in ("'", '"') else ""
        return f"{quote}{start}{inner}{last_part(value.strip(inner or None))}{inner}{quote}"

    return _WORD.sub(told, command)


_WORD = re.compile(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""")
"""Of a command line."""


def last_part(text: str) -> str:
    """The last part of a path; other text, a hub's name among it, as it is."""
    if is_hub_name(text):
        return text
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1]


def header_bytes(header: dict[str, Any]) -> bytes:
    """The start of a safetensors file: the length of the header, and the header."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format's alignment of what follows
    return len(text).to_bytes(8, "little") + text


def copy_with_card(
    source: str | os.PathLike[str], target: str | os.PathLike[str], card: Card
) -> None:
    """Write a safetensors or ONNX file again with another card, all else as it is to the bit.

    The copy is whole or not there (`atomic_write`). Raises InputError.
    """
    source = Path(source)
    try:
        with source.open("rb") as file, atomic_write(target) as copy:
            length = file.read(9)
            if length[5:] == b"\0\0\0{":
                header = read_header(source)
                metadata = header.get("__metadata__", {}) | {METADATA_KEY: card.to_json()}
                copy.write(header_bytes(header | {"__metadata__": metadata}))
                file.seek(8 + int.from_bytes(length[:8], "little"))
                shutil.copyfileobj(file, copy)
                return
            file.seek(0)
            data = file.read()
            for number, field in _fields(data):
                if number != _METADATA or _entry_key(field) != METADATA_KEY.encode():
                    copy.write(field)
            pair = [METADATA_KEY.encode(), card.to_json().encode()]
            entry = b"".join(_delimited(i, text) for i, text in enumerate(pair, 1))
            copy.write(_delimited(_METADATA, entry))
    except OSError as error:
        raise InputError(f"{harmless(source)}: {error.strerror}") from None
    except (IndexError, ValueError):
        raise InputError(f"{harmless(source)}: not an ONNX file, or damaged") from None


_METADATA = 14
"""The number of ONNX's field ``metadata_props``, each an entry of key (1) and value (2)."""


def _fields(data: bytes) -> Iterator[tuple[int, memoryview]]:
    """The outermost fields of a protocol buffer in their order, and the number of each."""
    view, at = memoryview(data), 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 2:
            length, at = _varint(data, at)
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(kind)
        if at > len(data):
            raise ValueError(at)
        yield tag >> 3, view[start:at]


def _entry_key(field: memoryview) -> bytes:
    """The key of an entry, given with what stands before it."""
    data = bytes(field)
    _, at = _varint(data, 0)
    _, at = _varint(data, at)
    for number, inner in _fields(data[at:]):
        if number == 1:
            whole = bytes(inner)
            return whole[_varint(whole, 1)[1] :]
    return b""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A whole number and where it ends."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def _delimited(number: int, content: bytes) -> bytes:
    """A field of that number that holds bytes."""
    length, value = b"", len(content)
    while value > 127:
        length, value = length + bytes([value & 127 | 128]), value >> 7
    return bytes([number << 3 | 2]) + length + bytes([value]) + content
