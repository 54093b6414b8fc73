"""`skipway bench` on a small folder of benchmarks, and the table of the real ones."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from commands import call

ROOT = Path(__file__).parents[1]

INDEX = """
from dataclasses import dataclass, field
from typing import Any

@dataclass(frozen=True)
class Benchmark:
    claim: str
    minutes: float
    rows: Any
    file: str
    arguments: tuple = ()
    also: tuple = ()
    result: str = ""
    gpu: bool = False

def rows(result):
    ratio = result["ours"] / result["peer"]
    yield {
        "case": "speed", "ours": result["ours"], "peer": result["peer"], "ratio": ratio,
        "n": 5, "spread": [ratio - 1, ratio + 1], "bar": 2, "met": ratio >= 2,
    }

BENCHMARKS = {
    "fast": Benchmark("is fast", 1, rows, "file.py", ("fast", "6", "3")),
    "slow": Benchmark("is fast too", 2, rows, "file.py", ("slow", "4", "4")),
    "broken": Benchmark("works", 3, rows, "file.py", ("broken",)),
    "pictures": Benchmark(
        "reads", 4, rows, "file.py", ("kept", "9", "3", "{data}"), (("{timm}", "{timm}"),), "kept"
    ),
    "card": Benchmark("needs a card", 5, rows, "file.py", ("card", "9", "3"), gpu=True),
}
"""
FILE = """
import json, pathlib, sys
name, *numbers = sys.argv[1:]
print("noise on stdout")
results = pathlib.Path(__file__).parents[1] / "results"
results.mkdir(exist_ok=True)
row = {"ours": float(numbers[0]), "peer": float(numbers[1]), "machine": {"cpu": "abacus"}}
(results / f"{name}.json").write_text(json.dumps(row | {"arguments": numbers[2:]}))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "benchmarks"
    place.mkdir()
    (place / "index.py").write_text(INDEX)
    (place / "file.py").write_text(FILE)
    monkeypatch.setattr(shutil, "which", lambda name: None)  # no GPU
    return place


def bench(folder: Path, *words: str | Path) -> Any:
    return call("bench", "--folder", folder, *words)


def test_a_bar_that_is_met(folder: Path) -> None:
    answer = bench(folder, "fast", "--json")
    assert answer.code == 0
    (row,) = answer.value["rows"]
    assert row == {
        "name": "fast", "claim": "is fast", "case": "speed", "ours": 6, "peer": 3, "ratio": 2,
        "n": 5, "spread": [1, 3], "bar": 2, "met": True,
    }  # fmt: skip
    assert answer.value["machines"] == {"fast": {"cpu": "abacus"}}


def test_a_bar_that_is_not_met(folder: Path) -> None:
    answer = bench(folder, "fast", "slow")
    assert answer.code == 1
    head, fast, slow = answer.out.splitlines()
    assert head.split() == ["name", "case", "ours", "peer", "ratio", "n", "spread", "bar"]
    assert fast.split() == ["fast", "speed", "6", "3", "2", "5", "1", "to", "3", "2", "met"]
    assert slow.split() == ["slow", "speed", "4", "4", "1", "5", "0", "to", "2", "2", "NOT", "MET"]


def test_a_benchmark_that_breaks_off_is_not_met_and_the_others_are_run(folder: Path) -> None:
    (folder.parent / "results").mkdir()
    answer = bench(folder, "broken", "fast", "--json")
    assert answer.code == 1
    broken, fast = answer.value["rows"]
    assert (broken["case"], broken["met"]) == ("broke off with exit code 1", False)
    assert fast["met"] is True


def test_an_old_result_is_not_taken_for_a_new_one(folder: Path) -> None:
    results = folder.parent / "results"
    results.mkdir()
    old = results / "broken.json"
    old.write_text(json.dumps({"ours": 9, "peer": 3, "machine": {}}))
    os.utime(old, (0, 0))
    assert bench(folder, "broken").code == 1


def test_what_is_needed_and_not_there_is_left_out_and_refused_where_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = bench(folder, "--json")
    assert {row["name"] for row in answer.value["rows"]} == {"fast", "slow", "broken"}
    assert "pictures: left out, it needs --data" in answer.err
    assert "card: left out, it needs a GPU" in answer.err
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert [row["name"] for row in bench(folder, "card", "--json").value["rows"]] == ["card"]
    named = bench(folder, "pictures")
    assert (named.code, named.error) == (2, ["skipway: pictures needs --data"])


def test_where_nothing_can_be_run_no_bar_is_met(folder: Path) -> None:
    names = 'BENCHMARKS = {k: BENCHMARKS[k] for k in ("pictures", "card")}'
    (folder / "index.py").write_text(f"{INDEX}\n{names}\n")
    answer = bench(folder)
    assert (answer.code, answer.out) == (2, "")
    assert "none of the benchmarks can be run" in answer.error[-1]
    assert bench(folder, "--list").code == 0


def test_folders_that_are_given_reach_the_file(folder: Path, tmp_path: Path) -> None:
    def arguments(*words: str | Path) -> list[str]:
        assert bench(folder, "pictures", *words).code == 0
        return json.loads((tmp_path / "results" / "kept.json").read_text())["arguments"]

    data, timm = tmp_path / "a folder", tmp_path / "timm"
    data.mkdir()
    timm.mkdir()
    assert arguments("--data", data) == [str(data)]
    assert arguments("--data", data, "--timm", timm) == [str(data), str(timm), str(timm)]


def test_the_list_runs_nothing(folder: Path) -> None:
    told = bench(folder, "--list", "--json").value
    assert told[0] == {"name": "fast", "claim": "is fast", "minutes": 1, "lacking": []}
    assert told[3]["lacking"] == ["--data"]
    assert "works" in bench(folder, "--list").out
    assert not (folder.parent / "results").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fats"], "no benchmark 'fats'. Did you mean 'fast'?"),
        (["fast", "--data", "nowhere"], "--data nowhere: not found"),
        (["--folder", "nowhere"], "--folder nowhere: has no benchmarks (no index.py)"),
    ],
)
def test_what_cannot_be_run(folder: Path, words: list[str], said: str) -> None:
    answer = bench(folder, *words)
    assert (answer.code, answer.error) == (2, [f"skipway: {said}"])


def test_the_checkout_is_found_by_itself() -> None:
    told = call("bench", "--list", "--json").value
    assert "train_speed" in {row["name"] for row in told}


BENCHMARKS = runpy.run_path(str(ROOT / "benchmarks" / "index.py"))["BENCHMARKS"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_is_there_and_its_committed_result_is_read(name: str) -> None:
    benchmark = BENCHMARKS[name]
    assert (ROOT / "benchmarks" / benchmark.file).is_file()
    result = ROOT / "results" / f"{benchmark.result or name}.json"
    if result.exists():
        for row in benchmark.rows(json.loads(result.read_text())):
            assert set(row) == {"case", "ours", "peer", "ratio", "n", "spread", "bar", "met"}
            if row["bar"] is not None:
                assert row["met"] in (True, False)


def settings(words: Sequence[str]) -> dict[str, list[str]]:
    """Options with their values, but for those that say where something is."""
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            found[word] = values = []
        else:
            values.append(word)
    places = {"--data", "--photos", "--boxes", "--masks", "--timm", "--weights", "--out"}
    return {option: values for option, values in found.items() if option not in places}


def recorded() -> Iterator[tuple[str, str]]:
    """The name and the command of each committed result, or case of one."""
    for path in sorted((ROOT / "results").glob("*.json")):
        result = json.loads(path.read_text())
        for row in [result] if "command" in result else result["cases"].values():
            yield path.stem, row["command"]


@pytest.mark.parametrize(("result", "command"), list(recorded()))
def test_what_is_published_can_be_made_again(result: str, command: str) -> None:
    """By `bench`, with the settings that it was made with."""
    _, file, *words = shlex.split(command)
    ways = [
        settings(benchmark.arguments)
        for name, benchmark in BENCHMARKS.items()
        if (benchmark.result or name) == result and f"benchmarks/{benchmark.file}" == file
    ]
    assert settings(words) in ways


def test_every_benchmark_is_in_the_table() -> None:
    shared = {"index", "recorded", "table", "timm_nets"}
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - shared
    assert files == {Path(benchmark.file).stem for benchmark in BENCHMARKS.values()}
