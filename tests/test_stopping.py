"""Runs that are stopped at odd moments, or changed while they were stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import skipway
from commands import draw
from skipway.card import read_card
from skipway.errors import InputError
from skipway.training import Interrupted, checkpoint
from skipway.training.claim import signals
from skipway.training.progress import TrainingProgress
from skipway.training.trainer import finite_metrics
from skipway.weights import read_state

SMALL: dict[str, Any] = {
    "model": "resnet20", "epochs": 3, "batch_size": 256, "threads": 1, "precision": "float32",
    "quiet": True,
    "settings": {
        "model.architecture.depths": [1, 1, 1], "model.architecture.width": 0.25,
        "model.architecture.drop_path": 0.2,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    skipway.train("digits", out=run, **SMALL)
    return run


def untimed(run: Path) -> list[dict[str, Any]]:
    table = run / "metrics.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()] if table.exists() else []
    times = {"seconds", "images_per_second", "waiting", "memory_mib"}
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


def same(one: Path, other: Path) -> None:
    """Rows and weights, to the bit."""
    assert untimed(one) == untimed(other)
    for name in ("best.safetensors", "last.safetensors"):
        a, b = read_state(one / name)[0], read_state(other / name)[0]
        assert all(torch.equal(a[key], b[key]) for key in a)


def newest(run: Path) -> dict[str, Any]:
    return checkpoint.newest(run)[0]


class Killed(BaseException):
    """As kill -9: nothing is tidied up."""


@pytest.mark.parametrize(
    "scored", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_what_dies_while_it_scores_loses_no_epoch(
    scored: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import skipway.training.trainer as module

    evaluate, calls = module.evaluate, 0

    def dies(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > scored:
            raise Killed
        return evaluate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate", dies)
        with pytest.raises(Killed):
            skipway.train("digits", out=tmp_path / "run", **SMALL)
    rows = untimed(whole)
    state = newest(tmp_path / "run")
    assert state["unscored"]
    assert state["loop"]["step"] == rows[scored]["step"]
    skipway.train(resume=tmp_path / "run", quiet=True)
    same(whole, tmp_path / "run")


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_stop_at_the_end_of_an_epoch_does_not_wait_for_its_score(
    epoch: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = untimed(whole)[epoch - 1]["step"]
    step = TrainingProgress.step

    def stops(self: TrainingProgress, at: int, tally: Any) -> None:
        step(self, at, tally)
        if at == last:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # a service manager and torchrun send one each

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "step", stops)
        with pytest.raises(Interrupted):
            skipway.train("digits", out=tmp_path / "run", **SMALL)
    assert len(untimed(tmp_path / "run")) == epoch - 1
    assert newest(tmp_path / "run")["unscored"]
    skipway.train(resume=tmp_path / "run", quiet=True)
    same(whole, tmp_path / "run")


@pytest.mark.parametrize("scored", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_stop_in_the_middle_of_scoring_does_not_wait_for_its_end(
    scored: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an epoch, and of the finished training: the fourth scoring of three epochs."""
    import skipway.training.trainer as module

    few = SMALL | {"batch_size": 64, "checkpoint_every": "5 epochs"}
    skipway.train("digits", out=tmp_path / "whole", **few)
    evaluate, calls, seen = module.evaluate, 0, 0

    def stopped(task: Any, net: Any, batches: Any, *others: Any) -> Any:
        nonlocal calls, seen
        calls += 1

        def until() -> Any:
            nonlocal seen
            for batch in batches:
                if calls == scored:
                    seen += 1
                    signal.raise_signal(signal.SIGTERM)
                yield batch

        return evaluate(task, net, until(), *others)

    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate", stopped)
        with pytest.raises(Interrupted) as found:
            skipway.train("digits", out=tmp_path / "run", **few)
    assert (found.value.exit_code, seen) == (143, 1)
    assert len(untimed(tmp_path / "run")) == scored - 1
    assert newest(tmp_path / "run")["unscored"]
    skipway.train(resume=tmp_path / "run", quiet=True)
    same(tmp_path / "whole", tmp_path / "run")


def test_a_long_scoring_is_not_repeated(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import skipway.training.trainer as module

    def dies(self: TrainingProgress, at: int, tally: Any) -> None:
        if at > untimed(whole)[0]["step"]:
            raise Killed

    for long, repeated in ((-1.0, False), (1e9, True)):
        run = tmp_path / str(long)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_LONG", long)
            patch.setattr(TrainingProgress, "step", dies)
            with pytest.raises(Killed):
                skipway.train("digits", out=run, **SMALL)
        assert newest(run)["unscored"] == repeated
        skipway.train(resume=run, quiet=True)
        same(whole, run)


def test_a_checkpoint_that_cannot_be_written_is_told_before_the_next_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    step, write = TrainingProgress.step, checkpoint.write_packed

    def heard(self: TrainingProgress, at: int, tally: Any) -> None:
        step(self, at, tally)
        steps.append(at)
        time.sleep(0.05)

    def refused(path: Path, payload: memoryview) -> None:
        if path.name != "step-00000000":
            raise InputError(f"{path}: cannot be written: No space left on device")
        write(path, payload)

    monkeypatch.setattr(TrainingProgress, "step", heard)
    monkeypatch.setattr(checkpoint, "write_packed", refused)
    with pytest.raises(InputError, match="cannot be written"):
        skipway.train("digits", out=tmp_path / "run", **SMALL | {"checkpoint_every": "4 steps"})
    assert 4 < steps[-1] < 8
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_a_second_sigint_ends_at_once_and_a_second_sigterm_does_not() -> None:
    with signals() as came:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert came == [signal.SIGTERM] * len(came)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with signals() as came:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert came[0] == signal.SIGINT


class Stops:
    """Ends the training after its first epoch."""

    def begin(self, run: Path, record: Mapping[str, Any], step: int) -> None:
        pass

    def epoch(self, row: Mapping[str, Any]) -> None:
        if row["epoch"] == 1:
            signal.raise_signal(signal.SIGINT)

    def end(self, record: Mapping[str, Any]) -> None:
        pass


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.raises(Interrupted):
        skipway.train("digits", out=run, callbacks=[Stops()], **SMALL)
    return run


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("optim", "lr", 0.5, r"optim\.lr = 0\.5, 0\.\d+ then"),
        ("augment", "pad_crop", 3, r"augment\.pad_crop = 3, \d then"),
        ("model", "architecture", {"depths": [1, 1, 1]}, r"model\.architecture = "),
        (None, "recipe", "he2015-cifar", "recipe = he2015-cifar, modern then"),
    ],
)
def test_changed_settings_are_named(
    section: str | None, key: str, value: Any, words: str, stopped: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    record = json.loads((run / "run.json").read_text())
    place = record["config"] if section is None else record["config"][section]
    place[key] = value
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=words) as refused:
        skipway.train(resume=run, quiet=True)
    assert len(str(refused.value).splitlines()) <= 3


def test_settings_that_decide_nothing_may_change(
    stopped: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    record = json.loads((run / "run.json").read_text())
    record["config"] |= {"checkpoint_every": "2 steps", "keep_checkpoints": 5}
    (run / "run.json").write_text(json.dumps(record))
    skipway.train(resume=run, quiet=True)
    same(whole, run)


def test_a_resume_takes_settings_of_the_machine_alone(
    stopped: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    with pytest.raises(InputError, match=r"leave out --set optim\.clip, --lr\n") as refused:
        skipway.train(resume=run, lr=0.1, settings={"optim.clip": 1.0}, threads=2, quiet=True)
    assert "--threads, --workers, --device" in str(refused.value)
    with pytest.raises(InputError, match="leave out --out"):
        skipway.train(resume=run, out=tmp_path / "other")
    skipway.train(resume=run, threads=2, checkpoint_every="2 steps")
    assert "threads was 1 and is 2: bits may differ" in " ".join(capsys.readouterr().err.split())
    record = json.loads((run / "run.json").read_text())
    assert record["resumed"][-1]["threads"] == 2
    assert (record["config"]["threads"], record["config"]["checkpoint_every"]) == (2, "2 steps")
    assert [row["step"] for row in untimed(run)] == [row["step"] for row in untimed(whole)]


@pytest.mark.parametrize("key", ["cpu", "torch", "instruction_set"])
def test_another_machine_is_said(
    key: str, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    record = json.loads((run / "run.json").read_text())
    record["environment"][key] = "another"
    (run / "run.json").write_text(json.dumps(record))
    skipway.train(resume=run)
    said = " ".join(capsys.readouterr().err.split())
    assert f"{key} was another and is" in said
    assert said.count("bits may differ") == 1


def test_the_best_of_a_sitting_that_was_lost_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after an epoch that was the best and whose checkpoint is not there yet, gone on with
    where that epoch comes out otherwise: of those that are left the best is taken."""
    scores = [0.9, 0.5, 0.95]

    def scored(evaluator: Any, split: str) -> dict[str, float]:
        found = finite_metrics(evaluator, split)
        return found | {"accuracy": scores.pop(0)} if split == "val" else found

    class Killed(BaseException):
        pass

    class Kills(Stops):
        def epoch(self, row: Mapping[str, Any]) -> None:
            if row["epoch"] == 3:
                raise Killed

    monkeypatch.setattr("skipway.training.trainer.finite_metrics", scored)
    run = tmp_path / "run"
    asked = SMALL | {"epochs": 4, "val": "0.2", "checkpoint_every": "2 epochs"}
    with pytest.raises(Killed):
        skipway.train("digits", out=run, callbacks=[Kills()], **asked)
    scores[:] = [0.5, 0.85, 0.8]
    result = skipway.train(resume=run, quiet=True).record["result"]
    assert (result["chosen"], result["best_epoch"]) == ("best on val, epoch 3", 3)
    card = read_card(run / "best.safetensors")
    assert card is not None
    assert card.provenance["step"] == untimed(run)[2]["step"]


def test_data_that_moved_are_gone_on_with(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    draw(here / "train", ["a", "b"], 8)
    draw(here / "val", ["a", "b"], 4, seed=1)
    few = SMALL | {"batch_size": 4, "val": "auto"}
    for name in ("whole", "run"):
        callbacks = [Stops()] if name == "run" else []
        with contextlib.suppress(Interrupted):
            skipway.train(here, out=tmp_path / name, callbacks=callbacks, **few)
    here.rename(there)
    with pytest.raises(InputError, match=r"its data is no longer at .*here") as refused:
        skipway.train(resume=tmp_path / "run", quiet=True)
    assert "skipway train DATA --resume" in str(refused.value)
    image = next(there.rglob("*.png"))
    content = image.read_bytes()
    image.write_bytes(next(p for p in there.rglob("*.png") if p != image).read_bytes())
    with pytest.raises(InputError, match="changed since the run began"):
        skipway.train(there, resume=tmp_path / "run", quiet=True)
    image.write_bytes(content)
    with pytest.raises(InputError, match="has other images"):
        skipway.train("digits", resume=tmp_path / "run", quiet=True)
    result = skipway.train(there, resume=tmp_path / "run", quiet=True)
    same(tmp_path / "whole", tmp_path / "run")
    assert result.record["data"]["path"] == result.record["config"]["data_path"] == str(there)


def test_another_launchers_processes_do_not_train_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE is 2, but torchrun did not start"):
        skipway.train("digits", out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()
