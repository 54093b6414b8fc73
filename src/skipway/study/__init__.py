"""The papers' claims, each run at a chosen budget and shown beside what was obtained.

A study is a module of this package with the names of `form.Study`. Nothing but the command line
imports them; they train by the door that everyone uses.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import cast

from skipway.study import bfloat16, block_xray, degradation, gradient_flow, he2015_cifar, tables
from skipway.study.form import Study

__all__ = ["STUDIES"]

STUDIES = MappingProxyType(
    {
        module.NAME: cast("Study", module)
        for module in (gradient_flow, degradation, he2015_cifar, bfloat16, block_xray, tables)
    }
)
"""By name, in the order in which they tell the story."""
