"""What cannot be used: at most three lines that name it and say what to do, exit code 2, nothing
half-written, and the user's own text never loose in a terminal or a page."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import unicodedata
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from commands import QUICK, Answer, call, draw
from skipway.training import checkpoint


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def assert_refused(found: Answer, *named: str) -> None:
    """One short error that names what it should, and nothing else."""
    assert found.code == 2, found.err
    assert found.out == ""
    assert 1 <= len(found.error) <= 3, found.err
    text = "\n".join(found.error)
    assert "Traceback" not in found.err
    assert "Value error" not in text  # pydantic's words
    for name in named:
        assert name in text, found.err


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets, a run and files that are something else, all in one folder."""
    root = tmp_path_factory.mktemp("place")
    draw(root / "data/train", ["blue", "green", "red"], 8)
    draw(root / "data/test", ["blue", "green", "red"], 4, seed=1)
    draw(root / "other/train", ["cat", "dog", "eel", "fox"], 8)
    draw(root / "other/test", ["cat", "dog", "eel", "fox"], 4, seed=1)
    draw(root / "one", ["alone"])
    draw(root / "single", ["a", "b"], 1)
    (root / "empty").mkdir()
    (root / "nothing/train/a").mkdir(parents=True)
    draw(root / "extra-test/train", ["a", "b"])
    draw(root / "extra-test/test", ["a", "b", "only here"])
    draw(root / "test-only/test", ["a", "b"])
    (root / "text.txt").write_text("just text\n")
    (root / "fake.zip").write_bytes(b"no zip at all")
    with zipfile.ZipFile(root / "whole.zip", "w") as archive:
        archive.write(root / "one/alone/00.png", "a/00.png")
        archive.write(root / "one/alone/01.png", "b/01.png")
    whole = (root / "whole.zip").read_bytes()
    (root / "cut.zip").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (32, 32)).save(root / "photo.jpg")
    made = call("train", root / "data", *QUICK, "--out", root / "run")
    assert made.code == 0, made.err
    return root


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


# --- what is refused before anything is written -----------------------------------------------


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("absent", "absent: no such folder or file"),
        ("empty", "empty: no images in class folders"),
        ("nothing", "nothing: no images"),
        ("one", "'alone'"),
        ("single", "single: too few images"),
        ("extra-test", "'only here'"),
        ("test-only", "no train folder"),
        ("text.txt", "text.txt: neither a folder nor a zip"),
        ("fake.zip", "fake.zip: neither a folder nor a zip"),
        ("cut.zip", "cut.zip"),
        ("photo.jpg", "photo.jpg: neither"),
    ],
)
def test_data_that_is_none(here: Path, data: str, named: str) -> None:
    before = listing(here)
    assert_refused(call("train", data, *QUICK), named)
    assert_refused(call("train", data, *QUICK, "--out", "made"), named)
    assert listing(here) == before


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--precision=fp16"], ["precision = fp16", "'bf16'"]),
        (["--model=resnet22"], ["resnet22", "Did you mean 'resnet", "skipway models"]),
        (["--model=resnet_18"], ["Did you mean 'resnet18'?"]),
        (["--recipe=moderm"], ["moderm", "Did you mean 'modern'?", "he2015-cifar"]),
        (["--set=optim.lrr=1"], ["optim.lrr", "Did you mean 'optim.lr'?"]),
        (["--set=batchsize=1"], ["batchsize", "Did you mean 'batch_size'?"]),
        (["--set=optim=3"], ["'optim'", "Keys of optim: kind, lr"]),
        (["--set=seed=1", "--set=seed=2"], ["--set seed: given twice"]),
        (["--set=novalue"], ["novalue", "key=value"]),
        (["--set==3"], ["--set"]),
        (["--set=data_path=x"], ["data_path"]),
        (
            ["--set=model.architecture.widht=2"],
            ["widht", "Did you mean 'model.architecture.width'?"],
        ),
        (["--set=model.architecture.foo=2"], ["'model.architecture.foo'", "block, depths"]),
        (["--set=model.architecture.widths=deep"], ["widths", "whole numbers"]),
        (["--set=model.architecture.shortcut=Q"], ["shortcut", "A-split"]),
        (["--set=model.architecture.num_classes=7"], ["num_classes", "from the data"]),
        (["--set=optim.lr="], ["optim.lr"]),
        (["--set=schedule.warmup=soon"], ["schedule.warmup", "'soon'", "5 epochs"]),
        (["--set=task=dream"], ["task", "dream", "classify"]),
        (["--set=schedule.warmup=200%"], ["schedule.warmup = 200%: longer than the run", "100 %"]),
        (["--set=schedule.warmup=3 epochs"], ["schedule.warmup = 3 epochs: longer", "has 1"]),
        (["--set=schedule.warmup=9 steps"], ["schedule.warmup = 9 steps: longer", "--epochs"]),
        (["--epochs=0"], ["--epochs 0: give a number above 0"]),
        (["--epochs=-2"], ["--epochs -2: give a number above 0"]),
        (["--epochs=nan"], ["--epochs nan: give a number above 0"]),
        (["--epochs=inf"], ["--epochs inf: give a number above 0"]),
        (["--epochs=abc"], ["--epochs"]),
        (["--val=2"], ["--val 2", "between 0 and 1"]),
        (["--val=0"], ["--val 0", "none"]),
        (["--val=-1"], ["--val -1"]),
        (["--val=some"], ["data.val", "some"]),
        (["--lr=-1"], ["optim.lr", "-1"]),
        (["--lr=0"], ["optim.lr"]),
        (["--lr=nan"], ["optim.lr", "nan"]),
        (["--lr=fast"], ["--lr"]),
        (["--batch-size=0"], ["batch_size"]),
        (["--batch-size=1.5"], ["--batch-size"]),
        (["--seed=-1"], ["seed"]),
        (["--seed=99999999999999999999999"], ["seed"]),
        (["--device=gpu"], ["device = gpu: give cpu, cuda or cuda:N"]),
        (["--recipe=detect"], ["--recipe detect: is for --task detect"]),
        (["--recipe=segment"], ["--recipe segment: is for --task segment"]),
        (["--recipe=embed"], ["--recipe embed: is for --task embed"]),
        (["--threads=0"], ["--threads"]),
        (["--workers=-1"], ["workers"]),
        (["--precision=fp8"], ["precision", "fp8", "bf16"]),
        (["--on-bad=cry"], ["on_bad", "cry", "skip"]),
        (["--set=data.size=2"], ["data.size"]),
        (["--freeze=1"], ["--freeze", "--weights"]),
        (["--freeze=9"], ["freeze = 9: give 1 to 6, or all"]),
        (["--weights=absent.pt"], ["absent.pt"]),
        (["--weights=photo.jpg"], ["photo.jpg: not a weight file"]),
        (["--weights=empty"], ["empty"]),
        (["--weights=run/best.safetensors", "--model=resnet18"], ["best.safetensors", "conv1"]),
        (["--out="], ["--out is empty"]),
        (["--out=text.txt"], ["text.txt"]),
        (["--out=run"], ["run: exists and is not empty"]),
        (["--out=text.txt/run"], ["text.txt/run"]),
        (["--resume=run"], ["resume"]),
    ],
)
def test_settings_that_cannot_be(here: Path, flags: list[str], named: list[str]) -> None:
    before = listing(here)
    assert_refused(call("train", "data", *QUICK, *flags), *named)
    assert listing(here) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_gpu_that_is_not_there(here: Path, device: str) -> None:
    found = call("train", "data", *QUICK, "--device", device)
    assert_refused(found, f"--device {device}", "cpu")
    assert len(found.err.splitlines()) == 1


def test_a_place_that_cannot_be_written(here: Path) -> None:
    # The administrator may write everywhere but here.
    if not Path("/proc/self").exists():
        pytest.skip("no /proc")
    assert_refused(call("train", "data", *QUICK, "--out", "/proc/self/run"), "--out", "/proc/self")


def test_one_image_a_step_that_batch_norm_cannot_use(here: Path) -> None:
    """At 32 px the last stage of an ImageNet network is one pixel."""
    before = listing(here)
    flags = ["--model=resnet18", "--epochs=1", "--threads=1", "--set=data.size=32"]
    assert_refused(call("train", "data", *flags, "--batch-size=1"), "batch_size", "2 or more")
    assert listing(here) == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["eval", "run", "absent"], ["absent: no such"]),
        (["eval", "run", "empty"], ["empty: no images"]),
        (["eval", "run", "text.txt"], ["text.txt"]),
        (["eval", "absent", "data"], ["absent: no such file or run"]),
        (["eval", "empty", "data"], ["empty: not a run"]),
        (["eval", "data", "data"], ["data: not a run"]),
        (["eval", "photo.jpg", "data"], ["photo.jpg: not a weight file"]),
        (["eval", "text.txt", "data"], ["text.txt: not a weight file"]),
        (["eval", "whole.zip", "data"], ["whole.zip: not a weight file"]),
        (["eval", "run/card.json", "data"], ["card.json: not a weight file"]),
        (["eval", "run", "other"], ["'cat'", "'blue'"]),
        (["eval", "run", "data", "--split", "dev"], ["--split dev", "test", "train"]),
        (["eval", "run", "data", "--threads", "0"], ["--threads"]),
        (["eval", "run"], ["DATA"]),
        (["eval"], ["MODEL"]),
        (["predict", "run"], ["IMAGES"]),
        (["predict", "absent", "photo.jpg"], ["absent"]),
        (["predict", "run", "empty"], ["empty: no images"]),
        (["predict", "run", "absent.png"], ["absent.png"]),
        (["predict", "run", "text.txt"], ["text.txt: not an image"]),
        (["predict", "run", "photo.jpg", "--top", "0"], ["--top"]),
        (["predict", "run", "photo.jpg", "--precision", "fp16"], ["--precision", "'fp16' is not"]),
        (["train"], ["DATA"]),
        (["train", "--resume", "empty"], ["empty: not a run"]),
        (["train", "--resume", "absent"], ["absent: not a run"]),
        (["train", "--resume", "text.txt"], ["text.txt"]),
    ],
)
def test_arguments_that_are_not_what_they_should(
    here: Path, arguments: list[str], named: list[str]
) -> None:
    before = listing(here)
    assert_refused(call(*arguments), *named)
    assert listing(here) == before


def test_a_run_whose_record_is_damaged_is_not_resumed(here: Path, tmp_path: Path) -> None:
    for name, text in (("cut", '{"version": 1, "status"'), ("deep", "[" * 100_000)):
        run = tmp_path / name
        run.mkdir()
        (run / "run.json").write_text(text)
        assert_refused(call("train", "--resume", run), f"{run}/run.json")


def test_folders_in_folders(here: Path, tmp_path: Path) -> None:
    """Only the first name under a split is the class, however deep the image lies."""
    root = tmp_path / "deep"
    for name in ("a", "b"):
        place = root / "train" / name
        for i in range(60):
            place /= f"{i:02}"
        draw(place, ["inner"])
    assert call("train", root, *QUICK, "--out", tmp_path / "run").code == 0
    found = json.loads((tmp_path / "run/run.json").read_text())
    assert found["data"]["classes"] == ["a", "b"]


# --- damaged images ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("damaged")
    draw(root / "train", ["a", "b"], 12)
    draw(root / "test", ["a", "b"], 6, seed=1)
    cut = root / "train/a/03.png"
    cut.write_bytes(cut.read_bytes()[:300])
    (root / "train/b/04.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"junk" * 20)
    (root / "test/b/01.png").write_bytes(b"")
    return root


@pytest.mark.parametrize("resident", ["true", "false"])
def test_damaged_images_stop_the_run_unless_skipped(
    damaged: Path, tmp_path: Path, resident: str
) -> None:
    flags = [*QUICK, f"--set=data.resident={resident}", "--out", tmp_path / "run"]
    found = call("train", damaged, *flags)
    assert_refused(found, "train/a/03.png: truncated", "also damaged: ", "--on-bad skip")
    assert listing(tmp_path) == set()

    found = call("train", damaged, *flags, "--on-bad", "skip", "--json")
    assert found.code == 0, found.err
    assert "3 damaged images left out" in found.err
    record = json.loads((tmp_path / "run/run.json").read_text())
    skipped = record["data"]["skipped"]
    assert {s["name"] for s in skipped} == {"train/a/03.png", "train/b/04.png", "test/b/01.png"}
    assert all(s["name"] in s["reason"] for s in skipped)
    assert record["data"]["splits"]["test"]["counts"] == {"a": 6, "b": 5}
    used = sum(record["data"]["splits"][name]["n"] for name in ("train", "val"))
    assert used == 22


def test_eval_and_predict_name_a_damaged_image(damaged: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert call("train", damaged, *QUICK, "--on-bad=skip", "--out", run).code == 0
    assert_refused(call("eval", run, damaged, "--on-bad=error"), "test/b/01.png")
    left_out = call("eval", run, damaged, "--json")  # as in training
    result = json.loads((run / "run.json").read_text("utf-8"))["result"]
    assert json.loads(left_out.out)["n"] == result["n"]
    assert "skipped: test/b/01.png" in left_out.err
    bad = [damaged / "test/b/01.png", damaged / "train/a/03.png"]
    found = call("predict", run, *bad)
    assert (found.code, found.out) == (2, "")
    assert [str(path) in line for path, line in zip(bad, found.error, strict=True)] == [True, True]


def test_a_class_without_one_sound_image(tmp_path: Path) -> None:
    root = draw(tmp_path / "data/train", ["a", "b"]).parent
    for path in (root / "train/b").iterdir():
        path.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    found = call("train", root, *QUICK, "--on-bad=skip", "--out", tmp_path / "run")
    assert_refused(found, "'b'")
    assert not (tmp_path / "run").exists()


def test_a_member_of_a_zip_that_is_damaged(tmp_path: Path) -> None:
    root = draw(tmp_path / "data", ["a", "b"], 12)
    archive = Path(shutil.make_archive(str(tmp_path / "data"), "zip", root))
    with zipfile.ZipFile(archive) as opened:
        info = opened.getinfo("a/05.png")
    whole = bytearray(archive.read_bytes())
    begin = info.header_offset + 60
    whole[begin : begin + 40] = bytes(40)
    archive.write_bytes(whole)
    found = call("train", archive, *QUICK, "--out", tmp_path / "run")
    assert_refused(found, "a/05.png", "--on-bad skip")
    assert not (tmp_path / "run").exists()


def test_a_run_whose_record_is_cut_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "running", "con')
    found = call("train", "--resume", tmp_path)
    assert_refused(found, f"{tmp_path}/run.json: not valid JSON", "train anew")


# --- weights ----------------------------------------------------------------------------------


class Evil:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("form", ["torch", "plain"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_pickle_that_runs_code(here: Path, tmp_path: Path, form: str, suffix: str) -> None:
    mark, evil = tmp_path / "ran", tmp_path / f"evil.{suffix}"
    if form == "torch":
        torch.save({"state_dict": Evil(mark)}, evil)
    else:
        evil.write_bytes(pickle.dumps(Evil(mark), protocol=2))
    for arguments in (
        ["train", "data", *QUICK, "--out", tmp_path / "run", "--weights", evil],
        ["eval", evil, "data"],
        ["predict", evil, "photo.jpg"],
    ):
        assert_refused(call(*arguments), str(evil), "code", "mkdir")
    assert listing(tmp_path) == {evil.name}
    pickle.loads(pickle.dumps(Evil(mark)))  # it would have
    assert mark.exists()


def test_weights_of_other_classes_are_adapted_and_it_is_said(here: Path, tmp_path: Path) -> None:
    flags = ["--epochs=1", "--threads=1", "--workers=0", "--weights=run/best.safetensors"]
    found = call("train", "other", *flags, "--out", tmp_path / "run")
    assert found.code == 0, found.err
    assert re.search(r"made anew: fc\.weight, fc\.bias \(the file has 3 classes.* 4\)", found.err)
    card = json.loads((tmp_path / "run/card.json").read_text())
    assert card["classes"] == ["cat", "dog", "eel", "fox"]
    assert card["architecture"]["num_classes"] == 4


# --- a full disk ------------------------------------------------------------------------------

FIRST_TWO = ["step-00000000", "step-00000003"]
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from skipway import cli
from skipway.training import checkpoint

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save = checkpoint.Writer.save

def save_then_fill(writer, step, state):
    save(writer, step, state)
    writer.wait()
    if step:
        limit = {limit}
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

checkpoint.Writer.save = save_then_fill
cli.main()
"""


@pytest.mark.parametrize(
    "limit",
    [pytest.param(100, marks=pytest.mark.slow), pytest.param(9000, marks=pytest.mark.slow), 30_000],
    ids=["all", "weights", "checkpoints"],
)
def test_a_full_disk_leaves_the_last_checkpoint(here: Path, tmp_path: Path, limit: int) -> None:
    """From the first epoch's checkpoint on no file can grow beyond the limit: a full disk."""
    run = tmp_path / "run"
    flags = [*QUICK[:-1], "--epochs=30", "--batch-size=8", "--out", run]
    script = FULL_DISK.format(limit=limit)
    done = subprocess.run(
        [sys.executable, "-c", script, "train", "data", *map(str, flags)],
        capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    )  # fmt: skip
    assert_refused(Answer(done.returncode, done.stdout, done.stderr), str(run), "File too large")
    assert [p.name for p in checkpoint.saved(run / "checkpoints")] == FIRST_TWO
    assert not [name for name in listing(run) if Path(name).name.startswith((".", "tmp"))]
    assert not [name for name in listing(run) if name.endswith((".part", ".tmp"))]
    json.loads((run / "run.json").read_text())
    # The disk has room again.
    found = call("train", "--resume", run, "--json")
    assert found.code == 0, found.err
    assert "going on at step 3" in found.err
    table = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in table] == list(range(1, 31))


# --- numbers that are none --------------------------------------------------------------------


def test_a_loss_that_is_no_number(here: Path, tmp_path: Path) -> None:
    """The rate is sound for one epoch and then is not: the first epoch's checkpoint stays."""
    run = tmp_path / "run"
    flags = [*QUICK[:-1], "--epochs=4", "--batch-size=8", "--precision=float32", "--out", run]
    wild = ["--set=schedule.kind=constant", "--lr=1e30", "--set=optim.momentum=0.0"]
    wild += ["--set=optim.nesterov=false", "--set=schedule.warmup=1 epochs"]
    found = call("train", "data", *flags, *wild, "--set=schedule.warmup_lr=0.01")
    assert_refused(found, "not finite" if "not finite" in found.err else "loss became", "--lr")
    assert [p.name for p in checkpoint.saved(run / "checkpoints")] == FIRST_TWO
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "failed"
    assert record["error"]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    state, _ = checkpoint.newest(run)
    assert all(t.isfinite().all() for t in state["loop"]["model"].values())
    assert call("eval", run, "data").code == 0  # of the sound epoch


def test_outputs_that_are_no_numbers(here: Path, tmp_path: Path) -> None:
    """One step so large that the weights are still numbers and the outputs are not."""
    found = call("train", "data", *QUICK, "--lr=1e30", "--json", "--out", tmp_path / "run")
    assert_refused(found, "not finite", "--lr")
    start = {"checkpoints", "checkpoints/step-00000000", "checkpoints/images.npz"}
    unscored = "checkpoints/step-00000001"
    assert listing(tmp_path / "run") == {"run.json", "samples.json", unscored} | start
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "failed"


# --- names that would play tricks -------------------------------------------------------------

MARKUP = ["[bold]a[/]", "<script>alert(1)</script>", "&amp; 'q\" x"]
CONTROL = ["esc\x1b[31m\x1b]0;title\x07", "new\nline\r", "bidi\u202eevil\u2066"]


class Page(HTMLParser):
    """What a browser would make of a page: the elements and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def tricks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], Answer, Path]:
    """Data whose folders and files have names of that kind, and a training with them."""
    names = [name.replace("/", "\u2215") for name in MARKUP] + CONTROL
    root = tmp_path_factory.mktemp("tricks")
    data = root / "da\x1b[7mta[red]<marquee>"
    draw(data / "train", names, 4)
    draw(data / "test", names, 2, seed=1)
    for name, odd in zip(
        names, (*CONTROL, "[", "<img src=x onerror=alert(1)>", "$(x)`"), strict=True
    ):
        folder = data / "test" / name
        (folder / odd).mkdir()
        (folder / "00.png").rename(folder / odd / "x].png")  # so that one is [/x].png
        (folder / "01.png").rename(folder / f"{odd}.png")
    (data / "train" / names[0] / "bad\x1b[2J<u>.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    run = root / "run\x1b[5m<marquee>"
    answer = call("train", data, *QUICK, "--on-bad", "skip", "--out", run)
    assert answer.code == 0, answer.err
    return data, names, answer, run


def assert_harmless(text: str) -> None:
    """Nothing in it moves the cursor, changes colours or turns the direction of text."""
    odd = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}
    assert not odd, text


def test_odd_names_in_a_terminal(tricks: tuple[Path, list[str], Answer, Path]) -> None:
    data, _, answer, run = tricks
    assert_harmless(answer.err)
    assert_harmless(answer.out)
    assert "da\\x1b[7mta[red]<marquee>" in answer.err  # shown, markup and all
    assert "bad\\x1b[2J<u>.png" in answer.err
    image = next((data / "test").rglob("*.png"))
    for arguments in (
        ["predict", run, image],
        ["predict", run, data / "test"],
        ["predict", run, data / "absent\x1b[1m.png"],
        ["eval", run, data],
        ["eval", run, data, "--split", "\x1b[1m"],
        ["eval", data, data],
        ["eval", run, run],
        ["train", data, *QUICK],
        ["train", data, *QUICK, "--out", run],
        ["train", data, *QUICK, "--model", "\x1b[1mresnet18"],
        ["train", data, *QUICK, "--weights", "\x1b[1m"],
        ["train", data, *QUICK, "--set", "\x1b[1m=3"],
        ["train", data, *QUICK, "--set", "model.architecture.\x1b[1m=3"],
        ["train", data, *QUICK, "--set", "model.architecture.stem=\x1b[1m"],
        ["train", data, *QUICK, "--device", "\x1b[1m"],
        ["\x1b[1mtrain"],
        ["train", "--\x1b[1m"],
    ):
        found = call(*arguments)
        assert found.code in (0, 2), found.err
        assert_harmless(found.out)
        assert_harmless(found.err)


def test_odd_names_are_exact_in_json(tricks: tuple[Path, list[str], Answer, Path]) -> None:
    data, names, _, run = tricks
    images = sorted(str(path) for path in (data / "test").rglob("*.png"))
    found = call("predict", run, *images, "--json", "--top", "6")
    assert found.code == 0
    value = json.loads(found.out)
    assert [answer["path"] for answer in value] == images
    assert {score["label"] for score in value[0]["predictions"]} == set(names)
    assert_harmless(found.out)  # JSON's own escapes
    assert json.loads((run / "card.json").read_text())["classes"] == sorted(names)
    record = json.loads((run / "run.json").read_text())
    assert record["data"]["path"] == str(data)
    assert set(record["data"]["classes"]) == set(names)


def test_odd_names_in_the_report(tricks: tuple[Path, list[str], Answer, Path]) -> None:
    _, _, _, run = tricks
    text = (run / "report.html").read_text("utf-8")
    assert_harmless(text)
    page = Page(text)
    assert not {"script", "marquee", "u"} & set(page.elements)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    sources = [value for name, value in page.attributes if name == "src"]
    assert sources  # the mistakes
    assert all(value and value.startswith("data:image/png;base64,") for value in sources)
    assert "<script>alert(1)" in page.text
    assert "onerror=alert(1)" in page.text
    assert "<marquee>" in page.text
    assert "esc\\x1b[31m" in page.text


def test_bytes_that_are_no_text(here: Path, tmp_path: Path) -> None:
    """A file name in another encoding than the system's."""
    image = tmp_path / os.fsdecode(b"\xff\xfe.png")
    try:
        shutil.copy("photo.jpg", image)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    found = call("predict", "run", image)
    assert found.code == 0, found.err
    assert "\\udcff\\udcfe.png: " in found.out
    value = json.loads(call("predict", "run", image, "--json").out)
    assert value[0]["path"] == str(image)
