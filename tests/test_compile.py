"""A compiled network trains as the network does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from commands import SMALL, call, draw
from skipway.weights import load_model


@pytest.mark.slow
def test_compiled_steps_are_the_same_steps(tmp_path: Path) -> None:
    draw(tmp_path / "data", ["a", "b"], n=40)
    flags = [*SMALL, "--epochs=2", "--batch-size=12", "--precision=float32"]
    torch._dynamo.utils.counters.clear()
    nets = []
    for name in ("true", "false"):
        out = tmp_path / name
        answer = call("train", tmp_path / "data", *flags, f"--set=compile={name}", "--out", out)
        assert answer.code == 0, answer.err
        nets.append(load_model(out / "last.safetensors")[0])
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
        assert json.loads((out / "run.json").read_text())["status"] == "finished"
    for one, other in zip(*(net.state_dict().values() for net in nets), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "said"), [(["--set=compile=true"], "is not there"), (["--set=compile=2"], "compile")]
)
def test_without_a_compiler(
    flags: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "data", ["a", "b"])
    monkeypatch.setenv("CXX", "no-such-compiler")
    answer = call("train", tmp_path / "data", *SMALL, *flags, "--out", tmp_path / "r")
    assert answer.code == 2
    assert said in answer.error[0]
    assert not (tmp_path / "r").exists()
