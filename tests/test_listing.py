"""`skipway settings` and `recipes`: all that a training takes, as its user writes it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from commands import Answer, call
from skipway.architecture import FIELDS_FROM_DATA, Architecture
from skipway.config import FLAGS, RunConfig, keys, parse_settings, resolve
from skipway.recipes import RECIPES, recipe
from skipway.settings import ARCHITECTURE, in_words, settings

BASE: dict[str, Any] = {"data_path": "x", "recipe": "modern"}
EVERY = settings()


def heads(answer: Answer) -> list[str]:
    """The lines that paragraphs stand below."""
    assert answer.code == 0, answer.err
    return [line for line in answer.out.splitlines() if not line.startswith(" ")]


def test_every_key_is_told_and_explained() -> None:
    fields = [f.name for f in dataclasses.fields(Architecture)]
    of_networks = [f"{ARCHITECTURE}.{n}" for n in fields if n not in (*FIELDS_FROM_DATA, "source")]
    expected = [key for key in keys() if key not in ("data_path", ARCHITECTURE)]
    told = [one.key for one in EVERY]
    assert len(told) == len({*told})
    assert {*told} == {*expected, *of_networks}
    for one in EVERY:
        assert one.meaning.endswith("."), one.key
        assert one.takes, one.key
    assert {one.flag for one in EVERY} - {None} == {f"--{f.replace('_', '-')}" for f in FLAGS}


def test_the_defaults_as_they_are_written_are_the_defaults() -> None:
    lines = heads(call("settings"))
    assert len(lines) == len(EVERY)
    written = [line.partition("  (or --")[0].replace(" = ", "=", 1) for line in lines]
    defaults = [text for text in written if "=" in text]
    assert {line for line in written if "=" not in line} == {
        f"{one.key}, by {one.decided_by}" for one in EVERY if one.decided_by is not None
    }
    assert resolve(BASE, parse_settings(defaults)) == RunConfig(**BASE)


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_sets_can_be_set(name: str) -> None:
    answer = call("recipes", name)
    first, *lines = heads(answer)
    assert first.split(" (")[0] == name
    given = parse_settings(line.replace(" = ", "=", 1) for line in lines)
    assert resolve(BASE, given) == resolve(BASE, recipe(name).settings)
    words = " ".join(answer.out.split())
    assert f"{recipe(name).source}. Expected: {recipe(name).expected}." in words
    value = call("recipes", name, "--json").value
    assert value == json.loads(json.dumps([{"name": name, **dataclasses.asdict(recipe(name))}]))


def test_all_recipes() -> None:
    assert [line.split(" (")[0] for line in heads(call("recipes"))] == list(RECIPES)
    assert [row["name"] for row in call("recipes", "--json").value] == list(RECIPES)


@pytest.mark.parametrize("asked", ["optim", "model.architecture", "seed", "schedule.length", ""])
def test_keys_and_groups_of_them(asked: str) -> None:
    found = call("settings", *([asked] if asked else []), "--json").value
    expected = [key for key in (one.key for one in EVERY) if f"{key}.".startswith(asked)]
    assert [row["key"] for row in found] == expected
    assert found == json.loads(json.dumps([dataclasses.asdict(one) for one in settings(asked)]))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("settings", "optim.lrr"), "Did you mean 'optim.lr'?"),
        (("settings", "model.architecture.shortcuts"), "'model.architecture.shortcut'?"),
        (("settings", "lr"), "Did you mean 'optim.lr'?"),
        (("settings", "opti\x1b"), "unknown setting 'opti"),
        (("settings", "data_path"), "unknown setting 'data_path'. Keys: recipe, task"),
        (("recipes", "moderm"), "Did you mean 'modern'?"),
    ],
)
def test_what_is_not_there(asked: tuple[str, ...], said: str) -> None:
    refused = call(*asked)
    assert refused.code == 2
    assert said in refused.error[0]
    assert "\x1b" not in refused.err


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (bool, "true or false"),
        (int | None, "a whole number or none"),
        (tuple[float, ...], "a list: a number"),
    ],
)
def test_types_in_words(kind: Any, words: str) -> None:
    assert in_words(TypeAdapter(kind).json_schema()) == words


def test_values_and_bounds_in_words() -> None:
    told = {one.key: one.takes for one in EVERY}
    assert told["optim.kind"] == "sgd, adamw, lamb or muon"
    assert told["optim.lr"] == "a number above 0"
    assert told["optim.momentum"] == "a number at least 0, below 1"
    assert told["optim.clip"] == "a number above 0 or none"
    assert told["model.freeze"] == "all or a whole number at least 0, at most 6"
    assert told["augment.area"] == "a list of 2: a number or none"
    assert told["augment.flip"] == "true, false or alternate"
    assert told["schedule.length"] == "as 5 epochs, 400 steps or 10 %"
    assert told["seed"] == "a whole number at least 0"
