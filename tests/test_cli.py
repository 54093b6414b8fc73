"""The command line as scripts and people meet it: what it prints where, what a run holds, how it
stops and goes on."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

import skipway
from commands import QUICK, SMALL, Answer, call, draw, environment, spawn
from skipway import shipped
from skipway.architecture import ARCHITECTURES
from skipway.config import FLAGS, Task

METRICS = {"accuracy", "top5", "loss", "ece"}
TIMED = {"seconds", "images_per_second", "waiting", "memory_mib"}


COLOURS = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("colours")
    draw(root / "train", COLOURS, 12)
    draw(root / "test", COLOURS, 6, seed=1)
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A run made by a process with --json, and what that printed."""
    run = tmp_path_factory.mktemp("runs") / "run"
    return run, spawn("train", data, *QUICK, "--out", run, "--json")


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text("utf-8"))
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    """The metrics table without what the clock decides."""
    found = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return [{k: v for k, v in row.items() if k not in TIMED} for row in found]


def tensors(path: Path) -> dict[str, bytes]:
    from safetensors.numpy import load_file

    return {name: tensor.tobytes() for name, tensor in load_file(path).items()}


def assert_same_outcome(one: Path, other: Path) -> None:
    """The same numbers to the bit."""
    assert rows(one) == rows(other)
    assert record(one)["result"]["metrics"] == record(other)["result"]["metrics"]
    for name in ("best.safetensors", "last.safetensors"):
        assert tensors(one / name) == tensors(other / name), name


# --- the contract for scripts -----------------------------------------------------------------


def test_train_prints_one_json_line_and_logs_on_stderr(trained: tuple[Path, Answer]) -> None:
    run, answer = trained
    assert answer.code == 0, answer.err
    value = answer.value
    assert set(value) == {
        "run", "metrics", "split", "weights", "seconds", "images_per_second"
    }  # fmt: skip
    assert value["run"] == str(run)
    assert value["weights"] == str(run / "best.safetensors")
    assert value["split"] == "test"
    assert set(value["metrics"]) >= METRICS
    assert all(type(value["metrics"][name]) is float for name in METRICS)
    assert 0 <= value["metrics"]["accuracy"] <= 1
    for name in ("seconds", "images_per_second"):
        assert type(value[name]) is float
        assert value[name] > 0
    assert record(run)["result"]["metrics"] == value["metrics"]
    assert "33 train, 3 val, 18 test" in answer.err
    assert re.search(r"^epoch +1/1 .*loss \d", answer.err, re.M)


def test_lines_are_plain_where_there_is_no_terminal(trained: tuple[Path, Answer]) -> None:
    assert not re.search(r"[\x1b\r\b]", trained[1].err)
    assert not re.search("[│╭━╸]", trained[1].err)


def test_what_a_run_holds(trained: tuple[Path, Answer]) -> None:
    run, _ = trained
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "best.safetensors", "last.safetensors", "checkpoints", "card.json", "run.json",
        "metrics.jsonl", "report.html",
    }  # fmt: skip
    steps = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert steps == ["step-00000000", "step-00000001"]
    assert not [path for path in run.rglob("*") if path.name.startswith(".")]
    assert record(run)["status"] == "finished"
    assert json.loads((run / "card.json").read_text())["classes"] == COLOURS
    assert len(rows(run)) == 1
    assert "</html>" in (run / "report.html").read_text("utf-8")


def test_a_recipe_of_many_parts_trains(data: Path, tmp_path: Path) -> None:
    """LAMB, BCE, mixup, CutMix and RandAugment, and what the recipe leaves to choose."""
    flags = [*QUICK[:-1], "--recipe=rsb-a3", "--batch-size=8", "--epochs=2", "--workers=0"]
    flags += ["--set=data.size=16", "--set=augment.size=12", "--set=class_weights=balanced"]
    found = call("train", data, *flags, "--out", tmp_path / "run", "--json")
    assert found.code == 0, found.err
    config = record(tmp_path / "run")["config"]
    assert (config["optim"]["kind"], config["data"]["resident"]) == ("lamb", False)
    assert len(json.loads((tmp_path / "run/samples.json").read_text())["images"]) == 8
    frozen = ["--weights", tmp_path / "run", "--freeze=all", "--out", tmp_path / "no"]
    refused = call("train", data, *flags, *frozen)
    assert refused.code == 2
    assert "augment.mixup, augment.cutmix: kept features" in refused.err
    assert not (tmp_path / "no").exists()


def test_a_network_that_no_memory_holds_is_not_begun(data: Path, tmp_path: Path) -> None:
    wide = ["--model=resnet18", "--set=model.architecture.width=64", "--out", tmp_path / "run"]
    found = call("train", data, *wide)
    assert found.code == 2
    assert "parameters take" in found.err
    assert not (tmp_path / "run").exists()


def test_a_run_records_settings_and_choices(trained: tuple[Path, Answer]) -> None:
    found = record(trained[0])
    assert found["config"]["model"]["architecture"] == {"depths": [1, 1, 1], "width": 0.25}
    chosen = {choice["key"] for choice in found["choices"]}
    assert "recipe" in chosen
    assert not chosen & {"model.name", "schedule.length", "data.workers", "threads"}
    assert found["data"]["splits"]["train"]["counts"] == dict.fromkeys(COLOURS, 11)
    conv = tensors(trained[0] / "best.safetensors")["conv1.weight"]
    assert len(conv) == 4 * 3 * 3 * 3 * 4  # float32 of a quarter of 16 filters


def test_eval_of_a_run_and_of_its_weight_file(trained: tuple[Path, Answer], data: Path) -> None:
    run, training = trained
    found = call("eval", run, data, "--json", "--threads", "1")
    assert found.code == 0, found.err
    value = found.value
    assert set(value) == {
        "metrics", "intervals", "n", "split", "views", "size", "temperature", "selective",
        "notes", "skipped",
    }  # fmt: skip
    assert set(value["metrics"]) == METRICS
    assert (value["n"], value["split"]) == (18, "test")
    for name in METRICS:
        assert math.isclose(value["metrics"][name], training.value["metrics"][name], rel_tol=1e-5)
    by_file = call("eval", run / "best.safetensors", data, "--json", "--threads", "1")
    assert by_file.value == value
    views = call("eval", run, data, "--json", "--threads", "1", "--views", "shift").value
    assert (views["views"], views["n"]) == ("shift", 18)
    assert views["metrics"]["loss"] != value["metrics"]["loss"]
    refused = call("eval", run, data, "--views", "ten")
    said = ["skipway: --views ten: one, flip, shift, ten-crop, scales"]
    assert (refused.code, refused.error) == (2, said)


@pytest.mark.parametrize(("split", "n"), [("test", 18), ("val", 3), ("train", 36)])
def test_eval_of_a_split(trained: tuple[Path, Answer], data: Path, split: str, n: int) -> None:
    found = call("eval", trained[0], data, "--split", split, "--json", "--threads", "1")
    # train is the folder as it is: the images that were held out are in it.
    assert (found.code, found.value["split"], found.value["n"]) == (0, split, n)


def test_eval_of_validation_is_that_of_the_training(
    trained: tuple[Path, Answer], data: Path
) -> None:
    value = call("eval", trained[0], data, "--split=val", "--json", "--threads=1").value
    assert math.isclose(value["metrics"]["loss"], rows(trained[0])[0]["val_loss"], rel_tol=1e-5)


def test_eval_of_every_image(trained: tuple[Path, Answer], data: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    shutil.copytree(data / "test", flat)
    every = call("eval", trained[0], flat, "--json", "--threads", "1")
    assert (every.value["split"], every.value["n"]) == ("all", 18)
    test = call("eval", trained[0], data, "--json", "--threads", "1")
    assert every.value["metrics"] == test.value["metrics"]


def test_eval_for_people(trained: tuple[Path, Answer], data: Path) -> None:
    found = call("eval", trained[0], data, "--threads", "1")
    assert found.code == 0
    assert re.search(r"accuracy \d+\.\d+%  \(95 % interval", found.out)
    assert "test: 18 images" in found.out


def test_predict_keeps_the_order_and_tells_errors(
    trained: tuple[Path, Answer], data: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    images = [
        data / "test/red/00.png", tmp_path / "absent.png", data / "test/blue/01.png", text,
        data / "test/red/00.png",
    ]  # fmt: skip
    found = call("predict", trained[0], *images, "--json", "--top", "2", "--threads", "1")
    assert found.code == 2
    assert [p["path"] for p in found.value] == [str(path) for path in images]
    assert all(set(p) == {"path", "predictions", "error"} for p in found.value)
    for i in (0, 2, 4):
        answer = found.value[i]
        assert answer["error"] is None
        assert [set(score) for score in answer["predictions"]] == [{"label", "score"}] * 2
        scores = [score["score"] for score in answer["predictions"]]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) < 1
        assert {score["label"] for score in answer["predictions"]} < set(COLOURS)
    assert found.value[0] == found.value[4]
    for i in (1, 3):
        assert found.value[i]["predictions"] == []
        assert images[i].name in found.value[i]["error"]


def test_predict_of_a_folder(trained: tuple[Path, Answer], data: Path) -> None:
    found = call("predict", trained[0], data / "test/red", "--json", "--threads", "1")
    assert found.code == 0
    assert [p["path"] for p in found.value] == sorted(map(str, (data / "test/red").iterdir()))
    every = found.value[0]["predictions"]
    assert len(every) == 3  # there are no five classes
    assert math.isclose(sum(score["score"] for score in every), 1)


def test_predict_takes_no_option_of_another_task(trained: tuple[Path, Answer], data: Path) -> None:
    image = next((data / "test/red").iterdir())
    refused = call("predict", trained[0], image, "--threshold=0.9")
    assert (refused.code, refused.out) == (2, "")
    assert "--threshold" in refused.error[0]
    assert "of the task classify; it is of detectors" in refused.error[0]


def test_predict_for_people(trained: tuple[Path, Answer], data: Path) -> None:
    image = data / "test/red/00.png"
    found = call("predict", trained[0], image, "--threads", "1")
    assert found.code == 0
    label = r"(blue|green|red) \d+\.\d%"
    assert re.fullmatch(rf"{re.escape(str(image))}: {label}  {label}  {label}\n", found.out)


def test_python_and_the_command_line_agree(trained: tuple[Path, Answer], data: Path) -> None:
    image = data / "test/red/00.png"
    told = call("predict", trained[0], image, "--json", "--threads", "1").value[0]
    asked = skipway.load(trained[0], threads=1)(image)
    assert [(s.label, s.score) for s in asked.predictions] == [
        (s["label"], s["score"]) for s in told["predictions"]
    ]


def test_models(monkeypatch: pytest.MonkeyPatch) -> None:
    few = ["resnet18", "resnet20", "preresnet110"]
    monkeypatch.setattr(
        "skipway.architecture.ARCHITECTURES", {name: ARCHITECTURES[name] for name in few}
    )
    found = call("models", "--json")
    assert found.code == 0
    assert set(found.value) == {"networks", "shipped"}
    networks = found.value["networks"]
    assert [row["name"] for row in networks] == few
    for row in networks:
        assert set(row) == {"name", "params", "macs", "input_size", "source"}
        assert type(row["params"]) is type(row["macs"]) is type(row["input_size"]) is int
        assert row["source"] == ARCHITECTURES[row["name"]].source
    counts = [(row["params"], row["macs"]) for row in networks]
    assert [(p, round(m / 1e6, 2)) for p, m in counts] == [
        (11_689_512, 1814.07),
        (269_722, 40.55),
        (1_727_962, 252.89),
    ]
    plain = call("models")
    assert all(re.search(rf"^{name} .*\d", plain.out, re.M) for name in few)
    assert [row["name"] for row in found.value["shipped"]] == list(shipped.NAMES)
    for row in found.value["shipped"]:
        assert row["accuracy"] > 0.9
        assert re.search(
            rf"^{row['name']} .* {row['accuracy']:.2%} on {row['data']}", plain.out, re.M
        )


def test_every_model_is_listed() -> None:
    found = spawn("models", "--json")
    assert [row["name"] for row in found.value["networks"]] == list(ARCHITECTURES)
    assert found.err == ""


# --- where a run goes -------------------------------------------------------------------------


def test_a_dated_name_that_is_not_taken(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = call("train", data, *QUICK, "--json").value["run"]
    second = call("train", data, *QUICK, "--json").value["run"]
    assert first != second
    for run in (first, second):
        assert re.fullmatch(rf"runs/\d{{8}}-\d{{6}}-{data.name}-resnet20(-\d+)?", run)
        assert record(tmp_path / run)["name"] == Path(run).name
    assert sorted(os.listdir(tmp_path)) == ["runs"]


def test_an_empty_folder_is_taken_and_a_full_one_left_alone(data: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert call("train", data, *QUICK, "--out", empty, "--json").code == 0
    before = {p: p.read_bytes() for p in empty.rglob("*") if p.is_file()}
    again = call("train", data, *QUICK, "--out", empty)
    assert again.code == 2
    assert str(empty) in again.err
    assert again.out == ""
    assert before == {p: p.read_bytes() for p in empty.rglob("*") if p.is_file()}


def test_the_closing_panel_names_the_next_commands(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    found = call("train", data, *QUICK, "--out", run)
    assert found.code == 0
    text = re.sub(r"\s*│\n│\s*", " ", found.out)  # as the panel wraps long lines
    for part in ("test accuracy", "95 % interval", "report.html", "skipway predict", "a run'"):
        assert part in text, found.out


# --- help, versions, mistakes -----------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "eval", "predict", "models", "export", None])
def test_help(command: str | None) -> None:
    found = call(*([command] if command else []), "--help")
    assert (found.code, found.err) == (0, "")
    assert found.out.startswith("Usage: ")
    assert not re.search("[│╭╰]", found.out)
    options = re.findall(r"--[a-z-]+", found.out)
    assert "--help" in options
    if command is None:
        assert all(
            f"  {name}  " in found.out for name in ("train", "eval", "predict", "models", "export")
        )
    else:
        assert "--json" in options
    if command == "train":
        about, flags = found.out.split("Options:")
        of_task = flags.split("--model")[0]
        for task in get_args(Task):
            assert re.search(rf"\b{task}\b", about)
            assert re.search(rf"\b{task}\b", of_task)
        assert {f"--{name.replace('_', '-')}" for name in FLAGS} <= set(options)
        assert {"--out", "--set", "--resume", "--tensorboard"} <= set(options)


def test_no_command_shows_the_help() -> None:
    assert call() == call("--help")


def test_version_and_a_mistake_as_processes() -> None:
    assert spawn("--version") == Answer(0, skipway.__version__ + "\n", "")
    assert spawn("trian", "digits") == Answer(
        2, "", "skipway: No such command 'trian'. Did you mean 'train'?\nSee skipway --help\n"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "digits", "--epcohs", "3"], "--epochs"),
        (["predict", "run", "--tpo", "3"], "--top"),
        (["eval", "run", "data", "--jsno"], "--json"),
        (["evla", "run", "data"], "eval"),
        (["--vresion"], "--version"),
    ],
)
def test_mistyped_words_get_the_nearest(arguments: list[str], expected: str) -> None:
    found = call(*arguments)
    assert (found.code, found.out) == (2, "")
    assert len(found.err.splitlines()) <= 3
    assert found.err.startswith("skipway: ")
    assert expected in found.err.splitlines()[0]


def test_debug_shows_where(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    plain = call("eval", absent, "digits")
    assert (plain.code, "Traceback" in plain.err) == (2, False)
    for arguments in (["--debug", "eval", absent, "digits"], ["eval", absent, "digits", "--debug"]):
        found = call(*arguments)
        assert found.code == 2
        assert "Traceback" in found.err
        assert found.err.endswith(plain.err)


def test_our_own_fault_is_exit_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of \x1b[31m something")

    monkeypatch.setattr("skipway.predictor.task_of", broken)
    found = call("eval", "run", "digits")
    assert (found.code, found.out) == (3, "")
    assert "ZeroDivisionError" in found.err
    assert "--debug" in found.err
    assert "Traceback" not in found.err
    assert "\x1b" not in found.err


def test_what_the_system_refuses_is_no_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/a/\x1b[31mrun")

    monkeypatch.setattr("skipway.predictor.task_of", refused)
    said = "skipway: /a/\\x1b[31mrun: Permission denied\n"
    assert call("eval", "run", "digits") == Answer(2, "", said)


def test_ctrl_c_in_a_command_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("skipway.predictor.task_of", stopped)
    assert call("eval", "run", "digits") == Answer(130, "", "skipway: interrupted\n")
    monkeypatch.setattr("skipway.training.start", stopped)
    assert call("train", "digits") == Answer(130, "", "skipway: interrupted\n")


def test_a_closed_stdout_is_no_defect() -> None:
    code = "import sys; sys.stdout = None; from skipway import cli; sys.argv[1:] = ['models']; "
    done = subprocess.run(
        [sys.executable, "-c", code + "cli.main()"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["typer", "rich", "torch", "numpy"])
def test_a_signal_during_imports_is_one_line(
    module: str, number: signal.Signals, tmp_path: Path
) -> None:
    """A module that sends the signal itself, when it is imported."""
    text = f"import os\nos.kill(os.getpid(), {int(number)})\n"
    (tmp_path / f"{module}.py").write_text(text)
    found = spawn("train", "digits", cwd=tmp_path, env=environment(PYTHONPATH=str(tmp_path)))
    assert found == Answer(128 + number, "", "skipway: interrupted\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_memory_that_ran_out_is_told_plainly(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("skipway.predictor.task_of", full)
    found = call("eval", "run", "digits")
    assert found.code == 2
    assert "out of memory" in found.err
    assert "--batch-size" in found.err


@pytest.mark.parametrize(("command", "part"), [("train", "train"), ("eval", None)])
def test_a_part_that_is_not_installed_is_named(
    command: str, part: str | None, data: Path, trained: tuple[Path, Answer], tmp_path: Path
) -> None:
    blocked = tmp_path / "torch.py"
    blocked.write_text("raise ModuleNotFoundError('gone', name='torch')\n")
    target = [data, *QUICK] if command == "train" else [trained[0], data]
    found = spawn(command, *target, cwd=tmp_path, env=environment(PYTHONPATH=str(tmp_path)))
    assert found.code == 2, found.err
    assert "pip install '.[train]'" in found.err
    assert found.err.startswith(f"skipway: {part or trained[0]} needs the package 'torch'")
    assert sorted(os.listdir(tmp_path)) in (["torch.py"], ["__pycache__", "torch.py"])


def test_an_output_that_knows_few_letters(
    trained: tuple[Path, Answer], data: Path, tmp_path: Path
) -> None:
    image = tmp_path / "été.png"
    shutil.copy(data / "test/red/00.png", image)
    ascii_only = environment(PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    found = spawn("predict", trained[0], image, env=ascii_only)
    assert found.code == 0, found.err
    assert "\\xe9t\\xe9.png: " in found.out


def test_a_reader_that_closes_the_pipe_early(trained: tuple[Path, Answer], data: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "skipway", "predict", str(trained[0]), str(data / "test/red")],
        stdout=writing, stderr=subprocess.PIPE, text=True, env=environment(), timeout=120,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode in (0, 1)  # Typer ends so where it meets it, we where we do
    assert done.stderr == ""


# --- the same numbers, whatever the way -------------------------------------------------------


@pytest.mark.parametrize("resident", ["true", "false"])
def test_a_folder_and_its_zip_train_alike(data: Path, tmp_path: Path, resident: str) -> None:
    archive = shutil.make_archive(str(tmp_path / "colours"), "zip", data)
    flags = [*QUICK, f"--set=data.resident={resident}", "--batch-size=8"]
    assert call("train", data, *flags, "--out", tmp_path / "folder").code == 0
    assert call("train", archive, *flags, "--out", tmp_path / "zip").code == 0
    assert_same_outcome(tmp_path / "folder", tmp_path / "zip")
    for kind in ("folder", "zip"):
        evaluated = {
            call("eval", tmp_path / kind, where, "--json", "--threads=1").out
            for where in (data, archive)
        }
        assert len(evaluated) == 1


def test_the_seed_decides(data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert call("train", data, *QUICK, "--seed", str(seed), "--out", tmp_path / name).code == 0
    assert_same_outcome(tmp_path / "a", tmp_path / "b")
    assert rows(tmp_path / "a") != rows(tmp_path / "c")


# --- stopping and going on --------------------------------------------------------------------

LONG = [*SMALL, "--epochs=40", "--batch-size=4"]


def interrupt(run: Path, arguments: Sequence[str | Path], number: int) -> tuple[int, str, str]:
    """Start the command, send it the signal when its first epoch is in the table."""
    process = subprocess.Popen(
        [sys.executable, "-m", "skipway", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        start_new_session=True,
    )  # fmt: skip
    table, patience = run / "metrics.jsonl", time.monotonic() + 120
    try:
        while not (table.exists() and table.stat().st_size) and process.poll() is None:
            assert time.monotonic() < patience
            time.sleep(0.01)
        os.killpg(process.pid, number)  # as a terminal does: to the workers too
        out, err = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("resident", "workers", "number"),
    [
        ("true", 0, signal.SIGINT),
        pytest.param("false", 0, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("false", 2, signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    data: Path, tmp_path: Path, resident: str, workers: int, number: signal.Signals
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut short"
    flags = [*LONG, f"--set=data.resident={resident}", f"--workers={workers}"]
    code, out, err = interrupt(cut, ["train", data, *flags, "--out", cut, "--json"], number)
    assert code == 128 + number, err
    assert out == ""
    assert "Traceback" not in err
    *_, last, command = err.splitlines()
    assert last == "skipway: stopped, with a checkpoint. Go on with:"
    assert command == f"  skipway train --resume '{cut}'"
    stopped = record(cut)
    assert stopped["status"] == "interrupted"
    assert list((cut / "checkpoints").glob("step-*"))
    assert not (cut / "last.safetensors").exists()
    refused = call("train", "--resume", cut, "--epochs", "3")
    assert (refused.code, record(cut)) == (2, stopped)

    resumed = call("train", "--resume", cut, "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.value["run"] == str(cut)
    assert "going on at step" in resumed.err
    assert call("train", data, *flags, "--out", whole, "--json").code == 0
    assert len(rows(whole)) == 40
    assert_same_outcome(whole, cut)
    assert record(cut)["status"] == "finished"
    assert (cut / "report.html").exists()


@pytest.mark.parametrize(
    ("resident", "workers"),
    [
        ("true", 0),
        pytest.param("false", 0, marks=pytest.mark.slow),
        pytest.param("false", 2, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    data: Path, tmp_path: Path, resident: str, workers: int
) -> None:
    """kill -9, three times, with checkpoints in the middle of epochs."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = [*LONG, f"--set=data.resident={resident}", f"--workers={workers}"]
    flags += ["--set=checkpoint_every=2 steps", "--set=model.architecture.drop_path=0.2"]
    command: list[str | Path] = ["train", data, *flags, "--out", cut]
    for _ in range(3):
        code, _, err = interrupt(cut, command, signal.SIGKILL)
        assert code == -signal.SIGKILL, err
        command = ["train", "--resume", cut]
    (cut / "checkpoints" / ".skipway-1-dead.tmp").write_bytes(b"half of a checkpoint")
    assert call("train", "--resume", cut, "--json").code == 0
    assert call("train", data, *flags, "--out", whole, "--json").code == 0
    assert_same_outcome(whole, cut)
    assert not list(cut.rglob("*.tmp"))


@pytest.mark.slow
def test_a_run_goes_on_past_its_damaged_checkpoint(data: Path, tmp_path: Path) -> None:
    """The newest of a run that was stopped has a flipped bit; so has not the one before."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = [*LONG, "--checkpoint-every=2", "--workers=0"]
    code, _, err = interrupt(cut, ["train", data, *flags, "--out", cut], signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, err
    newest = max((cut / "checkpoints").glob("step-*"))
    damaged = bytearray(newest.read_bytes())
    damaged[-1000] ^= 4
    newest.write_bytes(damaged)
    resumed = call("train", "--resume", cut, "--json")
    assert resumed.code == 0, resumed.err
    assert f"{newest}: damaged checkpoint: its checksum is another; going on" in resumed.err
    assert call("train", data, *flags, "--out", whole, "--json").code == 0
    assert_same_outcome(whole, cut)


def test_checkpoints_by_the_clock(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that jumps a minute at each look: every step is due, and nothing else changes."""
    from skipway.training import checkpoint

    saved: list[int] = []
    save = checkpoint.Writer.save

    def note(writer: Any, step: int, state: Any) -> None:
        saved.append(step)
        save(writer, step, state)

    monkeypatch.setattr(checkpoint.Writer, "save", note)
    steps = 3 * 3
    flags = [*QUICK[:-1], "--workers=0", "--epochs=3", "--batch-size=11"]
    for interval, expected in (("60m", [0, steps]), ("1m", [*range(steps + 1)])):
        saved.clear()
        clock = itertools.count(step=60 if interval == "1m" else 0.001)
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda clock=clock: next(clock))
            run = tmp_path / interval
            found = call("train", data, *flags, f"--checkpoint-every={interval}", "--out", run)
        assert found.code == 0, found.err
        assert [*dict.fromkeys(saved)] == expected  # once more after a scoring that took long
    assert_same_outcome(tmp_path / "60m", tmp_path / "1m")


def test_changed_data_are_no_reason_to_go_on(data: Path, tmp_path: Path) -> None:
    own = tmp_path / "data"
    shutil.copytree(data, own)
    run = tmp_path / "run"
    interrupt(run, ["train", own, *LONG, "--out", run], signal.SIGINT)
    image = next((own / "train").rglob("*.png"))
    shutil.copy(image, image.with_name("new.png"))
    found = call("train", "--resume", run)
    assert found.code == 2
    assert "has other images than when the run began" in found.err
    image.with_name("new.png").unlink()
    content = image.read_bytes()
    image.write_bytes(next(p for p in (own / "train").rglob("*.png") if p != image).read_bytes())
    found = call("train", "--resume", run)
    assert (found.code, len(found.error)) == (2, 2)
    assert f"{image.relative_to(own)} in {own} changed since the run began" in found.error[0]
    image.write_bytes(content)
    assert (run / "checkpoints" / "images.npz").exists()
    assert call("train", "--resume", run).code == 0
    assert not (run / "checkpoints" / "images.npz").exists()


def test_fine_tuning_takes_what_the_weights_hold(data: Path, tmp_path: Path) -> None:
    """A run; a backbone without its classifier; a net that no row is, once it is described."""
    import torch

    from skipway import create_model

    run, fields = tmp_path / "run", {"depths": [2, 1, 1], "widths": [8, 8, 16], "stem_width": 8}
    flags = [f"--set=model.architecture.{k}={json.dumps(v)}" for k, v in fields.items()]
    common = ["--epochs=1", "--threads=1", "--set=data.size=16", "--json"]
    assert call("train", data, "--model=resnet20", *flags, *common, "--out", run).code == 0
    state = create_model("resnet20", 3, **fields).state_dict()
    headless = {k: v for k, v in state.items() if not k.startswith("fc.")}
    torch.save(headless, tmp_path / "backbone.pt")
    unknown = call("train", data, "--weights", tmp_path / "backbone.pt", *common)
    assert unknown.code == 2
    assert "--model" in unknown.err
    for name, more in (("run", []), ("backbone.pt", ["--model=resnet20", *flags])):
        out = tmp_path / f"tuned-{name}"
        tuned = call("train", data, "--weights", tmp_path / name, *more, *common, "--out", out)
        assert tuned.code == 0, tuned.err
        assert "100.0% of the parameters before the classifier" in tuned.err
        assert record(out)["config"]["recipe"] == "finetune"


def test_the_recipe_that_was_asked_for_is_the_one_that_is_told(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = [*SMALL, "--recipe=he2015-cifar", "--set=schedule.length=2 steps", "--out", out]
    found = call("train", data, *flags)
    assert found.code == 0, found.err
    assert "modern" not in found.err
    assert "the milestone 32000 steps is past the end" in found.err
    config = record(out)["config"]
    assert (config["recipe"], config["precision"]) == ("he2015-cifar", "float32")
    assert not any(c["key"] in ("recipe", "precision") for c in record(out)["choices"])


def test_a_resume_needs_the_checkpoint_and_not_the_first_weights(
    data: Path, trained: tuple[Path, Answer], tmp_path: Path
) -> None:
    first, run = tmp_path / "first.safetensors", tmp_path / "run"
    shutil.copy(trained[0] / "best.safetensors", first)
    flags = ["--threads=1", "--epochs=40", "--batch-size=4", "--weights", first]
    interrupt(run, ["train", data, *flags, "--out", run], signal.SIGINT)
    first.unlink()
    found = call("train", "--resume", run, "--json")
    assert found.code == 0, found.err
    assert len(rows(run)) == 40


def test_a_training_on_few_images_holds_out_what_one_on_all_does(tmp_path: Path) -> None:
    data, run = draw(tmp_path / "data", ["a", "b"], n=20), tmp_path / "run"
    found = call("train", data, *SMALL, "--epochs=1", "--set=data.take=8", "--out", run)
    assert found.code == 0, found.err
    assert "learned from 8 of 32 training images (data.take)" in found.err
    splits = record(run)["data"]["splits"]
    assert {name: split["n"] for name, split in splits.items()} == {"train": 8, "val": 4, "test": 4}
    assert call("eval", run, data, "--json").value["split"] == "test"


def test_eval_says_where_nothing_was_held_out(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    only = tmp_path / "only"
    shutil.copytree(data / "train", only)
    assert call("train", only, *SMALL, "--epochs=1", "--val=none", "--out", run).code == 0
    found = call("eval", run, only, "--json")
    assert found.value["split"] == "all"
    assert "these images were trained on" in found.err


def test_a_run_belongs_to_one_process(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "skipway", "train", *map(str, [data, *LONG, "--out", run])],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment(),
        )
        for _ in range(2)
    ]  # fmt: skip
    ended = [(p.communicate(timeout=240)[1], p.returncode) for p in processes]
    codes = sorted(code for _, code in ended)
    assert codes == [0, 2], ended
    refused = next(err for err, code in ended if code == 2)
    assert "another process is training" in refused or "not empty" in refused
    assert len(rows(run)) == 40


def test_a_run_is_scored_on_what_it_held_out(data: Path, tmp_path: Path) -> None:
    """However the same images are named; all of them only where they are not its own."""
    flat = tmp_path / "flat"
    shutil.copytree(data / "train", flat)
    run = tmp_path / "run"
    trained = call("train", flat, *SMALL, "--out", run, "--json").value
    assert trained["split"] == "test"
    moved = tmp_path / "moved"
    shutil.copytree(flat, moved)
    for place in (flat, moved, Path(os.path.relpath(flat))):
        found = call("eval", run, place, "--json").value
        assert (found["split"], found["metrics"]) == ("test", trained["metrics"])
    image = next(flat.rglob("*.png"))
    shutil.copy(image, image.with_name("new.png"))
    found = call("eval", run, flat, "--json")
    assert found.value["split"] == "all"
    assert "may have been trained on" in found.err
    for place in (flat, f"{flat}/", os.path.relpath(flat)):
        found = call("eval", run, place, "--split=test", "--json")
        assert "test is drawn anew, and those that are scored may have been trained on" in found.err
    fitted = call("eval", run, flat, "--split=test", "--calibrate", "--json")
    assert "the data has changed since training" in fitted.err
    rival = call("eval", run, flat, "--split=test", "--against", run, "--json")
    assert "may have been trained on these images: its data has changed" in rival.err
    probed = call("eval", run, flat, "--probe=knn", "--json")
    assert "may have been trained on these images: its data has changed" in probed.err
    for told in (found, rival, probed):  # in the answer too, for who reads no stderr
        assert told.value["notes"]
        assert {f"note: {note}" for note in told.value["notes"]} == {*told.err.splitlines()}
    same = call("eval", run, moved, "--split=test", "--calibrate", "--out=c.safetensors", "--json")
    same = call("eval", run, moved, "--split=test", "--against", run, "--json").err + same.err
    assert "trained" not in same


def test_a_finished_run_is_not_resumed(trained: tuple[Path, Answer]) -> None:
    before = {p: p.read_bytes() for p in trained[0].rglob("*") if p.is_file()}
    found = call("train", "--resume", trained[0])
    assert found.code == 2
    assert "finished" in found.err
    assert before == {p: p.read_bytes() for p in trained[0].rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("--epochs=3", "--epochs"),
        ("--out=elsewhere", "--out"),
        ("--set=optim.clip=1", "--set optim.clip"),
        ("--seed=1", "--seed"),
    ],
)
def test_resume_takes_nothing_else(trained: tuple[Path, Answer], more: str, named: str) -> None:
    found = call("train", "--resume", trained[0], more)
    assert found.code == 2
    assert found.err.startswith("skipway: --resume: ")
    assert f"leave out {named}\n" in found.err
    assert len(found.error) <= 3
    assert not Path("elsewhere").exists()
