"""Callbacks: what they see, that they harm no training, and the documented ones as they stand."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import skipway
from commands import QUICK, call
from skipway.errors import InputError
from skipway.training import Callback, Interrupted, TensorBoard

DOCS = Path(__file__).parents[1] / "docs" / "callbacks.md"
SMALL: dict[str, Any] = {
    "model": "resnet20",
    "epochs": 3,
    "batch_size": 256,
    "threads": 1,
    "precision": "float32",
    "quiet": True,
    "settings": {
        "model.architecture.depths": [1, 1, 1],
        "model.architecture.width": 0.25,
        "model.architecture.drop_path": 0.2,
    },
}


class Watcher:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.begun: list[tuple[Path, int, str]] = []
        self.rows: list[dict[str, Any]] = []
        self.ends: list[dict[str, Any]] = []

    def begin(self, run: Path, record: Mapping[str, Any], step: int) -> None:
        self.begun.append((run, step, record["status"]))

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))

    def end(self, record: Mapping[str, Any]) -> None:
        self.ends.append(dict(record))


class Broken(Watcher):
    """Fails in one method, and takes liberties in the others."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def begin(self, run: Path, record: Any, step: int) -> None:
        super().begin(run, record, step)
        record["config"].clear()
        torch.manual_seed(99)
        if self.where == "begin":
            raise ConnectionError("no \x1b[31mserver")

    def epoch(self, row: Any) -> None:
        super().epoch(row)
        row.clear()
        torch.rand(7)
        if self.where == "epoch":
            raise ConnectionError("no \x1b[31mserver")

    def end(self, record: Any) -> None:
        super().end(record)
        if self.where == "end":
            raise ConnectionError("no \x1b[31mserver")


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def untimed(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    timed = ("seconds", "images_per_second", "waiting", "memory_mib")
    return [{k: v for k, v in row.items() if k not in timed} for row in found]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without callbacks."""
    run = tmp_path_factory.mktemp("plain") / "run"
    skipway.train("digits", out=run, **SMALL)
    return run


def test_they_see_the_rows_and_change_no_bit(plain: Path, tmp_path: Path) -> None:
    watcher, run = Watcher(), tmp_path / "run"
    assert isinstance(watcher, Callback)
    result = skipway.train("digits", out=run, callbacks=[Broken("never"), watcher], **SMALL)
    assert watcher.begun == [(run, 0, "running")]
    assert watcher.rows == rows(run)
    assert untimed(watcher.rows) == untimed(rows(plain))
    weights = [load_file(r / "last.safetensors") for r in (plain, run)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert [e["status"] for e in watcher.ends] == ["finished"]
    assert watcher.ends[0]["result"]["metrics"] == result.metrics


@pytest.mark.parametrize("where", ["begin", "epoch", "end"])
def test_a_failing_one_does_not_end_the_training(
    where: str, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, watcher, run = Broken(where), Watcher(), tmp_path / "run"
    skipway.train("digits", out=run, callbacks=[broken, watcher], **SMALL | {"quiet": False})
    assert untimed(rows(run)) == untimed(rows(plain)) == untimed(watcher.rows)
    assert len(broken.rows) == {"begin": 0, "epoch": 1, "end": 3}[where]
    assert len(broken.ends) == len(watcher.ends) == 1
    said = capsys.readouterr().err
    assert said.count(f"callback Broken, {where}: ConnectionError: no \\x1b[31mserver") == 1
    assert said.count("callback Broken failed") == 1
    assert "Watcher" not in said


class Stopper(Watcher):
    def epoch(self, row: Mapping[str, Any]) -> None:
        super().epoch(row)
        if len(self.rows) == 2:
            signal.raise_signal(signal.SIGINT)


def test_a_resumed_run_shows_no_row_twice(plain: Path, tmp_path: Path) -> None:
    first, second, run = Stopper(), Watcher(), tmp_path / "run"
    with pytest.raises(Interrupted):
        skipway.train("digits", out=run, callbacks=[first], **SMALL)
    assert [e["status"] for e in first.ends] == ["interrupted"]
    skipway.train(resume=run, quiet=True, callbacks=[second])
    assert second.begun == [(run, first.rows[-1]["step"], "running")]
    assert untimed(first.rows + second.rows) == untimed(rows(plain))


class Dies(Watcher):
    """Copies the run as a kill at the end of its second epoch would leave it."""

    def __init__(self, copy: Path) -> None:
        super().__init__()
        self.copy = copy

    def epoch(self, row: Mapping[str, Any]) -> None:
        super().epoch(row)
        if len(self.rows) == 2:
            run = self.begun[0][0]
            patience = time.monotonic() + 60  # it is written in the background
            while not (run / "checkpoints" / f"step-{row['step']:08}").exists():
                assert time.monotonic() < patience
                time.sleep(0.01)
            shutil.copytree(run, self.copy)


def test_after_a_kill_rows_past_the_checkpoint_come_again(tmp_path: Path) -> None:
    killed, again = Dies(tmp_path / "copy"), Watcher()
    skipway.train("digits", out=tmp_path / "run", callbacks=[killed], **SMALL)
    skipway.train(resume=tmp_path / "copy", quiet=True, callbacks=[again])
    step = again.begun[0][1]
    assert killed.rows[0]["step"] <= step < killed.rows[1]["step"]  # the checkpoint has no row yet
    assert untimed([r for r in killed.rows if r["step"] > step]) == untimed(again.rows)
    assert len(again.rows) == 2
    assert untimed(rows(tmp_path / "copy")) == untimed(killed.rows)


class Raises(Watcher):
    def epoch(self, row: Mapping[str, Any]) -> None:
        raise KeyboardInterrupt


def test_what_is_no_error_of_a_callback_ends_the_training(tmp_path: Path) -> None:
    watcher = Raises()
    with pytest.raises(KeyboardInterrupt):
        skipway.train("digits", out=tmp_path / "run", callbacks=[watcher], **SMALL)
    assert [(e["status"], e["error"]) for e in watcher.ends] == [("failed", "KeyboardInterrupt: ")]
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (kept["status"], kept["error"]) == ("failed", "KeyboardInterrupt: ")


def test_a_failed_training_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(run: Path, row: Mapping[str, Any]) -> None:
        raise InputError("the disk is full")

    monkeypatch.setattr("skipway.training.trainer.append_row", full)
    watcher = Watcher()
    with pytest.raises(InputError, match="the disk is full"):
        skipway.train("digits", out=tmp_path / "run", callbacks=[watcher], **SMALL)
    assert [(e["status"], e["error"]) for e in watcher.ends] == [("failed", "the disk is full")]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([Watcher], r"a class; give an object, Watcher\(\)"),
        ([object()], "no method begin"),
        (Watcher(), r"callbacks: give a list, \[Watcher\(…\)\]"),
    ],
)
def test_what_is_no_callback_is_refused(wrong: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        skipway.train("digits", out=tmp_path / "run", callbacks=wrong, **SMALL)
    assert not (tmp_path / "run").exists()


def test_what_tensorboard_could_not_open_it_does_not_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    callback = TensorBoard()
    monkeypatch.setattr(callback, "_open", full)
    skipway.train("digits", out=tmp_path / "run", callbacks=[callback], **SMALL | {"quiet": False})
    told = capsys.readouterr().err
    assert "TensorBoard, begin: OSError: no space left; the training goes on without it" in told
    assert "AttributeError" not in told
    assert "TensorBoard, end" not in told


# The documented code, executed


def documented(heading: str) -> str:
    """The block under that heading, at the size of a test."""
    block = re.search(rf"## {heading}\n\n```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert block
    code = block[1]
    body = code[code.index("class") : code.index("\nskipway.train")].rstrip()
    assert sum(bool(line) for line in body.splitlines()) <= 10
    return code.replace("callbacks=", "**SMALL, callbacks=")


def test_ten_lines_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    fake: Any = types.ModuleType("mlflow")
    known: list[str] = []

    def start_run(run_id: str | None = None, tags: Mapping[str, str] = {}) -> None:
        told.append(("start", run_id, tags))
        known.append(f"tags.run = '{tags['run']}'")

    def search_runs(filter_string: str, output_format: str) -> list[Any]:
        found = (
            types.SimpleNamespace(run_id=f"a{known.index(filter_string)}")
            if (filter_string in known)
            else None
        )
        return [types.SimpleNamespace(info=found)] if found else []

    fake.start_run, fake.search_runs = start_run, search_runs
    fake.log_metrics = lambda metrics, step: told.append(("log", step, metrics))
    fake.end_run = lambda status="FINISHED": told.append(("end", status))
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.chdir(tmp_path)
    code = documented("MLflow")
    names: dict[str, Any] = {"SMALL": SMALL}
    exec(code, names)
    logged = [t for t in told if t[0] == "log"]
    record = json.loads(Path("runs/digits/run.json").read_text())
    assert told[0] == ("start", None, {"run": f"digits {record['created']}"})
    assert told[-1] == ("end", "FINISHED")
    found = rows(Path("runs/digits"))
    assert [step for _, step, _ in logged] == [row["step"] for row in found]
    for (_, _, metrics), row in zip(logged, found, strict=True):
        assert {"train_loss", "val_loss", "val_accuracy", "lr"} <= metrics.keys()
        assert all(type(v) is float and v == row[k] for k, v in metrics.items())
    names["MLflow"]().begin(Path("runs/digits"), record, 5)  # a resumed run is taken up
    anew = record | {"created": "2026-01-01T00:00:00+00:00"}
    names["MLflow"]().begin(Path("runs/digits"), anew, 0)
    assert [t[1] for t in told if t[0] == "start"] == [None, "a0", None]


def test_ten_lines_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Run:
        def log(self, data: Mapping[str, Any], step: int) -> None:
            told.append((step, data))

        def finish(self, exit_code: int = 0) -> None:
            told.append(exit_code)

    def init(id: str, resume: str, config: Mapping[str, Any]) -> Run:
        told.append((id, resume, config["batch_size"]))
        return Run()

    fake: Any = types.ModuleType("wandb")
    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.chdir(tmp_path)
    exec(documented("Weights & Biases"), {"SMALL": SMALL})
    found = rows(Path("runs/digits"))
    assert re.fullmatch(r"digits-[-\d]+T[-\d]+", told[0][0])
    assert told[0][1:] == ("allow", 256)
    assert told[-1] == 0
    assert [step for step, _ in told[1:-1]] == [row["step"] for row in found]
    assert [data["val_loss"] for _, data in told[1:-1]] == [row["val_loss"] for row in found]


# TensorBoard


def test_tensorboard_is_told_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            told.append((folder, purge_step))

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            told.append((tag, value, step))

        def flush(self) -> None: ...

        def close(self) -> None:
            told.append("closed")

    fake: Any = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    board = TensorBoard()
    assert isinstance(board, Callback)
    board.begin(tmp_path, {}, 40)
    row = {"epoch": 3, "step": 60, "lr": 0.1, "train_loss": 0.5, "val_loss": 0.7, "signal": {}}
    board.epoch(row)
    board.end({"status": "finished", "result": {"split": "test", "metrics": {"accuracy": 0.9}}})
    assert told == [
        (str(tmp_path / "tensorboard"), 41),
        ("training/lr", 0.1, 60),
        ("loss/train", 0.5, 60),
        ("loss/val", 0.7, 60),
        ("final/test_accuracy", 0.9, 60),
        "closed",
    ]


def test_tensorboard_without_its_package_is_told_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    answer = call("train", "digits", "--out", tmp_path / "run", "--tensorboard", *QUICK)
    assert answer.code == 2
    assert answer.error[0].startswith("skipway: --tensorboard needs the package 'tensorboard'")
    assert "'.[tensorboard]'" in answer.error[1]
    assert not (tmp_path / "run").exists()


def test_event_files_hold_the_run_and_hide_what_came_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    answer = call("train", "digits", "--out", run, "--tensorboard", "--json", *QUICK)
    assert answer.code == 0, answer.err
    found = rows(run)
    late = TensorBoard()  # as of a sitting that was killed, and the one after it
    late.begin(run, {}, found[-1]["step"])
    late.epoch({"step": 900, "train_loss": 9.0})
    late.end({})
    again = TensorBoard()
    again.begin(run, {}, found[-1]["step"])
    again.epoch({"step": 901, "train_loss": 1.0})
    again.end({})
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    losses = [(e.step, e.value) for e in events.Scalars("loss/train")]
    assert losses == [(r["step"], pytest.approx(r["train_loss"])) for r in found] + [(901, 1.0)]
    score = events.Scalars("final/test_accuracy")[0].value
    assert score == pytest.approx(answer.value["metrics"]["accuracy"])
