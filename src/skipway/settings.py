"""The settings of a run as people are told them: what each takes, its default and what it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from skipway.architecture import FIELDS_FROM_DATA, Architecture
from skipway.config import FLAGS, RunConfig, flag_of, meant
from skipway.errors import InputError, harmless

ARCHITECTURE = "model.architecture"
_UNSET = ("data_path", *(f"{ARCHITECTURE}.{name}" for name in (*FIELDS_FROM_DATA, "source")))
"""Keys that nobody sets: DATA is the first, the data decides sizes, and the network its source."""
_LARGEST = 1e9
"""A bound above which no value is given by mistake; it is not told."""
_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "null": "none",
    "array": "a list",
}
_BOUNDS = {
    "minimum": "at least {:g}",
    "exclusiveMinimum": "above {:g}",
    "maximum": "at most {:g}",
    "exclusiveMaximum": "below {:g}",
}


@dataclass(frozen=True)
class Setting:
    """A key that ``skipway train --set`` and ``skipway.train(settings=…)`` take."""

    key: str
    """Dotted."""
    flag: str | None
    """The option that sets it too, as ``--lr``."""
    default: Any
    """As JSON. The recipe, and what is chosen from the data, come before it."""
    decided_by: str | None
    """Where there is no default: what decides."""
    takes: str
    """Its values, in words."""
    meaning: str


def settings(asked: str = "") -> list[Setting]:
    """The setting of that key, or those of that group of keys, or all, in the order of RunConfig.

    Raises InputError for an unknown key, offering the nearest.
    """
    every = [*_of_run()]
    found = [one for one in every if asked in ("", one.key) or one.key.startswith(f"{asked}.")]
    if not found:
        known = [one.key for one in every]
        raise InputError(f"unknown setting {harmless(asked)!r}.{meant(asked, known)}")
    return found


def _of_run() -> Iterator[Setting]:
    schema = RunConfig.model_json_schema()
    network = TypeAdapter(Architecture).json_schema()["properties"]
    for field in network.values():
        field.pop("default", None)  # it is of one network, and each has its own
    schema["$defs"]["Architecture"] = {"properties": network}
    model = schema["$defs"]["ModelConfig"]["properties"]
    model["architecture"] = {"$ref": "#/$defs/Architecture"}
    return _of_group(schema["$defs"], schema["properties"], "")


def _of_group(
    groups: dict[str, Any], fields: dict[str, dict[str, Any]], prefix: str
) -> Iterator[Setting]:
    """The settings of the properties of a JSON schema, those of groups that it refers to too."""
    for name, field in fields.items():
        key = prefix + name
        if "$ref" in field:
            inner = groups[field["$ref"].rpartition("/")[2]]
            yield from _of_group(groups, inner["properties"], f"{key}.")
        elif key not in _UNSET:
            meaning = " ".join(field.get("description", "").split())
            deciding = "the network" if key.startswith(f"{ARCHITECTURE}.") else "task and data"
            yield Setting(
                key,
                flag_of(key) if key in FLAGS.values() else None,
                field.get("default"),
                None if "default" in field else deciding,
                in_words(field),
                meaning,
            )


def in_words(schema: dict[str, Any]) -> str:
    """What values a JSON schema allows."""
    if "examples" in schema:
        return f"as {_either(schema['examples'])}"
    return _either([part for one in schema.get("anyOf", [schema]) for part in _parts(one)])


def _parts(schema: dict[str, Any]) -> list[Any]:
    """The same of a schema without alternatives, as those between which "or" stands."""
    if "enum" in schema or "const" in schema:
        values: list[Any] = schema.get("enum", [schema.get("const")])
        return values
    words, kind = _KINDS[schema["type"]], schema["type"]
    if kind == "boolean":
        return ["true", "false"]
    if kind == "array":
        each = in_words(schema.get("items") or schema["prefixItems"][0])
        n = schema.get("maxItems")
        return [f"{words} of {n}: {each}" if n else f"{words}: {each}"]
    bounds = [
        form.format(schema[name])
        for name, form in _BOUNDS.items()
        if name in schema and abs(schema[name]) <= _LARGEST
    ]
    return [" ".join([words, ", ".join(bounds)]).rstrip()]


def _either(values: list[Any]) -> str:
    *first, last = map(str, values)
    return f"{', '.join(first)} or {last}" if first else last
