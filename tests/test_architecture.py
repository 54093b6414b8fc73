"""The arithmetic of `architecture.count` against networks that are built."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counting import counted
from skipway.architecture import ARCHITECTURES, Architecture, architecture, count, name_of
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
    "width": st.sampled_from([0.3, 1.0, 1.7]),
    "groups": st.integers(1, 3),
    "base_width": st.sampled_from([4, 64, 100]),
    "squeeze": st.integers(0, 5),
    "antialias": st.booleans(),
    "in_channels": st.sampled_from([1, 3, 4]),
    "num_classes": st.integers(1, 12),
    "input_size": st.integers(33, 70),
}


@settings(max_examples=60, deadline=None)
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
