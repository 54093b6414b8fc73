"""The arithmetic of `architecture.count` against networks that are built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import QUICK, call, draw
from counting import counted
from skipway.architecture import ARCHITECTURES, Architecture, architecture, count, name_of
from skipway.card import read_card
from skipway.errors import InputError


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_row_is_counted_as_built(name: str) -> None:
    assert count(ARCHITECTURES[name]) == counted(ARCHITECTURES[name])


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "block": st.sampled_from(["basic", "bottleneck"]),
    "depths": st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple),
    "widths": st.lists(st.integers(1, 9), min_size=4, max_size=4).map(sorted).map(tuple),
    "stem": st.sampled_from(["imagenet", "deep", "cifar"]),
    "stem_width": st.integers(1, 9),
    "shortcut": st.sampled_from(["A", "A-split", "B", "C", "D", "none"]),
    "stride_in": st.sampled_from(["3x3", "1x1"]),
    "order": st.sampled_from(["post", "pre"]),
    "norm": st.sampled_from(["batch", "none"]),
    "width": st.sampled_from([0.3, 1.0, 1.7]),
    "groups": st.integers(1, 3),
    "base_width": st.sampled_from([4, 64, 100]),
    "squeeze": st.integers(0, 5),
    "antialias": st.booleans(),
    "in_channels": st.sampled_from([1, 3, 4]),
    "num_classes": st.integers(1, 12),
    "input_size": st.integers(33, 70),
}


@settings(max_examples=60)
@given(fields=st.fixed_dictionaries(FIELDS))
def test_any_fields_are_counted_as_built(fields: dict[str, Any]) -> None:
    if fields["block"] == "basic":
        fields |= {"groups": 1, "base_width": 64, "stride_in": "3x3"}
    if fields["shortcut"] in ("A", "A-split"):
        fields["stem_width"] = min(fields["stem_width"], fields["widths"][0])
    arch = Architecture(**fields)
    assert count(arch) == counted(arch)


@pytest.mark.parametrize("field", ["drop_path", "dropout", "block_dropout"])
@pytest.mark.parametrize("rate", [-0.1, 1, "0.2", None])
def test_a_rate_is_a_number_from_0_to_below_1(field: str, rate: Any) -> None:
    with pytest.raises(InputError, match=f"{field}: .* is not a number in"):
        architecture("resnet20", **{field: rate})


def test_a_row_is_known_by_whatever_side_its_shortcuts_pad_on() -> None:
    assert name_of(architecture("resnet20", shortcut="A-split", num_classes=3)) == "resnet20"
    assert name_of(architecture("resnet20", shortcut="B")) == "custom"


def test_a_net_without_norms_is_trained_used_and_exported(tmp_path: Path) -> None:
    fields = ("norm=none", "init=xavier", "order=pre")
    settings = [f"--set=model.architecture.{field}" for field in fields]
    run, image = tmp_path / "run", draw(tmp_path / "data", ["red"], 1) / "red/00.png"
    made = call("train", "digits", "--out", run, *QUICK, *settings)
    assert made.code == 0, made.err
    card = read_card(run / "best.safetensors")
    assert card is not None
    arch = card.architecture
    assert (arch.norm, arch.init, arch.order) == ("none", "xavier", "pre")
    exported = call("export", run, "--on", image, "--threads", "1", "--json").value
    scores = []
    for model in (run, exported["file"]):
        found = call("predict", model, image, "--json", "--threads", "1").value[0]
        scores.append({p["label"]: p["score"] for p in found["predictions"]})
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
